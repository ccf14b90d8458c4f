"""A comparison of a trained policy with the one in force: only if it is better does it take its place.

Training can spoil a policy, and its own reward does not tell: it is of other tasks in every iteration. So both meet
the same rehearsals, whose seeds no training draws, at all clients that take part. The later records that judge them are
those that the training was rewarded on, which favours the trained policy; so it must be ahead by more than a standard
error of the paired difference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from frmu.clients.tasks.comparison import CompareSelections
from frmu.federation import in_order
from frmu.policy.env import EnvContext
from frmu.selection.network import Network
from frmu.types import Float

__all__ = ["REHEARSALS", "Comparison", "compare"]

REHEARSALS = 120  # over all clients, and at least one each
HELD_OUT = 2**31  # training draws its seeds below


@dataclass(frozen=True, slots=True)
class Comparison:
    """The share by which each policy lowers the later RMSE, mean over rehearsals; the paired difference, its error."""

    rehearsals: int
    in_force: float
    trained: float
    difference: float
    error: float

    @property
    def better(self) -> bool:
        """Return whether the trained policy is ahead by more than chance."""
        return self.difference > self.error


def compare(context: EnvContext, in_force: Network, trained: Network, max_slices: int) -> Comparison:
    """Judge both on the same rehearsals."""
    each = math.ceil(REHEARSALS / len(context.clients))
    seeds = tuple(HELD_OUT + number for number in range(each))
    policies = {"in force": in_force, "trained": trained}
    work = CompareSelections(policies, seeds, context.outputs, context.total, max_slices)
    replies = in_order(context.federation.run(work, on=context.clients))
    before, after = (_all([reply.record["gains"][name] for reply in replies]) for name in ("in force", "trained"))
    change = after - before
    error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else math.inf
    return Comparison(len(change), float(before.mean()), float(after.mean()), float(change.mean()), error)


def _all(gains: list[list[float]]) -> Float:
    return np.concatenate([np.asarray(of, dtype=np.float64) for of in gains])
