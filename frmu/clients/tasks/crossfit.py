"""A client's part in a joint decision: what each half of its validation records asks of its slices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.layers import VALIDATION
from frmu.clients.tasks.changes import Influences
from frmu.clients.tasks.selection import weighted_sums
from frmu.clients.tasks.task import EachClient
from frmu.federation import Answer
from frmu.models.grid import on_grid
from frmu.selection.problem import validation_loss
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.selection.significance import halves, stretches
from frmu.types import Sums

__all__ = ["CrossFitInfluences", "SendWeighted"]

REFITS = 8  # of an ascent


@dataclass(frozen=True, slots=True)
class CrossFitInfluences(EachClient):
    """Ascend the loss on each half of the validation records, from keeping everything: what each asks of the slices.

    A half is every other quarter of their time. Nothing is asked where a half has no record. `total` and `share` are
    those of `frmu.clients.tasks.selection.SelectInfluences`.
    """

    doing: ClassVar[str] = "judging slices on halves"

    outputs: tuple[str, ...]
    total: Sums
    share: int = 0

    def perform(self, client: Client) -> Answer:
        """Influences by slice for each half, on the grid; the validation loss under their mean, and refits."""
        shard = client.shard
        parts = stretches(shard.in_time(np.flatnonzero(shard.split == VALIDATION)))
        sides = [[part for part, at in zip(parts, halves(len(parts)), strict=True) if at == half] for half in (0, 1)]
        if not all(sum(map(len, side)) for side in sides) or not client.sums("fit", self.outputs):
            return Answer(client.name, {"halves": [], "refits": 0})
        task, found = client.problem(self.total, self.outputs, share=self.share), []
        for side in sides:
            judged = client.statistics_of_rows(np.concatenate(side), self.outputs)
            account = RefitCounter(replace(task, validation=judged), Budget())
            found.append(on_grid(ascend(account, account.fit(task.keep), REFITS).influence))
        told = {
            "halves": [dict(zip(task.keys, one.tolist(), strict=True)) for one in found],
            "loss": validation_loss(task, np.mean(found, axis=0)),
            "refits": len(sides) * REFITS + 1,
        }
        return Answer(client.name, told)


@dataclass(frozen=True, slots=True)
class SendWeighted(EachClient):
    """Send the sums of clients under given influences, in the features that judge, for attention."""

    outputs: tuple[str, ...]
    influences: Mapping[str, Influences]

    def perform(self, client: Client) -> Answer:
        """Packed sums."""
        influence, below = self.influences[client.name]
        return Answer(client.name, {}, {"fit": weighted_sums(client, self.outputs, influence, below).packed})
