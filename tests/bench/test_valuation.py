"""Values of records: left-out residuals are those of refits, and what is in the wrong has less value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.bench import valuation
from frmu.bench.valuation import RIDGES, VALUES, Records, deal, left_out, ridge_of, split_in_two, values
from frmu.models.ridge import shrinkage
from frmu.selection.network import read_policy, shipped
from frmu.types import Float

POLICY = read_policy(shipped())


def drawn(seed: int, n: int, columns: int, outputs: int) -> tuple[Float, Float]:
    rng = np.random.default_rng(seed)
    return np.c_[rng.normal(size=(n, columns)), np.ones(n)], rng.normal(size=(n, outputs))


def refitted(phi: Float, Y: Float, ridge: float, w: Float, i: int) -> Float:
    """The residual of a record under a head that is fitted, from nothing, on the others; the penalty is that of all."""
    penalty = shrinkage(np.diag(phi.T @ (w[:, None] * phi)), ridge)
    others = np.arange(len(phi)) != i
    P, weighted = phi[others], w[others, None] * phi[others]
    return Y[i] - phi[i] @ np.linalg.solve(P.T @ weighted + np.diag(penalty), weighted.T @ Y[others])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(3, 25), st.integers(0, 6), st.integers(1, 3), st.sampled_from(RIDGES),
    st.booleans(),
)  # fmt: skip
def test_a_left_out_residual_is_that_of_a_refit(
    seed: int, n: int, columns: int, outputs: int, ridge: float, weighted: bool
) -> None:
    phi, Y = drawn(seed, n, columns, outputs)
    w = np.random.default_rng(seed).uniform(0.05, 1.0, n) if weighted else np.ones(n)
    found = left_out(phi, Y, ridge, w)
    assert found == pytest.approx(np.stack([refitted(phi, Y, ridge, w, i) for i in range(n)]), rel=1e-6, abs=1e-8)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
def test_a_split_in_two_has_the_least_squares(x: list[float]) -> None:
    below, above = (np.asarray(x)[side] for side in split_in_two(np.asarray(x)))
    assert below.max() <= above.min()
    ordered = np.sort(x)
    costs = [np.var(ordered[:k]) * k + np.var(ordered[k:]) * (len(x) - k) for k in range(1, len(x))]
    assert np.var(below) * len(below) + np.var(above) * len(above) <= min(costs) * (1 + 1e-9) + 1e-6


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 24), st.integers(0, 99))
def test_every_record_is_dealt_once_and_no_slice_holds_both_sides(a: int, b: int, slices: int, seed: int) -> None:
    sides = [np.arange(a), np.arange(a, a + b)]
    dealt = deal(sides, slices, np.random.default_rng(seed))
    assert sorted(np.concatenate(dealt).tolist()) == list(range(a + b))
    assert all(len(rows) and len({bool(row < a) for row in rows}) == 1 for rows in dealt)


def noisy(classes: bool, seed: int = 3, n: int = 120) -> tuple[Records, Float]:
    """Records of a plain relation, a fifth of which have a wrong target; which, (n,) bool."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n + 60, 3))
    score = X @ np.array([2.0, -1.0, 0.5])
    wrong = np.zeros(n + 60, dtype=bool)
    wrong[rng.choice(n, n // 5, replace=False)] = True
    if classes:
        label = np.where((score > 0) != wrong, 1.0, -1.0)
        Y = np.c_[label, -label]
    else:
        Y = np.where(wrong, rng.permutation(score), score + 0.1 * rng.normal(size=n + 60))[:, None]
    return Records(X[:n], Y[:n], X[n:], Y[n:], classes), wrong[:n]


@pytest.mark.parametrize("classes", [True, False])
@pytest.mark.parametrize("kind", ["ours", "residual"])
def test_wrong_targets_have_the_least_value(kind: str, classes: bool) -> None:
    records, wrong = noisy(classes)
    lowest = np.argsort(values(kind, records, POLICY, 0))[: wrong.sum()]
    assert wrong[lowest].mean() > 0.6  # a fifth by chance


@pytest.mark.parametrize("kind", VALUES)
def test_values_are_their_seeds_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(valuation, "MORE_DEALS", 3)
    monkeypatch.setattr(valuation, "DEALS", 2)
    records, _ = noisy(classes=True, n=60)
    first = values(kind, records, POLICY, 1)
    assert first.shape == (60,)
    assert np.isfinite(first).all()
    assert (first == values(kind, records, POLICY, 1)).all()
    assert (first != values(kind, records, POLICY, 2)).any()


def test_the_ridge_is_the_one_that_leaves_the_least_squares() -> None:
    phi, Y = drawn(5, 40, 8, 1)
    squares = {ridge: float(np.sum(left_out(phi, Y, ridge) ** 2)) for ridge in RIDGES}
    assert ridge_of(phi, Y) == min(squares, key=lambda ridge: squares[ridge])
