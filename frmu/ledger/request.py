"""An erase request: what is to go, who asks, why, and by when."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass
from typing import Literal

from frmu.types import Selection

__all__ = ["OPEN", "EraseRequest", "Stage"]

Stage = Literal["received", "planned", "purged", "refitted", "verified", "closed", "withdrawn"]
OPEN: tuple[Stage, ...] = ("received", "planned", "purged", "refitted", "verified")


@dataclass(frozen=True, slots=True)
class EraseRequest:
    """A request as it stands in the ledger; times are UTC.

    `selection` is None once the request is withdrawn, or closed with every client searched: what was meant is
    forgotten then. `reason` and
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
        """Days to the deadline, begun ones counted; negative after it."""
        days = (self.due - now).total_seconds() / 86400
        return math.ceil(days) if days >= 0 else math.floor(days)
