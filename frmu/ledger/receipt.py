"""A receipt: what became of one request, and on what evidence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Receipt"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of one request.

    `level` is "L5" when the state's digest equals that of a federation that never had the records, else the
    highest level that holds ("L1" purged, "L0" located only). `removed` counts records by client; `searched`
    counts what was looked through; `evidence` holds digests and checks; `not_covered` says what lies outside.
    """

    request: str
    level: str
    verified: bool
    state_digest: str
    before_digest: str
    seconds: float
    bytes: int
    removed: Mapping[str, int]
    searched: Mapping[str, int]
    evidence: Mapping[str, Any]
    not_covered: tuple[str, ...]
    reason: str
    received: str
    due: str
    closed: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)
