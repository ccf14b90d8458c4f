"""Sums of a client's records, and errors of a head over them: what leaves a client to fit and to measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.config import Config
from frmu.data.shard import SPLITS
from frmu.data.transform import raw_units
from frmu.federation import Answer
from frmu.models.features import Head
from frmu.models.grid import total
from frmu.models.statistics import targets, weights_of
from frmu.models.weights import Weights
from frmu.types import Float, Sums

__all__ = ["ComputeStatistics", "MeasureErrors", "errors_of"]


@dataclass(frozen=True, slots=True)
class ComputeStatistics:
    """Send the sums of all records to fit, at full influence, and of the validation records.

    Where nobody asks for those of single clients (`together`), the clients of a host that are asked send one sum to
    fit: it is the payload of the first of them, whose record names its `members`. With a `share` those of the records
    in a cohort of one in 2^share are sent as well: slices are judged beside them.
    """

    doing: ClassVar[str] = "adding up records"

    outputs: tuple[str, ...]
    together: bool = False
    share: int = 0

    def prepare(self, clients: Sequence[Client]) -> None:
        """Add up, where that is asked for."""
        if self.together and clients:
            D = clients[0].basis(self.outputs).D
            parts = [self._fitted(client) for client in clients]
            whole = {name: total([(1, part[name]) for part in parts], D) for name in parts[0]}
            clients[0].prepared = (whole, [client.name for client in clients])

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload."""
        rows = len(client.shard)
        if not self.together:
            parts = self._fitted(client) | {"validation": client.split_sums("validation", self.outputs)}
            return Answer(client.name, {"rows": rows, "members": [client.name]}, _packed(parts))
        prepared, client.prepared = client.prepared, None
        if prepared is None:
            return Answer(client.name, {"rows": rows, "members": []})
        whole, members = prepared
        return Answer(client.name, {"rows": rows, "members": members}, _packed(whole))

    def _fitted(self, client: Client) -> dict[str, Sums]:
        found = {"fit": client.split_sums("fit", self.outputs)}
        return found | ({"cohort": client.cohort_sums(self.share, self.outputs)} if self.share else {})


def _packed(parts: Mapping[str, Sums]) -> dict[str, Any]:
    return {name: sums.packed for name, sums in parts.items()}


@dataclass(frozen=True, slots=True)
class MeasureErrors(EachClient):
    """Measure heads on the client's own validation, later and test records."""

    doing: ClassVar[str] = "measuring"

    heads: Mapping[str, Head | Weights]
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Sums of errors by head and split, so that the centre can average over records."""
        record: dict[str, Any] = {name: {} for name in self.heads}
        for code, split in enumerate(SPLITS[1:], start=1):
            rows = np.flatnonzero(client.shard.split == code)
            y = client.shard.target[rows]
            for name, said in client.predictions(self.heads, client.shard.modalities, rows).items():
                record[name][split] = errors_of(raw_units(said, client.config), y, client.config, self.outputs)
        return Answer(client.name, record)


def errors_of(predicted: Float, y: Any, config: Config, outputs: tuple[str, ...]) -> dict[str, float]:
    """Sums of errors over records: hits of a classification; squares and absolute values of a regression.

    What is predicted is in units of the target: see `frmu.data.transform.raw_units`. Several targets have sums
    each, and their mean in shares of the width of each declared range. Where classes have weights, hits count by them
    as well.
    """
    if y.dtype.kind != "f":
        hits = np.array(outputs)[np.argmax(predicted, axis=1)] == y if len(y) else np.zeros(0)
        found: dict[str, float] = {"n": len(y), "correct": int(np.sum(hits))}
        weights = weights_of(y, config)
        return found if weights is None else found | {"weight": int(weights.sum()), "hit": int(np.sum(hits * weights))}
    error = predicted - targets(y, outputs)
    if len(outputs) == 1:
        return {"n": len(y), "square": float(np.sum(error * error)), "absolute": float(np.sum(np.abs(error)))}
    low, high = (np.array(ends) for ends in zip(*map(config.data.range_of, outputs), strict=True))
    share = error / (high - low)
    found = {"n": len(y)}
    for name, of in (("square", np.square), ("absolute", np.abs)):
        found |= {name: float(np.sum(of(share)) / len(outputs))}
        found |= {f"{name} {target}": float(np.sum(of(error[:, at]))) for at, target in enumerate(outputs)}
    return found
