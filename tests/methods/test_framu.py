"""Algorithm 1 line by line, where no learner is needed: what a client tries, scores, thresholds, means, the stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import homes, put
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frmu.clients.tasks import framu as client
from frmu.clients.tasks.framu import Trial, blocks, perform, seen_by, views_of
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.methods.agents import world_of, world_of_tasks
from frmu.methods.framu import Settings, averaged, gained, mean_score, mixed, reduced, stops
from frmu.models.encoders import encode, encoders, width
from frmu.models.statistics import statistics_of
from frmu.runtime.local import LocalFederation
from frmu.selection import observation, problem
from frmu.selection.observation import FEATURES
from frmu.selection.problem import SelectionProblem, problem_of, validation_loss
from frmu.types import Float, Statistics

pytestmark = pytest.mark.usefixtures("memory_tracking")

SLICES = 6
finite = st.floats(-50, 50)
scores = arrays(np.float64, (SLICES, 2), elements=st.floats(0, 50))


def make(config: Config, only: str | None = None) -> SelectionProblem:
    """A task whose encoded records have the modalities of a config, or only one of them (and the bias)."""
    rng = np.random.default_rng(0)
    by = encoders(config)
    columns = {name: len(encoder.R) for name, encoder in by.items()}

    def block(n: int) -> Statistics:
        X = {name: np.c_[rng.normal(size=(n, number)), np.ones(n)] for name, number in columns.items()}  # all present
        y = sum(x.sum(axis=1) for x in X.values()) + 0.2 * rng.normal(size=n)
        chosen = {name: x for name, x in X.items() if only in (None, name)}
        return statistics_of(encode(chosen, by), np.asarray(y)[:, None])

    parts = {f"s{s}": block(40) for s in range(SLICES)}
    rest, later = block(50), block(60)
    return problem_of(parts, np.linspace(1, 0, SLICES), rest, [block(15) for _ in range(4)], later, 1e-3)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return put(tmp_path_factory.mktemp("framu"), homes(3))


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts every factorisation that is made from here on."""
    count = [0]

    def counting(real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any) -> Any:
            count[0] += 1
            return real(*arguments)

        return counted

    for module, name in ((problem, "solve"), (client, "solve"), (observation, "factorise")):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return count


# -- lines 5 to 8: states, actions, rewards --------------------------------------------------------------------


def test_a_modality_is_seen_as_if_there_were_no_other(config: Config) -> None:
    by = blocks(config)
    assert sorted({int(i) for columns in by.values() for i in columns}) == list(range(width(config)))
    views = views_of(make(config), by)
    for view, name in zip(views, by, strict=True):
        alone = make(config, only=name)
        assert np.allclose(seen_by(view, np.ones(SLICES)), seen_by(alone, np.ones(SLICES)))


def test_a_single_modality_is_the_task_itself(config: Config) -> None:
    whole = make(config)
    assert views_of(whole, {"all": np.arange(width(config))})[0] is whole
    assert views_of(whole, {})[0] is whole


def test_a_reward_is_that_of_the_slice_alone(config: Config) -> None:
    whole = make(config)
    before, after = np.array([1, 1, 0.3, 0, 1, 1]), np.array([0, 1, 1, 0.3, 0.3, 1])
    seen = perform([whole], whole, Trial(tuple(before), tuple(after)))
    now = validation_loss(whole, before)
    for s in range(SLICES):
        flipped = before.copy()
        flipped[s] = after[s]
        saved = 1.0 - validation_loss(whole, flipped) / now
        assert seen.rewards[s] == pytest.approx(np.arcsinh(100 * saved), abs=1e-6)
    assert seen.rewards[1] == seen.rewards[5] == 0.0
    assert seen.loss == validation_loss(whole, after)
    assert seen.rows is not None
    assert np.array_equal(seen.rows[0], seen_by(whole, after))


@pytest.mark.parametrize("observed", [True, False])
@pytest.mark.parametrize("after", [None, (1.0,) * SLICES, (0.0, 0.3, 1.0, 1.0, 0.0, 1.0)])
def test_every_refit_is_counted(
    config: Config, solved: list[int], observed: bool, after: tuple[float, ...] | None
) -> None:
    whole = make(config)
    views = views_of(whole, blocks(config))
    solved[0] = 0
    assert perform(views, whole, Trial((1.0,) * SLICES, after, observed)).refits == solved[0] > 0


def test_clients_and_tasks_answer_alike(config: Config, solved: list[int], tmp_path: Path) -> None:
    federation = LocalFederation(config, sorted(set(homes(3).home)), tmp_path)
    list(federation.run(StageShard({}, b"k")))
    list(federation.run(CommitShard(True)))
    world = world_of(config, federation)
    assert world is not None
    assert world.names == federation.clients
    trials = {
        name: Trial((1.0,) * len(keys), (0.3,) + (1.0,) * (len(keys) - 1))
        for name, keys in zip(world.names, world.keys, strict=True)
    }
    solved[0] = 0
    answers = world.ask(trials)
    spent = solved[0]
    tasks = []
    total, outputs = world.ask.total, world.ask.outputs  # type: ignore[attr-defined]
    for one in federation.host.clients(world.names):
        tasks.append(one.task(one.slices("fit", outputs), total, outputs))
    here = world_of_tasks(tasks, blocks(config))
    assert here.n == world.n
    assert here.modalities == world.modalities == 2
    for name, same in zip(world.names, here.names, strict=True):
        told, own = answers[name], here.ask({same: trials[name]})[same]
        assert told.rows is not None
        assert told.rows.shape == (2, len(tasks[0]), len(FEATURES))
        assert np.array_equal(told.rows, own.rows)
        assert np.array_equal(told.rewards, own.rewards)
    assert sum(answer.refits for answer in answers.values()) == spent


