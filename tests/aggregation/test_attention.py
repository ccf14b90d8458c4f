"""Attention finds the bad client and leaves the different one alone."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.aggregation.attention import attend, counterfactual
from frmu.models.statistics import statistics_of
from frmu.types import Statistics

Parts = tuple[list[Statistics], list[Statistics]]


def federation(seed: int, shifted: bool, bad: set[int]) -> Parts:
    """Ten clients with one relation; each on a region of its own where shifted; bad ones with shuffled labels."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=6)
    fits, validations = [], []
    for client in range(10):
        X = rng.normal(size=(300, 6)) + (rng.normal(size=6) * 2 if shifted else 0)
        X[:, -1] = 1.0
        y = X @ w + rng.normal(size=300) * 0.3
        if client in bad:
            y = rng.permutation(y)
        fits.append(statistics_of(X[:200], y[:200, None]))
        validations.append(statistics_of(X[200:], y[200:, None]))
    return fits, validations


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shifted", [False, True])
def test_clean_clients_keep_their_weight(seed: int, shifted: bool) -> None:
    weights = attend(counterfactual(*federation(seed, shifted, set()), ridge=1e-3), 0.5, 0.5)
    assert np.allclose(weights, 1.0, atol=0.02)


@pytest.mark.parametrize("seed", range(5))
def test_bad_clients_lose_theirs_though_they_vote(seed: int) -> None:
    weights = attend(counterfactual(*federation(seed, False, {2, 7}), ridge=1e-3), 0.5, 0.5)
    assert weights[[2, 7]].max() < 0.5 * np.delete(weights, [2, 7]).min()


@pytest.mark.parametrize("seed", range(5))
def test_among_different_clients_a_bad_one_never_counts_more(seed: int) -> None:
    weights = attend(counterfactual(*federation(seed, True, {2, 7}), ridge=1e-3), 0.5, 0.5)
    assert weights[[2, 7]].max() <= np.delete(weights, [2, 7]).min()


def test_nobody_votes_alone() -> None:
    fits, validations = federation(0, False, set())
    assert not counterfactual(fits[:1], validations[:1], 1e-3).any()
    assert not counterfactual(fits, [Statistics.zero(6, 1)] * 10, 1e-3).any()
