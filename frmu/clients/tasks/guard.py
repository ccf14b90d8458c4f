"""The guard at the clients: proposals are judged in the model that is used, on validation records, with noise.

Sums of squared errors leave a client, over stretches of eight validation records and more, and no error of a record.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.layers import VALIDATION
from frmu.clients.tasks.changes import Influences, changed_sums
from frmu.clients.tasks.task import EachClient
from frmu.data.columns import TIME
from frmu.data.transform import scaled_targets
from frmu.federation import Answer
from frmu.models.features import Features, Head, basis_of_features
from frmu.models.grid import Basis, total
from frmu.models.ridge import solve
from frmu.models.statistics import denominator, targets, weights_of
from frmu.selection.significance import Paired, stretches
from frmu.types import Float, Sums

__all__ = ["CompareHeads", "GuardInfluences"]

DAYS = {"day": 0.9, "week": 6.0, "month": 25.0}  # what a slice has, but for what is missing at its ends


@dataclass(frozen=True, slots=True)
class GuardInfluences:
    """Judge what slices are to count in the model that is used: by how much less it errs then, and by what chance.

    Influences are proposed in the frozen features that judge; what gains there can lose in learned ones. Without
    `features` the model stands on the frozen ones.
    """

    doing: ClassVar[str] = "judging in the model"

    features: Features | None
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
        """Mean squared errors when all is kept and under the influences; the chance that noise gains as much."""
        (basis, kept), client.prepared = client.prepared, None
        steps = denominator(client.config)
        influence, below = self.influences[client.name]
        changes = [(1, one) for one in changed_sums(client, self.features, self.outputs, influence, below)]
        proposed = self._head(basis, total([(steps, self.total), *changes], basis.D), steps)
        heads = {"keep": Head(kept, self.features), "proposed": Head(proposed, self.features)}
        errors = _errors(client, heads, self.outputs)
        losses = {name: float(np.concatenate(parts).mean()) for name, parts in errors.items()} if errors else {}
        sees = bool(errors) and _sees_a_slice(client)
        chance = _paired(errors["keep"], errors["proposed"]).chance if sees else 1.0
        return Answer(client.name, {"losses": losses, "chance": chance, "sees": sees})

    def _head(self, basis: Basis, sums: Sums, weight: int) -> Float:
        s = basis.statistics(sums, weight)
        return solve(s.G, s.b, self.ridge)


@dataclass(frozen=True, slots=True)
class CompareHeads(EachClient):
    """Tell by how much less one head errs than another on validation records, in stretches of time."""

    doing: ClassVar[str] = "comparing models"

    before: Head
    after: Head
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Records and gains of each stretch; none where validation records span less time than a slice."""
        errors = _errors(client, {"before": self.before, "after": self.after}, self.outputs)
        sees = bool(errors) and _sees_a_slice(client)
        found = _paired(errors["before"], errors["after"]) if sees else Paired(np.zeros(0), np.zeros(0))
        return Answer(client.name, {"n": found.n.tolist(), "gain": found.gain.tolist()})


def _sees_a_slice(client: Client) -> bool:
    """Tell if validation records span as much time as a slice of the calendar: half a day knows nothing of days."""
    if client.config.slice_by not in DAYS:
        return True
    times = client.shard.table[TIME].to_numpy()[client.shard.split == VALIDATION]
    return bool(np.ptp(times.astype("datetime64[s]").astype(np.int64)) >= 86_400 * DAYS[client.config.slice_by])


def _errors(client: Client, heads: Mapping[str, Head], outputs: tuple[str, ...]) -> dict[str, list[Float]]:
    """The squared errors of heads on validation records, by stretch; weighted as the records count, nothing without."""
    shard = client.shard
    rows = shard.in_time(np.flatnonzero(shard.split == VALIDATION))
    if not len(rows):
        return {}
    y = shard.learned_target[rows]
    Y = targets(scaled_targets(y, client.config) if y.dtype.kind == "f" else y, outputs)
    weights = weights_of(y, client.config)
    places = np.cumsum([len(part) for part in stretches(rows)])[:-1]
    found = {}
    for name, said in client.predictions(heads, shard.modalities, rows).items():
        errors = np.sum((Y - said) ** 2, axis=1)
        found[name] = np.split(errors if weights is None else errors * weights, places)
    return found


def _paired(before: Sequence[Float], after: Sequence[Float]) -> Paired:
    n = np.array([len(part) for part in before], dtype=np.float64)
    gain = np.array([np.sum(one - other) for one, other in zip(before, after, strict=True)])
    return Paired(n, gain)
