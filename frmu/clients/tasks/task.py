"""A task that needs nothing prepared for several clients at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from frmu.clients.client import Client

__all__ = ["EachClient"]


@dataclass(frozen=True, slots=True)
class EachClient:
    """A work that needs no preparation for several clients at once."""

    def prepare(self, clients: Sequence[Client]) -> None:
        """Nothing to share."""
