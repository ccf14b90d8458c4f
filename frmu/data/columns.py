"""The names that columns have inside frmu, whatever the user calls them."""

from __future__ import annotations

from frmu.config import Config

__all__ = ["CLIENT", "FILE", "PRIVATE", "RECORD", "ROW", "SLICE", "SUBJECT", "TARGET", "TIME", "stored_targets"]


RECORD, CLIENT, SUBJECT, TIME, TARGET, SLICE = "#record", "#client", "#subject", "#time", "#target", "#slice"


PRIVATE = "#private"


ROW, FILE = "#row", "#file"


def stored_targets(config: Config) -> dict[str, str]:
    """Return the columns that targets have inside, by their own names: one is `TARGET`, of several each has its own."""
    names = config.data.targets
    return {name: TARGET if len(names) == 1 else f"{TARGET} {name}" for name in names}
