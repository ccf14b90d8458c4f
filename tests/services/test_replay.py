"""What a replay writes down, registers and removes, beside the records that had come back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import drain, train
from memory_tracking import MemoryBackend

from frmu import api
from frmu.config import Config
from frmu.errors import TrackingUnavailableError
from frmu.ledger.ledger import Line
from frmu.ledger.receipt import Receipt
from frmu.selection.network import shapes, write_policy
from frmu.services.session import Session
from frmu.storage.checkpoint import load_state
from frmu.tracking.tracker import Tracker
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


@pytest.fixture
def restored(config: Config, tmp_path: Path) -> Config:
    """A federation that forgot somebody, and whose shards were put back from a backup."""
    train(config)
    shutil.copytree(config.folder / "shards", tmp_path / "backup")
    api.erase(config, PERSON)
    drain(config)
    shutil.copytree(tmp_path / "backup", config.folder / "shards", dirs_exist_ok=True)
    return config


def replay(config: Config) -> dict[str, Any]:
    with api.Experiment(config, "local") as experiment:
        return experiment.replay()


def told(config: Config) -> tuple[MemoryBackend, list[Line]]:
    with api.Experiment(config, "local") as experiment:
        return experiment.session.tracker.backend, experiment.session.ledger.lines(["replayed"])  # type: ignore[return-value]


def test_a_replay_is_noted_with_what_came_back_and_who_was_learned_from(restored: Config) -> None:
    result = replay(restored)
    came_back = sum(result["came_back"].values())
    backend, [line] = told(restored)
    state = load_state(restored.folder / "state.safetensors")
    assert state is not None
    with api.ledger_of(restored) as ledger:
        clients = sorted(ledger.owner(f"home {number}")[:8] for number in range(4))
    assert line.body == {
        "records": came_back, "state": result["state_digest"], "passed": True, "run": result["run_id"],
        "clients": line.body["clients"], "contents": state.contents,
    }  # fmt: skip
    assert sorted(line.body["clients"]) == clients
    assert (result["level"], result["verified"], result["pending"]) == ("L5", True, 0)
    assert backend.runs[result["run_id"]].metrics["records_that_had_come_back"] == came_back > 0
    assert "test_rmse" in backend.runs[result["run_id"]].metrics


def test_the_state_that_a_replay_made_is_the_champion(restored: Config) -> None:
    result = replay(restored)
    backend, _ = told(restored)
    champion = backend.champion()
    assert champion is not None
    assert champion.run_id == result["run_id"]


def test_a_replay_that_did_not_pass_makes_no_champion(restored: Config) -> None:
    """The version of before goes too: it learned where records had come back."""
    (restored.folder / "shards" / "stray.txt").write_text("nobody's")
    result = replay(restored)
    backend, [line] = told(restored)
    assert not result["verified"]
    assert result["level"] == "L0"
    assert line.body["passed"] is False
    assert backend.champion() is None


def test_a_policy_that_was_retired_does_not_come_back_with_a_backup(restored: Config) -> None:
    """Nor one that was half trained; a policy that nobody retired stays."""
    with api.Experiment(restored, "local") as experiment:
        workspace, ledger = experiment.session.workspace, experiment.session.ledger
        zeros = {name: np.zeros(shape) for name, shape in shapes().items()}
        workspace.policies.mkdir(parents=True, exist_ok=True)
        bad = write_policy(zeros, {"clients": ["home 1"]}, workspace.policies / "1.safetensors")
        write_policy(zeros, {"clients": []}, workspace.policies / "0.safetensors")
        ledger.note("retired", {"policy": bad.digest, "requests": []})
        workspace.training.parent.mkdir(parents=True, exist_ok=True)
        workspace.training.write_bytes(b"half")
    replay(restored)
    assert [file.name for file in workspace.policies.iterdir()] == ["0.safetensors"]
    assert not workspace.training.exists()


def test_a_replay_logs_its_round_and_hands_over_what_waits(restored: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = []
    monkeypatch.setattr(Session, "deliver", lambda session: delivered.append(len(told_by(session))))
    result = replay(restored)
    assert delivered == [1]  # once, when everything is noted
    assert told(restored)[0].runs[result["run_id"]].files


def told_by(session: Session) -> list[Line]:
    return session.ledger.lines(["replayed"])


def test_a_replay_begins_with_nothing_where_mlflow_is_away(restored: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in (restored.folder / "shards").iterdir()}

    def away(tracker: Tracker, why: str) -> None:
        raise TrackingUnavailableError(why)

    monkeypatch.setattr(Tracker, "need", away)
    with pytest.raises(TrackingUnavailableError, match="touched nothing"):
        replay(restored)
    assert {file.name: file.read_bytes() for file in (restored.folder / "shards").iterdir()} == before


def test_a_replay_searches_for_what_standing_requests_mean(config: Config, table: pd.DataFrame) -> None:
    """Their tombstones were made where a drain looked; a shard that was away holds records that have none."""
    train(config)
    with api.ledger_of(config) as ledger:
        request = ledger.receive(PERSON).id
        filed = Receipt(
            experiment="homes", store="s", request=request, kind="subject", outcome="erased", requester="", reason="",
            received="", due="", closed="", searched={}, removed={}, level="L5", verified=True, before_digest="",
            state_digest="", seconds=0.0, bytes=0, requests_in_batch=1, evidence={}, purge={}, not_covered=(),
        )  # fmt: skip
        ledger.plan([request])
        ledger.close_requests([filed], {"0" * 8})
    assert replay(config)["came_back"] == table[table.person == "p3"].groupby("home").size().to_dict()
