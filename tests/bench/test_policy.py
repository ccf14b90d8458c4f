"""The table of selectors: everybody is judged alike, and nobody spends more than is said."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.bench.policy import BUDGETS, Case, _budgets, _compared, _table, gain_of, selectors
from frmu.influence.network import read_policy, shipped
from frmu.influence.observation import fit
from frmu.influence.task import Task, refit, task_of
from frmu.learning.statistics import loss, statistics_of
from frmu.types import Statistics

SLICES = 6


@pytest.fixture(scope="module")
def case() -> Case:
    rng = np.random.default_rng(0)
    w = rng.normal(size=5)

    def block(n: int, shuffled: bool = False) -> Statistics:
        X = np.c_[rng.normal(size=(n, 4)), np.ones(n)]
        y = X @ w + 0.2 * rng.normal(size=n)
        return statistics_of(X, (rng.permutation(y) if shuffled else y)[:, None])

    slices = {f"s{s}": block(40, s in (1, 4)) for s in range(SLICES)}
    parts = [block(15) for _ in range(4)]
    task = task_of(slices, np.linspace(1, 0, SLICES), Statistics.zero(5, 1), parts, block(60), 1e-3)
    return Case(task, np.array([0.0, 1, 0, 0, 1, 0]), block(200))


@pytest.fixture(scope="module")
def found(case: Case) -> list[dict]:
    label = {"task": "a/0", "set": "a", "group": "unseen data", "kind": "labels", "setting": "by itself"}
    return [label | row for row in _compared(case, read_policy(shipped()), np.random.default_rng(0))]


def test_every_selector_is_judged_on_the_test_records(case: Case, found: list[dict]) -> None:
    by = {row["selector"]: row for row in found}
    assert by["keep all"]["gain"] == 0.0
    good = refit(case.task, 1.0 - case.hit)
    kept = fit(case.task, case.task.keep)
    exact = 100.0 * (1.0 - np.sqrt(loss(good, case.test) / loss(kept.W, case.test)))
    assert by["oracle"]["gain"] == pytest.approx(exact, rel=1e-6)
    assert by["oracle"]["gain"] == pytest.approx(gain_of(case, kept, 1.0 - case.hit))
    assert by["learned, 3 steps"]["gain"] > 0.0


def test_nobody_spends_more_than_its_budget(found: list[dict]) -> None:
    budgets = {name: budget for name, (budget, _) in selectors(read_policy(shipped()), SLICES).items()}
    for row in found:
        budget = budgets[row["selector"]]
        assert budget is None or row["refits"] <= budget, row


def test_a_row_counts_what_was_found(found: list[dict]) -> None:
    oracle = next(row for row in _table(found) if row["selector"] == "oracle")
    assert (oracle["precision"], oracle["recall"], oracle["tasks"]) == (1.0, 1.0, 1)


def test_rivals_are_compared_task_by_task(found: list[dict]) -> None:
    # The smallest budget of the table is the number of slices; here it is named as the table names it.
    found = [row | {"selector": row["selector"].replace(f"@ {SLICES}", f"@ {BUDGETS[0]}")} for row in found]
    pairs = _budgets(found)
    by = {row["selector"]: row["gain"] for row in found}
    assert {pair["budget"] for pair in pairs} == set(BUDGETS)
    for pair in pairs:
        ours = by[f"learned + search @ {pair['budget']}"]
        assert pair["difference"] == pytest.approx(ours - by[pair["rival"]], abs=0.006)


def test_lessons_teach_and_a_seed_replays(case: Case) -> None:
    torch = pytest.importorskip("torch")
    from frmu.policy.lessons import learn_lessons

    def make(rng: np.random.Generator) -> Task:
        w = rng.normal(size=5)

        def block(n: int, shuffled: bool = False) -> Statistics:
            X = np.c_[rng.normal(size=(n, 4)), np.ones(n)]
            y = X @ w + 0.2 * rng.normal(size=n)
            return statistics_of(X, (rng.permutation(y) if shuffled else y)[:, None])

        bad = set(rng.choice(SLICES, 2, replace=False).tolist())
        slices = {f"s{s}": block(30, s in bad) for s in range(SLICES)}
        parts = [block(10) for _ in range(4)]
        return task_of(slices, np.linspace(1, 0, SLICES), Statistics.zero(5, 1), parts, block(60), 1e-3)

    worth: list[float] = []
    torch.set_num_threads(1)
    first = learn_lessons(make, 30, 12, 0, None, lambda _, value: worth.append(value))
    again = learn_lessons(make, 2, 12, 0)
    assert all(np.array_equal(again[name], weight) for name, weight in learn_lessons(make, 2, 12, 0).items())
    assert np.mean(worth[-8:]) > np.mean(worth[:8])
    assert set(first) == set(again)
