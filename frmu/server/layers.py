"""The server's part in learned features: a layer's sums are fitted and give the next metric, and choices are made.

It keeps nothing of them: hosts do (`frmu.clients.layers`), and send their totals again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from frmu.clients.layers import Layer
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Payload
from frmu.models.features import Features, Wide, basis_of_features, metric_of, nested, on_lattice
from frmu.models.grid import total
from frmu.models.ridge import solve
from frmu.models.statistics import loss, target_columns
from frmu.server.server import Server
from frmu.types import Float, Statistics, Sums

__all__ = ["AddLayer", "ChooseFeatures", "Chosen", "FitLayer", "climb"]

MARGIN = 0.005  # of a mean squared error, by which it must be lower to leave what stands before it


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
class FitLayer:
    """Fit a layer from its sums; give the metric of the next.

    The ridge is a constant: what a metric is must not hang on what is chosen on validation.
    """

    afresh: ClassVar[bool] = True
    config: Config
    layer: Layer
    ridge: float
    diagonal: bool

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Float | None:
        """The metric, in steps of the lattice: the root of the mean outer product of gradients; None of rank zero.

        Ramps that the layer has are left out.
        """
        asked, outputs = self.layer.features, self.layer.outputs
        features = replace(asked, bins=0)
        wide = Wide(self.config, features)
        whole = _added(payloads, "0/fit", basis_of_features(self.config, asked, outputs).D)
        s = wide.basis(target_columns(self.config, outputs)).statistics(
            part_of(self.config, whole, asked, features, outputs)
        )
        M = metric_of(wide, solve(s.G, s.b, self.ridge), _added(payloads, "0/slopes", len(wide.joint.t) + 1))
        return on_lattice(M, self.config.model.lattice, self.diagonal)


@dataclass(frozen=True, slots=True)
class Chosen:
    """Features and ridge that were chosen, which layer's they are, their totals, and the loss of every option."""

    layer: int
    features: Features
    ridge: float
    total: Sums = field(repr=False)
    judged: int
    losses: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class ChooseFeatures:
    """Choose among layers, with ramps or without, and then among widths and ridges, on validation sums.

    `widths` and `ridges` are in the order of preference but for the last word on ridges: the largest that is as good.
    With fewer than `enough` records to judge by, the first layer and ridge and the greatest width are taken.
    """

    afresh: ClassVar[bool] = True
    config: Config
    layers: tuple[Layer, ...]
    bins: tuple[int, ...]
    widths: tuple[int, ...]
    ridges: tuple[float, ...]
    enough: int

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Chosen:
        """Take what is simple unless more is better by a margin."""
        sums = [self._sums(at, payloads) for at in range(len(self.layers))]
        judged = sums[0][1].n
        told: dict[str, float] = {}
        if judged < self.enough:
            layer, features, ridge = 0, self._options(0)[0], self.ridges[0]
        else:
            tried = [(at, one, *self._judged(sums[at], at, one)) for b in self.bins for at, one in self._with(b)]
            told = {f"layer {at}, {one.bins} bins": loss for at, one, loss, _ in tried}
            layer, features, loss, ridge = tried[climb([loss for _, _, loss, _ in tried])]
            narrow = [replace(features, width=width) for width in self.widths if width < features.width]
            less = [(one, *self._judged(sums[layer], layer, one)) for one in narrow]
            told |= {f"{one.width} features": of for one, of, _ in less}
            options = [(features, loss, ridge), *less]
            features, _, ridge = options[climb([loss for _, loss, _ in options])]
        return Chosen(layer, features, ridge, self._of(sums[layer][0], layer, features), judged, told)

    def _options(self, at: int) -> list[Features]:
        wide = self.layers[at].features
        return [replace(wide, bins=b) for b in self.bins if b in (0, wide.bins)]

    def _with(self, bins: int) -> list[tuple[int, Features]]:
        return [(at, one) for at in range(len(self.layers)) for one in self._options(at) if one.bins == bins]

    def _sums(self, at: int, payloads: Mapping[str, Payload]) -> tuple[Sums, Sums]:
        D = basis_of_features(self.config, self.layers[at].features, self.layers[at].outputs).D
        return _added(payloads, f"{at}/fit", D), _added(payloads, f"{at}/validation", D)

    def _judged(self, sums: tuple[Sums, Sums], at: int, features: Features) -> tuple[float, float]:
        """The loss of some features, and the ridge that gives it: the largest that is as good as the best."""
        basis = basis_of_features(self.config, features, self.layers[at].outputs)
        s, v = (basis.statistics(self._of(of, at, features)) for of in sums)
        losses = _losses(s, v, self.ridges)
        enough = min(losses) * (1.0 + MARGIN)
        ridge = max(ridge for ridge, loss in zip(self.ridges, losses, strict=True) if loss <= enough)
        return losses[self.ridges.index(ridge)], ridge

    def _of(self, sums: Sums, at: int, features: Features) -> Sums:
        return part_of(self.config, sums, self.layers[at].features, features, self.layers[at].outputs)


@dataclass(frozen=True, slots=True)
class AddLayer:
    """Add a layer's sums up, over the records to fit."""

    afresh: ClassVar[bool] = True
    config: Config
    layer: Layer

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Sums:
        """The total."""
        return _added(payloads, "0/fit", basis_of_features(self.config, self.layer.features, self.layer.outputs).D)


def part_of(config: Config, sums: Sums, wide: Features, narrow: Features, outputs: tuple[str, ...]) -> Sums:
    """The sums of narrower features out of those of wide ones: see `frmu.models.features.nested`."""
    if narrow == wide:
        return sums
    places = np.array(nested(config, wide, narrow, outputs))
    return Sums.of(sums.M[np.ix_(places, places)])


def _added(payloads: Mapping[str, Payload], name: str, D: int) -> Sums:
    return total([(1, Sums(payload[name])) for payload in payloads.values()], D)


def _losses(s: Statistics, v: Statistics, ridges: Sequence[float]) -> list[float]:
    """The loss of a head for each ridge; infinite where the sums are not positive definite, but for the largest."""
    losses = []
    for ridge in ridges:
        try:
            losses.append(loss(solve(s.G, s.b, ridge), v))
        except FrmuError:
            if ridge == max(ridges):
                raise
            losses.append(float("inf"))
    return losses
