"""Intervals of predictions: a histogram of residuals on records that judge, and how far one reaches.

A prediction is within `reach` of the truth for a stated share of records like those that judge (split conformal
prediction: Papadopoulos et al., "Inductive confidence machines for regression", ECML 2002; Lei et al.,
"Distribution-free predictive inference for regression", JASA 2018). Nothing but counts leaves a client, and counts add:
an erased record is in none of them. Where what is predicted for is unlike what judged - another season - an interval
holds less often than it says.

A cell is 1/32 of an octave of the residual as a share of the target's range, so a reach is at most 3 % too wide.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from frmu.types import Float

__all__ = ["CELLS", "ENOUGH", "LEAST", "counts_of", "needed", "reach"]

LEAST = 20  # records that judge, to keep counts at all
ENOUGH = 16_384  # to count about so many of them, drawn by a hash of their ids
_STEPS, _FIRST, _LAST = 32, -15, 1  # cells an octave; octaves from 2^-15 to 2^1
CELLS = 2 + _STEPS * (_LAST - _FIRST)


def counts_of(shares: Float) -> NDArray[np.int64]:
    """Count absolute residuals, (n, targets) as shares of a range, by cell, (targets, CELLS).

    >>> counts_of(np.array([[0.0], [0.5], [-0.5], [9.0]])).sum()
    np.int64(4)
    """
    m, e = np.frexp(np.abs(shares))  # a share is m 2^e, with m from a half to one
    cells = 1 + (e - 1 - _FIRST) * _STEPS + np.floor((m - 0.5) * 2.0 * _STEPS).astype(np.int64)
    cells = np.clip(np.where(m == 0.0, 0, cells), 0, CELLS - 1)
    return np.stack([np.bincount(column, minlength=CELLS) for column in cells.T]).astype(np.int64)


def needed(level: float) -> int:
    """Return how many records must judge for an interval of a level to be had.

    >>> needed(0.9), needed(0.99)
    (9, 99)
    """
    share = Fraction(str(level))
    return math.ceil(share / (1 - share))


def reach(counts: NDArray[np.int64], level: float) -> float:
    """Return how far from a prediction the truth is at most, as a share of the range, for a level of records.

    The upper end of the cell of the ceil((n + 1) level)-th residual; infinite where there are fewer, or it is beyond.

    >>> reach(counts_of(np.linspace(0.01, 1.0, 99)[:, None])[0], 0.9)
    0.921875
    """
    rank = math.ceil(Fraction(str(level)) * (int(counts.sum()) + 1))
    if rank > counts.sum():
        return math.inf
    cell = int(np.searchsorted(np.cumsum(counts), rank))
    if cell in (0, CELLS - 1):
        return 2.0**_FIRST if cell == 0 else math.inf
    octave, step = divmod(cell - 1, _STEPS)
    return float(2.0 ** (_FIRST + octave) * (1.0 + (step + 1) / _STEPS))
