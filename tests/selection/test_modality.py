"""One modality of a slice counts less, and the rest of the slice stays."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.models.modality import attenuated
from frmu.models.ridge import solve
from frmu.models.statistics import loss, statistics_of
from frmu.selection.modality import Muting, _changes, _View, mute
from frmu.selection.problem import SelectionProblem, problem_of, refit, validation_loss
from frmu.selection.selectors import decide
from frmu.types import Statistics

BLOCKS = {"calendar": slice(0, 11), "weather": slice(11, 15)}
D, K = 16, 8


def contribution(one: Statistics, influence: float, q: dict[str, float], blocks: dict[str, slice]) -> Statistics:
    """A slice under its influence and those of its modalities."""
    return attenuated(one, blocks, q).scaled(influence)


def make(seed: int = 0, bad: tuple[int, ...] = (), kind: str = "weather", n: int = 12) -> SelectionProblem:
    """Slices of few records: ten columns of calendar and three of weather, whether each is there, and a bias.

    In the bad slices the weather is noise, or the target.
    """
    rng = np.random.default_rng(seed)
    w = rng.normal(size=13) * np.repeat([1.0, 0.6], [10, 3])

    def block(n: int, bad: bool = False) -> Statistics:
        X = rng.normal(size=(n, 13))
        y = X @ w + 0.5 * rng.normal(size=n)
        if bad and kind == "weather":
            X[:, 10:] = rng.permuted(X[:, 10:], axis=0)
        if bad and kind == "labels":
            y = rng.permutation(y)
        one = np.ones((n, 1))
        return statistics_of(np.concatenate([X[:, :10], one, X[:, 10:], one, one], axis=1), y[:, None])

    parts = {f"s{s}": block(n, s in bad) for s in range(K)}
    return problem_of(parts, np.linspace(1, 0, K), block(4), [block(80)], block(400), 1e-3)


def chosen(task: SelectionProblem) -> Muting:
    return mute(task, decide(task, None, "rules", 0.01, 1, 16).influence, BLOCKS, 0.01)


def later(task: SelectionProblem, found: Muting) -> float:
    below = found.below(task, BLOCKS)
    H, B = task.rest.G, task.rest.b
    for s, (key, i) in enumerate(zip(task.keys, found.influence, strict=True)):
        part = contribution(task.slice(s), float(i), below.get(key, {}), BLOCKS)
        H, B = H + part.G, B + part.b
    return loss(solve(H, B, task.ridge), task.later)


@pytest.mark.parametrize(("hit", "n"), [((1, 4, 6), 12), ((0, 1, 4, 5, 6), 10)])
def test_a_scrambled_modality_is_muted_and_the_rest_of_the_slice_is_kept(hit: tuple[int, ...], n: int) -> None:
    """Better on later records than keeping the slices whole, and than forgetting them: each by over 2 errors."""
    gains, found = [], 0
    for seed in range(80):
        task = make(seed, hit, n=n)
        forgotten = np.ones(K)
        forgotten[list(hit)] = 0.0
        muting = chosen(task)
        below = muting.below(task, BLOCKS)
        assert all(muting.influence[task.keys.index(key)] == 1.0 for key in below)
        found += sum("weather" in below.get(task.keys[s], {}) for s in hit)
        others = (np.ones(K), forgotten, decide(task, None, "rules", 0.01, 1, 16).influence)
        gains.append([loss(refit(task, other), task.later) / later(task, muting) - 1.0 for other in others])
    mean, error = np.mean(gains, axis=0), np.std(gains, axis=0) / np.sqrt(len(gains))
    assert (mean > 2 * error).all()
    assert found >= 40


@pytest.mark.parametrize("seed", range(5))
def test_scores_tell_the_modality_that_harms(seed: int) -> None:
    scores = mute(make(seed, (3,), n=40), np.ones(K), BLOCKS, 0.01).scores
    assert scores.shape == (K, 2)
    assert np.argmin(scores[:, 1]) == 3
    assert scores[3, 1] < 0.0


@pytest.mark.parametrize("kind", ["none", "labels"])
def test_what_is_not_the_fault_of_a_modality_is_left_to_the_slices(kind: str) -> None:
    tasks = [make(seed, (1, 4), kind, n=40) for seed in range(20)]
    assert sum(len(chosen(task).below(task, BLOCKS)) for task in tasks) <= 2  # of 160 slices


@pytest.mark.parametrize("seed", range(6))
def test_nothing_is_muted_without_a_gain_on_validation(seed: int) -> None:
    task, keep = make(seed), np.ones(K)
    found = mute(task, keep, BLOCKS, 0.01)
    before = validation_loss(task, keep)
    if found.below(task, BLOCKS):
        assert found.loss <= 0.99 * before
    else:
        assert found.loss == before
    assert not mute(task, keep, BLOCKS, 0.9).below(task, BLOCKS)


def test_a_gain_short_of_the_margin_mutes_nothing() -> None:
    """The first round's gain is what one round alone would give; a margin just above it is not met."""
    task, keep = make(0, (1, 4, 6), n=40), np.ones(K)
    before = validation_loss(task, keep)
    gain = 1.0 - mute(task, keep, BLOCKS, 0.0).loss / before
    assert gain > 0.02  # there is something to be gained, in one round or in four
    assert mute(task, keep, BLOCKS, 0.005).below(task, BLOCKS)
    assert not mute(task, keep, BLOCKS, gain + 1e-3).below(task, BLOCKS)


