"""[erasure] and [store]: when requests are due, and where everything is kept."""

from __future__ import annotations

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

    `witness` is a file outside the folder, on another disk or machine, that keeps the ledger's last line: only what
    stands outside can tell that a folder was put back as a whole.
    """

    folder: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)
    witness: str | None = Field(default=None, min_length=1)
    purge_source: bool = False
    ledger: str | None = Field(default=None, min_length=1)
    tracking: str | None = Field(default=None, min_length=1)
    experiment: str | None = Field(default=None, min_length=1)
