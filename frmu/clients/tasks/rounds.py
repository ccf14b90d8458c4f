"""The works of a training by rounds: clients train from the weights they are given, and judge weights.

What leaves a client is by how much each weight changed, in whole steps, so that sums of them are exact in any order and
hosts may add up; and sums of losses. A client whose training went astray sends no update and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.data.shard import SPLITS
from frmu.federation import Answer
from frmu.models.weights import Weights, inputs_of, key_of, named, spec_of, targets_of
from frmu.types import Float

if TYPE_CHECKING:
    from frmu.modules.training import Records

__all__ = ["LARGEST", "JudgeWeights", "TrainLocally"]

LARGEST = 2.0**36  # steps by which a weight may change in a round: 64; beyond it training has gone astray
_EXACT = 2.0**53


@dataclass(frozen=True, slots=True)
class TrainLocally:
    """Train from the global weights over the records to fit, in round `number`, and say what moved.

    Before that the weights are judged on the validation records. Where nobody asks for the updates of single clients
    (`together`) those of a host that are asked send one sum, each weighed by its records: it is the payload of the
    first of them.
    """

    doing: ClassVar[str] = "training locally"

    weights: Weights
    number: int
    together: bool = False

    def prepare(self, clients: Sequence[Client]) -> None:
        """Train many clients in one call."""
        if not clients:
            return
        from frmu.modules.training import trainer  # torch comes with it

        config = clients[0].config
        work = trainer(spec_of(config, self.weights.outputs))
        fits = [_records(client, "fit", self.weights.outputs) for client in clients]
        judges = [_records(client, "validation", self.weights.outputs) for client in clients]
        records: list[dict[str, Any]] = [{} for _ in clients]
        steps: list[NDArray[Any] | None] = [None] * len(clients)
        whole: NDArray[np.int64] | int = 0
        counted = 0
        for some in work.train(self.weights.parameters, fits, self.number, config.model.clients_per_call):
            top = np.max(np.abs(some.steps), axis=1)
            norms = np.sqrt(np.einsum("ij,ij->i", some.steps, some.steps)) / 2.0**30
            sound = np.isfinite(top) & (top <= LARGEST)
            for at, place in enumerate(some.places):
                records[place] = _told(bool(sound[at]), float(top[at]), float(norms[at]), float(some.losses[at]))
            n = np.array([len(fits[place]) for place in some.places], dtype=np.float64) * sound
            if self.together:
                whole = whole + _weighed(np.where(sound[:, None], some.steps, 0.0), n)
                counted += int(n.sum())
            else:
                for at, place in enumerate(some.places):
                    steps[place] = some.steps[at].astype(np.int64) if sound[at] else None
        losses = [work.losses([self.weights.parameters], one)[0] for one in judges]
        for at, client in enumerate(clients):
            own = {"n": len(fits[at]), "judges": float(judges[at].weights.sum()), "judged": losses[at]} | records[at]
            payload = None if steps[at] is None else {"steps": steps[at]}
            if self.together and at == 0 and counted:
                payload = {"steps": np.asarray(whole, dtype=np.int64), "n": np.array([counted], dtype=np.int64)}
            client.prepared = own, payload

    def perform(self, client: Client) -> Answer:
        """Counts and losses; whole steps in the payload."""
        (record, payload), client.prepared = client.prepared, None
        return Answer(client.name, record, payload)


@dataclass(frozen=True, slots=True)
class JudgeWeights(EachClient):
    """Measure several weights, (models, weights), on the client's validation records."""

    doing: ClassVar[str] = "judging updates"

    like: Weights
    models: Float = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Sums of losses, one a model, and how many records judged."""
        from frmu.modules.training import trainer

        records = _records(client, "validation", self.like.outputs)
        work = trainer(spec_of(client.config, self.like.outputs))
        models = (named(values, self.like.parameters) for values in self.models)
        losses = work.losses(list(models), records) if len(records) else []
        return Answer(client.name, {"judges": float(records.weights.sum()), "losses": losses})


def _records(client: Client, split: str, outputs: tuple[str, ...]) -> Records:
    """The records of a split as a module is given them; made once, until the shard changes."""
    from frmu.modules.training import Records

    at = (split, outputs)
    if at not in client.records:
        config, shard = client.config, client.shard
        rows = np.flatnonzero(shard.split == SPLITS.index(split))
        X = inputs_of(config, {name: values[rows] for name, values in shard.modalities.items()})
        y, counts = targets_of(config, shard.learned_target[rows], outputs)
        weights = counts.astype(config.model.precision)
        client.records[at] = Records(X, y, weights, key_of(client.name, config.model.seed))
    found: Records = client.records[at]
    return found


def _told(sound: bool, top: float, norm: float, loss: float) -> dict[str, Any]:
    if sound:
        return {"loss": loss, "norm": norm, "astray": ""}
    why = "its update is not a number" if not np.isfinite(top) else "its update moves a weight by more than 64"
    return {"loss": None, "norm": None, "astray": why}


def _weighed(steps: Float, n: Float) -> NDArray[np.int64]:
    """The sum of whole steps, (clients, weights), each client's as often as it has records; exact."""
    if np.max(np.abs(steps), initial=0.0) * n.sum() < _EXACT:
        return (n @ steps).astype(np.int64)
    whole: NDArray[np.int64] = n.astype(np.int64) @ steps.astype(np.int64)
    return whole
