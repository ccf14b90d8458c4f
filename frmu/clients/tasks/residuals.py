"""Residuals of a head at the clients: counts of residuals by size, and nothing of a record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from frmu.clients.client import Client
from frmu.clients.layers import VALIDATION, chunks
from frmu.data.shard import Shard
from frmu.data.transform import head_widths, scaled_targets
from frmu.federation import Answer
from frmu.models.features import Head
from frmu.models.residuals import CELLS, counts_of
from frmu.models.weights import Weights

__all__ = ["CountResiduals"]


@dataclass(frozen=True, slots=True)
class CountResiduals:
    """Count by how much a head misses validation records, one of 2^share, over all clients of a host that are asked.

    The counts are in the record of the first of them, and of no client by itself where a host has several.
    """

    doing: ClassVar[str] = "counting residuals"

    head: Head | Weights
    share: int = 0

    def prepare(self, clients: Sequence[Client]) -> None:
        """Predict for many small shards at once."""
        if not clients:
            return
        first = clients[0]
        counts = np.zeros((self.head.width, CELLS), dtype=np.int64)
        parts = [(client.shard, self._rows(client.shard)) for client in clients]
        widths = head_widths(first.config)
        # What a module makes of a record may depend on the rows beside it, to the last bit: so these are its client's.
        together = [[part] for part in parts] if isinstance(self.head, Weights) else [parts]
        for X, y in (chunk for some in together for chunk in chunks(some)):
            said = first.predict(self.head, X)
            truth = scaled_targets(y, first.config).reshape(said.shape)
            counts += counts_of((truth - said) / widths)
        first.prepared = counts

    def _rows(self, shard: Shard) -> NDArray[np.intp]:
        rows = np.flatnonzero(shard.split == VALIDATION)
        return rows[shard.drawn(rows, self.share)]

    def perform(self, client: Client) -> Answer:
        """Counts by target and cell, of one client a host."""
        counts, client.prepared = client.prepared, None
        return Answer(client.name, {} if counts is None else {"counts": counts.tolist()})
