"""The table of selectors: everybody is judged alike, and nobody spends more than is said."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import homes, put

from frmu.bench.policy import FAMILIES, OWN, _budgets, _by_family, _compared, _table, bench_policy, gain_of
from frmu.bench.selectors import BUDGETS, Case, selectors
from frmu.cli import main
from frmu.errors import DataError
from frmu.models.statistics import loss, statistics_of
from frmu.selection.disturbance import KINDS
from frmu.selection.network import read_policy, shipped
from frmu.selection.observation import fit
from frmu.selection.problem import problem_of, refit
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
    task = problem_of(slices, np.linspace(1, 0, SLICES), Statistics.zero(5, 1), parts, block(60), 1e-3)
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
    pairs = _budgets(found)
    by = {row["selector"]: row["gain"] for row in found}
    assert {pair["budget"] for pair in pairs} == set(BUDGETS)
    for pair in pairs:
        ours = by[f"learned + search @ {pair['budget']}"]
        assert pair["difference"] == pytest.approx(ours - by[pair["rival"]], abs=0.006)


def test_kinds_are_families_of_what_is_to_be_unlearned(found: list[dict]) -> None:
    assert sorted(kind for kinds in FAMILIES.values() for kind in kinds) == sorted(KINDS)
    again = [row | {"kind": "stale", "gain": row["gain"] + 1.0} for row in found]
    (labels, stale) = (
        {row["family"]: row for row in _by_family(found + again) if row["selector"] == "oracle"}[family]
        for family in ("irrelevant", "outdated")
    )
    assert stale["mean"] == pytest.approx(labels["mean"] + 1.0, abs=0.011)
    assert labels["tasks"] == 1


def test_a_federation_of_ones_own_is_measured_with_the_same_disturbances(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With as many slices as it likes: budgets of a refit a slice are compared under one name."""
    for module in ("policy", "selectors"):
        monkeypatch.setattr(f"frmu.bench.{module}.BUDGETS", ("K", 24))
    file = put(tmp_path / "homes", homes(2)).file
    result = bench_policy(tmp_path / "no-cache", 1, [file], 1, tmp_path / "out", sets=())
    assert result["tasks"] == 2 * len(KINDS)
    by = {(row["selector"], row["setting"]): row for row in result["rows"]}
    assert {row["group"] for row in result["rows"]} == {OWN}
    assert by["learned, 3 steps", "by itself"]["tasks"] == len(KINDS)
    single = csv.DictReader((tmp_path / "out" / "policy.csv").read_text().splitlines())
    assert {row["kind"] for row in single if float(row["hit"])} == set(KINDS) - {"none"}
    assert {row["family"] for row in result["kinds"]} == set(FAMILIES)
    assert {pair["budget"] for pair in result["budgets"]} == {"K", 24}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"policy.csv", "policy.json", "policy.png"}


def test_a_federation_where_nobody_can_be_judged_is_told(tmp_path: Path) -> None:
    config = put(tmp_path / "short", homes(2, days=100))  # it ends before the dates of the split
    with pytest.raises(DataError, match="no client has two slices to fit, validation records and test records"):
        bench_policy(tmp_path, 1, [config.file], 1, sets=())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only-own"], "leaves nothing to measure without --config"),
        (["--set", "taffic"], "no set taffic; there are: air"),
    ],
)
def test_what_cannot_be_measured_is_said_at_once(arguments: list[str], said: str) -> None:
    run = CliRunner().invoke(main, ["bench", "policy", *arguments])
    assert run.exit_code == 2
    assert said in run.output


@pytest.mark.long
def test_framu_is_a_selector_of_a_whole_federation(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(3))
    rows = {
        row["setting"]: row
        for row in bench_policy(tmp_path, 1, [config.file], 1, sets=(), framu=True)["rows"]
        if row["selector"] == "FRAMU to the letter"
    }
    assert rows["by itself"]["refits"] > 2
    assert rows["in a federation"]["tasks"] == len(KINDS)
