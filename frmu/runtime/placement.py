"""Which clients share an actor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

__all__ = ["hosts_for"]

ALONE = 32  # up to so many clients "auto" gives each an actor of its own


def hosts_for(clients: Sequence[str], per_actor: int | Literal["auto"]) -> list[tuple[str, ...]]:
    """Groups of clients, in the order of their names, each to be hosted by one actor.

    >>> hosts_for(["a", "b", "c"], 2)
    [('a', 'b'), ('c',)]
    """
    number = max(1, math.ceil(len(clients) / ALONE)) if per_actor == "auto" else per_actor
    return [tuple(clients[at : at + number]) for at in range(0, len(clients), number)]
