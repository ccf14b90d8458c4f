"""The common parts of client tasks: nothing prepared for several at once, and a way to do one where no host runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from frmu.clients.client import Client, Host
from frmu.data.shard import clients_in
from frmu.data.sites import SiteLocation
from frmu.federation import Answer, ClientTask

__all__ = ["AskShards", "EachClient"]


@dataclass(frozen=True, slots=True)
class EachClient:
    """A work that needs no preparation for several clients at once."""

    def prepare(self, clients: Sequence[Client]) -> None:
        """Nothing to share."""


@dataclass(frozen=True, slots=True)
class AskShards:
    """Let the clients of a place do a task on their shards as these lie there, where no host of them runs.

    `on` are the clients that are asked, None for all that have a shard there.
    """

    work: ClientTask
    on: tuple[str, ...] | None = None

    def perform(self, place: SiteLocation) -> list[Answer]:
        """Their answers, without what is meant for a server."""
        there = clients_in(place.shards)
        names = there if self.on is None else sorted({*there} & {*self.on})
        return [replace(a, payload=None) for a in Host(place.config, names, place.shards).answer(self.work, names)]
