"""A modality's influence within a set of records: exact, on the statistics alone.

A record that lacks a modality has zeros in that modality's block of phi. So the sums of records whose modality is
muted are their sums with the rows and columns of the block set to zero: P G P and P b, where P zeroes the block. An
influence q in between gives q G + (1 - q) P G P: each sum as if it were made of a share q of records with the
modality and the rest without.
"""

from __future__ import annotations

from collections.abc import Mapping

from frmu.types import Statistics

__all__ = ["attenuated", "muted"]


def muted(s: Statistics, block: slice, influence: float = 0.0) -> Statistics:
    """The statistics under an influence in [0, 1] of the modality whose columns of phi are `block`.

    >>> import numpy as np
    >>> muted(Statistics(1, np.full((2, 2), 4.0), np.full((2, 1), 6.0), 9.0), slice(0, 1), 0.5).G
    array([[2., 2.],
           [2., 4.]])
    """
    G, b = s.G.copy(), s.b.copy()
    G[block] *= influence
    G[:, block] *= influence
    G[block, block] = influence * s.G[block, block]  # q once: the block meets itself
    b[block] *= influence
    return Statistics(s.n, G, b, s.c)


def attenuated(s: Statistics, blocks: Mapping[str, slice], influences: Mapping[str, float]) -> Statistics:
    """The statistics under influences of several modalities, one after the other; those not named count in full."""
    for modality in sorted(influences):
        s = muted(s, blocks[modality], influences[modality])
    return s