def test_without_validation_there_is_no_agent(tmp_path: Path) -> None:
    table = homes(2)
    table = table[(table.ts < "2025-05-01") | (table.ts > "2025-06-02")]
    config = put(tmp_path / "blind", table)
    federation = LocalFederation(config, sorted(set(table.home)), tmp_path)
    list(federation.run(StageShard({}, b"k")))
    list(federation.run(CommitShard(True)))
    assert world_of(config, federation) is None


# -- lines 11 and 13: scores and theta -------------------------------------------------------------------------


@given(scores, arrays(np.float64, (SLICES, 2), elements=finite), st.floats(0.01, 2))
def test_line_11_never_shrinks_and_knows_no_sign(A: Float, d: Float, eta: float) -> None:
    more = gained(A, d, eta)
    assert (more >= A).all()
    assert np.array_equal(more, gained(A, -d, eta))
    assert np.allclose(more - A, eta * np.abs(d))


@given(scores, st.integers(1, 50))
def test_line_13_means_over_all_agents_though_a_slice_sits_at_one(A: Float, agents: int) -> None:
    everywhere = np.zeros((agents, *A.shape))
    everywhere[0] = A
    assert np.allclose(mean_score(A, agents), everywhere.mean(axis=(0, 2)))


@given(st.lists(arrays(np.float64, (SLICES, 2), elements=finite), min_size=1, max_size=12), st.floats(0.01, 3))
def test_line_13_fires_early_and_never_again(errors: list[Float], theta: float) -> None:
    """What rose above theta once is never reduced again, whatever becomes of it: the paper's defect, kept."""
    A, below = np.zeros((SLICES, 2)), np.ones(SLICES, dtype=bool)
    assert (reduced(mean_score(A, 1), theta, 0.3) == 0.3).all()
    for d in errors:
        A = gained(A, d, 0.1)
        now = reduced(mean_score(A, 1), theta, 0.3) < 1.0
        assert not (now & ~below).any()
        below = now


# -- lines 16, 18, 19 ------------------------------------------------------------------------------------------


def parameters(rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {"a": rng.normal(size=(3, 2)).astype(np.float32), "b": rng.normal(size=3).astype(np.float32)}


@given(st.lists(st.floats(1, 1e5), min_size=1, max_size=6), st.integers(0, 99))
def test_line_16_is_the_mean_by_records(n: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    w = [parameters(rng) for _ in n]
    W = averaged(w, n)
    for name in ("a", "b"):
        assert W[name].dtype == np.float32
        assert np.allclose(W[name], np.average([one[name] for one in w], axis=0, weights=n), atol=1e-5)
    # An agent with k times the records counts as k agents with the same parameters.
    again = averaged([w[0], *w], [n[0], *n])
    assert np.allclose(again["a"], averaged(w, [2 * n[0], *n[1:]])["a"], atol=1e-5)


@given(st.floats(0, 1), st.integers(0, 99))
def test_line_18_mixes(beta: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    W, w = parameters(rng), parameters(rng)
    assert np.allclose(mixed(W, w, beta)["a"], beta * W["a"] + (1 - beta) * w["a"], atol=1e-6)
    assert np.array_equal(mixed(W, w, 1.0)["b"], W["b"])
    assert np.array_equal(mixed(W, w, 0.0)["b"], w["b"])


@given(st.lists(finite, max_size=5), finite, st.floats(0, 1))
def test_line_19_compares_the_last_two(before: list[float], last: float, epsilon: float) -> None:
    history = [*before, last]
    expected = len(before) > 0 and abs(before[-1] - last) < epsilon
    assert stops(history, epsilon) == expected
    assert not stops([*history, last], 0.0)


@pytest.mark.parametrize("bad", [{"beta": 1.5}, {"reduce": -0.1}, {"rounds": 0}, {"eta": 0.0}, {"gamma": 2.0}])
def test_settings_out_of_their_law_are_named(bad: dict[str, float]) -> None:
    with pytest.raises(FrmuError, match=f"{next(iter(bad))}"):
        replace(Settings(), **bad)  # type: ignore[arg-type]


def test_tasks_that_nobody_can_judge_are_refused(config: Config) -> None:
    with pytest.raises(FrmuError, match="one or more"):
        world_of_tasks([])
    blind = replace(make(config), validation=Statistics.zero(width(config), 1))
    with pytest.raises(FrmuError, match="validation records"):
        world_of_tasks([make(config), blind])
