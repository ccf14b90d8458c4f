"""Jobs, submitted for real to a local head that demands its token."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, put, train

from frmu.policy.checkpoint import read_progress

ROOT = Path(__file__).parents[2]
RAY, FRMU = (str(Path(sys.executable).parent / name) for name in ("ray", "frmu"))


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """The environment of a client of a fresh head; the head is stopped by its process id."""
    gcs, dashboard, agent, client = free_ports(4)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    with tempfile.TemporaryDirectory(prefix="frmu-", ignore_cleanup_errors=True) as folder:
        command = [
            RAY, "start", "--head", "--block", "--num-cpus=2", "--include-dashboard=true", f"--port={gcs}",
            "--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}",
            f"--temp-dir={folder}", "--object-store-memory=200000000",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            _await(dashboard, process)
            yield environment | {
                "RAY_API_SERVER_ADDRESS": address,
                "GCS": f"127.0.0.1:{gcs}",
                "CLIENT": f"ray://127.0.0.1:{client}",
            }
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _await(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"ray start ended with code {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                time.sleep(2)  # the job agent follows the dashboard
                return
        time.sleep(0.5)
    raise TimeoutError("the head did not come up in 90 s")


def submit(environment: dict[str, str], *command: str | Path) -> subprocess.CompletedProcess[str]:
    line = [RAY, "job", "submit", "--working-dir", str(ROOT / "jobs"), "--", sys.executable, *map(str, command)]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)


def last_json(output: str) -> dict:
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])


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
