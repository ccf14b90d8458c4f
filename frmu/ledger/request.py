"""An erase request: what is to go, who asks, why, and by when."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal

from frmu.types import Selection

__all__ = ["OPEN", "EraseRequest", "Stage"]

Stage = Literal["received", "planned", "purged", "refitted", "verified", "closed", "withdrawn"]
OPEN: tuple[Stage, ...] = ("received", "planned", "purged", "refitted", "verified")


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """A request as it stands in the ledger; times are UTC.

    `selection` is None once the request is closed or withdrawn: what was meant is forgotten then. `reason` and
    `requester` are empty after the request's key was shredded.
    """

    id: str
    kind: str
    selection: Selection | None
    reason: str
    requester: str
    received: dt.datetime
    due: dt.datetime
    stage: Stage

    def days_left(self, now: dt.datetime) -> int:
        """Whole days to the deadline; negative after it."""
        return (self.due - now).days
