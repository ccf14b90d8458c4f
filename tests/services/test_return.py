"""Who comes back after an erasure: what a closed request means stays out of every state, however a client was away."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, drain, put, train

from frmu import api
from frmu.config import Config
from frmu.errors import RequestError
from frmu.services.participants import leave, rejoin
from frmu.services.requests import ledger_of
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p2")
HOME = "home 3"


def apart(folder: Path, table: pd.DataFrame) -> Config:
    """A site a home, each with a folder of its own."""
    sites = ""
    for name, rows in table.groupby("home"):
        own = folder / str(name)[-1]
        own.mkdir(parents=True)
        rows.to_parquet(own / "rows.parquet", index=False)
        sites += f'\n[sites.s{str(name)[-1]}]\npath = "{own}/*.parquet"\nfolder = "{own}/work"\n'
    return put(folder, table, CONFIG + sites)


def together(folder: Path, table: pd.DataFrame) -> Config:
    return put(folder, table)


def without(table: pd.DataFrame, config: Config, make, folder: Path) -> str:
    """The digest of a federation that never had the person."""
    del config
    return train(make(folder, table[table.person != "p2"]))["state_digest"]


@pytest.fixture(params=[apart, together], ids=["sites", "folder"])
def make(request: pytest.FixtureRequest):
    return request.param


@pytest.mark.parametrize("asked", ["before", "after"], ids=lambda when: f"asked {when} it left")
def test_who_was_away_at_the_drain_brings_nobody_back(tmp_path: Path, table: pd.DataFrame, make, asked: str) -> None:
    config = make(tmp_path / "homes", table)
    train(config)
    if asked == "before":
        api.erase(config, PERSON)
    leave(config, HOME)
    train(config)
    if asked == "after":
        api.erase(config, PERSON)
    [receipt] = drain(config)["receipts"]
    assert HOME not in receipt["searched"]
    assert receipt["not_searched"] == [HOME]
    assert receipt["level"] == "L5 of those searched"
    assert any(HOME in line for line in receipt["not_covered"])
    rejoin(config, HOME)
    assert train(config)["state_digest"] == without(table, config, make, tmp_path / "never")
    with api.Experiment(config, "local") as experiment:
        verdict = experiment.verify("r1")
    assert (verdict["level"], verdict["verified"]) == ("L5", True)
    with ledger_of(config) as ledger:
        assert ledger.standing() == []
        assert ledger.check()


def test_who_left_for_good_is_waited_for_no_longer(tmp_path: Path, table: pd.DataFrame, make) -> None:
    config = make(tmp_path / "homes", table)
    train(config)
    leave(config, HOME)
    train(config)
    api.erase(config, PERSON)
    drain(config)
    with ledger_of(config) as ledger:
        assert [request.id for request in ledger.standing()] == ["r1"]
    leave(config, HOME, for_good=True)
    with ledger_of(config) as ledger:
        assert ledger.standing() == []
    with pytest.raises(RequestError, match="left for good"):
        rejoin(config, HOME)
    with pytest.raises(RequestError, match="left already for good"):
        leave(config, HOME, for_good=True)
    api.erase(config, Selection("subject", subject="p1"))
    [receipt] = drain(config)["receipts"]
    assert (receipt["level"], receipt["not_searched"]) == ("L5", [])


def test_shredding_destroys_no_meaning_that_is_still_needed(tmp_path: Path, table: pd.DataFrame) -> None:
    config = together(tmp_path / "homes", table)
    train(config)
    leave(config, HOME)
    train(config)
    api.erase(config, PERSON)
    drain(config)
    with ledger_of(config) as ledger:
        assert ledger.shred(subject="p2") == ["r1"]
        assert ledger.receipts() == []
        assert ledger.check()
    rejoin(config, HOME)
    never = together(tmp_path / "never", table[table.person != "p2"])
    assert train(config)["state_digest"] == train(never)["state_digest"]
    with ledger_of(config) as ledger:
        assert ledger.standing() == []


def test_a_drain_finds_what_a_joiner_still_holds(tmp_path: Path, table: pd.DataFrame) -> None:
    """It came back with its shard of old, and the next thing that happens is a drain, not a training."""
    config = apart(tmp_path / "homes", table)
    train(config)
    api.erase(config, PERSON)
    leave(config, HOME)
    shard = next((tmp_path / "homes" / "3" / "work").rglob("*.parquet"))
    kept = shard.read_bytes()
    train(config)
    drain(config)
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(kept)
    rejoin(config, HOME)
    api.erase(config, Selection("subject", subject="p1"))
    drained = drain(config)
    assert drained["verified"]
    gone = table[~table.person.isin(["p1", "p2"])]
    assert drained["state_digest"] == train(apart(tmp_path / "never", gone))["state_digest"]


def test_verify_searches_by_what_was_meant(tmp_path: Path, table: pd.DataFrame) -> None:
    """A shard that was put back has no tombstone of the person: the drain never looked there."""
    config = apart(tmp_path / "homes", table)
    train(config)
    shard = next((tmp_path / "homes" / "3" / "work").rglob("*.parquet"))
    kept = shard.read_bytes()
    api.erase(config, PERSON)
    leave(config, HOME)
    train(config)
    drain(config)
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(kept)
    rejoin(config, HOME)
    with api.Experiment(config, "local") as experiment:
        verdict = experiment.verify("r1")
    assert not verdict["verified"]
    assert verdict["tombstoned_records_left"] == int(((table.home == HOME) & (table.person == "p2")).sum())
