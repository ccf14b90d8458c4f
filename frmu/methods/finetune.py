"""Fine-tuning: after a purge the old head takes a few steps of gradient descent on what remains.

It is the method that everybody tries first, and it forgets almost nothing: the gradient of records that are gone is
not taken back. So it guarantees nothing, and no request is closed by it. It stands here as the row that every table of
unlearning needs, and to hold the seam of methods that are not exact. (Named as a baseline by Golatkar et al., CVPR
2020, and in most papers since.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from frmu.clients.tasks.importing import DescribeShard
from frmu.config import Config
from frmu.federation import Federation, in_order
from frmu.methods.analytic import analytic, digests_of, sums_of
from frmu.methods.method import Method, Round
from frmu.models.ridge import descend, stable_rate
from frmu.models.statistics import basis_of
from frmu.selection.network import Network
from frmu.types import HEAD, Float, State

__all__ = ["STEPS", "finetune"]

STEPS = 50


def finetune(config: Config, steps: int = STEPS) -> Method:
    """Build the method for a config: it trains as the exact one does, and erases by `steps` of gradient descent.

    `prepare` gives the largest stable step while the records are there; what remains is no steeper.
    """
    fingerprint, exact = config.fingerprint(), analytic(config)

    def prepare(federation: Federation, state: State, forget_set: Mapping[str, frozenset[str]]) -> float:
        names = tuple(client.name for client in state.clients)
        total = sums_of(config, fingerprint, federation, names, state.outputs).total
        return stable_rate(basis_of(config, state.outputs).statistics(total).G)

    def erase(
        federation: Federation, state: State, network: Network | None, clients: tuple[str, ...], kept: float
    ) -> Round:
        held = [reply for reply in in_order(federation.run(DescribeShard())) if reply.record["rows"]]
        names = tuple(reply.client for reply in held)
        sums = sums_of(config, fingerprint, federation, names, state.outputs, digests_of(held))
        W = descend(state.W, basis_of(config, state.outputs).statistics(sums.total), kept, steps)
        rows = {reply.client: int(reply.record["rows"]) for reply in held}
        return _round(state, W, rows, sums.missing)

    return Method("finetune", "none", exact.init, exact.apply, prepare, erase)


def _round(state: State, W: Float, rows: Mapping[str, int], missing: tuple[str, ...]) -> Round:
    clients = tuple(
        replace(client, records=rows[client.name], chosen_by="keep") for client in state.clients if client.name in rows
    )
    records = {
        client.name: {
            "rows": client.records, "influence": dict(client.influence), "chosen_by": "keep", "losses": {},
            "slices": {}, "refits": 0, "modalities": {},
        }
        for client in clients
    }  # fmt: skip
    tuned = replace(state, clients=clients, parameters={HEAD: np.ascontiguousarray(W)}, sums="")
    return Round(tuned, W, dict.fromkeys(records, 0.0), records, missing, 0)
