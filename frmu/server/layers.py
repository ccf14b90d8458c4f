"""The server's part in learned features: a layer's sums are fitted and give the next metrics, and a head is solved.

It keeps nothing of them: hosts do (`frmu.clients.layers`), and send their totals again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from frmu.clients.layers import Layer
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Payload
from frmu.models.encoders import Encoder, basis, blocks_of
from frmu.models.features import METRIC, Features, encoders_of, metric_of, nested, on_lattice
from frmu.models.grid import WEIGHTS, Basis, total
from frmu.models.ridge import solve
from frmu.models.statistics import denominator, loss, numerics, target_columns
from frmu.server.server import Aggregated, Server
from frmu.types import HEAD, ClientState, Float, State, Statistics, Sums, digest_of

__all__ = ["ChooseFeatures", "Chosen", "FitLayers", "LayerFit", "SolveFeatures", "climb"]

MARGIN = 0.005  # by which a loss must be lower to leave what stands before it


def climb(losses: Sequence[float], margin: float = MARGIN) -> int:
    """Return the place of what is chosen: in their order, each must beat what stands by a margin.

    >>> climb([1.0, 0.999, 0.9, 0.95])
    2
    """
    best = 0
    for at, one in enumerate(losses):
        if one < losses[best] * (1.0 - margin):
            best = at
    return best


@dataclass(frozen=True, slots=True)
class LayerFit:
    """A layer, fitted: records fitted and judged by, the loss by ridge, the ridge chosen, and the next metrics.

    `metrics` are by shape ("full", "diagonal") and modality, in steps of the lattice; None where one would be zero.
    """

    n: int
    judged: int
    losses: tuple[float, ...]
    ridge: float
    metrics: Mapping[str, Mapping[str, Float] | None] = field(repr=False)

    @property
    def loss(self) -> float:
        """The loss on validation of what was chosen, or of the first ridge where there is nothing to judge by."""
        return min(self.losses) if self.losses else float("inf")


@dataclass(frozen=True, slots=True)
class FitLayers:
    """Fit layers from their sums; `ridges` in the order of preference, and the first without `enough` to judge by."""

    afresh: ClassVar[bool] = True
    config: Config
    layers: tuple[Layer, ...]
    ridges: tuple[float, ...]
    shapes: tuple[str, ...]
    enough: int

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> list[LayerFit]:
        """One a layer."""
        return [self._fit(at, layer, payloads) for at, layer in enumerate(self.layers)]

    def _fit(self, at: int, layer: Layer, payloads: Mapping[str, Payload]) -> LayerFit:
        by = encoders_of(self.config, layer.features)
        own = {name: one.columns for name, one in by.items()}
        whole = basis(own, target_columns(self.config, layer.outputs))
        fitted, judging = (_added(payloads, f"{at}/{part}", whole.D) for part in ("fit", "validation"))
        s, v = whole.statistics(fitted), whole.statistics(judging)
        heads, losses = _heads(s, v, self.ridges)
        chosen = climb(losses) if v.n >= self.enough else 0
        metrics: dict[str, Mapping[str, Float] | None] = {}
        if layer.slopes:
            W, places = heads[chosen], blocks_of(own)
            M = {
                name: metric_of(one, W[places[name]], _added(payloads, f"{at}/slopes/{name}", one.R.shape[1] + 1))
                for name, one in by.items()
                if isinstance(one, Encoder) and self.config.learned(name)
            }
            metrics = {shape: self._rounded(M, shape) for shape in self.shapes}
        return LayerFit(s.n, v.n, tuple(losses), self.ridges[chosen], metrics)

    def _rounded(self, M: Mapping[str, Float], shape: str) -> Mapping[str, Float] | None:
        found = {name: on_lattice(one, self.config.model.lattice, shape == "diagonal") for name, one in M.items()}
        return None if any(one is None for one in found.values()) else {n: o for n, o in found.items() if o is not None}


@dataclass(frozen=True, slots=True)
class Chosen:
    """Features and ridge that were chosen, the totals over all records under them, and the loss of every option."""

    features: Features
    ridge: float
    total: Sums = field(repr=False)
    judged: int
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ChooseFeatures:
    """Choose among features that are nested in those of a layer, and ridges, on validation sums."""

    afresh: ClassVar[bool] = True
    config: Config
    layer: Layer
    options: tuple[Features, ...]
    ridges: tuple[float, ...]
    enough: int
    default: int

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Chosen:
        """Narrow to wide, as ordered: what is larger must be better by a margin."""
        outputs, wide = self.layer.outputs, self.layer.features
        D = _basis(self.config, wide, outputs).D
        fitted, judging = (_added(payloads, f"0/{part}", D) for part in ("fit", "validation"))
        judged = judging.n
        found: list[tuple[float, Features, float]] = []
        for option in self.options if judged >= self.enough else (self.options[self.default],):
            narrow = _basis(self.config, option, outputs)
            s, v = (narrow.statistics(self._of(sums, option)) for sums in (fitted, judging))
            ridges = self.ridges if judged >= self.enough else self.ridges[:1]
            _, losses = _heads(s, v, ridges)
            at = climb(losses)
            found.append((losses[at], option, ridges[at]))
        _, features, ridge = found[climb([loss for loss, _, _ in found])]
        told = {f"{one.width} features, {one.bins} bins": loss for loss, one, _ in found}
        return Chosen(features, ridge, self._of(fitted, features), judged, told if judged else {})

    def _of(self, sums: Sums, features: Features) -> Sums:
        if features == self.layer.features:
            return sums
        places = np.array(nested(self.config, self.layer.features, features, self.layer.outputs))
        return Sums.of(sums.M[np.ix_(places, places)])


@dataclass(frozen=True, slots=True)
class SolveFeatures:
    """Weigh the totals by influences and attention, and solve: the state of a model with learned features."""

    afresh: ClassVar[bool] = True
    config: Config
    policy: str
    outputs: tuple[str, ...]
    clients: tuple[ClientState, ...]
    features: Features
    ridge: float
    total: Sums = field(repr=False)
    common: int
    learned: Mapping[str, Any]
    metrics: Mapping[str, Float] = field(repr=False)
    scores: Mapping[str, float]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Aggregated:
        """Whole numbers by whole numbers, and one solve; another where everything counts in full."""
        steps, whole = denominator(self.config), _basis(self.config, self.features, self.outputs)
        changes = [(1, Sums(payload["change"])) for payload in payloads.values()]
        weighed = total([(self.common * steps, self.total), *changes], whole.D)
        fitted, kept = whole.statistics(weighed, WEIGHTS * steps), whole.statistics(self.total)
        parameters = {HEAD: solve(fitted.G, fitted.b, self.ridge)}
        parameters |= {f"{METRIC}.{name}": one for name, one in self.metrics.items()}
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
        return Aggregated(state, solve(kept.G, kept.b, self.ridge), self.scores)


def _basis(config: Config, features: Features, outputs: tuple[str, ...]) -> Basis:
    by = encoders_of(config, features)
    return basis({name: one.columns for name, one in by.items()}, target_columns(config, outputs))


def _added(payloads: Mapping[str, Payload], name: str, D: int) -> Sums:
    return total([(1, Sums(payload[name])) for payload in payloads.values()], D)


def _heads(s: Statistics, v: Statistics, ridges: Sequence[float]) -> tuple[list[Float], list[float]]:
    """A head and its loss for each ridge; where the sums are not positive definite the loss is infinite."""
    heads, losses = [], []
    for ridge in ridges:
        try:
            W = solve(s.G, s.b, ridge)
        except FrmuError:
            if ridge == max(ridges):
                raise
            W, lost = np.zeros_like(s.b), float("inf")
        else:
            lost = loss(W, v)
        heads.append(W)
        losses.append(lost)
    return heads, losses
