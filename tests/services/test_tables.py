"""A real table through the services: trained, predicted in raw units, erased and proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import drain, put, train
from tables import TABLES, real

from frmu import api
from frmu.errors import DataError
from frmu.services.prediction import predict
from frmu.types import Selection

CATEGORIES = TABLES.replace(
    'calendar = ["hour_sin", "hour_cos"]\nweather = ["temperature", "humidity", "yesterday", "visits"]\n', ""
)
CATEGORIES = CATEGORIES.replace('yesterday = { column = "load", back = "1d" }\n', "").replace('visits = "log1p"\n', "")
for gone in ("hour_sin = [-1, 1]\n", "hour_cos = [-1, 1]\n", "temperature = [-20.0, 45.0]\n", "humidity = [0, 100]\n"):
    CATEGORIES = CATEGORIES.replace(gone, "")
CATEGORIES = CATEGORIES.replace("visits = [0, 5000]\n", "").replace('["humidity", "colour", "visits"]', '["colour"]')


def test_predictions_and_errors_are_in_raw_units(tmp_path: Path) -> None:
    table = real()
    config = put(tmp_path / "homes", table, TABLES)
    trained = train(config)
    predict(config, Path(config.source), tmp_path / "out.parquet")
    predicted = pd.read_parquet(tmp_path / "out.parquet").prediction
    test = table.ts >= "2025-07-01"
    rmse = float(np.sqrt(np.mean((predicted - table.load)[test] ** 2)))
    assert rmse == pytest.approx(trained["metrics"]["test_rmse"], rel=1e-9)
    assert predicted.between(-0.95, 20.0).all()
    table.assign(colour="never seen", city=7).to_parquet(tmp_path / "in.parquet", index=False)
    predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert pd.read_parquet(tmp_path / "out.parquet").prediction.notna().all()
    table.assign(temperature=None).to_parquet(tmp_path / "in.parquet", index=False)
    with pytest.raises(DataError, match='"temperature" is null'):
        predict(config, tmp_path / "in.parquet", tmp_path / "out.parquet")


@pytest.mark.usefixtures("memory_tracking")
def test_a_drain_by_conditions_on_them_is_proven(tmp_path: Path) -> None:
    table = real()
    config = put(tmp_path / "all", table, TABLES)
    train(config)
    api.erase(config, Selection("where", where="colour = 'black' or visits is null and city = 'city 7'"))
    told = drain(config)
    assert told["verified"]
    gone = (table.colour == "black") | (table.visits.isna() & (table.city == "city 7"))
    never = put(tmp_path / "never", table[~gone], TABLES)
    assert train(never)["state_digest"] == told["state_digest"]


@pytest.mark.usefixtures("memory_tracking")
@pytest.mark.parametrize("text", [TABLES, CATEGORIES], ids=["all", "categories alone"])
def test_attacks_are_rehearsed_on_them(tmp_path: Path, text: str) -> None:
    config = put(tmp_path / "homes", real(), text)
    train(config)
    receipt = api.erase(config, Selection("subject", subject="p3"))["request"]
    assert drain(config)["verified"]
    with api.Experiment(config, "local") as experiment:
        proofs = experiment.verify(receipt, "L3")["proofs"]
    assert {proof["check"] for proof in proofs} >= {"canaries (rehearsed)", "backdoor (rehearsed)"}
