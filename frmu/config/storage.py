"""[erasure] and [store]: when requests are due, and where everything is kept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field

from frmu.config.table import Table

__all__ = ["Erasure", "Store"]


class Erasure(Table):
    """`[erasure]`: how requests are honoured.

    A drain waits until `min_batch` requests hold something, for the difference of two states shows what was erased
    between them; it does not wait where one is due within `urgent` days. `runs` says what becomes of MLflow runs that
    were computed with erased records: "strip" removes their artifacts and models, "delete" removes them whole.
    """

    due: int = Field(default=30, ge=0, le=36500)
    min_batch: int = Field(default=1, ge=1)
    urgent: int = Field(default=3, ge=0)
    runs: Literal["strip", "delete"] = "strip"


class Store(Table):
    """`[store]`: where frmu keeps its own shards, checkpoints, ledger and runs.

    `witness` keeps the ledger's last line outside the folder: only what stands there can tell that a folder was put
    back as a whole. It is one of three kinds: a file, on another disk or machine; "tracking", a tag of the experiment
    in the tracking store; or a database, `postgresql://USER@HOST/DATABASE` (the password stands where libpq looks for
    one) or `sqlite:///FILE`, which is not the ledger's own. A file that is called tracking is "./tracking". The last
    two know a federation by its key: keep `key` outside the folder, and a folder begun anew is noticed as well.
    """

    folder: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)
    witness: str | None = Field(default=None, min_length=1)
    purge_source: bool = False
    ledger: str | None = Field(default=None, min_length=1)
    tracking: str | None = Field(default=None, min_length=1)
    experiment: str | None = Field(default=None, min_length=1)

    @property
    def witness_place(self) -> tuple[Literal["file", "tracking", "database", "unknown"], Path | None]:
        """Return the kind of the witness, and the path of a database or tracking store that is one on this machine."""
        named = self.witness or ""
        if named == "tracking":
            return "tracking", _local(self.tracking or "")
        if "://" not in named:
            return "file", None
        if re.match(r"postgresql(\+\w+)?://", named):
            return "database", None
        path = _local(named) if re.match(r"sqlite(\+\w+)?://", named) else None
        return ("unknown", None) if path is None else ("database", path)


def _local(address: str) -> Path | None:
    """The path that an address means on this machine, None where it means none.

    >>> _local("sqlite:////srv/runs.db"), _local("https://runs.example"), _local("sqlite:///:memory:")
    (PosixPath('/srv/runs.db'), None, None)
    """
    if found := re.fullmatch(r"sqlite(\+\w+)?:///(?!:memory:|file:)([^?]+)(\?.*)?", address):
        return Path(found[2])
    if found := re.fullmatch(r"file:(//)?(/.*)", address):
        return Path(found[2])
    return Path(address) if address and not re.match(r"\w[\w+.-]*:", address) and address != "databricks" else None
