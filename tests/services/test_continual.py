"""Training that follows its data: a round whenever they change, until it is told to stop."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config
from frmu.errors import ConfigError, DataError
from frmu.services.continual import Follow
from frmu.types import Selection

SOON = dt.timedelta(milliseconds=20)


@pytest.fixture
def config(tmp_path: Path, table: pd.DataFrame) -> Config:
    """A federation that has seen two months."""
    return put(tmp_path / "homes", table[table["ts"] < "2025-05-15"], CONFIG.replace("homes.parquet", "*.parquet"))


def grow(config: Config, table: pd.DataFrame, name: str, after: str, before: str) -> None:
    """One more file of records."""
    part = table[(table["ts"] >= after) & (table["ts"] < before)]
    part.to_parquet(config.file.parent / name, index=False)


def never(*_: object) -> bool:
    return False


def test_a_round_whenever_the_data_grew(config: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    rounds = Follow(config.file, "local", SOON, rounds=3).run(never)
    first = next(rounds)
    grow(config, table, "june.parquet", "2025-05-15", "2025-06-20")
    second = next(rounds)
    grow(config, table, "july.parquet", "2025-06-20", "2026-01-01")
    third = next(rounds)
    assert [told["round"] for told in (first, second, third)] == [1, 2, 3]
    assert first["records"] < second["records"] < third["records"] == len(table)
    assert list(rounds) == []
    # and the state is that of a single training on all of it
    assert third["state_digest"] == train(put(tmp_path / "once", table))["state_digest"]


def test_nothing_happens_where_nothing_changed(config: Config) -> None:
    looks = iter([False] * 6 + [True] * 10)
    told = list(Follow(config.file, "local", dt.timedelta(0)).run(lambda: next(looks)))
    assert [one["round"] for one in told] == [1]


def test_requests_wait_unless_it_is_to_drain(config: Config, table: pd.DataFrame) -> None:
    rounds = Follow(config.file, "local", SOON, rounds=2).run(never)
    next(rounds)
    api.erase(config, Selection("subject", subject="p3"))
    grow(config, table, "june.parquet", "2025-05-15", "2025-06-20")
    assert next(rounds)["pending"] == 1
    assert api.status(config)["pending"][0]["stage"] == "received"
    rounds = Follow(config.file, "local", SOON, drain=True).run(never)
    assert next(rounds)["pending"] == 1
    drained = next(rounds)
    assert (drained["kind"], drained["receipts"][0]["level"]) == ("drain", "L5")
    api.erase(config, Selection("subject", subject="p4"))  # while nothing changes
    assert next(rounds)["receipts"][0]["request"] == "r2"
    rounds.close()  # type: ignore[attr-defined]


def test_what_goes_wrong_later_is_told_once_and_tried_again(config: Config, table: pd.DataFrame) -> None:
    rounds = Follow(config.file, "local", SOON, rounds=2).run(never)
    next(rounds)
    half = config.file.parent / "june.parquet"
    half.write_bytes(b"PAR1 half a file")
    told = next(rounds)
    assert told["kind"] == "error"
    assert "june.parquet: not a whole Parquet file" in told["error"]
    grow(config, table, "june.parquet", "2025-05-15", "2025-06-20")
    assert next(rounds)["kind"] == "train"


def test_what_goes_wrong_at_first_ends_it(config: Config) -> None:
    (config.file.parent / "homes.parquet").unlink()
    with pytest.raises(DataError, match="no Parquet file"):
        next(Follow(config.file, "local").run(never))


def test_a_config_that_changed_is_read_anew_and_a_new_day_is_a_round(config: Config, table: pd.DataFrame) -> None:
    rounds = Follow(config.file, "local", SOON, rounds=2).run(never)
    first = next(rounds)
    spans = 'until = 2025-05-15\nvalidation = "3w"\nlater = "1w"\ntest = "1w"'
    dates = "validation_from = 2025-05-01\nlater_from = 2025-06-01\ntest_from = 2025-07-01"
    config.file.write_text(config.file.read_text().replace(dates, spans))
    assert next(rounds)["state_digest"] != first["state_digest"]
    config.file.write_text(config.file.read_text().replace("2025-05-15", '"today"'))
    days = [next(Follow(config.file, "local", until=dt.date(2025, 5, day)).run(never)) for day in (10, 17)]
    assert [told["split_until"] for told in days] == ["2025-05-10", "2025-05-17"]
    assert days[0]["state_digest"] != days[1]["state_digest"]
    config.file.write_text(config.file.read_text().replace('"today"', "2025-05-15"))
    with pytest.raises(ConfigError, match="does not roll"):
        next(Follow(config.file, "local", until=dt.date(2025, 5, 10)).run(never))


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.cluster)])
def test_a_signal_ends_it_after_the_round_under_way(config: Config, table: pd.DataFrame, number: int) -> None:
    command = [sys.executable, "-m", "frmu", "train", config.file, "--follow", "--every", "1s"]
    process = subprocess.Popen(
        [*command, "--address", "local", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["round"] == 1
        grow(config, table, "june.parquet", "2025-05-15", "2025-06-20")
        assert json.loads(process.stdout.readline())["round"] == 2
        process.send_signal(number)
        summary = json.loads(process.stdout.read().strip().splitlines()[-1])
        assert process.wait(30) == 0, process.stderr.read()
    assert (summary["rounds"], summary["stopped_by"]) == (2, "signal")
    assert api.status(config)["state_digest"] == summary["state_digest"]


def test_at_the_desk(config: Config) -> None:
    def frmu(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["train", str(config.file), "--address", "local", *arguments])
        return result.exit_code, result.output

    code, told = frmu("--follow", "--rounds", "1", "--every", "1s")
    assert code == 0
    assert "round 1: 4 clients, 1,072 records" in told
    assert "validation_rmse" in told
    assert frmu("--follow", "--every", "soon")[0] == 2
    assert frmu("--rounds", "2")[0] == 2
