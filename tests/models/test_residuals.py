"""Intervals from counts: they cover what they say, and counts add like everything else."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.models.residuals import CELLS, counts_of, needed, reach

shares = st.lists(st.floats(-1.9, 1.9), min_size=1, max_size=60)


@given(shares, shares)
def test_counts_of_parts_are_those_of_the_whole(one: list[float], other: list[float]) -> None:
    parts = counts_of(np.array(one)[:, None]) + counts_of(np.array(other)[:, None])
    assert np.array_equal(parts, counts_of(np.array(one + other)[:, None]))


@given(shares, st.sampled_from([0.1, 0.5, 0.8, 0.9]))
def test_a_reach_covers_the_rank_that_it_says_and_is_at_most_a_cell_wider(values: list[float], level: float) -> None:
    rank = math.ceil(round(level * (len(values) + 1), 9))
    far = reach(counts_of(np.array(values)[:, None])[0], level)
    if rank > len(values):
        assert far == math.inf
        return
    exact = sorted(map(abs, values))[rank - 1]
    assert exact <= far <= max(exact * (1 + 1 / 32) + 1e-12, 2.0**-15)


@pytest.mark.parametrize(("level", "records"), [(0.5, 1), (0.9, 9), (0.95, 19), (0.99, 99)])
def test_a_level_needs_so_many_records(level: float, records: int) -> None:
    assert needed(level) == records
    counts = counts_of(np.full((records, 1), 0.25))[0]
    assert math.isfinite(reach(counts, level))
    counts[np.flatnonzero(counts)] -= 1
    assert reach(counts, level) == math.inf


def test_the_ends_of_the_scale_are_cells_of_their_own() -> None:
    counts = counts_of(np.array([[0.0], [2.0**-15], [1.999], [2.0], [1e9]]))[0]
    assert (counts[0], counts[1], counts[CELLS - 2], counts[CELLS - 1]) == (1, 1, 1, 2)
