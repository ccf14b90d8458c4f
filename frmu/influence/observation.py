"""What the policy sees of a slice: eight aggregates, each about zero and of order one.

Everything is relative - to the other slices, to the present loss - so that a policy can move to a site, a
target and a unit that it never saw. Each is computed under the current influences.
"""

from __future__ import annotations

import numpy as np

from frmu.influence.task import Task, refit, weighted
from frmu.learning.solve import solve
from frmu.learning.statistics import loss
from frmu.types import Float

__all__ = ["FEATURES", "VERSION", "observe"]

VERSION = 1
FEATURES = ("age", "size", "residual", "gain", "solo", "cosine", "influence", "step")

_TINY = 1e-12


def observe(task: Task, influence: Float, step: float) -> Float:
    """One row a slice, (K, 8) float64, for influences (K,) and the share of steps already taken.

    - age: 1 is the oldest slice, 0 the newest;
    - size: log of the records against the mean slice;
    - residual: log of the loss on the slice, under the head fitted without it, against the median slice;
    - gain: how much the validation loss grows if the slice is left out (for one that is out: shrinks if it is let
      in), relative to the present loss, in percent, as the inverse hyperbolic sine;
    - solo: log of the validation loss of the head fitted on the slice alone, against the present one;
    - cosine: of the slice's gradient with the validation gradient;
    - influence, step: where the episode stands.
    """
    W = refit(task, influence)
    H, B = weighted(task, influence)
    now = loss(W, task.validation) + _TINY
    residual, gain, solo, cosine = (np.empty(len(task)) for _ in range(4))
    slope = task.validation.G @ W - task.validation.b
    for s in range(len(task)):
        one = task.slice(s)
        without = solve(H - influence[s] * one.G, B - influence[s] * one.b, task.ridge) if influence[s] else W
        flipped = without if influence[s] else solve(H + one.G, B + one.b, task.ridge)
        residual[s] = np.log(loss(without, one) + _TINY)
        change = loss(flipped, task.validation) / now - 1.0
        gain[s] = np.arcsinh(100.0 * (change if influence[s] else -change))
        solo[s] = np.log((loss(task.alone[s], task.validation) + _TINY) / now)
        cosine[s] = _cosine(one.G @ W - one.b, slope)
    size = np.log(task.n / task.n.mean())
    columns = [
        task.age,
        size,
        residual - np.median(residual),
        gain,
        solo,
        cosine,
        influence,
        np.full(len(task), step),
    ]
    return np.clip(np.stack(columns, axis=1), -3.0, 3.0)


def _cosine(a: Float, b: Float) -> float:
    return float(np.sum(a * b) / (np.sqrt(np.sum(a * a) * np.sum(b * b)) + _TINY))
