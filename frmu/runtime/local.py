"""The federation in process: no Ray, the same bits. For tests, verification and small jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frmu.clients.client import Host
from frmu.config import Config
from frmu.data.sites import SiteLocation
from frmu.federation import ClientTask, Reply, ServerTask, Traffic
from frmu.runtime.dispatch import ActorHandle, Answered, Dispatcher
from frmu.server.server import Server
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["LocalFederation"]
_HERE = "here"  # the one incarnation of a host in this process


class _InProcess:
    """Calls that are made when they are taken, one after another. Nobody is late: time stands still meanwhile."""

    def now(self) -> float:
        return 0.0

    def share(self, work: ClientTask) -> ClientTask:
        return work

    def hello(self, handle: ActorHandle) -> Callable[[], Answered]:
        return lambda: Answered(_HERE)

    def answer(
        self, handle: ActorHandle, shared: ClientTask, names: Sequence[str], incarnation: str | None
    ) -> Callable[[], Answered]:
        def call() -> Answered:
            answers = handle.actor.answer(shared, names)
            return Answered(_HERE, tuple(Reply(a.client, a.record, a.payload, a.nbytes) for a in answers))

        return call

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        return calls[:1]

    def take(self, call: Callable[[], Answered]) -> Answered:
        return call()

    def restart(self, handle: ActorHandle) -> None:
        raise AssertionError("a host in this process does not hang apart from it")

    def absent(self, label: str | None) -> str:
        return ""


class LocalFederation:
    """All clients on one host a place, and the server beside them.

    Clients are names, whose shards lie under `folder`, or places by name. A `fencing_token` is the number of the job.
    """

    def __init__(
        self, config: Config, clients: Sequence[str] | Mapping[str, SiteLocation], folder: Path,
        fencing_token: int = 0, pipeline: Pipeline = IDENTITY,
    ) -> None:  # fmt: skip
        self.traffic = Traffic()
        self.away: dict[str, str] = {}
        self._fencing_token = fencing_token
        self._dispatcher = Dispatcher(_InProcess(), config.rules, config.placement.patience)
        self._pipeline = pipeline
        self._server = Server(pipeline)
        self.admit(
            clients if isinstance(clients, Mapping) else {n: SiteLocation("", config, folder) for n in clients}, {}
        )

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client, in the order of their names."""
        return self._dispatcher.clients

    def admit(self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int]) -> None:
        """See `Federation.admit`."""
        new: dict[Path, list[str]] = {}
        at = {place.shards: place for place in locations.values()}
        for name in sorted(set(locations) - set(self.clients)):
            new.setdefault(locations[name].shards, []).append(name)
        for shards, names in new.items():
            host = Host(at[shards].config, names, shards, self._fencing_token, self._pipeline)
            self._dispatcher.handles.append(ActorHandle(tuple(names), host))

    @property
    def host(self) -> Host:
        """The host, where there is one place: what runs in this process may look into it."""
        (handle,) = self._dispatcher.handles
        host: Host = handle.actor
        return host

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        return self._dispatcher.run(work, on, self.away, self.traffic)

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        return self._server.serve(task, {reply.client: reply.payload for reply in replies})

    def close(self) -> None:
        """Nothing to let go of."""
