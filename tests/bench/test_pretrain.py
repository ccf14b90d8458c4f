"""The training of the shipped policy: RLlib's, from scratch, and the same bit by bit for a seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from problems import shuffled

from frmu.bench import pretrain as pretraining
from frmu.bench.pretrain import compared, gains_on, trained
from frmu.bench.pretraining_tasks import PretrainingTasks
from frmu.cli import main
from frmu.selection.network import read_policy, shipped


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


@pytest.mark.cluster
def test_it_raises_the_gain_and_a_seed_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "SAMPLES", 192)
    tasks, told = PretrainingTasks(shuffled), []
    learned = trained(tasks, 8, 0, "slope", told.append)
    again, once_more = (trained(tasks, 2, 1, "slope", told.append) for _ in range(2))
    assert all(np.array_equal(again.weights[name], weight) for name, weight in once_more.weights.items())
    gains = [metrics["gain"] for metrics in learned.history]
    assert np.mean(gains[-3:]) > np.mean(gains[:3]) + 0.01
    assert learned.history[-1]["evaluation_gain"] > learned.history[4]["evaluation_gain"] - 0.02
    assert "on held-out tasks" in told[0]


def test_two_policies_meet_the_same_held_out_tasks() -> None:
    tasks, network = PretrainingTasks(shuffled), read_policy(shipped())
    found = compared(tasks, network, network, 12)
    assert set(found) == {"by itself", "in a federation"}
    assert sum(of["tasks"] for of in found.values()) == 12
    assert all(of["difference"] == of["error"] == 0.0 for of in found.values())
    assert np.array_equal(gains_on(tasks, network, [7]), gains_on(tasks, network, [7]))


@pytest.mark.cluster
def test_the_command_writes_a_policy_and_compares_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretraining, "SAMPLES", 96)
    monkeypatch.setattr(pretraining, "series_of", lambda cache: [])
    monkeypatch.setattr(pretraining, "pretraining_task", lambda series, rng: shuffled(rng))
    command = ["bench", "pretrain", "--out", str(tmp_path / "p.safetensors"), "--iterations", "1", "--tasks", "6"]
    run = CliRunner().invoke(main, [*command, "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.strip().splitlines()[-1])
    network = read_policy(tmp_path / "p.safetensors")
    assert result["policy"] == network.digest
    assert network.lineage["algorithm"] == "slope"
    assert network.lineage["clients"] == []
    assert result["env_steps"] == 96
    assert len(result["history"]) == 1
