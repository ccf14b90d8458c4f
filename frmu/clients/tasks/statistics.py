"""Sums of a client's records, and errors of a head over them: what leaves a client to fit and to measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.data.shard import SPLITS
from frmu.federation import Answer
from frmu.models.statistics import pack, targets, unpack
from frmu.types import Float, Statistics

__all__ = ["ComputeStatistics", "MeasureErrors", "PackedStatistics", "errors_of"]


@dataclass(frozen=True, slots=True)
class ComputeStatistics(EachClient):
    """Send the sums of all records to fit, at full influence, and of the validation records."""

    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload."""
        fit, validation = (client.split_total(split, self.outputs) for split in ("fit", "validation"))
        payload = {"H": pack(fit.G), "b": fit.b, "Hv": pack(validation.G), "bv": validation.b}
        payload["scalars"] = np.array([fit.n, validation.n, validation.c], dtype=np.float64)
        return Answer(client.name, {"rows": len(client.shard)}, payload)


@dataclass(frozen=True, slots=True)
class PackedStatistics:
    """The federation's sums at full influence on their way to clients: `H` packed, `b` (d, outputs)."""

    n: int
    H: Float
    b: Float

    @staticmethod
    def of(total: Statistics) -> PackedStatistics:
        """Pack."""
        return PackedStatistics(total.n, pack(total.G), total.b)

    def open(self) -> Statistics:
        """Unpack."""
        return Statistics(self.n, unpack(self.H, len(self.b)), self.b, 0.0)


@dataclass(frozen=True, slots=True)
class MeasureErrors(EachClient):
    """Measure heads (d, outputs) on the client's own validation, later and test records."""

    heads: Mapping[str, Float]
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Sums of errors by head and split, so that the centre can average over records."""
        record: dict[str, Any] = {name: {} for name in self.heads}
        for code, split in enumerate(SPLITS[1:], start=1):
            rows = np.flatnonzero(client.shard.split == code)
            phi = client.encoded(client.shard.modalities, rows)
            y = client.shard.target[rows]
            for name, W in self.heads.items():
                record[name][split] = errors_of(phi @ W, y, self.outputs)
        return Answer(client.name, record)


def errors_of(predicted: Float, y: Any, outputs: tuple[str, ...]) -> dict[str, float]:
    """Sums of errors over records: hits of a classification; squares and absolute values of a regression."""
    if y.dtype.kind != "f":
        hits = np.array(outputs)[np.argmax(predicted, axis=1)] == y if len(y) else np.zeros(0)
        return {"n": len(y), "correct": int(np.sum(hits))}
    error = predicted - targets(y, outputs)
    return {"n": len(y), "square": float(np.sum(error * error)), "absolute": float(np.sum(np.abs(error)))}
