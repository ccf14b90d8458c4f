"""The account of a client's slices: what each looks like under the applied influences, and what would be without it.

Nothing is decided here and nothing is stored: the same sums and the same solves as in a round, asked again. (The
exact leave-one-out of Koh and Liang, ICML 2017: the head is linear, so the counterfactual is one solve.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.federation import Answer
from frmu.selection.observation import Fit, change, fit, observe
from frmu.types import Float, Sums

__all__ = ["ExplainSlices"]


@dataclass(frozen=True, slots=True)
class ExplainSlices(EachClient):
    """Ask how a client's slices look under applied influences, by client and slice, within the federation.

    `total` and `share` are those of `frmu.clients.tasks.selection.SelectInfluences`.
    """

    outputs: tuple[str, ...]
    total: Sums
    influences: Mapping[str, Mapping[str, float]]
    share: int = 0

    def perform(self, client: Client) -> Answer:
        """Losses on the client's validation records, mean squared errors; None where it has none."""
        slices = client.slices("fit", self.outputs)
        if not slices:
            return Answer(client.name, {"validation_records": 0, "loss": None, "slices": {}})
        task = client.task(slices, self.total, self.outputs, self.share)
        applied = np.array([self.influences[client.name][key] for key in task.keys])
        judged = task.validation.n > 0
        here = fit(task, applied)
        out, full = (_otherwise(here, to) for to in (0.0, 1.0))
        kept = here.loss if np.all(applied == 1.0) else fit(task, task.keep).loss
        rows = observe(task, here, 0.0, kept).rows.tolist() if judged else [[] for _ in task.keys]
        record: dict[str, Any] = {"validation_records": task.validation.n, "loss": here.loss if judged else None}
        record["slices"] = {
            key: {
                "records": int(task.n[s]),
                "features": rows[s],  # of FEATURES; none where nothing judges
                "loss_without": float(out[s]) if judged else None,
                "loss_in_full": float(full[s]) if judged else None,
            }
            for s, key in enumerate(task.keys)
        }
        return Answer(client.name, record)


def _otherwise(here: Fit, to: float) -> Float:
    """The validation loss with the influence of each slice changed, one at a time, (K,)."""
    return np.array([change(here, s, to).loss for s in range(len(here.influence))])
