"""The reward of influences on later records, and its exact slope by each of them.

A refit is differentiable, and its derivative by every influence costs one back substitution. So where the later
records are at hand, an action need not be tried against others to know which way was better: the reward's own
gradient is a critic without error. (Deterministic policy gradient: Silver et al., ICML 2014.)

A client computes both from its own shard; what leaves it is a number, and a number a slice.
"""

from __future__ import annotations

import numpy as np

from frmu.models.statistics import loss
from frmu.selection.observation import Fit, slopes
from frmu.selection.problem import SelectionProblem
from frmu.types import Float

__all__ = ["slope_of", "standing_of"]

SCALE = 8.0  # a gain of 1 / SCALE is where the reward begins to bend
_TINY = 1e-12


def standing_of(task: SelectionProblem, at: Fit, keep: float) -> float:
    """Return the reward of standing at a fit: minus the log of the later RMSE against `keep`, the later loss of keeping
    all, bent; 0 is as good as keeping all.
    """
    return float(-np.arcsinh(SCALE * _change(task, at, keep)) / SCALE)


def slope_of(task: SelectionProblem, at: Fit, keep: float) -> Float:
    """Return the derivative of what is to be made small, by each influence, (K,) float64; harm counts more than gain.

    Below zero where more of a slice would help. The ridge, which goes with the size of all sums, is taken as it is.
    """
    change = _change(task, at, keep)
    bend = 4.0 / np.sqrt(1.0 + (SCALE * change) ** 2) + 0.5 * (0.0 < change < 1.0)
    return np.asarray(0.5 * bend * slopes(task, at, task.later), dtype=np.float64)


def _change(task: SelectionProblem, at: Fit, keep: float) -> float:
    return float(0.5 * np.log((loss(at.W, task.later) + _TINY) / (keep + _TINY)))
