"""What is proposed for slices, and what the guard lets through."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.influence.network import Network, read_policy, shapes, shipped
from frmu.influence.observation import FEATURES, observe
from frmu.influence.selectors import decide, follow
from frmu.influence.task import Task, refit, task_of, validation_loss
from frmu.learning.statistics import loss, statistics_of
from frmu.types import Statistics


def make(seed: int = 0, bad: tuple[int, ...] = (), slices: int = 8) -> Task:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)

    def block(n: int, shuffled: bool = False) -> Statistics:
        X = rng.normal(size=(n, 5))
        X[:, -1] = 1.0
        y = X @ w + 0.2 * rng.normal(size=n)
        return statistics_of(X, (rng.permutation(y) if shuffled else y)[:, None])

    parts = {f"s{s}": block(40, s in bad) for s in range(slices)}
    return task_of(parts, np.linspace(1, 0, slices), Statistics.zero(5, 1), block(60), block(60), 1e-3)


@pytest.fixture(scope="module")
def network() -> Network:
    return read_policy(shipped())


@pytest.mark.parametrize("selector", ["policy", "rules"])
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_slices_are_found(selector: str, seed: int, network: Network) -> None:
    task = make(seed, bad=(1, 4))
    decision = decide(task, network, selector, 0.01, 1)
    assert set(np.flatnonzero(decision.influence < 1.0)) >= {1, 4}
    assert loss(refit(task, decision.influence), task.later) < loss(refit(task, np.ones(8)), task.later)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_applied_that_is_worse_on_validation(seed: int, network: Network) -> None:
    task = make(seed)
    decision = decide(task, network, "policy", 0.01, 1)
    keep = validation_loss(task, np.ones(8))
    assert decision.losses[decision.chosen_by] <= keep
    assert decision.losses["policy"] >= decision.losses[decision.chosen_by]


def test_keep_keeps(network: Network) -> None:
    assert decide(make(bad=(1,)), network, "keep", 0.01, 1).influence.min() == 1.0


def test_without_validation_everything_is_kept(network: Network) -> None:
    task = make(bad=(1,))
    blind = task_of({k: task.slice(s) for s, k in enumerate(task.keys)}, task.age, task.rest,
                    Statistics.zero(5, 1), task.later, 1e-3)  # fmt: skip
    assert decide(blind, network, "policy", 0.01, 1).chosen_by == "keep"


def test_an_observation_has_a_bounded_row_a_slice() -> None:
    rows = observe(make(bad=(2,)), np.array([1.0, 0.3, 0.0, 1, 1, 1, 1, 1]), 0.5)
    assert rows.shape == (8, len(FEATURES))
    assert np.isfinite(rows).all()
    assert np.abs(rows).max() <= 3.0


def test_the_policy_does_not_mind_the_order_of_slices(network: Network) -> None:
    rows = observe(make(bad=(2,)), np.ones(8), 0.0)
    order = np.random.default_rng(0).permutation(8)
    assert np.allclose(network(rows)[0][order], network(rows[order])[0])


def test_steps_refine(network: Network) -> None:
    task = make(bad=(1, 4))
    assert follow(network, task, observe(task, np.ones(8), 0.0), 3)[0].shape == (8,)


def test_the_shipped_policy_has_seen_no_client_of_ours(network: Network) -> None:
    assert network.lineage["clients"] == []
    assert {name: weight.shape for name, weight in network.weights.items()} == shapes()
