"""What a method is: `init`, `apply` one round, `erase` one step. All memory is in the state they pass on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from frmu.federation import Federation
from frmu.selection.network import Network
from frmu.types import Float, State

__all__ = ["Method", "Round"]


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gives: the state, and what is told of it but steers nothing.

    `keep` is the head (d, outputs) if nothing were forgotten; `scores` the attention scores of clients;
    `records` what each client said; `fitted` who computed in this round; `refits` how many solves the choice of
    influences took.
    """

    state: State
    keep: Float = field(repr=False)
    scores: Mapping[str, float]
    records: Mapping[str, Mapping[str, Any]]
    fitted: tuple[str, ...]
    refits: int


@dataclass(frozen=True, slots=True)
class Method:
    """A named record of functions over a federation.

    `init()` is the state that knows nothing. `apply(federation, state, policy)` is one round over the records
    as they stand. `erase(federation, state, policy, clients)` follows a purge at some clients.
    """

    name: str
    exact: bool
    init: Callable[[], State]
    apply: Callable[[Federation, State, Network | None], Round]
    erase: Callable[[Federation, State, Network | None, tuple[str, ...]], Round]
