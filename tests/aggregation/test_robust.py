"""The robust rules do what their papers say, and break where their papers say."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.aggregation.robust import (
    Rule,
    by_gradients,
    by_heads,
    coordinate_median,
    gradient_cosine,
    krum,
    most_bad,
    trimmed_mean,
    weighted,
)
from frmu.errors import ConfigError
from frmu.models.ridge import solve
from frmu.models.statistics import statistics_of
from frmu.types import Statistics

CLIENTS, BAD = 9, 3
RULES = {
    "median": coordinate_median,
    "trimmed": partial(trimmed_mean, bad=BAD),
    "krum": partial(krum, bad=BAD),
    "multi-krum": partial(krum, bad=BAD, chosen=CLIENTS - BAD),
}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def federation(seed: int, clients: int = CLIENTS) -> list[Statistics]:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)
    fits = []
    for _ in range(clients):
        X = rng.normal(size=(200, 5))
        X[:, -1] = 1.0
        fits.append(statistics_of(X, (X @ w + 0.1 * rng.normal(size=200))[:, None]))
    return fits


@rules
@given(seed=st.integers(0, 10_000))
def test_the_order_of_clients_does_not_matter(rule: Rule, seed: int) -> None:
    rng = np.random.default_rng(seed)
    messages = rng.normal(size=(CLIENTS, 4, 2))
    assert np.allclose(rule(messages), rule(rng.permutation(messages, axis=0)))


@rules
@given(seed=st.integers(0, 10_000))
def test_who_all_say_the_same_are_believed(rule: Rule, seed: int) -> None:
    message = np.random.default_rng(seed).normal(size=(4, 2))
    assert np.allclose(rule(np.stack([message] * CLIENTS)), message)


@rules
@given(seed=st.integers(0, 10_000), far=st.sampled_from([1e3, -1e6, 1e9]))
def test_few_liars_cannot_move_it_out_of_what_the_honest_say(rule: Rule, seed: int, far: float) -> None:
    messages = np.random.default_rng(seed).normal(size=(CLIENTS, 3))
    honest = messages[BAD:].copy()
    messages[:BAD] = far
    said = rule(messages)
    assert np.all(honest.min(axis=0) - 1e-9 <= said)
    assert np.all(said <= honest.max(axis=0) + 1e-9)


@rules
def test_a_majority_of_liars_moves_it_anywhere(rule: Rule) -> None:
    messages = np.random.default_rng(0).normal(size=(CLIENTS, 3))
    messages[: CLIENTS // 2 + 2] = 1e6
    assert rule(messages).max() > 1e4


@pytest.mark.parametrize("bad", [-1, 5])
def test_nothing_to_trim_from_is_told(bad: int) -> None:
    with pytest.raises(ConfigError, match="bad must be"):
        trimmed_mean(np.zeros((10, 1)), bad)


@pytest.mark.parametrize(("bad", "chosen"), [(4, 1), (-1, 1), (3, 8), (3, 0)])
def test_krum_is_told_of_no_more_than_it_bears(bad: int, chosen: int) -> None:
    assert most_bad(10) == 3
    with pytest.raises(ConfigError, match="clients must be"):
        krum(np.zeros((10, 1)), bad, chosen)


def test_a_mean_of_gradients_arrives_at_the_head_of_all_sums() -> None:
    fits = federation(0)
    (W,) = by_gradients(fits, [lambda messages: messages.mean(axis=0)], 1e-3)
    total = Statistics.total(fits, 5, 1)
    n = total.n
    assert np.allclose(W, solve(total.G / n, total.b / n, 1e-3), atol=1e-6)


@rules
@pytest.mark.parametrize("by", [by_heads, by_gradients])
def test_one_liar_moves_the_mean_and_not_the_rule(rule: Rule, by: object) -> None:
    fits = federation(1)
    truth = weighted(fits, np.ones(CLIENTS), 1e-6)
    liar = Statistics(fits[0].n, fits[0].G, fits[0].b * 50.0, fits[0].c)
    lied = [liar, *fits[1:]]
    (W,) = by(lied, [rule], 1e-6)  # type: ignore[operator]
    assert np.abs(W - truth).max() < 0.1
    assert np.abs(weighted(lied, np.ones(CLIENTS), 1e-6) - truth).max() > 1.0


def test_weights_of_zero_leave_out() -> None:
    fits = federation(2)
    kept = np.array([0.0] * 2 + [1.0] * 7)
    total = Statistics.total(fits[2:], 5, 1)
    assert np.allclose(weighted(fits, kept, 1e-3), solve(total.G, total.b, 1e-3))


def test_the_cosine_gives_weights_of_mean_one() -> None:
    fits = federation(3)
    weights = gradient_cosine(fits, fits, 1e-3)
    assert weights.shape == (CLIENTS,)
    assert weights.mean() == pytest.approx(1.0)
