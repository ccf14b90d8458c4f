"""The account of a client's slices: what each looks like under the applied influences, and what would be without it.

Nothing is decided here and nothing is stored: the same sums and the same solves as in a round, asked again. (The
exact leave-one-out of Koh and Liang, ICML 2017: the head is linear, so the counterfactual is one solve.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.client.client import Client
from frmu.client.work import Each, Packed
from frmu.federation import Answer
from frmu.influence.observation import observe
from frmu.influence.task import Task, refit, weighted
from frmu.learning.solve import solve
from frmu.learning.statistics import loss
from frmu.types import Float

__all__ = ["Account"]


@dataclass(frozen=True, slots=True)
class Account(Each):
    """Ask how a client's slices look under applied influences, by client and slice, within the federation's total."""

    outputs: tuple[str, ...]
    total: Packed
    influences: Mapping[str, Mapping[str, float]]

    def perform(self, client: Client) -> Answer:
        """Losses on the client's validation records, mean squared errors; None where it has none."""
        slices = client.slices("fit", self.outputs)
        if not slices:
            return Answer(client.name, {"validation_records": 0, "loss": None, "slices": {}})
        task = client.task(slices, self.total.open(), self.outputs)
        applied = np.array([self.influences[client.name][key] for key in task.keys])
        judged = task.validation.n > 0
        now, out, full = _counterfactuals(task, applied) if judged else (None, None, None)
        rows = observe(task, applied, 0.0)
        record: dict[str, Any] = {"validation_records": task.validation.n, "loss": now}
        record["slices"] = {
            key: {
                "records": int(task.n[s]),
                "features": rows[s].tolist(),
                "loss_without": float(out[s]) if out is not None else None,
                "loss_in_full": float(full[s]) if full is not None else None,
            }
            for s, key in enumerate(task.keys)
        }
        return Answer(client.name, record)


def _counterfactuals(task: Task, applied: Float) -> tuple[float, Float, Float]:
    """The loss as it is; with each slice left out, (K,); with each slice in full, (K,); the others as applied."""
    H, B = weighted(task, applied)
    losses = np.empty((2, len(task)))
    for s, i in enumerate(applied):
        for row, other in enumerate((0.0, 1.0)):
            change = other - i
            losses[row, s] = loss(solve(H + change * task.G[s], B + change * task.b[s], task.ridge), task.validation)
    return loss(refit(task, applied), task.validation), losses[0], losses[1]
