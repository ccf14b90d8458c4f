"""A working folder that is put back as a whole is refused where a witness outside saw more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import drain, train

from frmu import api
from frmu.config import Config, load
from frmu.errors import ConfigError, LedgerError, StoreError
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


def with_witness(config: Config, place: str) -> Config:
    text = config.file.read_text()
    kept = [line for line in text.splitlines() if not line.startswith("witness")]
    config.file.write_text("\n".join([*kept, f'witness = "{place}"']) + "\n")
    return load(config.file)


@pytest.fixture
def seen(config: Config, tmp_path: Path) -> Config:
    return with_witness(config, str(tmp_path / "elsewhere.json"))


def put_back(config: Config, backup: Path) -> None:
    shutil.rmtree(config.folder)
    shutil.copytree(backup, config.folder)


def test_a_folder_that_was_put_back_as_a_whole_is_refused(seen: Config, tmp_path: Path) -> None:
    train(seen)
    backup = shutil.copytree(seen.folder, tmp_path / "backup")
    api.erase(seen, PERSON)
    assert drain(seen)["verified"]
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
    assert not [line for line in drain(seen)["receipts"][0]["not_covered"] if "as a whole" in line]
    alone = load(config.file)
    alone.file.write_text("\n".join(line for line in alone.file.read_text().splitlines() if "witness" not in line))
    alone = load(alone.file)
    api.erase(alone, Selection("subject", subject="p1"))
    assert [line for line in drain(alone)["receipts"][0]["not_covered"] if "as a whole" in line]
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
