"""Learned features at the clients: sums of a layer, the guard in the model, and what influences change in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.layers import FIT, VALIDATION, Layer, learned_rows, sums_of_rows
from frmu.config import Config
from frmu.federation import Answer
from frmu.models.features import Features, basis_of_features
from frmu.models.grid import QUARTERS, WEIGHTS, Basis, total
from frmu.models.ridge import solve
from frmu.models.statistics import denominator, loss
from frmu.types import Float, Sums

__all__ = ["AddChanges", "GuardInfluences", "Influences", "SumLayers"]

Influences = tuple[Mapping[str, float], Mapping[str, Mapping[str, float]]]  # of slices; of modalities within them


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


@dataclass(frozen=True, slots=True)
class GuardInfluences:
    """Judge what slices are to count in the model that is used: on validation records, in its own features.

    Influences are proposed in the frozen features that judge; what gains there can lose here.
    """

    doing: ClassVar[str] = "judging in the model"

    features: Features
    outputs: tuple[str, ...]
    total: Sums
    ridge: float
    influences: Mapping[str, Influences]

    def prepare(self, clients: Sequence[Client]) -> None:
        """Solve once for the head that keeps everything."""
        if clients:
            basis = basis_of_features(clients[0].config, self.features, self.outputs)
            kept = self._head(basis, self.total, 1)
            for client in clients:
                client.prepared = (basis, kept)

    def perform(self, client: Client) -> Answer:
        """The losses on the client's validation records of keeping everything, and under its influences."""
        (basis, kept), client.prepared = client.prepared, None
        influence, below = self.influences[client.name]
        wide, steps = client.book.wide(self.features, client.config), denominator(client.config)
        rows = np.flatnonzero(client.shard.split == VALIDATION)
        judged = basis.statistics(sums_of_rows([(client.shard, rows)], client.config, wide, self.outputs))
        changes = [(1, one) for one in changed_sums(client, self.features, self.outputs, influence, below)]
        proposed = self._head(basis, total([(steps, self.total), *changes], basis.D), steps)
        losses = {"keep": loss(kept, judged), "proposed": loss(proposed, judged)}
        return Answer(client.name, {"losses": losses, "accepted": _gains(losses, client.config)})

    def _head(self, basis: Basis, sums: Sums, weight: int) -> Float:
        s = basis.statistics(sums, weight)
        return solve(s.G, s.b, self.ridge)


def _gains(losses: Mapping[str, float], config: Config) -> bool:
    return losses["proposed"] < losses["keep"] * (1.0 - config.policy.margin)


@dataclass(frozen=True, slots=True)
class AddChanges:
    """Send by how much influences and attention change the sums of the model, over the clients of a host.

    Everything else counts `common` steps of attention in full; `attention` is in steps of 1/64, by client.
    """

    doing: ClassVar[str] = "weighing slices"

    features: Features
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
    client: Client, features: Features, outputs: tuple[str, ...], influence: Mapping[str, float],
    below: Mapping[str, Mapping[str, float]], attention: int = 1, common: int = 1,
) -> list[Sums]:  # fmt: skip
    """Return what is to be added to `common` times a client's sums at full influence, in steps of `denominator`.

    Slices of one weight are added up together. A modality that counts less in a slice counts as if a share of its
    records lacked it.
    """
    config, steps = client.config, denominator(client.config)
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
