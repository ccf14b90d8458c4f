"""A working folder that is put back as a whole is refused where a witness outside saw more."""

from __future__ import annotations

import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import drain, put, train
from memory_tracking import MemoryBackend

from frmu import api
from frmu.config import Config, load
from frmu.errors import ConfigError, LedgerError, StoreError, TrackingUnavailableError
from frmu.services.witness import Watch
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


def with_witness(config: Config, place: str, **store: str) -> Config:
    """A config with a witness, and with other entries of `[store]`."""
    store["witness"] = place
    text = config.file.read_text()
    kept = [line for line in text.splitlines() if line.partition(" = ")[0] not in store]
    config.file.write_text("\n".join([*kept, *(f'{name} = "{value}"' for name, value in store.items())]) + "\n")
    return load(config.file)


@pytest.fixture(params=["file", "tracking", "sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A witness of each kind; the tracking store is in memory here."""
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_database"))
    places = {"file": tmp_path / "elsewhere.json", "sqlite": f"sqlite:///{tmp_path}/elsewhere.db"}
    return str(places.get(request.param, "tracking"))


@pytest.fixture
def seen(config: Config, tmp_path: Path) -> Config:
    return with_witness(config, str(tmp_path / "elsewhere.json"))


def put_back(config: Config, backup: Path) -> None:
    shutil.rmtree(config.folder)
    shutil.copytree(backup, config.folder)


def test_a_folder_that_was_put_back_as_a_whole_is_refused(config: Config, place: str, tmp_path: Path) -> None:
    kind = "database" if "://" in place else place if place == "tracking" else "file"
    seen = with_witness(config, place)
    train(seen)
    backup = shutil.copytree(seen.folder, tmp_path / "backup")
    api.erase(seen, PERSON)
    drained = drain(seen)
    assert drained["verified"]
    assert drained["receipts"][0]["evidence"]["witness"] == kind
    assert not [line for line in drained["receipts"][0]["not_covered"] if "as a whole" in line]
    with api.Experiment(seen, "local") as experiment:
        for told in (experiment.verify(), experiment.standing_check()):
            assert (told["verified"], told["witness"], told["witness_away"]) == (True, True, "")
            assert told["witness_place"]
    newer = shutil.copytree(seen.folder, tmp_path / "newer")
    put_back(seen, backup)
    for act in (train, drain, lambda config: api.erase(config, PERSON)):
        with pytest.raises(LedgerError, match=r"the witness saw line \d+ of this ledger, and it is not there"):
            act(seen)
    put_back(seen, newer)
    assert train(seen)["refused"] > 0


def test_without_one_it_is_said(config: Config, seen: Config) -> None:
    train(seen)
    api.erase(seen, PERSON)
    drain(seen)
    alone = load(config.file)
    alone.file.write_text("\n".join(line for line in alone.file.read_text().splitlines() if "witness" not in line))
    alone = load(alone.file)
    api.erase(alone, Selection("subject", subject="p1"))
    receipt = drain(alone)["receipts"][0]
    assert receipt["evidence"]["witness"] is None
    assert [line for line in receipt["not_covered"] if "as a whole" in line]
    with api.Experiment(alone, "local") as experiment:
        assert experiment.verify()["witness"] is False


def test_a_witness_that_is_gone_is_missed(seen: Config, tmp_path: Path) -> None:
    train(seen)
    (tmp_path / "elsewhere.json").unlink()
    with pytest.raises(LedgerError, match="the witness of this ledger is gone"):
        train(seen)
    other = with_witness(seen, str(tmp_path / "another.json"))
    train(other)
    assert (tmp_path / "another.json").exists()


class KilledError(BaseException):
    pass


def test_a_job_that_was_killed_before_the_witness_is_not_taken_for_a_folder_that_was_put_back(
    config: Config, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = with_witness(config, place)
    train(seen)

    def struck(self: Watch, anchor: Any) -> None:
        raise KilledError

    experiment = api.Experiment(seen, "local").__enter__()
    before = experiment.session.watch.witness.last()
    experiment.session.ledger.note("noticed", {})
    with monkeypatch.context() as patched:
        patched.setattr(Watch, "show", struck)
        with pytest.raises(KilledError):
            experiment.__exit__(None, None, None)
    with api.Experiment(seen, "local") as experiment:
        after = experiment.session.watch.witness.last()
    assert before[0] < after[0]


LEAVE = """
import os, signal, sys
from frmu import api
from frmu.config import load

with api.Experiment(load(sys.argv[1]), "local") as experiment:
    experiment.session.ledger.note("noticed", {})
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_nor_is_one_that_was_killed_with_9(config: Config, tmp_path: Path) -> None:
    seen = with_witness(config, f"sqlite:///{tmp_path}/elsewhere.db")
    train(seen)
    run = subprocess.run([sys.executable, "-c", LEAVE, seen.file], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    train(seen)


def test_a_folder_begun_anew_with_the_old_key_is_refused(config: Config, place: str, tmp_path: Path) -> None:
    seen = with_witness(config, place, key=str(tmp_path / "key"))
    train(seen)
    shutil.rmtree(seen.folder)
    with pytest.raises(LedgerError, match="put back as a whole"):
        train(seen)


def test_a_database_and_a_tracking_store_keep_the_witnesses_of_many(
    tmp_path: Path, table: pd.DataFrame, place: str
) -> None:
    if place == str(tmp_path / "elsewhere.json"):
        pytest.skip("a file is the witness of one")
    for name in ("one", "other", "one", "other"):
        (tmp_path / name).mkdir(exist_ok=True)
        config = put(tmp_path / name, table)
        train(with_witness(config, place, experiment="shared by both"))


def test_a_new_folder_does_not_pass_for_the_one_that_was_seen(seen: Config) -> None:
    train(seen)
    shutil.rmtree(seen.folder)
    for _ in range(2):  # and nothing is left behind by being refused
        with pytest.raises(LedgerError, match="put back as a whole"):
            train(seen)


def test_a_witness_is_outside_and_can_be_written(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store\.witness.* lies in the working folder"):
        train(with_witness(config, str(config.folder / "witness.json")))
    nowhere = with_witness(config, str(tmp_path / "nowhere" / "witness.json"))
    with pytest.raises(StoreError, match=r"the witness cannot be written: .*; set store\.witness"):
        train(nowhere)
    (tmp_path / "nowhere").mkdir()
    train(nowhere)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(StoreError, match="the witness cannot be read"):
        train(with_witness(config, str(tmp_path / "broken.json")))


# -- where it may not be --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracking", ["{}/mlflow.db", "sqlite:///{}/runs.db", "file://{}/runs", ""])
def test_a_tracking_store_in_the_working_folder_is_none(config: Config, tracking: str) -> None:
    inside = with_witness(config, "tracking", tracking=tracking.format(config.folder.absolute()) or "x")
    if not tracking:
        inside = inside.model_copy(update={"store": inside.store.model_copy(update={"tracking": None})})
    with pytest.raises(ConfigError, match=r"the tracking store lies in the working folder.*; set store\.tracking"):
        train(inside)


def test_a_database_in_the_working_folder_is_none(config: Config) -> None:
    with pytest.raises(ConfigError, match=r"store\.witness.* lies in the working folder"):
        train(with_witness(config, f"sqlite:///{config.folder}/witness.db"))


@pytest.mark.parametrize("address", ["mysql://ada:hush@db/x", "sqlite://", "sqlite:///:memory:", "http://runs"])
def test_an_address_that_frmu_does_not_know_is_refused(config: Config, address: str) -> None:
    with pytest.raises(ConfigError, match=r"store\.witness must be a path, \"tracking\", or an address") as told:
        train(with_witness(config, address))
    assert "hush" not in str(told.value)


def test_the_ledgers_own_database_is_none(config: Config, place: str, tmp_path: Path) -> None:
    if "://" not in place:
        pytest.skip("not a database")
    with pytest.raises(StoreError, match=r"the ledger itself lies in this database.*; set store\.witness"):
        train(with_witness(config, place, ledger=place))
    assert train(with_witness(config, str(tmp_path / "file.json"), ledger=place))["state_digest"]


# -- while MLflow is away -------------------------------------------------------------------------------------


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """MLflow is away while this holds something, as far as the witness is concerned."""
    away: list[bool] = []

    def unless_away(name: str) -> None:
        told = getattr(MemoryBackend, name)

        def call(self: MemoryBackend, *arguments: str) -> Any:
            if away:
                raise TrackingUnavailableError("the tracking store does not answer")
            return told(self, *arguments)

        monkeypatch.setattr(MemoryBackend, name, call)

    unless_away("experiment_tag")
    unless_away("tag_experiment")
    return away


def test_while_it_is_away_training_goes_on_and_what_it_saw_is_kept(
    config: Config, tmp_path: Path, outage: list[bool], caplog: pytest.LogCaptureFixture
) -> None:
    seen = with_witness(config, "tracking")
    train(seen)
    backup = shutil.copytree(seen.folder, tmp_path / "backup")
    api.erase(seen, PERSON)
    drain(seen)
    put_back(seen, backup)
    outage.append(True)
    with caplog.at_level(logging.WARNING):
        assert train(seen)["refused"] == 0
        api.erase(seen, PERSON)
    assert sum("The witness cannot be asked" in line for line in caplog.messages) == 2
    with api.Experiment(seen, "local") as experiment:
        for told in (experiment.verify(), experiment.standing_check()):
            assert (told["witness"], told["witness_away"]) == (True, "the tracking store does not answer")
    with pytest.raises(TrackingUnavailableError, match="this drain touched nothing"):
        drain(seen)
    outage.clear()
    with pytest.raises(LedgerError, match="put back as a whole"):
        train(seen)


def test_one_that_goes_away_amid_a_job_has_seen_less(config: Config, outage: list[bool]) -> None:
    seen = with_witness(config, "tracking")
    with api.Experiment(seen, "local") as experiment:
        experiment.train()
        outage.append(True)
    outage.clear()
    train(seen)


def test_one_that_never_saw_anything_is_not_noted(config: Config, outage: list[bool]) -> None:
    outage.append(True)
    seen = with_witness(config, "tracking")
    train(seen)
    with api.Experiment(seen, "local") as experiment:
        assert not experiment.session.ledger.lines(["witnessed"])
    outage.clear()
    train(seen)
    with api.Experiment(seen, "local") as experiment:
        assert len(experiment.session.ledger.lines(["witnessed"])) == 1
