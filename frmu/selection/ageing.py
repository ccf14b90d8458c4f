"""Ageing: influences by the calendar alone, what most systems that forget at all do.

A sliding window keeps what is young enough, exponential decay lets every slice fade. Neither looks at a record: they
forget what still holds as readily as what is outdated, and keep what is young and wrong. So they are rivals of the
learned policy, and proposals for its guard. Ages are those of a task: 1 is the oldest slice, 0 the newest; where
slices are not of time all are 0, and nothing ages. (Concept drift: Gama et al., "A survey on concept drift
adaptation", ACM Computing Surveys 46(4), 2014.)
"""

from __future__ import annotations

import numpy as np

from frmu.types import Float

__all__ = ["decay", "window"]


def window(age: Float, share: float) -> Float:
    """Influences (K,) that keep the youngest share, in (0, 1], of the span and forget what is older.

    `share` is of the distance from the newest slice to the oldest: m of K slices of a calendar are (m - 1) / (K - 1).
    The newest is always kept.

    >>> window(np.array([1.0, 0.5, 0.0]), 0.5)
    array([0., 1., 1.])
    """
    return np.where(age <= share + 1e-9, 1.0, 0.0)


def decay(age: Float, half_life: float) -> Float:
    """Influences (K,) that halve with every half-life, which is a share of the span, above 0.

    >>> decay(np.array([1.0, 0.5, 0.0]), 0.5)
    array([0.25, 0.5 , 1.  ])
    """
    return np.asarray(0.5 ** (age / half_life), dtype=np.float64)
