"""Several targets, and classes with weights, are learned and forgotten as any; in whole numbers all the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, drain, homes, hosted, put, train

from frmu import api
from frmu.config import Config
from frmu.errors import ConfigError, RequestError
from frmu.methods.analytic import analytic
from frmu.models.grid import gram
from frmu.services.prediction import predict
from frmu.storage.checkpoint import load_state
from frmu.types import RESIDUALS, Selection, State

pytestmark = pytest.mark.usefixtures("memory_tracking")

RANGES = "load = [-5.0, 20.0]\ncost = [0.0, 5000.0]"
SEVERAL = CONFIG.replace('target = "load"', 'target = ["load", "cost"]').replace("load = [-5.0, 20.0]", RANGES)
SEVERAL = SEVERAL.replace("[slices]", '[data.transforms]\ncost = "log1p"\n\n[slices]')
LEARNED = SEVERAL.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 1")
BANDS = CONFIG.replace('target = "load"', 'target = "band"').replace('"regression"', '"classification"')
BANDS = BANDS.replace('column = "load"', 'column = "temperature"').replace("load = [-5.0, 20.0]\n", "")
WEIGHTED = BANDS.replace("[slices]", "[data.weights]\nhigh = 7\n\n[slices]")
WIDE = WEIGHTED.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 1")


def with_costs(clients: int = 3) -> pd.DataFrame:
    table, rng = homes(clients), np.random.default_rng(5)
    return table.assign(cost=np.expm1(4.0 + 0.3 * table.load + rng.normal(0, 0.1, len(table))).clip(0, 4999))


def state_of(config: Config) -> State:
    state = load_state(config.folder / "state.safetensors")
    assert state is not None
    return state


@pytest.mark.parametrize("text", [SEVERAL, LEARNED, WEIGHTED, WIDE], ids=["targets", "wide", "weights", "wide weights"])
def test_a_drain_leaves_the_state_of_never_had(tmp_path: Path, text: str) -> None:
    table = with_costs()
    config = put(tmp_path / "all", table, text)
    train(config)
    api.erase(config, Selection("subject", subject="p3"))
    told = drain(config)
    never = put(tmp_path / "never", table[table.person != "p3"], text)
    assert told["verified"]
    assert train(never)["state_digest"] == told["state_digest"]
    one, other = (state_of(each) for each in (config, never))
    assert one.contents == other.contents  # the counts of residuals among it


def test_of_many_records_a_hash_of_ids_draws_who_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_costs()
    monkeypatch.setattr("frmu.methods.analytic.ENOUGH", 40)
    states = [
        state_of(config)
        for config in (put(tmp_path / "all", table), put(tmp_path / "rest", table[5:]))
        if train(config)
    ]
    counted = [state.parameters[RESIDUALS].sum() for state in states]
    assert counted[0] == counted[1]  # the first five records are fitted: who judges is drawn alike
    assert 20 < counted[0] < 120  # of 186


@pytest.mark.parametrize("text", [LEARNED, WIDE], ids=["targets", "weights"])
def test_any_hosts_give_the_same_state(tmp_path: Path, text: str) -> None:
    config = put(tmp_path / "homes", with_costs(), text)
    train(config)
    method = analytic(config)
    states = [method.apply(hosted(config, size), method.init(), None).state for size in (1, 3)]
    assert states[0].contents == states[1].contents


def test_no_target_counts_more_for_its_unit(tmp_path: Path) -> None:
    text = SEVERAL.replace('\n[data.transforms]\ncost = "log1p"\n', "")
    table = with_costs()
    metrics = train(put(tmp_path / "one", table, text))["metrics"]
    cents = text.replace("cost = [0.0, 5000.0]", "cost = [0.0, 500000.0]")
    other = train(put(tmp_path / "other", table.assign(cost=100 * table.cost), cents))["metrics"]
    assert other["test_rmse load"] == pytest.approx(metrics["test_rmse load"], rel=1e-6)
    assert other["test_rmse cost"] == pytest.approx(100 * metrics["test_rmse cost"], rel=1e-6)
    assert 0 < metrics["test_rmse"] < 0.1  # in shares of the ranges


def test_each_target_is_predicted_in_its_own_units(tmp_path: Path) -> None:
    table = with_costs()
    config = put(tmp_path / "homes", table, SEVERAL)
    metrics = train(config)["metrics"]
    predict(config, Path(config.source), tmp_path / "out.parquet", interval=0.9)
    said, test = pd.read_parquet(tmp_path / "out.parquet"), table.ts >= "2025-07-01"
    for name in ("load", "cost"):
        rmse = float(np.sqrt(np.mean((said[f"prediction {name}"] - table[name])[test] ** 2)))
        assert rmse == pytest.approx(metrics[f"test_rmse {name}"], rel=1e-9)
        inside = table[name].between(said[f"low {name}"], said[f"high {name}"])
        judged = (table.ts >= "2025-05-01") & (table.ts < "2025-06-01")
        assert 0.9 <= inside[judged].mean() <= 0.96
        assert inside[test].mean() > 0.7
    one = said.iloc[0]
    assert one["high cost"] - one["prediction cost"] > one["prediction cost"] - one["low cost"]  # of a logarithm


def test_a_weight_counts_a_record_so_often(tmp_path: Path) -> None:
    Z = np.random.default_rng(0).integers(-128, 128, (50, 6), dtype=np.int8)
    times = np.random.default_rng(1).integers(1, 5, 50)
    assert np.array_equal(gram(Z, times).M, gram(np.repeat(Z, times, axis=0)).M)


def test_a_rare_class_is_named_once_it_counts(tmp_path: Path) -> None:
    table = with_costs()
    wet = table.humidity + np.random.default_rng(3).normal(0, 15, len(table)) > 95
    table = table.assign(band=np.where(wet, "high", "low"))
    found = {}
    for name, text in {"plain": BANDS, "weighted": WEIGHTED}.items():
        config = put(tmp_path / name, table, text)
        found[name] = train(config)["metrics"]
        predict(config, Path(config.source), tmp_path / f"{name}.parquet")
        said = pd.read_parquet(tmp_path / f"{name}.parquet").prediction.to_numpy()
        found[name]["named"] = float(np.mean(said[(table.band == "high").to_numpy()] == "high"))
    assert found["weighted"]["named"] > found["plain"]["named"] + 0.1
    assert 0.5 < found["weighted"]["test_weighted_accuracy"] <= 1.0
    assert "test_weighted_accuracy" not in found["plain"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('target = "load"', 'target = []', "target must name one column, or several, each once"),
        ('target = "load"', 'target = ["load", "load"]', "target must name one column, or several, each once"),
        ('target = "load"', 'target = ["load", "humidity"]', 'target "humidity" must not be a feature as well'),
        ("[slices]", "[data.weights]\nhigh = 2\n\n[slices]", 'weights are for task = "classification"'),
    ],
)  # fmt: skip
def test_targets_and_weights_that_cannot_be_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        put(tmp_path / "homes", homes(1), CONFIG.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("high = 7", "high = 0", 'weight of "high" must be a whole number from 1 to 1,000, got 0'),
        ("high = 7", "high = 1.5", "weights.high"),
        ('task = "', 'classes = ["high", "low"]\ntask = "', ""),
        ('task = "', 'classes = ["low", "hihg"]\ntask = "', 'weight of "high" must be that of one of data.classes'),
        ('target = "band"', 'target = ["band", "person"]', 'target must name one column where task = "classification"'),
    ],
)
def test_weights_that_cannot_be_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    if not message:
        put(tmp_path / "homes", homes(1), WEIGHTED.replace(old, new))
        return
    with pytest.raises(ConfigError, match=message):
        put(tmp_path / "homes", homes(1), WEIGHTED.replace(old, new))


def test_an_interval_that_cannot_be_had_says_why(tmp_path: Path) -> None:
    table = homes(1)
    config = put(tmp_path / "few", table, CONFIG)
    train(config)
    with pytest.raises(RequestError, match=r"an interval of 0.99 needs a model that 99 validation records judged, and"):
        predict(config, Path(config.source), tmp_path / "o.parquet", interval=0.99)
    with pytest.raises(RequestError, match=r"an interval must be a share between 0 and 1, such as 0.9, got 90"):
        predict(config, Path(config.source), tmp_path / "o.parquet", interval=90)
    assert not (tmp_path / "o.parquet").exists()
    bands = put(tmp_path / "bands", table, BANDS)
    train(bands)
    with pytest.raises(RequestError, match="an interval is for a regression"):
        predict(bands, Path(bands.source), tmp_path / "o.parquet", interval=0.9)
    rare = put(tmp_path / "rare", table[(table.ts < "2025-05-01") | (table.ts > "2025-05-25")], CONFIG)
    train(rare)
    assert RESIDUALS not in state_of(rare).parameters
    with pytest.raises(RequestError, match="it has fewer than 20"):
        predict(rare, Path(rare.source), tmp_path / "o.parquet", interval=0.9)
