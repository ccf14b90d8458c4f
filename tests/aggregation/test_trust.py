"""Trust finds the bad client and leaves the different one alone."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.aggregation.trust import trust
from frmu.models.statistics import statistics_of
from frmu.types import Statistics

Parts = tuple[list[Statistics], list[Statistics]]


def federation(seed: int, shifted: bool, bad: set[int], gain: float | None = None) -> Parts:
    """Ten clients of one relation, each on a region of its own where shifted; bad ones shuffle, or have one gain."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=6)
    fits, validations = [], []
    for client in range(10):
        X = rng.normal(size=(300, 6)) + (rng.normal(size=6) * 2 if shifted else 0)
        X[:, -1] = 1.0
        y = X @ w + rng.normal(size=300) * 0.3
        if client in bad:
            y = rng.permutation(y) if gain is None else gain * y
        fits.append(statistics_of(X[:200], y[:200, None]))
        validations.append(statistics_of(X[200:], y[200:, None]))
    return fits, validations


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shifted", [False, True])
def test_clean_clients_keep_their_weight(seed: int, shifted: bool) -> None:
    assert trust(*federation(seed, shifted, set()), ridge=1e-3, cut=1.0).weights.tolist() == [1.0] * 10


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("gain", [None, -1.0, 3.0])
@pytest.mark.parametrize("bad", [{2, 7}, {0, 3, 4, 8}])
def test_bad_clients_are_left_out_though_they_vote_and_agree(seed: int, gain: float | None, bad: set[int]) -> None:
    attention = trust(*federation(seed, False, bad, gain), ridge=1e-3, cut=1.0)
    assert set(np.flatnonzero(attention.weights == 0.0)) == bad
    assert attention.weights.mean() == pytest.approx(1.0)
    assert attention.scores[sorted(bad)].max() < 0.0


@pytest.mark.parametrize("seed", range(4))
def test_among_different_clients_a_bad_one_never_counts_more(seed: int) -> None:
    weights = trust(*federation(seed, True, {2, 7}), ridge=1e-3, cut=1.0).weights
    assert weights[[2, 7]].max() <= np.delete(weights, [2, 7]).min()


def test_the_order_of_clients_does_not_matter() -> None:
    fits, validations = federation(1, False, {1, 5, 6})
    order = np.random.default_rng(0).permutation(10)
    one = trust(fits, validations, 1e-3, 1.0).weights
    other = trust([fits[k] for k in order], [validations[k] for k in order], 1e-3, 1.0).weights
    assert other.tolist() == one[order].tolist()


def test_a_client_without_validation_records_is_judged_by_the_others() -> None:
    fits, validations = federation(2, False, {4}, 5.0)
    validations[4] = validations[6] = Statistics.zero(6, 1)
    weights = trust(fits, validations, 1e-3, 1.0).weights
    assert np.flatnonzero(weights == 0.0).tolist() == [4]


def test_nobody_votes_alone() -> None:
    fits, validations = federation(0, False, set())
    for some in (1, 2):
        assert trust(fits[:some], validations[:some], 1e-3, 1.0).weights.tolist() == [1.0] * some
    assert not trust(fits, [Statistics.zero(6, 1)] * 10, 1e-3, 1.0).scores.any()
    assert len(trust([], [], 1e-3, 1.0).weights) == 0


def test_who_alone_holds_a_class_is_heard_a_little_though_not_trusted() -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 8)) * 4
    fits, validations = [], []
    for client in range(7):
        y = rng.integers(0, 2, 300) if client else np.full(300, 2)
        X = np.concatenate([centres[y] + rng.normal(size=(300, 8)), np.ones((300, 1))], axis=1)
        said = rng.permutation(np.repeat([0, 2], 150)) if client == 0 else y  # half of what it says is wrong
        Y = np.where(said[:, None] == np.arange(3), 1.0, -1.0)
        fits.append(statistics_of(X[:200], Y[:200]))
        validations.append(statistics_of(X[200:], Y[200:]))
    weights = trust(fits, validations, 1e-3, 1.0).weights
    assert 0.0 < weights[0] < 0.2 < weights[1:].min()
    assert weights.mean() == pytest.approx(1.0)
