"""A method: `init`, `apply` one round, `prepare` and `erase`. All memory is in the state that they pass on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from frmu.federation import Federation
from frmu.selection.network import Network
from frmu.types import Float, State

__all__ = ["Guarantee", "Method", "Round", "nothing_kept"]

Guarantee = Literal["exact", "none"]


@dataclass(frozen=True, slots=True)
class Round:
    """The outcome of one round: the state, and what is told of it but steers nothing.

    `keep` is the head (d, outputs) if nothing were forgotten, None where the model has no head; `scores` the attention
    scores of clients; `records` what each client said; `fitted` who computed in this round; `refits` how many solves
    the choice of influences took. `history` are figures by name of each round of a training that has many, in their
    order, `took_part` the rounds of each client as bits of a number in hexadecimal digits, `begun` how many had been
    done before, by a checkpoint.
    """

    state: State
    keep: Float | None = field(repr=False)
    scores: Mapping[str, float]
    records: Mapping[str, Mapping[str, Any]]
    fitted: tuple[str, ...]
    refits: int
    history: tuple[Mapping[str, float], ...] = ()
    took_part: Mapping[str, str] = field(default_factory=dict)
    begun: int = 0


@dataclass(frozen=True, slots=True)
class Method:
    """A named record of functions over a federation.

    `init()` is the state that knows nothing. `apply(federation, state, policy)` is one round over the records
    as they stand. `prepare(federation, state, forget_set)` runs before a purge, while the records are still there -
    `forget_set` holds their tombstones by client - and what it gives is handed to
    `erase(federation, state, policy, clients, kept)`, which follows the purge at some clients. `guarantee` names the
    verifier that may close a request: "exact" is equality of digests with a federation rebuilt from what remains, and
    by "none" no request is closed.
    """

    name: str
    guarantee: Guarantee
    init: Callable[[], State]
    apply: Callable[[Federation, State, Network | None], Round]
    prepare: Callable[[Federation, State, Mapping[str, frozenset[str]]], Any]
    erase: Callable[[Federation, State, Network | None, tuple[str, ...], Any], Round]


def nothing_kept(federation: Federation, state: State, forget_set: Mapping[str, frozenset[str]]) -> None:
    """Keep nothing of what will go: the `prepare` of a method that begins again from what remains."""
