"""The cluster itself: what runs is written down as it starts, so that whoever comes later can stop exactly that.

Its folder holds the token, the logs, PostgreSQL's data and MLflow's artifacts, which stay when it is stopped, and
`cluster.json`, which does not. Nodes are named after their site. Ray's own files are in a short temporary folder: the
path of a socket may not be long.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from machine import database, ports, processes
from machine.errors import ClusterError
from machine.processes import Process

__all__ = ["Cluster"]

SCRIPTS = Path(__file__).parents[1]
PATIENCE = 120.0  # seconds for a process to answer, on a machine that has other things to do
_OBJECTS = 200_000_000  # bytes of object store a node


class Cluster:
    """A cluster of this machine, known by its folder.

    `up` starts it and `down` stops what was started; in between `add`, `kill` and `stop` change its nodes.
    `environment` is what a client needs. Every one of them may be called by another process than the one before.
    """

    def __init__(self, folder: str | Path = "frmu-cluster") -> None:
        self.folder = Path(folder).absolute()
        self.token = self.folder / "token"
        self._file = self.folder / "cluster.json"

    # What runs

    @property
    def state(self) -> dict[str, Any]:
        """Return what was written down when it started; raises `ClusterError` where nothing was."""
        try:
            return json.loads(self._file.read_text())
        except FileNotFoundError:
            raise ClusterError(
                f"no cluster runs in {self.folder}; `cluster/local up` starts one, --dir names it"
            ) from None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which Ray, frmu and MLflow find this cluster; the token is named by its file."""
        state = self.state
        found = {
            "RAY_ADDRESS": state["address"],
            "RAY_API_SERVER_ADDRESS": state["dashboard"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            # Without it Ray takes 127.0.0.1 for the machine's outer address, where nobody listens.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        found |= {"MLFLOW_TRACKING_URI": state["tracking"]} if state["tracking"] else {}
        if state["ledger"]:
            found |= {"FRMU_LEDGER": state["ledger"], "PGPASSFILE": str(self.folder / "pgpass")}
        return found

    def processes(self) -> list[Process]:
        """All that was started and not stopped since, alive or not."""
        return [Process(**record) for record in self.state["processes"]]

    def nodes(self) -> dict[str, dict[str, Any]]:
        """The nodes that Ray knows to be alive, by name: what its state API says of each.

        A node that was killed is among them until Ray has noticed.
        """
        request = urllib.request.Request(
            f"{self.state['dashboard']}/api/v0/nodes?detail=1&limit=1000",
            headers={"Authorization": f"Bearer {self.token.read_text().strip()}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                rows = json.load(reply)["data"]["result"]["result"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ClusterError(f"the head at {self.state['dashboard']} does not answer: {error}") from None
        return {row["node_name"]: row for row in rows if row["state"] == "ALIVE"}

    # Starting and stopping

    def up(
        self,
        sites: Sequence[str] = ("a", "b", "c"),
        *,
        cpus: int = 1,
        postgres: bool = True,
        mlflow: bool = True,
        first_port: int | None = None,
    ) -> None:
        """Start a node a site, the first of them the head, and what they track with; all of it answers afterwards.

        Raises `ClusterError`, with nothing left running.
        """
        _check(sites)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")  # the token and the databases go into no commit and no job
        with self._alone():
            self._vacant()
            programs = database.binaries() if postgres else None
            state = self._planned(sites, cpus, first_port, mlflow, programs)
            self._write(state)
            try:
                self._start_all(state, programs)
            except BaseException:
                self._end(self.processes())
                raise

    def down(self) -> list[str]:
        """Stop everything that was started here, and nothing else; the names of what ran."""
        with self._alone():
            return self._end(self.processes())

    def add(self, site: str) -> str:
        """Start a node of a site and wait until it has joined; its Ray node id."""
        _check([site])
        with self._alone():
            state = self.state
            if self._running(site):
                raise ClusterError(
                    f'site "{site}" has a node that runs; `node kill {site}` or `node stop {site}` ends it'
                )
            if site == state["sites"][0]:
                raise ClusterError(f'the head was "{site}", and its tables went with it: `down` and `up` again')
            if site not in state["blocks"]:
                state["blocks"][site] = ports.block(None, state["blocks"].values())
            self._forget(state, site)
            process = self._start_node(state, site)
            return self._joined(process, site)

    def kill(self, site: str) -> int:
        """End a node the hard way, as when its machine loses power; how many processes that were."""
        with self._alone():
            process = self._node(site)
            count = processes.kill(process)
            self._forget(self.state, site)
            return count

    def stop(self, site: str) -> None:
        """End a node the soft way: it leaves the cluster by itself."""
        with self._alone():
            processes.stop([self._node(site)])
            self._forget(self.state, site)

    # How

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the folder: two that change it at once would write over each other."""
        if not self.folder.is_dir():
            raise ClusterError(f"no cluster runs in {self.folder}; `cluster/local up` starts one, --dir names it")
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ClusterError(f"{self.folder} is being changed by another cluster/local; wait for it") from None
            yield

    def _vacant(self) -> None:
        """Raise `ClusterError` where a cluster runs in this folder; clear away what a reboot left of one."""
        if not self._file.exists():
            return
        alive = [process.name for process in self.processes() if process.alive]
        if alive:
            raise ClusterError(
                f"{self.folder} runs a cluster already ({', '.join(alive)}); `cluster/local down` stops it, "
                "--dir names another folder"
            )
        self._end(self.processes())

    def _planned(
        self, sites: Sequence[str], cpus: int, first: int | None, mlflow: bool, programs: Path | None
    ) -> dict[str, Any]:
        """Every address, before anything starts."""
        blocks: dict[str, int] = {}
        for number, name in enumerate(["", *sites]):  # the first block is for what is not a node
            wanted = None if first is None else first + number * ports.BLOCK
            blocks[name] = ports.block(wanted, blocks.values())
        services, head = blocks.pop(""), ports.node_ports(blocks[sites[0]])
        store = self.folder / "mlflow.db"
        return {
            "run": secrets.token_hex(8),
            "address": f"127.0.0.1:{head['gcs']}",
            "dashboard": f"http://127.0.0.1:{head['dashboard']}",
            "tracking": f"http://127.0.0.1:{services}" if mlflow else None,
            "store": database.url(services + 1, "mlflow") if programs else f"sqlite:///{store}",
            "ledger": database.url(services + 1, "ledger") if programs else None,
            "postgres_port": services + 1 if programs else None,
            "cpus": cpus,
            "sites": list(sites),
            "blocks": blocks,
            "temporary": tempfile.mkdtemp(prefix="frmu-"),
            "processes": [],
        }

    def _start_all(self, state: dict[str, Any], programs: Path | None) -> None:
        """PostgreSQL, then MLflow and the head side by side, then the other nodes together."""
        (self.folder / "logs").mkdir(exist_ok=True)
        _token(self.token)
        if programs and state["postgres_port"]:
            mark = f"{state['run']}:postgres"
            self._record(state, database.start(programs, self.folder, state["postgres_port"], mark))
        tracking = self._start_tracking(state) if state["tracking"] else None
        head, *others = state["sites"]
        self._joined(self._start_node(state, head), head)
        state = self.state
        rest = [(site, self._start_node(state, site)) for site in others]
        for site, process in rest:
            self._joined(process, site)
        if tracking:
            processes.await_(tracking, lambda: _healthy(state["tracking"]), PATIENCE, "--no-mlflow does without")

    def _start_tracking(self, state: dict[str, Any]) -> Process:
        # It may wait for the nodes, which Ray gives few seconds to come up in.
        command = [
            "nice",
            "-n",
            "5",
            sys.executable,
            str(SCRIPTS / "tracking"),
            f"--port={state['tracking'].rpartition(':')[2]}",
        ]
        command += [f"--artifacts-destination={self.folder / 'artifacts'}"]
        environment = self._clean() | {"MLFLOW_BACKEND_STORE_URI": state["store"]}
        log = self.folder / "logs" / "mlflow.log"
        return self._record(state, processes.start("mlflow", command, environment, log, f"{state['run']}:mlflow"))

    def _start_node(self, state: dict[str, Any], site: str) -> Process:
        named = ports.node_ports(state["blocks"][site])
        head = site == state["sites"][0]
        command = [sys.executable, str(SCRIPTS / "node"), "--loopback", f"--site={site}", f"--node-name={site}"]
        command += [*_port_options(named), f"--num-cpus={state['cpus']}", f"--object-store-memory={_OBJECTS}"]
        temporary = Path(state["temporary"]) / str(list(state["blocks"]).index(site))
        temporary.mkdir(exist_ok=True)
        command += [f"--temp-dir={temporary}"]
        if head:
            command += [f"--port={named['gcs']}", f"--ray-client-server-port={named['client']}", "--no-monitor"]
            command += [f"--dashboard-port={named['dashboard']}"]
        else:
            command += [f"--head={state['address']}", "--include-log-monitor=false"]
        log, mark = self.folder / "logs" / f"{site}.log", f"{state['run']}:{site}"
        return self._record(state, processes.start(site, command, self._clean(), log, mark))

    def _clean(self) -> dict[str, str]:
        """The environment of what we start: that of a client of this cluster, and nothing of another one's."""
        foreign = re.compile(r"(RAY|MLFLOW|PG)[A-Z_]*")
        inherited = {name: value for name, value in os.environ.items() if not foreign.match(name)}
        ours = {name: value for name, value in self.environment.items() if name not in ("RAY_ADDRESS", "FRMU_LEDGER")}
        return inherited | ours

    def _joined(self, process: Process, site: str, more: int = 2) -> str:
        """Wait until Ray says that the node is alive and its agent takes jobs; its node id.

        One that ends first is started again: a raylet aborts where its agent is not there within 15 seconds, which a
        busy machine may need.
        """
        agent = ports.node_ports(self.state["blocks"][site])["agent"]
        found: dict[str, dict[str, Any]] = {}

        def answers() -> bool:
            with contextlib.suppress(ClusterError):
                found.update(self.nodes())
            return site in found and _listens(agent)

        try:
            processes.await_(process, answers, PATIENCE, _PORTS)
        except ClusterError:
            processes.stop([process])
            self._forget(self.state, site)
            if not more:
                raise
            return self._joined(self._start_node(self.state, site), site, more - 1)
        return str(found[site]["node_id"])

    def _end(self, all_of_it: list[Process]) -> list[str]:
        """Nodes first, for they write to MLflow; PostgreSQL, which MLflow writes to, last."""
        state = self.state
        services = ("mlflow", "postgres")
        names = processes.stop([process for process in all_of_it if process.name not in services])
        for service in services:
            names += processes.stop([process for process in all_of_it if process.name == service])
        shutil.rmtree(state["temporary"], ignore_errors=True)
        self._file.unlink()
        return names

    def _node(self, site: str) -> Process:
        if process := self._running(site):
            return process
        running = [site for site in self.state["blocks"] if self._running(site)]
        raise ClusterError(f'no node of site "{site}" runs; those that do: {", ".join(running) or "none"}')

    def _running(self, site: str) -> Process | None:
        if site not in self.state["blocks"]:
            return None
        return next((one for one in self.processes() if one.name == site and one.alive), None)

    def _record(self, state: dict[str, Any], process: Process) -> Process:
        state["processes"].append(asdict(process))
        self._write(state)
        return process

    def _forget(self, state: dict[str, Any], name: str) -> None:
        state["processes"] = [record for record in state["processes"] if record["name"] != name]
        self._write(state)

    def _write(self, state: dict[str, Any]) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text(json.dumps(state, indent=2))
        fresh.replace(self._file)


_PORTS = "where a port was taken meanwhile, --ports FIRST names others"


def _check(sites: Sequence[str]) -> None:
    """Raise `ClusterError` where a site's name cannot be one, or two are the same."""
    for site in sites:
        if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", site) or site in ("mlflow", "postgres"):
            raise ClusterError(
                f'--sites: "{site}" must be letters, digits, ".", "_", "-", at most 63; mlflow and postgres are taken'
            )
    if not sites or len(set(sites)) != len(sites):
        raise ClusterError(f"--sites must name each site once, got {','.join(sites) or 'none'}")


def _token(file: Path) -> None:
    """Make the token that the cluster demands, once; only its owner may read it."""
    if not file.exists():
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
            opened.write(secrets.token_hex(32))


def _port_options(named: dict[str, int]) -> list[str]:
    options = {
        "dashboard-agent-listen-port": "agent",
        "dashboard-agent-grpc-port": "agent_grpc",
        "runtime-env-agent-port": "runtime_env",
        "metrics-export-port": "metrics",
        "node-manager-port": "raylet",
        "object-manager-port": "objects",
        "min-worker-port": "workers_from",
        "max-worker-port": "workers_to",
    }
    return [f"--{option}={named[name]}" for option, name in options.items()]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _healthy(tracking: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"{tracking}/health", timeout=5) as reply:
        return bool(reply.status == 200)
    return False
