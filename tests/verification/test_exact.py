"""A verifier that cannot fail proves nothing: these make it fail."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from frmu import api
from frmu.config import Config, load
from frmu.errors import LedgerError, StoreError
from frmu.storage.checkpoint import load_state, save_state
from frmu.types import HEAD, Selection

# A kernel of AVX-512 is an illegal instruction where the processor has none.
OTHERS = ("Haswell", *(["SkylakeX"] if "avx512f" in Path("/proc/cpuinfo").read_text() else []))


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
    save_state(replace(state, parameters={HEAD: W}), drained, path)
    assert not verify(drained)["verified"]


@pytest.mark.parametrize(("off", "passes"), [(1e-13, True), (1e-6, False)])
def test_a_head_that_another_library_solved_for_is_held_to_1e_9(drained: Config, off: float, passes: bool) -> None:
    path = drained.folder / "state.safetensors"
    state = load_state(path)
    assert state is not None
    made = replace(state, parameters={HEAD: state.W * (1.0 + off)}, numerics="scipy 0, another kernel")
    save_state(made, drained, path)
    assert verify(drained)["verified"] is passes


@pytest.mark.parametrize("kernel", ["Nehalem", *(pytest.param(name, marks=pytest.mark.cluster) for name in OTHERS)])
def test_a_state_of_another_processor_verifies(config: Config, kernel: str) -> None:
    """Trained and drained under another kernel of the BLAS and another number of threads, verified here."""
    environment = os.environ | {"OPENBLAS_CORETYPE": kernel, "OMP_NUM_THREADS": "2"}
    path = [str(Path(__file__).parent), *sys.path]
    code = f"import sys; sys.path[:0] = {path!r}; import test_exact as t; t.live({str(config.file)!r})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
    result = verify(config)
    assert result["verified"]
    assert result["level"] == "L5"


def live(file: str) -> None:
    """Train, and erase a person."""
    config = load(Path(file))
    with api.Experiment(config, "local") as experiment:
        experiment.train()
        api.erase(config, Selection("subject", subject="p1"))
    with api.Experiment(config, "local") as experiment:
        assert experiment.drain()["verified"]


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
