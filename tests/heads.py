"""Real heads for tests: `ray start --head`, on loopback, with a temp folder and ports of their own."""

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
from contextlib import contextmanager
from pathlib import Path

__all__ = ["FRMU", "RAY", "free_ports", "last_json", "running_head"]

BIN = Path(sys.executable).parent
RAY, FRMU = str(BIN / "ray"), str(BIN / "frmu")


def free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running_head(agent: str | None = None, **settings: str) -> Iterator[dict[str, str]]:
    """The environment of a client of a fresh head; the head is stopped by its process id.

    It demands a token, unless `RAY_AUTH_MODE="disabled"`; `settings` are more of its environment, `agent` the port of
    its agent.
    """
    gcs, dashboard, client, own = free_ports(4)
    agent = agent or str(own)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        **settings,
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
        try:
            for port in (dashboard, client):
                _await(port, process)
            time.sleep(2)  # the job agent follows the dashboard
            yield environment | {
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
                "GCS": f"127.0.0.1:{gcs}",
                "CLIENT": f"ray://127.0.0.1:{client}",
                "AGENT": agent,
                "SESSION": f"{folder}/session_latest",
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
                return
        time.sleep(0.5)
    raise TimeoutError("the head did not come up in 90 s")


def last_json(output: str) -> dict:
    return json.loads([line for line in output.splitlines() if line.startswith("{")][-1])
