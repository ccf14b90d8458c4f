"""A real MLflow over HTTP as the witness, while it is there and while it is away."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import drain, put, train
from mlflow_server import Gate, gate, mlflow_server

from frmu import api
from frmu.cli import main
from frmu.config import Config, load
from frmu.errors import LedgerError, StoreError, TrackingUnavailableError
from frmu.tracking.witness import TAG
from frmu.types import Selection

__all__ = ["gate", "mlflow_server"]  # fixtures
pytestmark = pytest.mark.cluster


@pytest.fixture
def seen(tmp_path: Path, table: pd.DataFrame, gate: Gate) -> Config:
    config = put(tmp_path / "homes", table)
    text = config.file.read_text().partition("[store]")[0]
    store = f'tracking = "{gate.address}"\nexperiment = "{tmp_path.name}"\nwitness = "tracking"\n'
    config.file.write_text(f"{text}[store]\n{store}")
    return load(config.file)


def verify(config: Config, *options: str) -> str:
    result = CliRunner().invoke(main, ["verify", str(config.file), "--address", "local", *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_server_is_the_witness_and_may_be_away(
    seen: Config, gate: Gate, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(seen)
    backup = shutil.copytree(seen.folder, tmp_path / "backup")
    api.erase(seen, Selection("subject", subject="p3"))
    assert drain(seen)["receipts"][0]["evidence"]["witness"] == "tracking"
    told = verify(seen)
    assert f'witness: the ledger has the line that it saw last ({gate.address}, experiment "{tmp_path.name}")' in told
    shutil.rmtree(seen.folder)
    shutil.copytree(backup, seen.folder)
    for act in (train, drain, api.status):
        with pytest.raises(LedgerError, match=r"the witness saw line \d+ of this ledger, and it is not there"):
            act(seen)
    gate.shut()
    with caplog.at_level(logging.WARNING):
        assert train(seen)["refused"] == 0
        api.erase(seen, Selection("subject", subject="p1"))
    assert sum("The witness cannot be asked" in line for line in caplog.messages) == 2
    for options in ((), ("--quick",)):
        assert "the witness could not be asked whether the working folder was put back" in verify(seen, *options)
    with pytest.raises(TrackingUnavailableError, match="this drain touched nothing"):
        drain(seen)
    gate.open()
    with pytest.raises(LedgerError, match="put back as a whole"):
        train(seen)


def test_a_tag_that_was_taken_away_is_missed_and_one_that_is_none_is_named(seen: Config, gate: Gate) -> None:
    from mlflow import MlflowClient

    train(seen)
    client = MlflowClient(gate.server.address)
    experiment = client.get_experiment_by_name(seen.experiment)
    (tag,) = [name for name in experiment.tags if name.startswith(TAG)]
    assert set(json.loads(experiment.tags[tag])) == {"line", "hash"}
    client.set_experiment_tag(experiment.experiment_id, tag, "[]")
    with pytest.raises(StoreError, match=f"the witness cannot be read: .*; restore the tag {tag}, or set store"):
        train(seen)
    client.delete_experiment_tag(experiment.experiment_id, tag)
    with pytest.raises(LedgerError, match="the witness of this ledger is gone"):
        train(seen)
