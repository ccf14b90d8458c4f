"""Changes that influences and attention make to the sums of the model, in learned features or in those that judge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.layers import FIT, learned_rows, sums_of_rows
from frmu.clients.tasks.selection import weighted_sums
from frmu.federation import Answer
from frmu.models.features import Features, basis_of_features
from frmu.models.grid import QUARTERS, WEIGHTS, total
from frmu.models.statistics import denominator
from frmu.types import Sums

__all__ = ["AddChanges", "Influences", "changed_sums"]

Influences = tuple[Mapping[str, float], Mapping[str, Mapping[str, float]]]  # of slices; of modalities within them


@dataclass(frozen=True, slots=True)
class AddChanges:
    """Send by how much influences and attention change the sums of the model, over the clients of a host.

    Everything else counts `common` steps of attention in full; `attention` is in steps of 1/64, by client. Without
    `features` the model stands on the frozen ones.
    """

    doing: ClassVar[str] = "weighing slices"

    features: Features | None
    outputs: tuple[str, ...]
    influences: Mapping[str, Influences]
    attention: Mapping[str, int]
    common: int

    def prepare(self, clients: Sequence[Client]) -> None:
        """Add up; the payload is that of the first client."""
        parts: list[Sums] = []
        for client in clients:
            influence, below = self.influences[client.name]
            weight = self.attention[client.name]
            parts += changed_sums(client, self.features, self.outputs, influence, below, weight, self.common)
        if parts:
            D = basis_of_features(clients[0].config, self.features, self.outputs).D
            clients[0].prepared = {"change": total([(1, one) for one in parts], D).packed}

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload of one client a host, where anything changes."""
        payload, client.prepared = client.prepared, None
        return Answer(client.name, {}, payload)


def changed_sums(
    client: Client, features: Features | None, outputs: tuple[str, ...], influence: Mapping[str, float],
    below: Mapping[str, Mapping[str, float]], attention: int = 1, common: int = 1,
) -> list[Sums]:  # fmt: skip
    """Return what is to be added to `common` times a client's sums at full influence, in steps of `denominator`.

    Slices of one weight are added up together. A modality that counts less in a slice counts as if a share of its
    records lacked it.
    """
    config, steps = client.config, denominator(client.config)
    if features is None:
        before, after = client.split_sums("fit", outputs), weighted_sums(client, outputs, influence, below)
        return [total([(attention, after), (-common * steps, before)], after.D)]
    wide = client.book.wide(features, config)
    alike: dict[tuple[int, tuple[str, ...]], list[Any]] = {}
    for key, rows in client.groups(FIT).items():
        weight = round(influence.get(key, 1.0) * WEIGHTS) * steps // WEIGHTS
        for gone, part in _muted(below.get(key, {}), attention * weight):
            change = part - common * steps if not gone else part
            if change:
                alike.setdefault((change, gone), []).append(rows)
    found = []
    for (change, gone), parts in sorted(alike.items()):
        learned = learned_rows(client.shard, np.concatenate(parts), config)
        sums = sums_of_rows(learned, config, wide, outputs, gone)
        found.append(total([(change, sums)], sums.D))
    return found


def _muted(below: Mapping[str, float], weight: int) -> list[tuple[tuple[str, ...], int]]:
    """A weight, shared out over records that have all modalities, and such that lack some of those that are muted.

    >>> _muted({"weather": 0.25}, 64)
    [((), 16), (('weather',), 48)]
    """
    shares: list[tuple[tuple[str, ...], int]] = [((), weight)]
    for name, q in sorted(below.items()):
        quarters = round(q * QUARTERS)
        shares = [
            (of, part // QUARTERS * times)
            for gone, part in shares
            for of, times in ((gone, quarters), ((*gone, name), QUARTERS - quarters))
        ]
    return shares
