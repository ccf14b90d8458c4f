"""The federation in process: no Ray, the same bits. For tests, verification and small jobs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from frmu.aggregation.server import Server
from frmu.client.client import Host
from frmu.config import Config
from frmu.federation import Reply, Task, Traffic, Work

__all__ = ["LocalFederation"]


class LocalFederation:
    """All clients on one host, and the server beside them."""

    def __init__(self, config: Config, clients: Sequence[str], folder: Path) -> None:
        self.clients = tuple(sorted(clients))
        self.traffic = Traffic()
        self.host = Host(config, self.clients, folder / "shards")
        self._server = Server(folder)

    def run(self, work: Work, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        wanted = set(self.clients if on is None else on)
        names = tuple(name for name in self.clients if name in wanted)
        if not names:
            return
        self.traffic.sent(work, len(names))
        for answer in self.host.answer(work, names):
            self.traffic.up += answer.nbytes
            yield Reply(answer.client, answer.record, answer.payload, answer.nbytes)

    def serve(self, task: Task, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        return self._server.serve(task, {reply.client: reply.payload for reply in replies})

    def close(self) -> None:
        """Nothing to let go of."""
