"""A real MLflow server of the test run's own, and a gate before it that can be shut at a chosen request.

The server is killed with -9, by process group, and started again on its port. That takes as long as MLflow takes to
start, so most faults are made by the gate, which hands bytes on to the server: shut, it refuses and resets, as a
server that is killed does, and it can be told at which request, and whether before, amid or after it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 300.0  # seconds for the server to answer; half a minute on an idle machine
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "no_proxy": "127.0.0.1",
}
REQUEST = re.compile(rb"(GET|POST|PUT|PATCH|DELETE) (\S+) HTTP/1\.1\r\n")


class Server:
    """MLflow on a loopback port, with SQLite and its artifacts in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=os.environ | ENVIRONMENT
            )
        until = time.monotonic() + PATIENCE
        while not self._answers():
            assert self._process.poll() is None, (self.folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)

    def kill(self) -> None:
        """With -9, its workers too: they are children of its own session."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False


class Gate:
    """A port of its own before a server's; `seen` are the requests that came, in order."""

    def __init__(self, server: Server) -> None:
        self.server, self.port = server, free_port()
        self.seen: list[str] = []
        self._fault: tuple[int, str, Callable[[], None]] | None = None
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._pairs: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def open(self) -> None:
        """Let everything through."""
        self._fault = None
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._serve, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse, and reset what is open."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for each in pairs:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def at(self, number: int, moment: str, do: Callable[[], None] | None = None) -> None:
        """Shut, or do something else, at a request that is to come, counted from 1: "before", "amid" or "after" it."""
        self._fault = (len(self.seen) + number, moment, do or self.shut)

    def _serve(self, listener: socket.socket) -> None:
        while True:
            try:
                near = listener.accept()[0]
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.server.port), timeout=PATIENCE)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._pairs += [near, far]
            strike: list[Callable[[], None]] = []  # what to do when the answer comes
            threading.Thread(target=self._up, args=(near, far, strike), daemon=True).start()
            threading.Thread(target=self._down, args=(far, near, strike), daemon=True).start()

    def _up(self, near: socket.socket, far: socket.socket, strike: list[Callable[[], None]]) -> None:
        with closing(near), suppress(OSError):
            while data := near.recv(1 << 16):
                for method, path in REQUEST.findall(data):
                    self.seen.append(f"{method.decode()} {path.decode()}")
                number, moment, do = self._fault or (0, "", self.shut)
                if self._fault is not None and len(self.seen) >= number:
                    if moment == "after":
                        strike.append(do)
                    else:
                        self._fault = None
                        if moment == "amid":
                            far.sendall(data[: len(data) * 2 // 3])
                        do()
                        return
                far.sendall(data)
            far.shutdown(socket.SHUT_WR)

    def _down(self, far: socket.socket, near: socket.socket, strike: list[Callable[[], None]]) -> None:
        with closing(far), suppress(OSError):
            while data := far.recv(1 << 16):
                if strike:
                    self._fault = None
                    strike[0]()
                    return
                near.sendall(data)
            near.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def mlflow_server() -> Iterator[Server]:
    """A server that runs."""
    with tempfile.TemporaryDirectory(prefix="frmu-mlflow-", ignore_cleanup_errors=True) as folder:
        server = Server(Path(folder))
        try:
            server.start()
            yield server
        finally:
            server.kill()


@pytest.fixture
def gate(mlflow_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """An open gate before the server; what is refused is tried again soon."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    gate = Gate(mlflow_server)
    gate.open()
    try:
        yield gate
    finally:
        gate.shut()


def contents(client: Any, experiment: str) -> dict[str, Any]:
    """All that an experiment has in MLflow, but for ids, times and what differs from run to run by them."""
    from mlflow.entities import ViewType

    place = client.get_experiment_by_name(experiment).experiment_id
    found = client.search_runs([place], run_view_type=ViewType.ALL, order_by=["attributes.start_time ASC"])
    names = {run.info.run_id: run.info.run_name for run in found}
    versions = client.search_model_versions(f"name='{experiment}'")
    return {
        "runs": [_run(client, run, names) for run in sorted(found, key=lambda run: run.info.start_time)],
        "versions": [
            {"state": version.tags["frmu.state_digest"], "of": names.get(version.run_id), "aliases": version.aliases}
            for version in sorted(versions, key=lambda version: int(version.version))
        ],
    }


TIMES = ("seconds", "verify_seconds")
MARKS = ("frmu.run", "mlflow.parentRunId", "frmu.store", "mlflow.user")


def _run(client: Any, run: Any, names: dict[str, str]) -> dict[str, Any]:
    history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {
        "name": run.info.run_name,
        "status": run.info.status,
        "stage": run.info.lifecycle_stage,
        "ended": run.info.end_time is not None and run.info.end_time >= run.info.start_time,
        "parent": names.get(run.data.tags.get("mlflow.parentRunId", "")),
        "params": run.data.params,
        "metrics": {
            key: [(each.step, each.value if key not in TIMES else None) for each in of] for key, of in history.items()
        },
        "tags": {key: value for key, value in run.data.tags.items() if key not in MARKS},
        "files": sorted(files(client, run.info.run_id)),
    }


def files(client: Any, run: str, path: str | None = None) -> list[str]:
    """Paths of a run's artifacts."""
    entries = client.list_artifacts(run, path)
    below = [name for entry in entries if entry.is_dir for name in files(client, run, entry.path)]
    return [entry.path for entry in entries if not entry.is_dir] + below
