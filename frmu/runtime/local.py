"""The federation in process: no Ray, the same bits. For tests, verification and small jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from frmu.clients.client import Host
from frmu.config import Config
from frmu.data.sites import SiteLocation
from frmu.federation import ClientTask, Reply, ServerTask, Traffic
from frmu.server.server import Server
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["LocalFederation"]


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
        self._clients: dict[str, Host] = {}
        self._pipeline = pipeline
        self._server = Server(pipeline)
        self.admit(
            clients if isinstance(clients, Mapping) else {n: SiteLocation("", config, folder) for n in clients}, {}
        )

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client, in the order of their names."""
        return tuple(sorted(self._clients))

    def admit(self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int]) -> None:
        """See `Federation.admit`."""
        new: dict[Path, list[str]] = {}
        at = {place.shards: place for place in locations.values()}
        for name in sorted(set(locations) - set(self._clients)):
            new.setdefault(locations[name].shards, []).append(name)
        for shards, names in new.items():
            host = Host(at[shards].config, names, shards, self._fencing_token, self._pipeline)
            self._clients |= dict.fromkeys(names, host)

    @property
    def host(self) -> Host:
        """The host, where there is one place: what runs in this process may look into it."""
        (host,) = set(self._clients.values())
        return host

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        wanted = set(self.clients if on is None else on) & set(self.clients) - set(self.away)
        if not wanted:
            return
        self.traffic.sent(work, len(wanted))
        hosts = dict.fromkeys(self._clients[name] for name in sorted(wanted))
        for host in hosts:
            here = tuple(name for name in sorted(wanted) if self._clients[name] is host)
            for answer in host.answer(work, here):
                self.traffic.up += answer.nbytes
                yield Reply(answer.client, answer.record, answer.payload, answer.nbytes)

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        return self._server.serve(task, {reply.client: reply.payload for reply in replies})

    def close(self) -> None:
        """Nothing to let go of."""