def test_the_prediction_is_right_to_a_few_steps() -> None:
    task, keep = make(1, (2,), n=40), np.ones(K)
    view = _View.of(task, keep, np.ones((K, 2)), BLOCKS)
    predicted = _changes(view)
    exact = np.array([[_exact(task, keep, s, name) - view.loss for name in BLOCKS] for s in range(len(task))])
    assert np.allclose(predicted[:, :2], exact, rtol=0.15, atol=1e-3 * view.loss)
    assert not predicted[:, 2].any()


def test_a_slice_that_was_forgotten_is_predicted_as_it_would_be_kept() -> None:
    task, influence = make(1, (2,), n=40), np.ones(K)
    influence[2] = 0.0
    view = _View.of(task, influence, np.ones((K, 2)), BLOCKS)
    kept = _exact(task, np.ones(K), 2, "weather") - view.loss
    assert _changes(view)[2, 1] == pytest.approx(kept, rel=0.15)


def _exact(task: SelectionProblem, influence: np.ndarray, s: int, name: str) -> float:
    q = np.ones((len(task), 2))
    q[s, list(BLOCKS).index(name)] = 0.0
    below = Muting(influence, q, q, 0.0, 0).below(task, BLOCKS)
    parts = [
        contribution(task.slice(k), float(influence[k]), below.get(key, {}), BLOCKS) for k, key in enumerate(task.keys)
    ]
    total = Statistics.total([task.rest, *parts], D, 1)
    return loss(solve(total.G, total.b, task.ridge), task.validation)


def test_what_is_reported_is_what_the_sums_give() -> None:
    task = make(0, (1, 4, 6))
    found = chosen(task)
    below = found.below(task, BLOCKS)
    parts = [
        contribution(task.slice(s), float(found.influence[s]), below.get(key, {}), BLOCKS)
        for s, key in enumerate(task.keys)
    ]
    total = Statistics.total([task.rest, *parts], D, 1)
    assert loss(solve(total.G, total.b, task.ridge), task.validation) == pytest.approx(found.loss, rel=1e-9)
    assert 0 < found.refits <= 1 + 4 * 12


def test_a_slice_is_not_muted_whole() -> None:
    for seed in range(6):
        found = mute(make(seed, (1, 4, 6), n=6), np.ones(K), BLOCKS, 0.0)
        assert (found.modality == 1.0).any(axis=1).all()


def test_without_validation_nothing_is_muted() -> None:
    task = make(0, (2,))
    slices = {key: task.slice(s) for s, key in enumerate(task.keys)}
    blind = problem_of(slices, task.age, task.rest, [], task.later, 1e-3)
    assert not mute(blind, np.ones(K), BLOCKS, 0.01).below(blind, BLOCKS)
    alone = {"all": slice(0, 15)}
    assert not mute(task, np.ones(K), alone, 0.01).below(task, alone)
