"""Clients join and leave, also while a job is at work; who left is in no state, and may come back."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config
from frmu.errors import ConfigError, DataError, RequestError
from frmu.services.continual import Follow
from frmu.services.participants import add, leave, members, rejoin
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

FOLDER = CONFIG.replace("homes.parquet", "*.parquet")


def never() -> bool:
    return False


def joiner(folder: Path, table: pd.DataFrame, name: str = "home 9") -> Path:
    """A file of one more home, elsewhere."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.parquet"
    one = table[table.home == "home 0"]
    one.assign(home=name, record="9-" + one.record).to_parquet(path, index=False)
    return path


def test_a_joiner_takes_part_in_the_round_after_it_came(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, FOLDER)
    rounds = Follow(config.file, "local", dt.timedelta(milliseconds=20), rounds=2).run(never)
    assert next(rounds)["clients"] == 4
    added = add(config, [joiner(tmp_path / "elsewhere", table)])
    assert added["clients"] == {"home 9": int((table.home == "home 0").sum())}
    assert next(rounds)["clients"] == 5
    standing = {row["client"]: row["standing"] for row in members(config)}
    assert standing == {f"home {n}": "in" for n in (0, 1, 2, 3, 9)}


@pytest.mark.parametrize("subject", ["p3", "nobody"])
def test_a_drain_right_after_somebody_left_makes_the_state_without_them(
    tmp_path: Path, table: pd.DataFrame, subject: str
) -> None:
    """No training in between; whether anybody holds something or not."""
    config = put(tmp_path / "homes", table)
    train(config)
    leave(config, "home 3")
    api.erase(config, Selection("subject", subject=subject))
    drained = drain(config)
    assert drained["verified"]
    never = put(tmp_path / "never", table[(table.home != "home 3") & (table.person != subject)])
    assert drained["state_digest"] == train(never)["state_digest"]


def test_who_left_is_in_no_state_and_may_come_back(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table)
    first = train(config)
    leave(config, "home 3")
    assert {row["client"]: row["standing"] for row in members(config)}["home 3"] == "left"
    without = train(config)
    assert without["clients"] == 3
    assert without["state_digest"] == train(put(tmp_path / "never", table[table.home != "home 3"]))["state_digest"]
    assert not (config.folder / "shards" / "home%203.parquet").exists()
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify()["verified"]
    rejoin(config, "home 3")
    assert train(config)["state_digest"] == first["state_digest"]


def test_who_left_before_a_drain_is_not_asked_and_keeps_nothing_here(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table)
    train(config)
    leave(config, "home 3")
    api.erase(config, Selection("subject", subject="p2"))
    train(config)
    with api.Experiment(config, "local") as experiment:
        drained = experiment.drain()
    assert drained["verified"]
    assert "home 3" not in drained["receipts"][0]["searched"]
    never_had = table[(table.home != "home 3") & (table.person != "p2")]
    assert drained["state_digest"] == train(put(tmp_path / "never", never_had))["state_digest"]


def test_leaving_while_a_job_follows(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, FOLDER)
    rounds = Follow(config.file, "local", dt.timedelta(milliseconds=20), rounds=2).run(never)
    next(rounds)
    leave(config, "home 1")
    assert next(rounds)["clients"] == 3


def test_what_cannot_be_is_told(tmp_path: Path, table: pd.DataFrame) -> None:
    one = put(tmp_path / "one", table)
    train(one)
    with pytest.raises(RequestError, match='no client "home 33"; did you mean "home 3"'):
        leave(one, "home 33")
    with pytest.raises(RequestError, match="has not left"):
        rejoin(one, "home 3")
    leave(one, "home 3")
    with pytest.raises(RequestError, match="has left already"):
        leave(one, "home 3")
    with pytest.raises(ConfigError, match="is one file; make it a folder or a glob"):
        add(one, [joiner(tmp_path / "elsewhere", table)])
    many = put(tmp_path / "many", table, FOLDER)
    with pytest.raises(DataError, match='client "home 2" is in the federation already'):
        add(many, [joiner(tmp_path / "twice", table, "home 2")])
    bad = joiner(tmp_path / "bad", table.assign(humidity=500.0))
    with pytest.raises(DataError, match=r'"humidity" must be within'):
        add(many, [joiner(tmp_path / "elsewhere", table, "home 8"), bad])
    assert sorted(file.name for file in (tmp_path / "many").glob("*.parquet")) == ["homes.parquet"]


def test_the_commands(config: Config) -> None:
    train(config)
    run = CliRunner().invoke(main, ["client", "leave", str(config.file), "home 2"])
    assert run.exit_code == 0, run.output
    assert "home 2 is out from the next round on" in run.output
    listed = CliRunner().invoke(main, ["client", "list", str(config.file), "--json"])
    standing = {row["client"]: row["standing"] for row in json.loads(listed.output)}
    assert standing["home 2"] == "left"
    assert CliRunner().invoke(main, ["client", "join", str(config.file), "home 2"]).exit_code == 0
    refused = CliRunner().invoke(main, ["client", "leave", str(config.file), "nobody"])
    assert refused.exit_code == 2


def test_a_drain_removes_the_shard_of_who_has_left(config: Config) -> None:
    """As a site that was away when the client left, and is back at the drain, still holds it."""
    train(config)
    shard = config.folder / "shards" / "home%203.parquet"
    before = shard.read_bytes()
    leave(config, "home 3")
    train(config)
    shard.write_bytes(before)
    api.erase(config, Selection("subject", subject="p3"))
    assert drain(config)["verified"]
    assert not shard.exists()
