"""What cluster/local does by itself, without Ray: processes known for certain, ports, refusals that name a knob."""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from machine import Cluster, ClusterError, ports, processes
from machine.processes import Process
from manifests import CLUSTER, script

# A parent that starts a child in a session of its own, as Ray may, and a child of that which drops its environment.
FAMILY = """
import subprocess, sys, time
sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleeper, start_new_session=True)
subprocess.Popen(sleeper, env={})
time.sleep(600)
"""


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    process = processes.start(
        "parent", [sys.executable, "-c", FAMILY], dict(os.environ), tmp_path / "log", tmp_path.name
    )
    until = time.monotonic() + 30
    while len(processes.family(process)) < 3 and time.monotonic() < until:
        time.sleep(0.05)
    yield process
    processes.kill(process)


def test_a_process_goes_with_all_that_it_started(process: Process) -> None:
    assert len(processes.family(process)) == 3
    assert processes.stop([process]) == ["parent"]
    assert processes.family(process) == []
    assert not process.alive


# A child in a session of its own, whose parent ends, and which writes over the start of its environment.
TITLED = (
    """
import subprocess, sys, time
title = """
    + '"""'
    + """
import ctypes, time
environment = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
ctypes.memset(environment[0], 0, len(ctypes.string_at(environment[0])))
time.sleep(600)
"""
    + '"""'
    + """
child = [sys.executable, "-c", title]
subprocess.run([sys.executable, "-c", f"import subprocess; subprocess.Popen({child!r}, start_new_session=True)"])
time.sleep(600)
"""
)


def test_a_process_that_wrote_over_the_start_of_its_environment_is_known_by_its_mark(tmp_path: Path) -> None:
    """Its parent has ended and its session is its own, so nothing but the mark tells whose it is."""
    environment = {"A": "title"} | dict(os.environ)
    process = processes.start("parent", [sys.executable, "-c", TITLED], environment, tmp_path / "log", tmp_path.name)
    try:
        until = time.monotonic() + 30
        while not (overwritten := [pid for pid in processes.family(process) if _begins_empty(pid)]):
            assert time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
    finally:
        processes.kill(process)
    assert processes.family(process) == []
    assert not any(Path(f"/proc/{pid}").exists() and _begins_empty(pid) for pid in overwritten)


def _begins_empty(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()[:1] == b"\0"
    except OSError:
        return False


def test_a_start_is_counted_in_ticks_since_boot_as_the_kernel_does(process: Process) -> None:
    """So one that an earlier version wrote down is still known."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    assert process.started == int(fields[19])


def test_a_process_is_not_taken_for_another_of_the_same_id(process: Process) -> None:
    reborn = replace(process, started=process.started - 1, mark="another")
    assert not reborn.alive
    assert processes.stop([replace(reborn, pid=os.getpid())]) == []
    assert process.alive


def test_two_nodes_never_meet_on_a_port() -> None:
    first = ports.block(None)
    second = ports.block(None, [first])
    assert abs(first - second) >= ports.BLOCK
    named = ports.node_ports(first)
    assert len(set(named.values())) == len(named)
    assert first <= min(named.values()) <= max(named.values()) < first + ports.BLOCK


def local(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, CLUSTER / "local", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_port_in_use_is_named_and_nothing_is_left(tmp_path: Path) -> None:

    first = ports.block(None)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first + 200))
        taken.listen()
        refused = local("up", "--dir", tmp_path / "c", "--ports", str(first))
    assert refused.returncode == 2
    assert f"port {first + 200} on 127.0.0.1 is in use" in refused.stderr
    assert "--ports" in refused.stderr
    assert not (tmp_path / "c" / "cluster.json").exists()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["up", "--sites", "a,a"], "--sites must name each site once"),
        (["up", "--sites", "a b"], '"a b" must be letters'),
        (["up", "--nodes", "2", "--sites", "a"], "--nodes 2 and 1 --sites"),
        (["up", "--ports", "80"], "--ports must be from 1024"),
        (["down"], "no cluster runs in"),
        (["env"], "no cluster runs in"),
        (["node", "kill", "a"], "no cluster runs in"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path, words: list[str], complaint: str) -> None:
    refused = local(*words, "--dir", tmp_path / "c")
    assert refused.returncode == 2
    assert complaint in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_folder_that_runs_a_cluster_is_refused_and_one_that_a_reboot_left_is_not(
    tmp_path: Path, process: Process
) -> None:

    cluster = Cluster(tmp_path)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    state = {"processes": [asdict(process)], "temporary": str(temporary)}
    (tmp_path / "cluster.json").write_text(json.dumps(state))
    with pytest.raises(ClusterError, match=r"runs a cluster already \(parent\)"):
        cluster.up()
    assert process.alive
    processes.kill(process)
    cluster._vacant()
    assert not (tmp_path / "cluster.json").exists()
    assert not temporary.exists()


@pytest.mark.parametrize(
    ("environment", "complaint"),
    [
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": "0"}, "RAY_AUTH_MODE must be token"),
        ({"RAY_AUTH_TOKEN_PATH": "/nowhere"}, "/nowhere cannot be read"),
        ({"HOME": "/nowhere"}, "no token"),
    ],
)
def test_no_node_starts_without_a_token(environment: dict[str, str], complaint: str) -> None:
    command = [sys.executable, CLUSTER / "node", "--site", "a"]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode != 0
    assert complaint in refused.stderr


def test_a_node_says_its_site_by_label_and_by_resource() -> None:
    node = script("node")
    options = argparse.Namespace(head="h:1", site="a", loopback=False, background=False)
    line = node.line(options, ["--num-cpus=2"])
    assert "--labels=site=a" in line
    assert '--resources={"site:a": 1000}' in line
    assert line[-1] == "--num-cpus=2"


def test_what_the_readme_says_of_it_is_a_command() -> None:
    readme = (CLUSTER.parent / "README.md").read_text()
    parser = script("local").parser()
    lines = re.findall(r"cluster/local ([a-z]+)", readme)
    assert set(lines) == {"up", "env", "down"}
    for line in [*lines, "status", *re.findall(r"`(node [a-z]+ [a-z])`", readme)]:
        assert parser.parse_args(line.split()).dir == Path("frmu-cluster")
