"""Training on values beyond a declared range: as if they had been its bound, and as if what is gone had never been."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.cli import main
from frmu.errors import DataError
from frmu.types import Selection

BOUNDS = {"temperature": (-20.0, 45.0), "humidity": (0.0, 100.0), "load": (-5.0, 20.0)}
pytestmark = pytest.mark.usefixtures("memory_tracking")


def clipping(share: float) -> str:
    return CONFIG.replace("[data.modalities]", f"clip = {share}\n\n[data.modalities]")


def readings(seed: int) -> pd.DataFrame:
    """Homes where a few readings of each column lie far beyond its range."""
    rng = np.random.default_rng(seed)
    table = homes(clients=3, seed=seed)
    for column, (low, high) in BOUNDS.items():
        rows = rng.choice(len(table), 9, replace=False)
        table.loc[rows, column] = rng.choice([low - 80.0, high + 1e6], 9)
    return table


def out(table: pd.DataFrame) -> pd.Series:
    return pd.concat([(table[c] < low) | (table[c] > high) for c, (low, high) in BOUNDS.items()], axis=1).any(axis=1)


@pytest.mark.parametrize("seed", range(3))
def test_a_value_beyond_the_range_is_learned_as_its_bound(tmp_path: Path, seed: int) -> None:
    table = readings(seed)
    given = train(put(tmp_path / "given", table, clipping(0.1)))
    bounded = table.assign(**{column: table[column].clip(*bounds) for column, bounds in BOUNDS.items()})
    mended = train(put(tmp_path / "mended", bounded, clipping(0.0)))
    assert given["state_digest"] == mended["state_digest"]
    assert given["clipped"] == dict.fromkeys(sorted(BOUNDS), 9)
    assert (mended["clipped"], mended["clipped_at"]) == ({}, {})


@pytest.mark.parametrize("seed", range(2))
def test_a_clipped_record_that_is_erased_was_never_there(tmp_path: Path, seed: int) -> None:
    table = readings(seed)
    config = put(tmp_path / "all", table, clipping(0.1))
    train(config)
    gone = out(table) & (np.arange(len(table)) % 3 != 0)
    api.erase(config, Selection("records", records=tuple(table.record[gone])))
    assert drain(config)["verified"]
    never = train(put(tmp_path / "never", table[~gone], clipping(0.1)))
    again = train(config)  # the files still hold what was erased: it counts for nothing
    assert api.status(config)["state_digest"] == again["state_digest"] == never["state_digest"]
    assert (again["clipped"], again["clipped_at"]) == (never["clipped"], never["clipped_at"])


def test_a_condition_finds_the_value_that_was_given(tmp_path: Path, table: pd.DataFrame) -> None:
    table.loc[[3, 500], "temperature"] = 61.0
    config = put(tmp_path / "homes", table)
    assert train(config)["clipped_at"] == {"temperature": 2}
    api.erase(config, Selection("where", where="temperature > 60"))
    receipt = drain(config)["receipts"][0]
    assert receipt["removed"] == {"home 0": 1, "home 1": 1}


def test_an_erasure_that_raises_the_share_is_drained_and_the_next_import_refuses(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    table.loc[[3, 4], "temperature"] = 61.0  # 2 of 424
    config = put(tmp_path / "homes", table)
    before = train(config)
    others = table[(table.home == "home 0") & (table.temperature < 60)].record
    api.erase(config, Selection("records", records=tuple(others[:300])))
    drained = drain(config)
    assert drained["verified"]
    assert drained["state_digest"] != before["state_digest"]
    with pytest.raises(DataError, match=r"beyond it: 2 of 124 values.*raise data\.clip"):
        train(config)
    assert api.status(config)["state_digest"] == drained["state_digest"]  # what was learned still stands
    never = table[~table.record.isin(others[:300])]
    with pytest.raises(DataError, match="beyond it: 2 of 124 values"):
        train(put(tmp_path / "never", never))
    assert train(put(tmp_path / "homes", table, clipping(0.02)))["state_digest"] == drained["state_digest"]


def test_what_is_private_or_erased_decides_nothing(tmp_path: Path, table: pd.DataFrame) -> None:
    table["mine"] = table.index < 40
    table.loc[:39, "humidity"] = 500.0
    text = clipping(0).replace('time = "ts"', 'time = "ts"\nprivate = "mine"')
    assert train(put(tmp_path / "private", table, text))["private"] == 40


def test_training_and_predicting_say_what_was_clipped(tmp_path: Path, table: pd.DataFrame) -> None:
    table.loc[[3, 4, 500], "temperature"] = 61.0
    table.loc[7, "load"] = -6.0
    config = str(put(tmp_path / "homes", table).file)
    run = CliRunner().invoke(main, ["train", config, "--address", "local"])
    assert run.exit_code == 0, run.output
    assert "clipped: load 1 value at 1 client\nclipped: temperature 3 values at 2 clients\n" in run.output
    run = CliRunner().invoke(main, ["train", config, "--address", "local", "--json"])
    assert json.loads(run.output.splitlines()[-1])["clipped"] == {"load": 1, "temperature": 3}
