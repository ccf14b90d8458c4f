"""A split that rolls with the day of training keeps the law: what is erased was never there."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, homes, put

from frmu import api
from frmu.cli import main
from frmu.config import Config, load
from frmu.errors import ConfigError, FrmuError
from frmu.services.prediction import predict
from frmu.storage.checkpoint import config_of
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

DATES = "validation_from = 2025-05-01\nlater_from = 2025-06-01\ntest_from = 2025-07-01"
SPANS = 'validation = "4w"\nlater = "2w"\ntest = "2w"'
ROLLING = CONFIG.replace(DATES, f'until = "today"\n{SPANS}')
assert ROLLING != CONFIG
JUNE, JULY = dt.date(2025, 6, 1), dt.date(2025, 7, 15)


def train(config: Config, until: dt.date | None = None) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.train(until)


def test_borders_are_counted_back(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "a", table, ROLLING)
    dates = config.at(JULY).split.dates
    assert dates == (dt.datetime(2025, 5, 20), dt.datetime(2025, 6, 17), dt.datetime(2025, 7, 1))
    with pytest.raises(ConfigError, match="settled"):
        _ = config.split.dates
    fixed = put(tmp_path / "b", table, CONFIG.replace(DATES, f"until = 2025-07-15\n{SPANS}"))
    assert fixed.split.dates == dates
    assert fixed.fingerprint() == config.at(JULY).fingerprint()
    assert fixed.at(JUNE) is fixed


def test_erased_is_never_had_also_for_the_newest_records(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", table, ROLLING)
    grown = table["ts"] < "2025-07-10"
    table[grown].to_parquet(config.file.parent / "homes.parquet", index=False)
    assert train(config, JUNE)["split_until"] == "2025-06-01"
    table.to_parquet(config.file.parent / "homes.parquet", index=False)
    before = train(config, JULY)
    newest = (dt.datetime(2025, 7, 5), dt.datetime(2026, 1, 1))
    api.erase(config, Selection("between", between=newest))
    api.erase(config, Selection("subject", subject="p1"))
    done = drain(config)  # days later, for all it knows
    assert {receipt["level"] for receipt in done["receipts"]} == {"L5"}
    gone = (table["ts"] >= newest[0]) | (table["person"] == "p1")
    never = train(put(tmp_path / "never", table[~gone], ROLLING), JULY)
    assert done["state_digest"] == never["state_digest"] != before["state_digest"]
    other = train(put(tmp_path / "other", table[~gone], ROLLING), JUNE)
    assert other["state_digest"] != never["state_digest"]
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify()["verified"]
        assert experiment.explain()["state_digest"] == done["state_digest"]
    told = api.status(config)
    assert (told["split_until"], told["trained_with_this_config"]) == ("2025-07-15", True)


def test_a_request_that_waits_is_met_under_another_day(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", table, ROLLING)
    train(config, JUNE)
    api.erase(config, Selection("subject", subject="p1"))
    train(config, JULY)
    done = drain(config)
    never = train(put(tmp_path / "never", table[table["person"] != "p1"], ROLLING), JULY)
    assert done["state_digest"] == never["state_digest"]


def test_one_job_may_train_on_several_days(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "a", table, ROLLING)
    with api.Experiment(config, "local") as experiment:
        digests = [experiment.train(day)["state_digest"] for day in (JUNE, JULY, JUNE)]
    assert digests[0] == digests[2] != digests[1]
    assert config_of(config.folder / "state.safetensors").split.until == JUNE


def test_without_a_day_it_is_today(tmp_path: Path) -> None:
    today = dt.datetime.now(dt.UTC).date()
    moved = homes()
    moved["ts"] += pd.Timestamp(today) - moved["ts"].max()
    config = put(tmp_path / "a", moved, ROLLING)
    summary = train(config)
    assert summary["split_until"] == str(today)
    assert summary["metrics"]["test_rmse"] > 0


def test_predictions_go_by_the_state_s_own_config(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "a", table, ROLLING)
    train(config, JULY)
    out = predict(config, config.file.parent / "homes.parquet", tmp_path / "out.parquet")
    assert out["rows"] == len(table)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ('until = "today"', "must all be durations"),
        (f'until = "tomorrow"\n{SPANS}', "until"),
        (SPANS, "counted back from split.until"),
        (f"until = 2025-01-01\n{SPANS}".replace('"2w"', "0.2"), "must all be durations"),
        (f"until = 2025-01-01\n{SPANS}".replace('"4w"', '"4x"'), "a duration must be"),
        (f"until = 0001-01-05\n{SPANS}", "of this world"),
        (f"until = 2025-01-01\n{SPANS}".replace('"4w"', '"999999w"'), "of this world"),
        (f"{DATES}\nuntil = 2025-01-01", "give dates or shares"),
        ("validation = 0.0", "shares between 0 and 1"),
        ("validation = 0.9", "below 1"),
    ],
)
def test_a_split_that_cannot_be_is_told(split: str, message: str, tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=message):
        put(tmp_path / "a", table, CONFIG.replace(DATES, split))


def test_it_needs_a_time(tmp_path: Path, table: pd.DataFrame) -> None:
    text = ROLLING.replace('time = "ts"\n', "").replace('by = "month"', 'by = "person"')
    lags = '\n[data.lags]\nyesterday = { column = "load", back = "1d" }\n'
    text = text.replace(lags, "").replace(', "yesterday"', "")
    with pytest.raises(ConfigError, match=r"dates in \[split\] need data\.time"):
        put(tmp_path / "a", table, text)


def test_a_day_for_a_split_that_does_not_roll_is_refused(config: Config) -> None:
    with pytest.raises(ConfigError, match="the split does not roll"):
        train(config, JULY)
    with pytest.raises(FrmuError):  # and nothing was trained
        api.status(config)


def test_at_the_desk(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "a", table, ROLLING)
    run = CliRunner().invoke(main, ["train", str(config.file), "--until", "2025-07-15", "--address", "local", "--json"])
    assert json.loads(run.output.strip().splitlines()[-1])["split_until"] == "2025-07-15"
    assert CliRunner().invoke(main, ["train", str(config.file), "--until", "soon"]).exit_code == 2
    assert load(config.file).split.rolling
