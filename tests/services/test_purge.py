"""Purged means gone: from the user's files where that is wanted, from MLflow, and again after a backup came back."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import drain, put, train

from frmu import api
from frmu.config import Config, load
from frmu.types import Selection

PERSON = Selection("subject", subject="p3")


def with_store(config: Config, line: str) -> Config:
    """The config with one more line in its last table, [store]."""
    config.file.write_text(f"{config.file.read_text()}{line}\n")
    return load(config.file)


def replay(config: Config) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.replay()


# -- the user's files -----------------------------------------------------------------------------------------


def test_the_source_stays_as_it_is_unless_it_is_told_otherwise(config: Config) -> None:
    train(config)
    before = Path(config.source).read_bytes()
    api.erase(config, PERSON)
    receipt = drain(config)["receipts"][0]
    assert Path(config.source).read_bytes() == before
    assert receipt["purge"]["source"] == "out of scope"
    assert any("data.path" in line for line in receipt["not_covered"])


def test_the_source_is_rewritten_where_it_is_told_so(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", table)
    config.file.write_text(config.file.read_text().replace('path = "homes.parquet"', 'path = "parts"'))
    parts = tmp_path / "all" / "parts"
    parts.mkdir()
    table["note"] = table.record + " is not used"  # a column that no config names
    for home, part in table.groupby("home"):
        part.to_parquet(parts / f"{home}.parquet", index=False, compression="zstd")
    (parts / "home 0.parquet").chmod(0o640)
    untouched = (parts / "home 3.parquet").stat().st_mtime_ns
    config = with_store(config, "purge_source = true")
    digest = train(config)["state_digest"]
    api.erase(config, Selection("where", where="person = 'p3' and home <> 'home 3'"))
    api.erase(config, Selection("client", client="home 1"))
    receipts = drain(config)["receipts"]
    assert all(receipt["purge"]["source"] == "rewritten" for receipt in receipts)
    assert [Path(file).name for file in receipts[0]["purge"]["source_files"]] == [
        "home 0.parquet", "home 1.parquet", "home 2.parquet",
    ]  # fmt: skip
    assert not [file for file in receipts[0]["purge"]["source_files"] if file.startswith(":")]  # of no site
    gone = ((table.person == "p3") & (table.home != "home 3")) | (table.home == "home 1")
    left = pd.concat([pd.read_parquet(file) for file in sorted(parts.iterdir())])
    expected = table[~gone].sort_values("record").reset_index(drop=True)
    assert left.sort_values("record").reset_index(drop=True).equals(expected)
    assert (parts / "home 3.parquet").stat().st_mtime_ns == untouched
    assert (parts / "home 0.parquet").stat().st_mode & 0o777 == 0o640
    assert pq.ParquetFile(parts / "home 0.parquet").metadata.row_group(0).column(0).compression == "ZSTD"
    assert not any("data.path" in line for line in receipts[0]["not_covered"])
    again = train(config)
    assert (again["refused"], again["state_digest"]) == (0, receipts[0]["state_digest"])
    assert again["state_digest"] != digest


# -- MLflow ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["strip", "delete"])
def test_runs_that_carried_the_erased_are_purged(config: Config, rule: str) -> None:
    from mlflow.entities import ViewType

    config.file.write_text(f'{config.file.read_text()}\n[erasure]\nruns = "{rule}"\n')
    config = load(config.file)
    old = train(config)["run_id"]
    api.erase(config, PERSON)
    receipt = drain(config)["receipts"][0]
    with api.Experiment(config, "local") as experiment:
        owners = {experiment.session.ledger.owner(client)[:8] for client in receipt["removed"]}
        kept = [run.run_id for run in experiment.session.registry.versions()]
        client, place = experiment.session.tracker.backend.client, [experiment.session.tracker.backend.experiment_id]
        runs = {run.info.run_id: run for run in client.search_runs(place, run_view_type=ViewType.ALL)}
        left = experiment.session.registry.scan(owners, keep=[name for name in runs if name in kept])
    assert old in receipt["purge"]["mlflow"]["runs"]
    assert receipt["purge"]["mlflow"]["clean"]
    assert left.clean
    assert (old in runs) == (rule == "strip")
    assert bool(
        [line for line in receipt["purge"]["mlflow"]["survivors"] if "test_rmse" in line or "numbers" in line]
    ) == (rule == "strip")


def test_why_and_who_are_not_told_to_mlflow(config: Config) -> None:
    train(config)
    api.erase(config, PERSON, "a delicate matter", requester="A. Clerk")
    drained = drain(config)
    for file in (config.folder / "mlartifacts").rglob("*"):
        if file.is_file():
            raw = file.read_bytes()
            assert b"delicate" not in raw
            assert b"Clerk" not in raw
    assert drained["receipts"][0]["reason"] == "a delicate matter"


# -- backups --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["shards", "shards and state"])
def test_a_backup_that_was_restored_is_replayed(config: Config, tmp_path: Path, what: str) -> None:
    train(config)
    backup = tmp_path / "backup"
    shutil.copytree(config.folder / "shards", backup)
    state = (config.folder / "state.safetensors").read_bytes()
    api.erase(config, PERSON)
    api.erase(config, Selection("client", client="home 1"))
    drained = drain(config)
    shutil.copytree(backup, config.folder / "shards", dirs_exist_ok=True)
    if what != "shards":
        (config.folder / "state.safetensors").write_bytes(state)
        assert not api.status(config)["state_is_clean"]
    with api.Experiment(config, "local") as experiment:
        assert not experiment.verify()["verified"]
    result = replay(config)
    removed = [receipt["removed"] for receipt in drained["receipts"]]
    assert result["came_back"] == {**removed[0], **removed[1]}
    assert (result["verified"], result["state_digest"]) == (True, drained["state_digest"])
    assert not (config.folder / "shards" / "home%201.parquet").exists()
    assert replay(config)["came_back"] == {}
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify()["verified"]


def test_a_replay_leaves_what_waits_alone(config: Config) -> None:
    digest = train(config)["state_digest"]
    request = api.erase(config, PERSON)["request"]
    assert replay(config)["state_digest"] == digest
    api.withdraw(config, request)
    assert train(config)["state_digest"] == digest


# -- disks that refuse ----------------------------------------------------------------------------------------

DRAIN = """
import resource, sys
from frmu.cli import main

resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
main(["drain", sys.argv[1], "--address", "local"])
"""


@pytest.mark.parametrize("limit", [4_000, 60_000])
def test_a_disk_that_is_full_loses_nothing(config: Config, limit: int) -> None:
    """No file may grow beyond the limit, as on a disk without room."""
    train(config)
    api.erase(config, PERSON)
    run = subprocess.run(
        [sys.executable, "-c", DRAIN, config.file, str(limit)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1, run.stderr
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != limit
    receipts = drain(config)["receipts"]
    assert [receipt["verified"] for receipt in receipts] == [True]
    for shard in (config.folder / "shards").iterdir():
        assert "p3" not in set(pd.read_parquet(shard)["#subject"])


# -- what MLflow does not do, or is not told any more ------------------------------------------------------------


@pytest.fixture
def trained(config: Config) -> Config:
    train(config)
    return config


def test_a_purge_of_mlflow_that_failed_closes_nothing(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    api.erase(trained, PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(LocalArtifactRepository, "delete_artifacts", lambda *_: None)
        first = drain(trained)
    assert (first["verified"], first["receipts"][0]["level"]) == (False, "L0")
    assert not api.status(trained)["state_is_clean"]
    assert drain(trained)["verified"]


def test_lineage_does_not_rest_on_tags(trained: Config) -> None:
    with api.Experiment(trained, "local") as experiment:
        client, old = experiment.session.tracker.backend.client, experiment.session.registry.champion()
        assert old is not None
        for key in list(client.get_run(old.run_id).data.tags):
            if key.startswith("frmu."):
                client.delete_tag(old.run_id, key)
    api.erase(trained, PERSON)
    assert old.run_id in drain(trained)["receipts"][0]["purge"]["mlflow"]["runs"]
    assert client.list_artifacts(old.run_id) == []


def test_what_is_logged_is_tagged_first(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """A drain killed while it logs the new state leaves a run that the next purge finds."""
    from frmu.services.session import Session

    api.erase(trained, PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(Session, "log_round", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            drain(trained)
    api.erase(trained, Selection("subject", subject="p1"))
    drain(trained)
    states = list((trained.folder / "mlartifacts").rglob("state.safetensors"))
    assert len(states) == 1
