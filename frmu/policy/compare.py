"""A comparison of a trained policy with the one in force: only if it is better does it take its place.

Training can spoil a policy, and its own reward does not tell: it is of other tasks in every iteration. So both meet
the same rehearsals, whose seeds no training draws, at all clients that take part. The trained policy must be ahead by
more than noise gives in one case of twenty (`policy.significance`): Student's one-sided t of the paired differences.
The later records that judge are those that the training was rewarded on, so it says nothing of the time after them.
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
    """The share by which each policy lowers the later RMSE, mean over rehearsals; the paired difference, its error.

    `chance` is that of as great a lead from noise alone.
    """

    rehearsals: int
    in_force: float
    trained: float
    difference: float
    error: float
    chance: float

    @classmethod
    def of(cls, before: Float, after: Float) -> Comparison:
        """Compare the gains of both policies on the same rehearsals, (rehearsals,) each.

        >>> Comparison.of(np.array([0.1, 0.2, 0.3]), np.array([0.2, 0.31, 0.39])).chance < 0.01
        True
        """
        change = after - before
        error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else math.inf
        difference = float(change.mean())
        return cls(len(change), float(before.mean()), float(after.mean()), difference, error, _chance(change, error))

    def better(self, significance: float) -> bool:
        """Return whether the trained policy is ahead by more than noise gives with a chance of `significance`."""
        return self.difference > 0.0 and self.chance <= significance


def compare(
    context: EnvContext, in_force: Network, trained: Network, max_slices: int, judged: str = "later"
) -> Comparison:
    """Judge both on the same rehearsals, by the records of a split."""
    each = math.ceil(REHEARSALS / len(context.clients))
    seeds = tuple(HELD_OUT + number for number in range(each))
    policies = {"in force": in_force, "trained": trained}
    work = CompareSelections(policies, seeds, context.outputs, context.total, max_slices, judged)
    replies = in_order(context.federation.run(work, on=context.clients))
    before, after = (_all([reply.record["gains"][name] for reply in replies]) for name in ("in force", "trained"))
    return Comparison.of(before, after)


def _chance(change: Float, error: float) -> float:
    """The probability that noise alone gives as great a mean of paired differences."""
    from scipy.special import stdtr

    if error in (0.0, math.inf):  # all alike, or one alone
        return 0.0 if error == 0.0 and change.mean() > 0.0 else 1.0
    return float(1.0 - stdtr(len(change) - 1, change.mean() / error))


def _all(gains: list[list[float]]) -> Float:
    return np.concatenate([np.asarray(of, dtype=np.float64) for of in gains])
