"""Learned features at the clients: the sums of layers, added up over the clients of a host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from frmu.clients.client import Client
from frmu.clients.layers import Layer
from frmu.federation import Answer

__all__ = ["SumLayers"]


@dataclass(frozen=True, slots=True)
class SumLayers:
    """Send the sums of layers over all clients of a host that are asked, in the payload of the first of them.

    The sums of a layer are kept by the host, and what is erased is taken out of them (`frmu.clients.layers`).
    """

    doing: ClassVar[str] = "learning features"

    layers: tuple[Layer, ...]

    def prepare(self, clients: Sequence[Client]) -> None:
        """Add up."""
        if not clients:
            return
        first = clients[0]
        shards = {client.name: client.shard for client in clients}
        payload: dict[str, Any] = {}
        for at, layer in enumerate(self.layers):
            sums = first.book.total(layer, shards, first.config)
            payload |= {f"{at}/fit": sums.fit.packed, f"{at}/validation": sums.validation.packed}
            payload |= {f"{at}/slopes": sums.slopes.packed} if sums.slopes is not None else {}
        first.prepared = payload

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload of one client a host."""
        payload, client.prepared = client.prepared, None
        return Answer(client.name, {"rows": len(client.shard)}, payload)
