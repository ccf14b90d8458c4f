"""Jobs, submitted for real to a local head that demands its token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

import machine
import pandas as pd
import pytest
from conftest import CONFIG, TRACKING, put, train
from heads import FRMU, RAY, last_json
from mlflow import MlflowClient
from postgres import _binaries

from frmu.config import Config, load
from frmu.policy.checkpoint import read_progress
from frmu.storage.workspace import Workspace

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
Head = dict[str, str]


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """A folder as a fresh checkout has it, with the jobs alone."""
    shutil.copytree(ROOT / "jobs", tmp_path / "clean" / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "clean"


def submit(head: Head, folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    line = [RAY, "job", "submit", "--working-dir", ".", "--", "python", *map(str, command)]
    return subprocess.run(line, cwd=folder, env=head, capture_output=True, text=True, timeout=300, check=False)


def frmu_submit(head: Head, folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    line = [FRMU, "submit", *map(str, arguments)]
    return subprocess.run(line, cwd=folder, env=head, capture_output=True, text=True, timeout=300, check=False)


def job_info(head: Head, job: str = "") -> Any:
    """What Ray's own jobs API says."""
    return json.loads(_get(head, job))


def _get(head: Head, path: str) -> str:
    header = {"Authorization": f"Bearer {head['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head['RAY_API_SERVER_ADDRESS']}/api/jobs/{path}", headers=header)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


@pytest.fixture
def ledger(request: pytest.FixtureRequest) -> str | None:
    """The URL of a PostgreSQL, with a password in it; None where there is none to start."""
    return request.getfixturevalue("postgres_database") if _binaries() is not None else None


def test_a_life_in_jobs_each_named_by_its_runs_and_naming_them_and_no_secret_told(
    head: Head, clean: Path, tmp_path: Path, table: pd.DataFrame, ledger: str | None
) -> None:
    config = put(tmp_path / "homes", table)
    if ledger is not None:
        config.file.write_text(f'{config.file.read_text()}ledger = "{ledger}"\n')
        config = load(config.file)
    trained = submit(head, clean, "jobs/train.py", config.file)
    assert trained.returncode == 0, trained.stdout + trained.stderr
    assert last_json(trained.stdout)["clients"] == 4

    erased = submit(head, clean, "jobs/erase.py", config.file, "--subject", "p1")
    assert erased.returncode == 0, erased.stdout + erased.stderr
    receipts = last_json(erased.stdout)["receipts"]
    assert [receipt["level"] for receipt in receipts] == ["L5"]

    began = time.monotonic()
    proven = frmu_submit(head, clean, "verify", config.file, "--json", "--id", "proof")
    took = time.monotonic() - began
    assert proven.returncode == 0, proven.stdout + proven.stderr
    told = last_json(proven.stdout)
    assert (told["job"], told["status"], told["exit_code"]) == ("proof", "SUCCEEDED", 0)
    assert told["seconds"] < took
    assert told["result"]["level"] == "L5"

    refused = frmu_submit(head, clean, "erase", config.file, "--client", "nobody", "--json")
    assert refused.returncode == last_json(refused.stdout)["exit_code"] == 2
    assert 'no client "nobody"' in last_json(refused.stdout)["result"]["error"]
    again = frmu_submit(head, clean, "verify", config.file, "--id", "proof")
    assert again.returncode == 2
    assert 'a job "proof" is there already (SUCCEEDED); give another --id' in again.stderr

    for output in (trained.stdout, erased.stdout):
        _points_both_ways(head, last_json(output)["run_id"], config)
    printed = "".join(run.stdout + run.stderr for run in (trained, erased, proven, refused, again))
    kept = _get(head, "") + "".join(_get(head, f"{job['submission_id']}/logs") for job in job_info(head))
    assert "frmu.runs" in kept
    _no_secret(head, config, ledger, (printed + kept).encode())


LOOK = """
import json, os
there = [os.path.relpath(os.path.join(at, name)) for at, _, names in os.walk(".") for name in names]
print(json.dumps({"there": sorted(there)}))
"""


