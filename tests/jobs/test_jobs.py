"""Jobs, submitted for real to a local head that demands its token."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, put, train
from heads import FRMU, RAY, last_json

from frmu.policy.checkpoint import read_progress

ROOT = Path(__file__).parents[2]


def submit(environment: dict[str, str], *command: str | Path) -> subprocess.CompletedProcess[str]:
    line = [RAY, "job", "submit", "--working-dir", str(ROOT / "jobs"), "--", sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)


def test_train_and_erase_as_jobs(head: dict[str, str], tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table)
    trained = submit(head, "train.py", config.file)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    result = last_json(trained.stdout)
    assert result["clients"] == 4
    erased = submit(head, "erase.py", config.file, "--subject", "p1")
    assert erased.returncode == 0, erased.stdout + erased.stderr
    receipts = last_json(erased.stdout)["receipts"]
    assert [receipt["level"] for receipt in receipts] == ["L5"]
    refused = submit(head, "erase.py", config.file, "--client", "nobody")
    assert refused.returncode != 0
    assert 'no client \\"nobody\\"' in refused.stdout


def test_the_policy_trains_as_a_job_and_goes_on_where_one_was_killed(
    head: dict[str, str], tmp_path: Path, table: pd.DataFrame
) -> None:
    config = put(tmp_path / "homes", table, f"{CONFIG}\n[policy]\nsamples = 64\n")
    train(config)
    command = [sys.executable, str(ROOT / "jobs" / "policy.py"), str(config.file), "--iterations", "1000"]
    with subprocess.Popen(
        [*command, "--address", head["GCS"]], env=head, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        progress, deadline = config.folder / "training.safetensors", time.monotonic() + 120
        while not progress.exists() and job.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
        job.kill()
    done, _ = read_progress(progress)
    resumed = submit(head, "policy.py", config.file, "--iterations", str(done.iterations + 1))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    result = last_json(resumed.stdout)
    assert (result["iterations"], result["resumed_at"]) == (done.iterations + 1, done.iterations)


# Ray's client server has 30 s to start one more process, which a loaded machine may not give it.
@pytest.mark.parametrize("door", ["GCS", pytest.param("CLIENT", marks=pytest.mark.long)])
def test_the_command_line_attaches_to_a_running_cluster(
    head: dict[str, str], tmp_path: Path, table: pd.DataFrame, door: str
) -> None:
    config = put(tmp_path / "homes", table)
    command = [FRMU, "train", config.file, "--json", "--address"]
    run = subprocess.run([*command, head[door]], env=head, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    local = subprocess.run([*command, "local"], env=head, capture_output=True, text=True, timeout=120, check=True)
    assert last_json(run.stdout)["state_digest"] == last_json(local.stdout)["state_digest"]


def test_without_the_token_the_door_is_shut(head: dict[str, str]) -> None:
    assert submit(head | {"RAY_AUTH_TOKEN": "0" * 64}, "train.py", "x.toml").returncode != 0
