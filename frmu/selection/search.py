"""Search on validation, and what it costs: every refit is entered in one account.

The unit is the refit, one factorisation of the (d, d) sums; what follows from it by back substitution is not
counted, but the seconds are. These are the rivals that a learned policy has to beat, and the starting points that it
refines: by itself, search fits the validation records ever better and later records not.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from frmu.selection.observation import Fit, change, fit, slopes
from frmu.selection.problem import SelectionProblem
from frmu.types import Float

__all__ = ["Budget", "RefitCounter", "ascend", "greedy", "leave_one_out"]


@dataclass(frozen=True, slots=True)
class Budget:
    """The budget of one task: refits, seconds, or either, whichever ends first.

    A limit in seconds makes the outcome depend on the machine, so it is for measurements, never for a state.
    """

    refits: int | None = None
    seconds: float | None = None


class RefitCounter:
    """The refits and seconds of one task, against its budget."""

    def __init__(self, task: SelectionProblem, budget: Budget, clock: Callable[[], float] = time.perf_counter) -> None:
        self.task = task
        self.refits = 0
        self._budget = budget
        self._clock = clock
        self._began = clock()

    @property
    def seconds(self) -> float:
        """Time since the account was opened."""
        return self._clock() - self._began

    def affords(self, refits: int = 1) -> bool:
        """Return whether so many more refits are within the budget."""
        limit = self._budget
        within = limit.refits is None or self.refits + refits <= limit.refits
        return within and (limit.seconds is None or self.seconds < limit.seconds)

    def fit(self, influence: Float) -> Fit:
        """Refit under influences (K,), and count it."""
        self.refits += 1
        return fit(self.task, influence)

    def change(self, here: Fit, s: int, to: float) -> Fit:
        """Refit with one influence changed, and count it."""
        self.refits += 1
        return change(here, s, to)


def ascend(account: RefitCounter, start: Fit, steps: int, rate: float | None = None) -> Fit:
    """Projected gradient steps on the log of the validation loss over influences in [0, 1]; the best fit met.

    Each costs one refit, whatever the number of slices. (Adam: Kingma and Ba, ICLR 2015.)
    """
    rate = 2.4 / steps if rate is None else rate
    best = here = start
    first = second = np.zeros(len(account.task))
    for step in range(1, steps):
        if not account.affords():
            break
        slope = slopes(account.task, here, account.task.validation)
        stuck = ((here.influence <= 0.0) & (slope > 0.0)) | ((here.influence >= 1.0) & (slope < 0.0))
        slope = np.where(stuck, 0.0, slope)
        first, second = 0.8 * first + 0.2 * slope, 0.95 * second + 0.05 * slope * slope
        move = first / (1.0 - 0.8**step) / (np.sqrt(second / (1.0 - 0.95**step)) + 1e-7)
        here = account.fit(np.clip(here.influence - rate * move, 0.0, 1.0))
        best = here if here.loss < best.loss else best
    return best


def greedy(account: RefitCounter, start: Fit, rounds: int) -> Fit:
    """The best flip of one slice on validation, round by round, until none helps: K refits a round."""
    here = start
    for _ in range(rounds):
        best = here
        for s in range(len(account.task)):
            if not account.affords():
                break
            found = account.change(here, s, 0.0 if here.influence[s] else 1.0)
            best = found if found.loss < best.loss else best
        if best is here:
            break
        here = best
    return here


def leave_one_out(account: RefitCounter, start: Fit, margin: float = 0.0) -> Float:
    """Forget every slice without which the validation loss is lower, each on its own, (K,): K refits."""
    influence = start.influence.copy()
    for s in range(len(account.task)):
        if not account.affords():
            break
        influence[s] = 0.0 if account.change(start, s, 0.0).loss < (1.0 - margin) * start.loss else start.influence[s]
    return influence
