"""The federation on Ray: hosts of clients and the server are actors, and arrays pass between them as refs.

A host puts the arrays of an answer into the object store and returns the ref; the driver hands the ref to the
server, so nothing but small records passes through the driver.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frmu.aggregation.server import Server
from frmu.client.client import Host
from frmu.config import Config
from frmu.errors import FederationError, FrmuError
from frmu.federation import Payload, Reply, Task, Traffic, Work
from frmu.runtime.placement import hosts_for

__all__ = ["RayFederation"]


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
