"""A verifier that cannot fail proves nothing: these make it fail."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from frmu import api
from frmu.config import Config
from frmu.errors import LedgerError, StoreError
from frmu.storage.checkpoint import load_state, save_state
from frmu.types import HEAD, Selection, State


@pytest.fixture
def drained(config: Config) -> Config:
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    api.erase(config, Selection("subject", subject="p1"))
    with api.Experiment(config, "local") as experiment:
        experiment.drain()
    return config


def verify(config: Config) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.verify()


def test_an_honest_erasure_passes(drained: Config) -> None:
    result = verify(drained)
    assert result["verified"]
    assert result["level"] == "L5"


def test_a_state_that_was_not_refitted_fails(config: Config) -> None:
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    stale = (config.folder / "state.safetensors").read_bytes()
    api.erase(config, Selection("subject", subject="p1"))
    with api.Experiment(config, "local") as experiment:
        experiment.drain()
    (config.folder / "state.safetensors").write_bytes(stale)
    result = verify(config)
    assert not result["verified"]
    assert result["level"] == "L1"


def test_a_backup_of_a_shard_that_comes_back_fails(config: Config) -> None:
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    shard = config.folder / "shards" / "home%200.parquet"
    backup = shard.read_bytes()
    api.erase(config, Selection("subject", subject="p1"))
    with api.Experiment(config, "local") as experiment:
        removed = experiment.drain()["receipts"][0]["removed"]["home 0"]
    shard.write_bytes(backup)
    result = verify(config)
    assert not result["verified"]
    assert result["level"] == "L0"
    assert result["tombstoned_records_left"] == removed


def test_the_last_bit_of_the_head_counts(drained: Config) -> None:
    path = drained.folder / "state.safetensors"
    state = load_state(path)
    assert state is not None
    W = state.W.copy()
    W.view("u8")[0, 0] ^= 1
    save_state(State(state.config, state.policy, state.outputs, state.clients, {HEAD: W}), drained, path)
    assert not verify(drained)["verified"]


def test_a_checkpoint_that_was_changed_is_refused(drained: Config) -> None:
    path = drained.folder / "state.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(bytes(raw))
    with pytest.raises(StoreError, match="digest"):
        verify(drained)


def test_a_touched_ledger_is_refused(drained: Config) -> None:
    import sqlite3

    connection = sqlite3.connect(drained.folder / "ledger.db")
    connection.execute("UPDATE frmu_line SET body = replace(body, 'L5', 'L9')")
    connection.commit()
    connection.close()
    with pytest.raises(LedgerError, match="changed"):
        verify(drained)


def test_a_changed_value_in_a_shard_fails(drained: Config) -> None:
    shard: Path = drained.folder / "shards" / "home%202.parquet"
    table = pd.read_parquet(shard)
    table.loc[0, "humidity"] += 1
    table.to_parquet(shard)
    assert not verify(drained)["verified"]
