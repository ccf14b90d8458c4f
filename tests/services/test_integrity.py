"""A shard that somebody changed or swapped is named, and nothing is acted on; a job that was killed accuses nobody."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd
import pytest
from conftest import drain, put, train

from frmu import api
from frmu.clients.tasks import importing
from frmu.config import Config
from frmu.errors import FederationError
from frmu.services import erasure, training
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


@pytest.fixture
def trained(config: Config) -> Config:
    train(config)
    return config


def shard(config: Config, client: str) -> Path:
    return config.folder / "shards" / f"{client.replace(' ', '%20')}.parquet"


def swap(config: Config) -> None:
    one, other = shard(config, "home 0"), shard(config, "home 1")
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def change(config: Config) -> None:
    table = pd.read_parquet(shard(config, "home 0"))
    table.loc[0, "humidity"] += 1
    table.to_parquet(shard(config, "home 0"))


def standing(config: Config) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.standing_check()


@pytest.mark.parametrize("tamper", [swap, change])
def test_a_shard_that_is_not_as_it_was_written_is_named_and_nothing_is_touched(trained: Config, tamper: object) -> None:
    tamper(trained)  # type: ignore[operator]
    api.erase(trained, PERSON)
    before = {path.name: path.read_bytes() for path in (trained.folder / "shards").iterdir()}
    with pytest.raises(FederationError, match=r'client "home 0": its shard is not as it was last written'):
        drain(trained)
    assert [one["stage"] for one in api.requests(trained)] == ["received"]
    assert {path.name: path.read_bytes() for path in (trained.folder / "shards").iterdir()} == before
    found = standing(trained)
    assert (found["verified"], found["shards_changed"][0]) == (False, "home 0")
    with api.Experiment(trained, "local") as experiment:
        verdict = experiment.verify()
    assert not verdict["verified"]
    assert "the shard of home 0, which is not as it was written" in verdict["files_that_are_no_shards"]
    train(trained)  # imports the records anew
    assert drain(trained)["verified"]
    assert standing(trained)["verified"]


def test_nothing_changed_is_said_so(trained: Config) -> None:
    api.erase(trained, PERSON)
    api.erase(trained, Selection("client", client="home 2"))
    assert drain(trained)["verified"]
    found = standing(trained)
    assert found["verified"]
    assert found["level"] == "quick"
    shard(trained, "home 1").unlink()
    assert standing(trained)["shards_missing"] == ["home 1"]


def test_a_state_that_the_ledger_does_not_know_is_not_unchanged(trained: Config) -> None:
    old = (trained.folder / "state.safetensors").read_bytes()
    api.erase(trained, PERSON)
    drain(trained)
    (trained.folder / "state.safetensors").write_bytes(old)
    assert not standing(trained)["verified"]


def test_a_backup_that_came_back_is_replayed(trained: Config) -> None:
    backup = shard(trained, "home 0").read_bytes()
    api.erase(trained, PERSON)
    drain(trained)
    shard(trained, "home 0").write_bytes(backup)
    assert not standing(trained)["verified"]
    with api.Experiment(trained, "local") as experiment:
        assert experiment.replay()["verified"]
    assert standing(trained)["verified"]


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_training_that_was_killed_accuses_nobody(
    trained: Config, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Records have changed; the shards are staged, or put in place, and no more is said of it."""
    put(trained.file.parent, table.assign(humidity=table.humidity * 0.5))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    note = training.note_shards
    with monkeypatch.context() as patch:
        if moment == "before the commit":
            patch.setattr(importing.CommitShard, "perform", killed)
        else:
            patch.setattr(training, "note_shards", lambda *a, **k: note(*a, **k) if k.get("staged") else killed())
        with pytest.raises(KeyboardInterrupt):
            train(trained)
    api.erase(trained, PERSON)
    if moment == "before the commit":
        assert drain(trained)["verified"]
    train(trained)
    assert drain(trained)["verified"] is not False
    assert standing(trained)["verified"]


def test_a_drain_that_was_killed_right_after_its_purge_goes_on(
    trained: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.erase(trained, PERSON)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasure, "note_shards", killed)
        with pytest.raises(KeyboardInterrupt):
            drain(trained)
    assert drain(trained)["verified"]
    assert standing(trained)["verified"]


def test_digests_in_the_ledger_are_keyed(trained: Config) -> None:
    """Who has the shard and the ledger, but not the key, cannot tell that they belong together."""
    plain = hashlib.sha256(shard(trained, "home 0").read_bytes()).hexdigest()
    with api.Experiment(trained, "local") as experiment:
        written = experiment.session.ledger.lines(["staged"])[0].body["shards"]
    assert len(written) == 4
    assert not [code for code in written.values() if code[:8] in plain]
