"""The surrogates for the paper's table: what is done to records, and how a row is judged for what it makes of them."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from frmu.bench import surrogates
from frmu.bench.scenario import VARIANTS, held, scenario
from frmu.bench.surrogates import Answer, Scenario, bench_surrogates
from frmu.cli import main
from frmu.datasets import cached
from frmu.errors import DataError

CACHE = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))
NO_FRAMU = [row for row in surrogates.ROWS if row != "FRAMU"]


@pytest.fixture(scope="module", autouse=True)
def data() -> None:
    try:
        cached("medical", CACHE)
    except DataError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, list[dict[str, str]]]:
    out = tmp_path_factory.mktemp("surrogates")
    found = bench_surrogates(CACHE, 1, ["medical"], NO_FRAMU, out)
    assert json.loads((out / "surrogates.json").read_text()) == found
    return found, list(csv.DictReader((out / "surrogates.csv").read_text().splitlines()))


def records(scene: Scenario) -> dict[str, pd.Series]:
    """The target by record of each client."""
    return {c.name: pd.Series(c.shard.target, c.shard.ids) for c in held(scene.federation)}


@pytest.mark.parametrize("kind", VARIANTS)
def test_never_is_the_same_federation_without_what_is_affected(kind: str) -> None:
    with scenario("medical", kind, 0, CACHE) as scene:
        assert scene.never is not None
        never = records(scene.never)
        assert scene.affected
        for client, mine in records(scene).items():
            gone = scene.affected.get(client, frozenset())
            assert set(mine.index) - gone == set(never[client].index)
            assert gone <= set(mine.index)
            assert mine.drop(list(gone)).equals(never[client])


@pytest.mark.parametrize(("kind", "seed"), [("outdated", 0), ("outdated", 1), ("irrelevant", 0), ("irrelevant", 2)])
def test_what_goes_wrong_goes_wrong_in_whole_slices_to_fit_and_again_with_the_seed(kind: str, seed: int) -> None:
    clean = pd.read_parquet(cached("medical", CACHE) / "data.parquet").set_index(["site", "record"])["bilirubin"]
    with scenario("medical", kind, seed, CACHE) as scene, scenario("medical", kind, seed, CACHE) as again:
        assert scene.affected == again.affected
        assert len(scene.affected) == 2  # half of four clinics
        for client in held(scene.federation):
            gone = np.isin(client.shard.ids, list(scene.affected.get(client.name, ())))
            assert set(client.shard.split[gone]) <= {0}
            assert not set(client.shard.slices[gone]) & set(client.shard.slices[~gone & (client.shard.split == 0)])
            changed = client.shard.target != clean[client.name].reindex(client.shard.ids).to_numpy()
            assert not (changed & ~gone).any()
            if gone.any():
                assert changed[gone].mean() > 0.5
                assert kind != "outdated" or max(client.shard.slices[gone]) < max(client.shard.slices[~gone])
        assert all(records(again)[name].equals(of) for name, of in records(scene).items())


def test_only_what_is_purged_leaves_nothing_behind(result: tuple[dict, list[dict[str, str]]]) -> None:
    rows = {(row["kind"], row["row"]): row for row in result[0]["rows"]}
    for row in ("ours", "oracle (retrained)"):
        assert rows["private", row]["exact"] == 1
        assert rows["private", row]["gap"] == rows["private", row]["gap_erased"] == 0.0
    for row in ("keep all", "best rule"):
        assert rows["private", row]["exact"] == 0
        assert rows["private", row]["gap_erased"] > 1.0
    for kind in ("outdated", "irrelevant"):
        assert rows[kind, "oracle (retrained)"]["gap"] == 0.0
        assert rows[kind, "keep all"]["gap"] > 1.0
        assert rows[kind, "keep all"]["gain"] == 0.0
        assert rows[kind, "ours"]["exact"] is None


def test_means_are_of_the_single_figures(result: tuple[dict, list[dict[str, str]]]) -> None:
    found, single = result
    assert len(single) == len(VARIANTS) * len(NO_FRAMU)
    for row in found["rows"]:
        (one,) = [s for s in single if (s["kind"], s["row"]) == (row["kind"], row["row"])]
        kept = next(s for s in single if (s["kind"], s["row"]) == (row["kind"], "keep all"))
        assert row["mse"] == pytest.approx(float(one["mse"]), abs=1e-5)
        assert row["gain"] == pytest.approx(100 * (1 - float(one["mse"]) / float(kept["mse"])), abs=1e-3)


def test_any_model_can_be_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row may learn from raw records what it likes: here the mean, in a federation that it may not change."""

    def mean(scene: Scenario) -> Answer:
        fitted = [c.shard.target[c.shard.split == 0] for c in held(scene.federation)]
        level = float(np.concatenate(fitted).mean())
        return Answer(lambda client, rows: np.full((len(rows), 1), level), str(level), 0)

    monkeypatch.setitem(surrogates.ROWS, "mean", mean)
    found = {
        (row["kind"], row["row"]): row for row in bench_surrogates(CACHE, 1, ["medical"], ["keep all", "mean"])["rows"]
    }
    assert found["irrelevant", "mean"]["mse"] > 1.5 * found["irrelevant", "keep all"]["mse"]
    assert found["private", "mean"]["exact"] == 0


def test_the_command_prints_every_set_and_kind_and_names_what_there_is() -> None:
    run = CliRunner().invoke(main, ["bench", "surrogates", "--seeds", "1", "--set", "medical", "--without-framu"])
    assert run.exit_code == 0, run.output
    for title in ("medical, outdated", "medical, private", "all single-modal sets, irrelevant"):
        assert title in run.output
    assert "FRAMU" not in run.output
    wrong = CliRunner().invoke(main, ["bench", "surrogates", "--set", "medcal"])
    assert wrong.exit_code == 2
    assert "no set medcal; there are: energy, traffic, medical" in wrong.output


@pytest.mark.long
def test_framu_stands_in_the_table() -> None:
    rows = {
        row["kind"]: row
        for row in bench_surrogates(CACHE, 1, ["medical"], ["keep all", "FRAMU"])["rows"]
        if row["row"] == "FRAMU"
    }
    assert all(rows[kind]["refits"] > 0 for kind in VARIANTS)
    assert rows["private"]["exact"] == 0
    assert rows["private"]["gap_erased"] > 0.0
