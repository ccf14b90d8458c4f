"""A cluster that grows and shrinks on one machine: Ray's autoscaler (v2) over its provider of pretended machines.

Each pretended machine is a real raylet that the autoscaler starts. The head is started by cluster/node like any other,
and nothing is stopped but what was started here. `demand` is the client, a process of its own: Ray reads whether it is
on loopback when it is first imported.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "cluster"))

from machine import ClusterError, cluster, ports, processes

HEAD = "f" * 51 + "00000"  # the name under which the provider knows its head
TYPES = {
    "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "site-b": {"resources": {"CPU": 1}, "labels": {"site": "b"}, "node_config": {}, "max_workers": 1},
    "elastic": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 2},
}


@contextmanager
def autoscaling() -> Iterator[dict[str, str]]:
    """The environment of a client of a fresh head without a CPU that may call for what `TYPES` offers."""
    with tempfile.TemporaryDirectory(prefix="frmu-", ignore_cleanup_errors=True) as folder:
        yield from _running(Path(folder))


def _running(folder: Path) -> Iterator[dict[str, str]]:
    named = ports.node_ports(ports.block(None))
    address = f"127.0.0.1:{named['gcs']}"
    (folder / "autoscaler.yaml").write_text(yaml.safe_dump(_config(address)))
    cluster._token(folder / "token")
    client = {
        "RAY_ADDRESS": address,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": "/usr/bin:/bin",
    }
    command = [sys.executable, str(ROOT / "cluster" / "node"), "--loopback", "--num-cpus=0", f"--temp-dir={folder}"]
    command += [*cluster._port_options(named), f"--port={named['gcs']}", "--include-dashboard=false"]
    command += [f"--ray-client-server-port={named['client']}", "--object-store-memory=100000000"]
    command += [f"--autoscaling-config={folder / 'autoscaler.yaml'}"]
    own = {name: value for name, value in client.items() if name != "RAY_ADDRESS"} | {
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD,
    }
    head = _started(command, own, folder)
    try:
        yield client
    finally:
        processes.stop([head])


def _started(command: list[str], environment: dict[str, str], folder: Path, more: int = 2) -> processes.Process:
    """Start the head, again where it ends first: a busy machine may not give a raylet's agent the seconds it has."""
    log = folder / f"log{more}"
    head = processes.start("head", command, environment, log, f"test:{folder.name}")
    try:
        processes.await_(head, lambda: "Ray runtime started" in log.read_text(), 120, "is the machine busy?")
    except ClusterError:
        processes.stop([head])
        if not more:
            raise
        return _started(command, environment, folder, more - 1)
    return head


def _config(address: str) -> dict[str, Any]:
    """What the autoscaler reads: an idle node goes after three seconds."""
    lists = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    provider = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    return {f"{name}_commands": [] for name in lists} | {
        "cluster_name": "test",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "upscaling_speed": 100.0,
        "max_workers": 3,
        "idle_timeout_minutes": 0.05,
        "provider": {
            "type": "external",
            "module": provider,
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "disable_node_updaters": True,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": TYPES,
    }


def measured(environment: dict[str, str]) -> dict[str, Any]:
    """What `demand` saw."""
    run = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=400, check=False
    )
    if run.returncode:
        raise RuntimeError(run.stdout + run.stderr)
    return json.loads(run.stdout.splitlines()[-1])


def demand() -> dict[str, Any]:
    """Ask for a node by an actor that is pinned to a site, then by `request_resources`; the seconds of each step."""
    import ray
    from ray.autoscaler.sdk import request_resources

    @ray.remote(num_cpus=0.01)
    class Host:
        def where(self) -> dict[str, str]:
            return ray.get_runtime_context().get_node_labels()

    def nodes() -> int:
        return sum(node["Alive"] for node in ray.nodes())

    def seconds_until(happened: Callable[[], bool]) -> float:
        begun = time.monotonic()
        while not happened():
            if time.monotonic() > begun + 120:
                raise TimeoutError(f"{nodes()} nodes after 120 s: {ray.nodes()}")
            time.sleep(0.1)
        return round(time.monotonic() - begun, 1)

    ray.init(log_to_driver=False)
    seen: dict[str, Any] = {"nodes at first": nodes()}
    begun = time.monotonic()
    host = Host.options(label_selector={"site": "b"}).remote()
    seen["labels of the pinned actor's node"] = ray.get(host.where.remote(), timeout=120)
    seen["pinned actor answers after"] = round(time.monotonic() - begun, 1)
    ray.kill(host)
    seen["idle node gone after"] = seconds_until(lambda: nodes() == 1)
    request_resources(bundles=[{"CPU": 2}, {"CPU": 2}])
    seen["two requested nodes after"] = seconds_until(lambda: nodes() == 3)
    request_resources(bundles=[])
    seen["both gone after"] = seconds_until(lambda: nodes() == 1)
    return seen


if __name__ == "__main__":
    print(json.dumps(demand()))
