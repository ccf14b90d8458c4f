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
from frmu.modules.spec import STEPS
from frmu.types import Float

if TYPE_CHECKING:
    from frmu.modules.training import Records, Updates

__all__ = ["LARGEST", "JudgeWeights", "TrainLocally"]

LARGEST = 64.0 * STEPS  # by which a weight may change in a round; beyond it training has gone astray
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
        fits, judges = (
            [_records(client, split, self.weights.outputs) for client in clients] for split in ("fit", "validation")
        )
        losses = work.losses([self.weights.parameters], judges)[:, 0].tolist()
        for at, client in enumerate(clients):
            own = {"n": len(fits[at]), "judges": float(judges[at].weights.sum()), "judged": losses[at]}
            client.prepared = own, None
        whole, counted = np.zeros(1, dtype=np.int64), 0
        for some in work.train(self.weights.parameters, fits, self.number, config.model.clients_per_call):
            top = np.maximum(some.steps.max(axis=1), -some.steps.min(axis=1))  # NaN, where there is one
            sound = np.isfinite(top) & (top <= LARGEST)
            for at, place in enumerate(some.places):
                own, _ = clients[place].prepared
                payload = {"steps": some.steps[at].astype(np.int64)} if sound[at] and not self.together else None
                clients[place].prepared = own | _told(some, at, float(top[at]), bool(sound[at])), payload
            if self.together and sound.any():
                steps = some.steps if sound.all() else some.steps[sound]
                n = np.array([len(fits[place]) for place in some.places])[sound]
                whole, counted = whole + _weighed(steps, n, float(top[sound].max())), counted + int(n.sum())
        if counted:
            own, _ = clients[0].prepared
            clients[0].prepared = own, {"steps": whole, "n": np.array([counted], dtype=np.int64)}

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
        losses = work.losses(list(models), [records])[0].tolist()
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


def _told(some: Updates, at: int, top: float, sound: bool) -> dict[str, Any]:
    if sound:
        norm = float(np.sqrt(some.steps[at] @ some.steps[at])) / STEPS
        return {"loss": float(some.losses[at]), "norm": norm, "astray": ""}
    why = "its update is not a number" if not np.isfinite(top) else "its update moves a weight by more than 64"
    return {"loss": None, "norm": None, "astray": why}


def _weighed(steps: Float, n: NDArray[np.int64], top: float) -> NDArray[np.int64]:
    """The sum of whole steps, (clients, weights), `top` at most, each client's as often as it has records; exact."""
    if top * n.sum() < _EXACT:
        return np.asarray((n.astype(np.float64) @ steps).astype(np.int64))
    return np.asarray(n @ steps.astype(np.int64))