def test_what_arrives_with_a_job_holds_no_secret(
    head: Head, tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Secrets are planted in a folder, under their names and under others; a job lists what it was given."""
    from frmu.runtime.connect import _reread_token
    from frmu.runtime.submit import Cluster
    from frmu.runtime.upload import pack

    desk = tmp_path / "desk"
    config = put(desk, table)
    train(config)  # a working folder with its key, ledger and shards
    here = machine.Cluster(desk / "my-cluster")
    here.up(["a"], postgres=False, mlflow=False)
    try:
        shutil.copy(here.token, desk / "notes.txt")
        shutil.copy(config.key_file, desk / "blob")
        shutil.copy(config.folder / "ledger.db", desk / "lines.bin")
        (desk / "look.py").write_text(LOOK)
        secrets = [here.token.read_bytes().strip(), config.key_file.read_bytes()]
        package = pack(desk, tmp_path / "folder.zip")
        with monkeypatch.context() as patch:
            for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
                patch.setenv(name, head[name])
            _reread_token()
            cluster = Cluster(head["RAY_API_SERVER_ADDRESS"])
            said: list[str] = []
            done = cluster.follow(cluster.submit("python look.py", tmp_path / "folder.zip"), said.append)
        _reread_token()
    finally:
        here.down()
    assert done.exit_code == 0, said
    assert last_json("".join(said))["there"] == ["homes.toml", "look.py"]
    assert {"notes.txt", "blob", "lines.bin"} <= set(package.kept)
    unpacked = Path(head["SESSION"]).rglob("_ray_pkg_*/**/*")
    assert not [file for file in unpacked if file.is_file() and any(s in file.read_bytes() for s in secrets)]


def _no_secret(head: Head, config: Config, ledger: str | None, told: bytes) -> None:
    """Neither in what was told nor in a file of Ray's session, of MLflow, or of ours, but where it is kept."""
    key = config.key_file.read_bytes()
    secrets = {"token": head["RAY_AUTH_TOKEN"].encode(), "key": key, "key in hex": key.hex().encode()}
    secrets |= {"key in base64": b64encode(key).rstrip(b"="), "key as Python shows it": repr(key)[2:-1].encode()}
    if ledger is not None:
        secrets["password"] = ledger.partition("//")[2].partition("@")[0].rpartition(":")[2].encode()
    places = [Path(head["SESSION"]), config.folder, Path(TRACKING.removeprefix("sqlite:///")).parent]
    files = [file for place in places for file in place.rglob("*") if file.is_file() and file != config.key_file]
    assert any(file.name.startswith("job-driver-") for file in files)
    texts = [("what was told", told), *((str(file), file.read_bytes()) for file in files)]
    assert sum(config.experiment.encode() in text for _, text in texts) > 1  # what is no secret is found
    assert not [f"{name} in {place}" for place, text in texts for name, secret in secrets.items() if secret in text]


def _points_both_ways(head: Head, run_id: str, config: Config) -> None:
    """Both sides are asked: MLflow for the run's job, Ray for the job's run."""
    tags = MlflowClient(TRACKING).get_run(run_id).data.tags
    metadata = job_info(head, tags["frmu.ray_job"])["metadata"]
    assert metadata["frmu.runs"] == run_id
    assert metadata["frmu.experiment"] == config.experiment
    assert metadata["frmu.tracking"] == TRACKING
    assert tags["frmu.ray_job_page"] == f"{head['RAY_API_SERVER_ADDRESS']}/#/jobs/{tags['frmu.ray_job']}"


def test_a_policy_job_that_is_stopped_leaves_cleanly_and_goes_on(
    head: Head, clean: Path, tmp_path: Path, table: pd.DataFrame
) -> None:
    config = put(tmp_path / "homes", table, f"{CONFIG}\n[policy]\nsamples = 64\n")
    train(config)
    sent = frmu_submit(head, clean, "policy", config.file, "--iterations", "1000", "--no-wait", "--json")
    job = last_json(sent.stdout)["job"]
    progress, deadline = config.folder / "training.safetensors", time.monotonic() + 180
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    subprocess.run([RAY, "job", "stop", job], env=head, capture_output=True, timeout=60, check=True)
    assert job_info(head, job)["status"] == "STOPPED"
    logs = json.loads(_get(head, f"{job}/logs"))["logs"]
    assert last_json(logs) == {"error": "interrupted; the same command again goes on from here", "kind": "Interrupted"}
    run = MlflowClient(TRACKING).get_run(job_info(head, job)["metadata"]["frmu.runs"])
    assert (run.info.run_name, run.info.status) == ("policy", "FAILED")
    with Workspace(config.folder, config.key_file).lock():  # nobody holds it
        done, _ = read_progress(progress)
    resumed = frmu_submit(head, clean, "policy", config.file, "--iterations", str(done.iterations + 1), "--json")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    result = last_json(resumed.stdout)["result"]
    assert (result["iterations"], result["resumed_at"]) == (done.iterations + 1, done.iterations)


@pytest.mark.long
def test_a_policy_job_that_was_killed_goes_on(head: Head, clean: Path, tmp_path: Path, table: pd.DataFrame) -> None:
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
    resumed = submit(head, clean, "jobs/policy.py", config.file, "--iterations", str(done.iterations + 1))
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    result = last_json(resumed.stdout)
    assert (result["iterations"], result["resumed_at"]) == (done.iterations + 1, done.iterations)


@pytest.mark.long
def test_a_benchmark_as_a_job(head: Head, clean: Path) -> None:
    small = ("drain", "--clients", "4", "--requests", "10", "--repeats", "2")
    run = submit(head, clean, "jobs/benchmark.py", *small)
    assert run.returncode == 0, run.stdout + run.stderr
    assert last_json(run.stdout)["proven"]


# Ray's client server has 30 s to start one more process, which a loaded machine may not give it.
@pytest.mark.parametrize("door", ["GCS", pytest.param("CLIENT", marks=pytest.mark.long)])
def test_the_command_line_attaches_to_a_running_cluster(
    head: Head, tmp_path: Path, table: pd.DataFrame, door: str
) -> None:
    config = put(tmp_path / "homes", table)
    command = [FRMU, "train", config.file, "--json", "--address"]
    run = subprocess.run([*command, head[door]], env=head, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    local = subprocess.run([*command, "local"], env=head, capture_output=True, text=True, timeout=120, check=True)
    assert last_json(run.stdout)["state_digest"] == last_json(local.stdout)["state_digest"]
