"""Each step of a search is what it is called, and a gain short of the margin is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frmu.models.statistics import statistics_of
from frmu.selection import search
from frmu.selection.network import _softmax
from frmu.selection.problem import SelectionProblem, problem_of, validation_loss
from frmu.selection.scores import change, normalise
from frmu.selection.search import Budget, RefitCounter, ascend, leave_one_out
from frmu.types import Float, Statistics


def make(seed: int = 0, bad: tuple[int, ...] = (1, 4), slices: int = 8) -> SelectionProblem:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)

    def block(n: int, shuffled: bool = False) -> Statistics:
        X = rng.normal(size=(n, 5))
        y = X @ w + 0.2 * rng.normal(size=n)
        return statistics_of(X, (rng.permutation(y) if shuffled else y)[:, None])

    parts = {f"s{s}": block(40, s in bad) for s in range(slices)}
    return problem_of(parts, np.linspace(1, 0, slices), Statistics.zero(5, 1), [block(15)], block(60), 1e-3)


@pytest.mark.parametrize("margin", [0.0, 0.013, 0.019, 0.05])
def test_a_slice_is_forgotten_that_costs_more_than_the_margin(margin: float) -> None:
    task = make(bad=())
    account = RefitCounter(task, Budget())
    kept = account.fit(task.keep)
    ratios = []
    for s in range(8):
        without = np.ones(8)
        without[s] = 0.0
        ratios.append(validation_loss(task, without) / kept.loss)
    assert sum(1 - 0.03 < ratio < 1 for ratio in ratios) > 3  # there are slices that the margin decides on
    expected = [0.0 if ratio < 1 - margin else 1.0 for ratio in ratios]
    assert leave_one_out(account, kept, margin).tolist() == expected
    assert account.refits == 9


def stepped(slopes: list[list[float]], start: list[float], rate: float) -> list[list[float]]:
    """Adam, slice by slice; what would push a slice beyond 0 or 1 is no push."""
    paths = []
    for number, i in enumerate(start):
        m = v = 0.0
        path = []
        for step, told in enumerate(slopes, start=1):
            g = told[number]
            g = 0.0 if (i <= 0.0 and g > 0.0) or (i >= 1.0 and g < 0.0) else g
            m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g * g
            i = min(1.0, max(0.0, i - rate * (m / (1 - 0.8**step)) / ((v / (1 - 0.95**step)) ** 0.5 + 1e-7)))
            path.append(i)
        paths.append(path)
    return [list(each) for each in zip(*paths, strict=True)]


@pytest.mark.parametrize("rate", [None, 0.05])
def test_an_ascent_takes_adams_steps_and_a_slice_at_its_bound_gathers_no_speed(
    rate: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    slopes = [[1.0, -1.0, 0.3], [2.0, -2.0, -0.1], [-1.0, 1.0, 0.7], [-0.5, 0.2, 0.0], [3.0, -0.1, 0.2]]
    start: Any = SimpleNamespace(influence=np.array([0.0, 1.0, 0.5]), loss=9.0)
    given, losses = iter(slopes), iter([8.0, 5.0, 3.0, 3.0, 6.0])
    made: list[Any] = []
    account = RefitCounter(make(slices=3), Budget())

    def fitted(influence: Float) -> Any:
        made.append(SimpleNamespace(influence=influence, loss=next(losses)))
        return made[-1]

    monkeypatch.setattr(account, "fit", fitted)
    monkeypatch.setattr(search, "slopes", lambda task, here, on: np.array(next(given)))
    best = ascend(account, start, 6, rate)
    assert np.allclose([one.influence for one in made], stepped(slopes, [0.0, 1.0, 0.5], rate or 2.4 / 6))
    assert best is made[2]  # the first of the two that are best


def test_an_ascent_that_finds_nothing_better_ends_where_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    start: Any = SimpleNamespace(influence=np.ones(3), loss=1.0)
    account = RefitCounter(make(slices=3), Budget())
    monkeypatch.setattr(account, "fit", lambda influence: SimpleNamespace(influence=influence, loss=1.0))
    monkeypatch.setattr(search, "slopes", lambda task, here, on: np.ones(3))
    assert ascend(account, start, 4) is start


# -- scores ---------------------------------------------------------------------------------------------------


def test_credit_is_the_mean_over_steps_of_error_times_share_times_what_was_done() -> None:
    error, share, sign = np.array([2.0, -4.0]), np.array([[0.5, 0.25], [0.1, 0.3]]), np.array([[1, -0.5], [-0.5, -1]])
    assert np.allclose(change(error, share, sign), [(1.0 + 0.2) / 2, (-0.25 + 1.2) / 2])
    by_modality = change(error, share[:, :, None] * [1.0, 2.0, 3.0], np.repeat(sign[:, :, None], 3, axis=2))
    assert np.allclose(by_modality, change(error, share, sign)[:, None] * [1.0, 2.0, 3.0])


def test_scores_of_any_size_are_on_one_scale() -> None:
    assert normalise(np.array([5000.0, 0.0])).tolist() == [2.0, 0.0]


def test_attention_sums_to_one_over_the_slices_that_it_is_given_to() -> None:
    x = np.array([[1.0, 2.0, 3.0], [1000.0, 0.0, 0.0]])
    found = _softmax(x)
    assert np.allclose(found.sum(axis=1), 1.0)
    assert np.allclose(found[0], np.exp([1, 2, 3]) / np.exp([1, 2, 3]).sum())
    assert found[1].tolist() == [1.0, 0.0, 0.0]
