"""A client judges its slices: the policy is loaded once, influences are selected in every round."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.federation import Answer
from frmu.models.grid import QUARTERS, WEIGHTS, total
from frmu.models.statistics import denominator
from frmu.selection.modality import Muting, mute
from frmu.selection.network import Network
from frmu.selection.problem import SelectionProblem
from frmu.selection.selectors import Decision, decide_all
from frmu.types import Sums

__all__ = ["LoadPolicy", "SelectInfluences", "weighted_sums"]

AT_ONCE = 2**25  # bytes of the sums of slices that are judged at once
KEPT = 2**28  # bytes of them that a host keeps from one round to the next
_NOTHING: Mapping[str, Any] = {
    "influence": {}, "chosen_by": "keep", "losses": {}, "slices": {}, "modalities": {}, "refits": 0,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadPolicy(EachClient):
    """Take a policy over; it stays with the client until another one comes."""

    lasting: ClassVar[bool] = True
    network: Network

    def perform(self, client: Client) -> Answer:
        """Keep the policy."""
        client.network = self.network
        return Answer(client.name, {})


@dataclass(frozen=True, slots=True)
class SelectInfluences:
    """Choose influences for the client's slices, given the sums of the federation, and send the weighted sums.

    The choice rests on the records that are there, the config and the policy file alone. Clients of a host are judged
    many at a time (`frmu.selection.selectors.decide_all`), each as if it were alone. The weighted sums are for the
    attention over clients; where the config asks for none of single clients, none is sent.

    `total` are the sums of the records to fit, or of those in a cohort of one in 2^share (`frmu.config.Model`). So
    what is erased elsewhere mostly leaves all that a client chose by where it was, and then it is not chosen again.
    """

    doing: ClassVar[str] = "judging slices"

    outputs: tuple[str, ...]
    total: Sums
    share: int = 0

    def prepare(self, clients: Sequence[Client]) -> None:
        """Judge the clients, as many at once as fit in the memory that is set aside for it."""
        some, size, kept = [], 0, 0
        within = hashlib.sha256(self.total.packed.tobytes()).hexdigest()
        for client in clients:
            given = (within, self.share, self.outputs, client.network and client.network.digest)
            if given in client.decided:
                continue
            if not client.sums("fit", self.outputs):
                client.decided = {given: Answer(client.name, {"rows": len(client.shard), **_NOTHING})}
                continue
            task = client.problem(self.total, self.outputs, kept < KEPT, self.share)
            some.append((client, given, task))
            size, kept = size + task.G.nbytes, kept + task.G.nbytes
            if size >= AT_ONCE:
                self._judge(some)
                some, size = [], 0
        self._judge(some)

    def _judge(self, some: Sequence[tuple[Client, tuple[Any, ...], SelectionProblem]]) -> None:
        if not some:
            return
        first, policy = some[0][0], some[0][0].config.policy
        decisions = decide_all(
            [task for *_, task in some], first.network, policy.selector, policy.margin, policy.steps, policy.budget
        )
        for (client, given, task), decision in zip(some, decisions, strict=True):
            client.decided = {given: self._answer(client, task, decision)}

    def perform(self, client: Client) -> Answer:
        """Influences and losses in the record; packed sums in the payload, where they differ from
        `ComputeStatistics`."""
        (answer,) = client.decided.values()
        return answer

    def _answer(self, client: Client, task: SelectionProblem, decision: Decision) -> Answer:
        muting = self._muted(client, task, decision)
        below = muting.below(task, client.blocks) if muting else {}
        influence = muting.influence if muting else decision.influence
        record: dict[str, Any] = {
            "rows": len(client.shard),
            "influence": dict(zip(task.keys, influence.tolist(), strict=True)),
            "chosen_by": decision.chosen_by,
            "losses": dict(decision.losses) | ({"muted": muting.loss} if muting else {}),
            "slices": _explained(task, decision, client.blocks, muting),
            "modalities": below,
            "refits": decision.refits + (muting.refits if muting else 0),
        }
        whole = np.all(influence == 1.0) and not below
        if whole or not client.config.attention.by_client:
            return Answer(client.name, record)
        return Answer(
            client.name, record, {"fit": weighted_sums(client, self.outputs, record["influence"], below).packed}
        )

    def _muted(self, client: Client, task: SelectionProblem, decision: Decision) -> Muting | None:
        """Observe every slice again, modality by modality, where there are several and anything is to be chosen."""
        policy = client.config.policy
        if policy.selector == "keep" or not client.config.optional or task.validation.n == 0:
            return None
        return mute(task, decision.influence, client.blocks, policy.margin)


def weighted_sums(
    client: Client, outputs: tuple[str, ...], influence: Mapping[str, float], below: Mapping[str, Mapping[str, float]]
) -> Sums:
    """The client's sums under influences of slices, and of modalities within them, in steps of `denominator`.

    Slices that are not named count in full.
    """
    basis, parts = client.basis(outputs), []
    for key, sums in client.sums("fit", outputs).items():
        weight = round(influence.get(key, 1.0) * WEIGHTS) * denominator(client.config) // WEIGHTS
        for name, q in sorted(below.get(key, {}).items()):
            sums, weight = basis.muted(sums, client.spans[name], round(q * QUARTERS)), weight // QUARTERS
        if weight:
            parts.append((weight, sums))
    return total(parts, basis.D)


def _explained(
    task: SelectionProblem, decision: Decision, names: Collection[str], muting: Muting | None
) -> dict[str, Any]:
    """Summarise what was seen of each slice, for the tracker: aggregates only."""
    columns = zip(task.keys, task.n, decision.rows.tolist(), decision.pool.tolist(), strict=True)
    seen: dict[str, Any] = {key: {"records": int(n), "features": row, "pool": pool} for key, n, row, pool in columns}
    if muting is not None:
        for key, scores, q in zip(task.keys, muting.scores.tolist(), muting.modality.tolist(), strict=True):
            seen[key]["modalities"] = {
                name: {"influence": i, "score": score} for name, i, score in zip(names, q, scores, strict=True)
            }
    return seen
