"""Only a state that no erasure has overtaken predicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config
from frmu.errors import DataError, RequestError, StoreError
from frmu.services.prediction import load_model, predict
from frmu.storage.checkpoint import load_state, save_state
from frmu.types import Selection

PERSON = Selection("subject", subject="p3")
BANDS = (
    CONFIG.replace('target = "load"', 'target = "band"')
    .replace('"regression"', '"classification"')
    .replace("load = [-5.0, 20.0]", "")
    .replace('column = "load"', 'column = "temperature"')
)


def versions(config: Config) -> tuple[list[str], str | None]:
    """The versions that are there, and the champion."""
    with api.Experiment(config, "local") as experiment:
        champion = experiment.session.registry.champion()
        return [one.number for one in experiment.session.registry.versions()], champion and champion.number


def test_the_champion_predicts_as_well_as_it_was_measured(config: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    trained = train(config)
    out = tmp_path / "out.parquet"
    used = predict(config, Path(config.source), out)
    assert (used["version"], used["state_digest"]) == ("1", trained["state_digest"])
    predicted = pd.read_parquet(out)
    assert predicted[["record", "home"]].equals(table[["record", "home"]])
    test = table.ts >= "2025-07-01"
    rmse = float(np.sqrt(np.mean((predicted.prediction - table.load)[test] ** 2)))
    assert rmse == pytest.approx(trained["metrics"]["test_rmse"], rel=1e-9)


def test_classes_come_with_their_scores(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "bands", table, BANDS)
    trained = train(config)
    predict(config, Path(config.source), tmp_path / "out.parquet")
    predicted = pd.read_parquet(tmp_path / "out.parquet")
    test = table.ts >= "2025-07-01"
    assert (predicted.prediction == table.band)[test].mean() == pytest.approx(trained["metrics"]["test_accuracy"])
    assert {"score high", "score low"} <= set(predicted)


def test_the_future_may_lack_what_only_lags_look_at(config: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    train(config)
    future = table.assign(load=table.load.where(table.ts < "2025-07-20")).drop(columns=["band", "person"])
    future.to_parquet(tmp_path / "in.parquet", index=False)
    predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pd.read_parquet(tmp_path / "out.parquet").prediction.notna().all()
    future.drop(columns=["temperature", "humidity"]).to_parquet(tmp_path / "in.parquet", index=False)
    predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")
    without = pd.read_parquet(tmp_path / "out.parquet")
    future.assign(temperature=None, humidity=None).to_parquet(tmp_path / "in.parquet", index=False)
    predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pd.read_parquet(tmp_path / "out.parquet").equals(without)
    assert without.prediction.notna().all()
    only = future.drop(columns=["temperature", "humidity"])
    for lost in (
        future.rename(columns={"temperature": "temprature", "humidity": "humid"}),
        only.drop(columns=["hour_sin", "hour_cos"]),
        future.drop(columns="humidity"),
    ):
        lost.to_parquet(tmp_path / "in.parquet", index=False)
        with pytest.raises(DataError, match="no column"):
            predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")
    future.assign(humidity=np.nan).to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(DataError, match='column "humidity" is null'):
        predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")


def test_a_drain_moves_the_champion_and_removes_what_was_tainted(config: Config, tmp_path: Path) -> None:
    train(config)
    api.erase(config, PERSON)
    drained = drain(config)
    assert versions(config) == (["2"], "2")
    assert drained["receipts"][0]["purge"]["mlflow"]["versions"][0].endswith("/1")
    assert predict(config, Path(config.source), tmp_path / "o.parquet")["state_digest"] == drained["state_digest"]
    with pytest.raises(RequestError, match="no version 1"):
        predict(config, Path(config.source), tmp_path / "o.parquet", "1")


def test_a_state_that_somebody_kept_is_not_served_again(config: Config, tmp_path: Path) -> None:
    train(config)
    kept = (config.folder / "state.safetensors").read_bytes()
    api.erase(config, PERSON)
    drain(config)
    (tmp_path / "state.safetensors").write_bytes(kept)
    with api.Experiment(config, "local") as experiment, experiment.session.tracker.run("sneak") as run:
        number = experiment.session.registry.register(
            run.id, tmp_path / "state.safetensors", {"frmu.state_digest": "x"}
        )
        experiment.session.registry.promote(number)
    with pytest.raises(RequestError, match="an erasure has overtaken or this federation never made"):
        predict(config, Path(config.source), tmp_path / "o.parquet")
    assert not (tmp_path / "o.parquet").exists()


def test_old_weights_under_the_name_of_the_state_in_force_are_not_served(config: Config, tmp_path: Path) -> None:
    """The digest of a state does not hold its weights; the ledger does."""
    train(config)
    old = load_state(config.folder / "state.safetensors")
    api.erase(config, PERSON)
    drain(config)
    now = load_state(config.folder / "state.safetensors")
    assert old is not None
    assert now is not None
    save_state(replace(now, parameters=old.parameters), config, tmp_path / "state.safetensors")
    with api.Experiment(config, "local") as experiment, experiment.session.tracker.run("sneak") as run:
        tags = {"frmu.state_digest": now.digest}
        experiment.session.registry.promote(
            experiment.session.registry.register(run.id, tmp_path / "state.safetensors", tags)
        )
    with pytest.raises(RequestError, match="an erasure has overtaken or this federation never made"):
        predict(config, Path(config.source), tmp_path / "o.parquet")


def test_nothing_is_served_while_an_erasure_is_under_way(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frmu.methods.method import Method

    train(config)
    api.erase(config, PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(Method, "__getattribute__", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            drain(config)
    with pytest.raises(RequestError, match="an erasure has overtaken"):
        predict(config, Path(config.source), tmp_path / "o.parquet")
    assert not api.status(config)["state_is_clean"]
    drain(config)
    assert predict(config, Path(config.source), tmp_path / "o.parquet")["version"] == "2"


def _interrupted(self: object, name: str) -> object:
    if name == "erase":
        raise KeyboardInterrupt
    return object.__getattribute__(self, name)


@pytest.mark.parametrize("out", ["homes.parquet", "homes.frmu/out.parquet", "nowhere/out.parquet", "."])
def test_predictions_replace_nothing_that_is_read(config: Config, out: str) -> None:
    train(config)
    before = Path(config.source).read_bytes()
    with pytest.raises(RequestError, match="another --out"):
        predict(config, Path(config.source), config.file.parent / out)
    assert Path(config.source).read_bytes() == before


def test_when_everything_went_nothing_is_served(config: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    train(config)
    api.erase(config, Selection("where", where="load > -100"))
    assert drain(config)["verified"]
    assert versions(config) == ([], None)
    with pytest.raises(RequestError, match="no champion"):
        predict(config, Path(config.source), tmp_path / "o.parquet")


def test_a_changed_state_file_is_no_model(config: Config, tmp_path: Path) -> None:
    train(config)
    model = load_model(config.folder / "state.safetensors")
    other = model.config.model_copy(update={"model": model.config.model.model_copy(update={"seed": 9})})
    save_state(model.state, other, tmp_path / "state.safetensors")
    with pytest.raises(StoreError, match="its config is not the one"):
        load_model(tmp_path / "state.safetensors")


@pytest.mark.filterwarnings("ignore:.*type hint:UserWarning")  # what MLflow says to itself when it is imported
def test_mlflow_loads_a_version_without_a_pickle(config: Config, table: pd.DataFrame) -> None:
    import mlflow.pyfunc

    train(config)
    with api.Experiment(config, "local") as experiment:
        version = experiment.session.registry.champion()
        assert version is not None
        place = experiment.session.tracker.backend.client.get_model_version_download_uri(
            experiment.session.registry.name, version.number
        )
    files = [file.name for file in Path(place.removeprefix("file://")).rglob("*") if file.is_file()]
    assert sorted(files) == ["MLmodel", "state.safetensors"]
    loaded = mlflow.pyfunc.load_model(place)
    assert loaded.predict(table.head(20)).prediction.notna().all()


def test_inputs_beyond_a_range_are_clipped_counted_and_refused_above_the_share(
    config: Config, table: pd.DataFrame, tmp_path: Path
) -> None:
    train(config)
    file, out = tmp_path / "in.parquet", tmp_path / "out.parquet"
    told = []
    for hot in (45.0, 300.0):
        changed = table.copy()
        changed.loc[[3, 4, 500], "temperature"] = hot
        changed.loc[7, "load"] = 20.0 if hot == 45.0 else 21.0  # what the lag sees
        changed.to_parquet(file, index=False)
        told.append((predict(config, file, out), pd.read_parquet(out)))
    (bound, at_bound), (beyond, clipped) = told
    assert clipped.equals(at_bound)
    assert (bound["clipped"], bound["clipped_at"]) == ({}, {})
    assert beyond["clipped"] == {"load": 1, "temperature": 3}
    assert beyond["clipped_at"] == {"load": 1, "temperature": 2}
    run = CliRunner().invoke(main, ["predict", str(config.file), str(file), "-o", str(out)])
    assert "clipped: temperature 3 values at 2 clients" in run.output
    strict = config.model_copy(update={"data": config.data.model_copy(update={"clip": 0.0})})
    with pytest.raises(DataError, match=r'"temperature" must be within .* got 300 at client "home 0", row 3'):
        predict(strict, file, out)
    table.assign(temperature=300.0).to_parquet(file, index=False)
    with pytest.raises(DataError, match="beyond it: 424 of 424 values"):
        predict(config, file, out)
