"""An erase request: what is to go, why, and by when."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from frmu.types import Selection

__all__ = ["EraseRequest", "Stage"]

Stage = Literal["received", "planned", "purged", "refitted", "verified", "closed"]


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """A request as it stands in the ledger; times are UTC."""

    id: str
    selection: Selection
    reason: str
    received: dt.datetime
    due: dt.datetime
    stage: Stage

    def days_left(self, now: dt.datetime) -> int:
        """Whole days to the deadline; negative after it."""
        return (self.due - now).days
