"""Ways in which something could be left, or a proof could lie; each was found by trying."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import drain, put, train

from frmu import api
from frmu.clients.tasks.importing import CommitShard
from frmu.config import Config
from frmu.errors import ConfigError, DataError, FederationError, LedgerError, PolicyError, RequestError, StoreError
from frmu.ledger.ledger import Ledger
from frmu.selection.network import read_policy, shipped, write_policy
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


def verify(config: Config, receipt: str | None = None) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.verify(receipt)


def alter(config: Config, statement: str) -> None:
    connection = sqlite3.connect(config.folder / "ledger.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.fixture
def trained(config: Config) -> Config:
    train(config)
    return config


@pytest.mark.parametrize("stage", ["planned", "purged", "refitted", "verified"])
def test_an_interrupted_erasure_of_a_whole_client_is_resumed(
    trained: Config, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    api.erase(trained, Selection("client", client="home 1"))
    advance, plan = Ledger.advance, Ledger.plan

    def crash(self: Ledger, requests: list[str], reached: str, body: dict) -> None:
        if reached == stage:
            raise KeyboardInterrupt
        advance(self, requests, reached, body)  # type: ignore[arg-type]

    def crash_planning(self: Ledger, requests: list[str]) -> dict:
        if stage == "planned":
            raise KeyboardInterrupt
        return plan(self, requests)

    monkeypatch.setattr(Ledger, "advance", crash)
    monkeypatch.setattr(Ledger, "plan", crash_planning)
    with pytest.raises(KeyboardInterrupt):
        drain(trained)
    monkeypatch.undo()
    drained = drain(trained)
    assert drained["receipts"][0]["removed"] == {"home 1": 424}
    assert drained["state_digest"] == train(put(tmp_path / "never", table[table.home != "home 1"]))["state_digest"]


def test_what_a_killed_import_left_is_swept(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CommitShard, "perform", kill)
    with pytest.raises(KeyboardInterrupt):
        train(trained)
    monkeypatch.undo()
    assert list((trained.folder / "shards").glob("*.incoming"))
    api.erase(trained, PERSON)
    assert drain(trained)["verified"]
    assert {file.suffix for file in (trained.folder / "shards").iterdir()} == {".parquet"}


def test_a_file_that_nobody_owns_fails_the_proof(trained: Config) -> None:
    (trained.folder / "shards" / "old-backup.zip").write_bytes(b"rows")
    assert not verify(trained)["verified"]


def test_records_that_were_away_for_a_while_do_not_come_back(trained: Config, table: pd.DataFrame) -> None:
    api.erase(trained, Selection("client", client="home 1"))
    put(trained.file.parent, table[table.home != "home 1"])
    train(trained)
    assert drain(trained)["receipts"][0]["removed"] == {"home 1": 424}
    put(trained.file.parent, table)
    assert train(trained)["refused"] == 424


def test_records_that_came_after_an_interrupted_plan_go_too(
    trained: Config, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.erase(trained, PERSON)
    advance = Ledger.advance
    monkeypatch.setattr(Ledger, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        drain(trained)
    monkeypatch.setattr(Ledger, "advance", advance)
    late = table[table.person == "p3"].head(3).assign(record=["late 1", "late 2", "late 3"])
    put(trained.file.parent, pd.concat([table, late]))
    train(trained)
    drained = drain(trained)
    assert sum(drained["receipts"][0]["removed"].values()) == int((table.person == "p3").sum()) + 3
    for shard in (trained.folder / "shards").iterdir():
        assert "p3" not in set(pd.read_parquet(shard)["#subject"])


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("DELETE FROM frmu_tombstone", "tombstones of request"),
        ("DELETE FROM frmu_tombstone WHERE hash = (SELECT min(hash) FROM frmu_tombstone)", "tombstones of request"),
        ("DELETE FROM frmu_line WHERE number = (SELECT max(number) FROM frmu_line)", "cut off"),
        ("DELETE FROM frmu_line", "cut off"),
        ("UPDATE frmu_line SET body = 'x' WHERE number = 1", "line 1 .*changed"),
        ("DROP TABLE frmu_line", "no such table"),
    ],
)
def test_a_ledger_that_was_touched_is_not_worked_with(trained: Config, statement: str, message: str) -> None:
    api.erase(trained, PERSON)
    drain(trained)
    alter(trained, statement)
    with pytest.raises(LedgerError, match=message):
        verify(trained)
    with pytest.raises(LedgerError):
        train(trained)


@pytest.mark.parametrize(
    "statement",
    ["DELETE FROM frmu_key", "UPDATE frmu_key SET purpose = 'x' WHERE purpose = 'meaning'"],
)
def test_a_request_that_was_changed_is_not_acted_on(trained: Config, statement: str) -> None:
    api.erase(trained, PERSON)
    alter(trained, statement)
    with pytest.raises(LedgerError, match="not acted on"):
        drain(trained)
    with pytest.raises(LedgerError, match="not acted on"):
        api.status(trained)


@pytest.mark.parametrize("name", ["key", "ledger.db"])
def test_a_lost_key_or_ledger_is_not_made_anew(trained: Config, name: str) -> None:
    api.erase(trained, PERSON)
    drain(trained)
    (trained.folder / name).unlink()
    with pytest.raises((StoreError, LedgerError), match="restore"):
        train(trained)


def test_each_receipt_of_overlapping_requests_can_be_proven_and_can_fail(trained: Config) -> None:
    shard = trained.folder / "shards" / "home%200.parquet"
    backup = shard.read_bytes()
    one, other = (api.erase(trained, Selection("records", records=("h0-3",)))["request"] for _ in range(2))
    drain(trained)
    assert verify(trained, one)["verified"]
    assert verify(trained, other)["verified"]
    shard.write_bytes(backup)
    assert verify(trained, one)["level"] == verify(trained, other)["level"] == "L0"


def test_every_policy_that_learned_from_the_erased_is_ruled_out(trained: Config) -> None:
    weights = read_policy(shipped()).weights
    policies = trained.folder / "policies"
    old = write_policy(weights, {"clients": ["home 1"], "n": 1}, policies / "00001-policy.safetensors")
    write_policy(weights, {"clients": ["home 0"], "n": 2}, policies / "00002-policy.safetensors")
    train(trained)
    api.erase(trained, Selection("client", client="home 1"))
    assert drain(trained)["receipts"][0]["evidence"]["policies_retired"] == [old.digest]
    assert [file.name for file in policies.iterdir()] == ["00002-policy.safetensors"]


def test_who_was_meant_is_gone_while_the_ledger_is_still_open(trained: Config) -> None:
    api.erase(trained, Selection("subject", subject="p3"))
    with api.Experiment(trained, "local") as experiment:
        experiment.drain()
        for file in trained.folder.glob("ledger.db*"):
            assert b'"p3"' not in file.read_bytes(), file.name


@pytest.mark.parametrize("change", ["[policy]\nfile = 'junk.safetensors'\n", ""])
def test_a_broken_policy_is_told_before_anything_is_written(trained: Config, table: pd.DataFrame, change: str) -> None:
    config = put(
        trained.file.parent, table[table.person != "p2"], trained.file.read_text().split("[store]")[0] + change
    )
    junk = config.file.parent / "junk.safetensors" if change else config.folder / "policies" / "9.safetensors"
    junk.write_bytes(b"junk")
    before = {file.name: file.stat().st_mtime_ns for file in (config.folder / "shards").iterdir()}
    with pytest.raises(PolicyError, match=r"remove it, or mend policy\.file"):
        train(config)
    assert {file.name: file.stat().st_mtime_ns for file in (config.folder / "shards").iterdir()} == before


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("home", "", "an empty name"),
        ("home", "x" * 300, "300 characters"),
        ("person", "p3\0", "NUL"),
        ("record", "a\0", "NUL"),
    ],
)
def test_names_that_could_be_mistaken_are_refused(
    tmp_path: Path, table: pd.DataFrame, column: str, value: str, message: str
) -> None:
    table.loc[3, column] = value
    with pytest.raises(DataError, match=message):
        train(put(tmp_path / "names", table))


@pytest.mark.parametrize("client", ["../x", "..", ".", "a/b", "ü"])
def test_odd_names_of_clients_are_fine(tmp_path: Path, table: pd.DataFrame, client: str) -> None:
    table["home"] = np.where(table.home == "home 0", client, table.home)
    config = put(tmp_path / "odd", table)
    train(config)
    api.erase(config, Selection("client", client=client))
    assert drain(config)["verified"]


def test_data_around_the_working_folder_do_not_include_it(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "around", table)
    config.file.write_text(config.file.read_text().replace('path = "homes.parquet"', 'path = "."'))
    from frmu.config import load

    config = load(config.file)
    assert train(config)["state_digest"] == train(config)["state_digest"]


def test_a_record_cannot_come_back_under_another_name(trained: Config, table: pd.DataFrame) -> None:
    api.erase(trained, PERSON)
    drain(trained)
    text = trained.file.read_text().replace('client = "home"', 'client = "band"')
    trained.file.write_text(text)
    from frmu.config import load

    with pytest.raises(ConfigError, match=r'data\.client = "band" was "home"'):
        train(load(trained.file))


def test_names_that_changed_before_an_erasure_do_not_change_back(trained: Config) -> None:
    from frmu.config import load

    home = trained.file.read_text()
    trained.file.write_text(home.replace('client = "home"', 'client = "band"'))
    config = load(trained.file)
    train(config)
    api.erase(config, PERSON)
    drain(config)
    train(config)
    trained.file.write_text(home)
    with pytest.raises(ConfigError, match=r'data\.client = "home" was "band"'):
        train(load(trained.file))


def test_a_client_that_is_away_is_not_one_that_was_erased(trained: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    many = tuple(table[table.home == "home 2"].record[:300])
    api.erase(trained, Selection("records", records=many))
    drain(trained)
    shard = trained.folder / "shards" / "home%202.parquet"
    api.erase(trained, Selection("subject", subject="p1"))
    shard.rename(tmp_path / "away")
    with pytest.raises(FederationError, match="cannot be searched"):
        drain(trained)


def test_a_wiped_ledger_is_not_begun_anew(trained: Config) -> None:
    api.erase(trained, PERSON)
    drain(trained)
    tables = ("frmu_line", "frmu_head", "frmu_version", "frmu_key", "frmu_owner", "frmu_tombstone")
    for name in tables:
        alter(trained, f"DROP TABLE {name}")
    for attempt in (lambda: api.erase(trained, PERSON), lambda: train(trained), lambda: verify(trained)):
        with pytest.raises(LedgerError, match="there is no ledger in this database"):
            attempt()


@pytest.mark.parametrize("alone", [True, False])
def test_an_older_ledger_is_noticed(trained: Config, alone: bool) -> None:
    with sqlite3.connect(trained.folder / "ledger.db") as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    old = (trained.folder / "ledger.db").read_bytes()
    api.erase(trained, PERSON)
    drain(trained)
    (trained.folder / "ledger.db").write_bytes(old)
    if not alone:
        (trained.folder / "state.safetensors").unlink()
    for attempt in (lambda: train(trained), lambda: verify(trained)):
        with pytest.raises(LedgerError, match="an older copy was put in its place"):
            attempt()


def test_two_folders_do_not_share_a_ledger(trained: Config, tmp_path: Path, table: pd.DataFrame) -> None:
    other = put(tmp_path / "other", table)
    text = f'ledger = "sqlite:///{trained.folder}/ledger.db"\nkey = "{trained.key_file}"\n'
    other.file.write_text(other.file.read_text() + text)
    from frmu.config import load

    with pytest.raises(LedgerError, match="belongs to another working folder"):
        train(load(other.file))


def test_a_state_that_no_line_names_is_not_verified(trained: Config) -> None:
    stale = (trained.folder / "state.safetensors").read_bytes()
    api.erase(trained, PERSON)
    drain(trained)
    (trained.folder / "state.safetensors").write_bytes(stale)
    found = verify(trained)
    assert (found["verified"], found["state_in_ledger"]) == (False, False)


@pytest.mark.parametrize("name", ["%68ome%200.parquet", "ghost.parquet", "../rows.parquet", "../policies/rows.parquet"])
def test_a_copy_of_a_shard_under_any_name_fails_the_purge(trained: Config, name: str) -> None:
    shard = trained.folder / "shards" / "home%200.parquet"
    copy = shard.read_bytes()
    api.erase(trained, PERSON)
    receipt = drain(trained)["receipts"][0]["request"]
    (shard.parent / name).write_bytes(copy)
    with api.Experiment(trained, "local") as experiment:
        assert not experiment.verify(receipt, "L1")["verified"]
        assert not experiment.verify(receipt, "L5")["verified"]


def test_an_audit_that_was_killed_leaves_no_rows(trained: Config) -> None:
    (trained.folder / "scratch" / "x" / "shards").mkdir(parents=True)
    (trained.folder / "scratch" / "x" / "shards" / "home%200.parquet").write_bytes(b"rows")
    assert verify(trained)["verified"]
    assert list((trained.folder / "scratch").iterdir()) == []


def test_made_up_records_do_not_stand_for_the_erased(trained: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    receipt = api.erase(trained, PERSON)["request"]
    drain(trained)
    table[table.person == "p3"].head(3).assign(load=1.0).to_parquet(tmp_path / "some.parquet", index=False)
    with api.Experiment(trained, "local") as experiment, pytest.raises(RequestError, match=r"holds 3 of the \d+"):
        experiment.verify(receipt, "L4", tmp_path / "some.parquet")


def test_ids_that_are_times_stay_the_same_in_any_unit(tmp_path: Path, table: pd.DataFrame) -> None:
    stamped = table.drop_duplicates("ts").assign(record=lambda t: t.ts)
    config = put(tmp_path / "stamped", stamped)
    train(config)
    api.erase(config, PERSON)
    drain(config)
    put(tmp_path / "stamped", stamped.assign(record=stamped.record.astype("datetime64[ns]")))
    assert train(config)["refused"] == int((stamped.person == "p3").sum())
