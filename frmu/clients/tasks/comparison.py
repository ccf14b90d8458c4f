"""A comparison of policies at a client: what each would apply on the same rehearsals, judged on later records.

A rehearsal is a task of training: some slices disturbed on purpose (`Rollout`). What is compared is what would be in
force - refinement, budget, guard and all - not what the network says by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from frmu.clients.client import Client
from frmu.clients.tasks.rollout import Rollout
from frmu.clients.tasks.task import EachClient
from frmu.federation import Answer
from frmu.models.statistics import loss
from frmu.selection.network import Network
from frmu.selection.problem import SelectionProblem, refit
from frmu.selection.selectors import decide
from frmu.types import Float, Sums

__all__ = ["CompareSelections"]

_TINY = 1e-12


@dataclass(frozen=True, slots=True)
class CompareSelections(EachClient):
    """Roll out the rehearsals of some seeds under each policy; of `max_slices` slices at most.

    The records of the split `judged` say how good it was.
    """

    policies: Mapping[str, Network]
    seeds: tuple[int, ...]
    outputs: tuple[str, ...]
    total: Sums
    max_slices: int
    judged: str = "later"

    def perform(self, client: Client) -> Answer:
        """For each policy, by how much it lowers the RMSE of keeping everything, as a share: one a seed."""
        rollout = Rollout({}, self.outputs, self.total, self.max_slices)
        gains: dict[str, list[float]] = {name: [] for name in self.policies}
        for seed in self.seeds:
            _, _, task, kept, _ = rollout.rehearse(client, seed)
            judges = client.split_total(self.judged, self.outputs)
            keep = loss(kept.W, judges)
            for name, network in self.policies.items():
                lost = loss(_applied(client, task, network), judges)
                gains[name].append(1.0 - math.sqrt((lost + _TINY) / (keep + _TINY)))
        return Answer(client.name, {"gains": gains})


def _applied(client: Client, task: SelectionProblem, network: Network) -> Float:
    """The head under what the client would choose, (d, outputs)."""
    policy = client.config.policy
    decision = decide(task, network, "policy", policy.margin, policy.steps, policy.budget)
    return refit(task, decision.influence)
