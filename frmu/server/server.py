"""The server: contributions in, one state out.

It keeps each client's sums so that an erasure at one site costs one answer and one solve. What it keeps can be
had again from the clients at any time: no state lives here alone. It may outlive the job that started it, so sums
are kept under the digest of the shard that they were made of, and are let go where that is another now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from frmu.aggregation.attention import attend, counterfactual, electorate
from frmu.aggregation.trust import trust
from frmu.config import Config
from frmu.errors import RoundLostError
from frmu.federation import Payload
from frmu.models.features import METRIC, Features, basis_of_features
from frmu.models.grid import WEIGHTS, Basis, on_grid, total
from frmu.models.ridge import solve
from frmu.models.statistics import basis_of, denominator, numerics, one_thread
from frmu.types import HEAD, ClientState, Float, State, Statistics, Sums, digest_of
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["Aggregated", "AttendClients", "HeldClients", "Server", "SolveModel", "SumStatistics", "states_of"]


@dataclass(frozen=True, slots=True)
class Contribution:
    """The part of one client, or of several whose host has added them up: sums of records to fit, at full influence.

    `validation` are those of one client's validation records, None of several; `cohort` those of the records to fit
    that are in the cohort, where not all are. `digests` are those of the shards, by client, each empty where nobody
    asked.
    """

    fit: Sums
    validation: Sums | None
    cohort: Sums | None
    digests: Mapping[str, str]


class Server:
    """The holder of contributions, under the name (`spec`) of what they were made with."""

    def __init__(self, pipeline: Pipeline = IDENTITY) -> None:
        self._pipeline = pipeline
        self.spec = ""
        self.contributions: dict[str, Contribution] = {}

    def serve(self, task: Any, payloads: Mapping[str, Payload]) -> Any:
        """Do a task on one thread."""
        decoded = {name: self._pipeline.decode(payload) for name, payload in payloads.items()}
        with one_thread():
            return task.perform(self, decoded)


@dataclass(frozen=True, slots=True)
class HeldClients:
    """Ask whose contributions are there for a spec; those of another spec are let go.

    With `digests` of shards, by client, also those that were made of another shard, or of a client not named there.
    """

    afresh: ClassVar[bool] = True  # it needs nothing that the server held before
    spec: str
    digests: Mapping[str, str] | None = None

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> tuple[str, ...]:
        """The names."""
        if server.spec != self.spec:
            server.spec = self.spec
            server.contributions.clear()
        if self.digests is not None:
            for name, part in list(server.contributions.items()):
                if any(self.digests.get(client) != digest for client, digest in part.digests.items()):
                    del server.contributions[name]
        return tuple(client for part in server.contributions.values() for client in part.digests)


@dataclass(frozen=True, slots=True)
class SumStatistics:
    """Take new contributions and give the federation's sums at full influence, (D, D), and those of its cohort.

    `members` says whose sums each payload holds, by the client that sends it.
    """

    members: Mapping[str, tuple[str, ...]]
    D: int
    digests: Mapping[str, str] | None = None

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> tuple[Sums, Sums]:
        """The totals over the records to fit, and over those of them that are in the cohort: all, where there is
        none."""
        for name, payload in payloads.items():
            validation, cohort = (Sums(payload[part]) if part in payload else None for part in ("validation", "cohort"))
            digests = {client: (self.digests or {}).get(client, "") for client in self.members[name]}
            server.contributions[name] = Contribution(Sums(payload["fit"]), validation, cohort, digests)
        parts = list(server.contributions.values())
        whole = total([(1, part.fit) for part in parts], self.D)
        drawn = [(1, part.cohort) for part in parts if part.cohort is not None]
        return whole, total(drawn, self.D) if drawn else whole


@dataclass(frozen=True, slots=True)
class Aggregated:
    """The outcome of an aggregation: the state, the head if everything were kept, attention scores by client."""

    state: State
    keep: Float = field(repr=False)
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class AttendClients:
    """Weigh clients by attention, from the sums that their influences give, in the features that judge."""

    records: Mapping[str, Mapping[str, Any]]
    config: Config
    outputs: tuple[str, ...]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> tuple[dict[str, float], dict[str, float]]:
        """Scores and weights, on the grid, by client; a client without a payload keeps everything."""
        names = sorted(self.records)
        if not names or not self.config.attention.by_client:
            return dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0)
        parts, basis, steps = server.contributions, basis_of(self.config, self.outputs), denominator(self.config)
        if set(names) - set(parts):  # what came in between needs nothing that a server held, and so did not miss it
            raise RoundLostError("the server was lost, and with it the sums that it held")
        sums = [(1, Sums(payloads[name]["fit"])) if payloads.get(name) else (steps, parts[name].fit) for name in names]
        scores, weights = self._attention(names, sums, [parts[name].validation for name in names], basis, steps)
        return dict(zip(names, scores.tolist(), strict=True)), dict(zip(names, on_grid(weights).tolist(), strict=True))

    def _attention(
        self, names: Sequence[str], sums: Sequence[tuple[int, Sums]], validations: Sequence[Sums | None], basis: Basis,
        steps: int,
    ) -> tuple[Float, Float]:  # fmt: skip
        """Scores and weights of clients; what is made of sums is made when it is looked at, for it is large."""
        attention, ridge = self.config.attention, self.config.model.frozen_ridge
        votes = [one if one is not None else Sums.zero(basis.D) for one in validations]
        fits = _Lazily(sums, lambda one: basis.statistics(one[1], steps if one[0] == 1 else 1))
        if attention.rule == "trusted":
            found = trust(list(fits), basis.each(votes), ridge, 2.0 * attention.cut)
            return found.scores, found.weights
        voters = [at for at, one in enumerate(votes) if one.n]
        voters = [voters[at] for at in electorate([names[at] for at in voters])]
        whole = basis.statistics(total(sums, basis.D), steps)
        scores = counterfactual(fits, basis.each([votes[at] for at in voters]), ridge, whole)
        return scores, attend(scores, attention.cut, attention.temperature)


@dataclass(frozen=True, slots=True)
class SolveModel:
    """Weigh the total of all records by influences and attention, and solve: the state of a model.

    Payloads say by how much influences and attention change `common` times the total. Without `features` the model
    stands on the frozen ones; `learned` and `metrics` are what a state says of learned ones.
    """

    afresh: ClassVar[bool] = True
    config: Config
    policy: str
    outputs: tuple[str, ...]
    clients: tuple[ClientState, ...]
    features: Features | None
    ridge: float
    total: Sums = field(repr=False)
    common: int
    learned: Mapping[str, Any]
    metrics: Sequence[Float] = field(repr=False)
    scores: Mapping[str, float]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Aggregated:
        """Whole numbers by whole numbers, and one solve; another where not everything counts in full."""
        steps = denominator(self.config)
        whole = basis_of_features(self.config, self.features, self.outputs)
        changes = [(1, Sums(payload["change"])) for payload in payloads.values()]
        weighed = total([(self.common * steps, self.total), *changes], whole.D)
        fitted = whole.statistics(weighed, WEIGHTS * steps)
        head = keep = solve(fitted.G, fitted.b, self.ridge)
        if changes or self.common != WEIGHTS:
            kept = whole.statistics(self.total)
            keep = solve(kept.G, kept.b, self.ridge)
        parameters = {HEAD: head}
        parameters |= {f"{METRIC}.{at}": one for at, one in enumerate(self.metrics, start=1)}
        state = State(
            config=self.config.fingerprint(),
            policy=self.policy,
            outputs=self.outputs,
            clients=self.clients,
            parameters=parameters,
            sums=digest_of({"steps": WEIGHTS * steps}, weighed.packed.astype(np.int64)),
            numerics=numerics(),
            learned=self.learned,
        )
        return Aggregated(state, keep, self.scores)


def states_of(records: Mapping[str, Mapping[str, Any]], attention: Mapping[str, float]) -> tuple[ClientState, ...]:
    """The place of each client in a state, from what it said and its attention."""
    return tuple(
        ClientState(name, of["rows"], attention[name], of["influence"], of["chosen_by"], of["modalities"])
        for name, of in sorted(records.items())
    )


class _Lazily(Sequence[Statistics]):
    """A sequence whose items are made when they are looked at, and not kept."""

    def __init__(self, of: Sequence[Any], make: Callable[[Any], Statistics]) -> None:
        self._of, self._make = of, make

    def __len__(self) -> int:
        return len(self._of)

    def __getitem__(self, at: Any) -> Any:
        return self._make(self._of[at])
