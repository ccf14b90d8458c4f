"""The federation on Ray: hosts of clients and the server are actors, and arrays pass between them as refs.

A host puts the arrays of an answer into the object store and returns the ref; the driver hands the ref to the
server, so nothing but small records passes through the driver. Attaching to a running cluster uses its token;
a private Ray, started where no cluster is named, listens on loopback only and demands a token of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frmu.aggregation.server import Server
from frmu.client.client import Host
from frmu.config import Config
from frmu.errors import FederationError, FrmuError
from frmu.federation import Payload, Reply, Task, Traffic, Work
from frmu.runtime.placement import hosts_for

__all__ = ["RayFederation", "cluster"]

_log = logging.getLogger(__name__)
_PRIVATE = {  # how a Ray of our own is started: closed by default
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every service listens on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to Ray for a while: to the cluster at an address, or to a private one.

    Without an address the cluster that `RAY_ADDRESS` names is used (as inside a Ray job), else a private Ray is
    started. Within another `cluster`, or where the program has connected already, that connection is used.
    Raises `FederationError` where no cluster answers or it refuses the token.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    named = address or os.environ.get("RAY_ADDRESS")
    before = dict(os.environ)
    folder = None
    if named is None:
        os.environ.update({name: value for name, value in _PRIVATE.items() if name not in before})
        if "RAY_AUTH_TOKEN_PATH" not in before:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        folder = tempfile.mkdtemp(prefix="frmu-")
    import ray

    _reread_token()
    _silence()
    try:
        _connect(named, folder)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
            for name in {*_PRIVATE, "RAY_AUTH_TOKEN"} - set(before):
                os.environ.pop(name, None)


def _reread_token() -> None:
    """Make Ray look at the environment again: it reads mode and token once, when it is first imported."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _silence() -> None:
    """Keep Ray's remarks (many actors on few cores are meant here) out of standard output, which is for results."""
    with suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.handlers.clear()
        global_worker_stdstream_dispatcher.add_handler("frmu", lambda data: _log.debug("%s", data))


def _answers(address: str) -> None:
    """Raise `FederationError` where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FederationError(f"no Ray cluster at {address}: {error}; check the address") from None


def _connect(named: str | None, folder: str | None) -> None:
    import ray

    if named is not None:
        _answers(named)

    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": False,
    }
    try:
        if named:
            ray.init(address=named, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, _temp_dir=folder, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FederationError(
            f"no Ray cluster at {named or 'a private address'}: {reason}. Check the address, and that RAY_AUTH_MODE "
            "and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) are those of the cluster"
        ) from None


class _HostActor:
    """A host in its own process."""

    def __init__(self, config: Config, names: Sequence[str], folder: Path) -> None:
        self._host = Host(config, names, folder)

    def answer(self, work: Work, names: Sequence[str]) -> list[Reply]:
        """Do the work; keep arrays in the object store and return their refs."""
        import ray

        return [
            Reply(
                answer.client,
                answer.record,
                None if answer.payload is None else ray.put(dict(answer.payload)),
                answer.nbytes,
            )
            for answer in self._host.answer(work, names)
        ]


class _ServerActor:
    """The server in its own process: the central aggregator."""

    def __init__(self, folder: Path) -> None:
        self._server = Server(folder)

    def serve(self, task: Task, refs: Mapping[str, Any]) -> Any:
        """Fetch the arrays from the hosts that hold them and do the task."""
        import ray

        payloads: dict[str, Payload] = dict(zip(refs, ray.get(list(refs.values())), strict=True))
        return self._server.serve(task, payloads)


class RayFederation:
    """Clients on host actors, one or many an actor, and the server on an actor of its own.

    Actors take a hundredth of a core each, so that as many as memory allows can share a machine. Handles pickle,
    so a remote env runner can drive the same clients.
    """

    def __init__(self, config: Config, clients: Sequence[str], folder: Path) -> None:
        import ray

        self.clients = tuple(sorted(clients))
        self.traffic = Traffic()
        self._timeout = config.placement.timeout
        options: dict[str, Any] = {"num_cpus": 0.01, "max_restarts": 1}
        host, server = ray.remote(_HostActor).options(**options), ray.remote(_ServerActor).options(**options)
        groups = hosts_for(self.clients, config.placement.clients_per_actor)
        self._server = server.remote(folder)
        self._hosts: dict[tuple[str, ...], Any] = {}
        # A few at a time: processes that start all at once on a few cores only stand in each other's way.
        wave = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        for at in range(0, len(groups), wave):
            started = {names: host.remote(config, names, folder / "shards") for names in groups[at : at + wave]}
            ray.get([actor.__ray_ready__.remote() for actor in started.values()], timeout=self._timeout)
            self._hosts |= started

    def run(self, work: Work, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        import ray

        wanted = set(self.clients if on is None else on)
        if not wanted:
            return
        self.traffic.sent(work, len(wanted))
        shared = ray.put(work)
        pending = {}
        for names, host in self._hosts.items():
            if here := tuple(name for name in names if name in wanted):
                pending[host.answer.remote(shared, here)] = here
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1, timeout=self._timeout)
            if not done:
                late = sorted(name for names in pending.values() for name in names)
                raise FederationError(
                    f"no reply in {self._timeout:g} s from clients {', '.join(late)} for {type(work).__name__}; raise "
                    "placement.timeout, or look for the host in `ray status`"
                )
            names = pending.pop(done[0])
            for reply in _fetch(done[0], f"clients {', '.join(names)}"):
                self.traffic.up += reply.nbytes
                yield reply

    def serve(self, task: Task, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        refs = {reply.client: reply.payload for reply in replies if reply.payload is not None}
        return _fetch(self._server.serve.remote(task, refs), "the server", self._timeout)

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in [*self._hosts.values(), self._server]:
            ray.kill(actor)


def _fetch(ref: Any, who: str, timeout: float | None = None) -> Any:
    """The value of a ref; an error of ours is raised as it was, one of Ray's is named."""
    import ray

    try:
        return ray.get(ref, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, FrmuError):
            raise cause from None
        raise
    except ray.exceptions.GetTimeoutError:
        raise FederationError(f"no reply in {timeout:g} s from {who}; raise placement.timeout") from None
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0]
        raise FederationError(f"{who} did not answer: {reason}") from None
