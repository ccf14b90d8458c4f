"""Learned features: wide random features whose metric is learned from additive sums, and rests on a lattice.

Layer t has the features relu(R S_t x + b), with S_0 = I. After its fit the average outer product of the model's
gradient, M = sum_x grad f grad f^T, says along which inputs the model varies, and the next metric is S_(t+1) = sqrt(M)
(recursive feature machines: Radhakrishnan et al., "Mechanism for feature learning in neural networks and
backpropagation-free machine learning models", Science 2024, there with kernels).

Two things make it exact, and cheap to forget. The gradient of f is S R (w * s) + w_raw, where s says which features
rise at x; so M follows from C = sum s s^T, a sum of whole numbers that adds over records and does not depend on w. And
a metric is rounded to whole steps of a lattice (as centroids in Ginart et al., "Making AI forget you", NeurIPS 2019):
an erasure moves M a little and its lattice point mostly not at all, and then no other record's features have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.models.encoders import Encoder, basis, encoder_of, encoders, grid, layout
from frmu.models.grid import Basis, Columns, fixed
from frmu.models.statistics import basis_of, target_columns
from frmu.models.weights import Weights, predictions, weights_in
from frmu.types import HEAD, Float, State, Sums

__all__ = [
    "LEAST", "METRIC", "Features", "Head", "Wide", "basis_of_features", "bins_to_try", "described", "features_of",
    "head_of", "metric_of", "model_of", "most_features", "nested", "on_lattice", "predictor", "ridge_of", "what_moved",
    "without",
]  # fmt: skip

LEAST, MOST = 256, 4096  # features, where a config says nothing else
METRIC = "metric"  # what parameters of a state are called that hold one, with the layer after it
MIXED = 3  # of so many features one sees all columns


@dataclass(frozen=True, slots=True)
class Features:
    """The features that a record is made into: their kind and number, ramps a column, and the metric.

    `metric` (columns, columns) is in whole steps of `lattice`, over the columns of all modalities whose features are
    learned, one after the other; without one S = I.
    """

    kind: str
    width: int
    bandwidth: float = 1.0
    bins: int = 0
    lattice: float = 0.125
    metric: Float | None = field(default=None, repr=False)

    @property
    def header(self) -> dict[str, Any]:
        """Everything but the metric, as plain JSON types."""
        return {
            "kind": self.kind, "width": self.width, "bandwidth": self.bandwidth.hex(), "bins": self.bins,
            "lattice": self.lattice.hex(),
        }  # fmt: skip

    @property
    def key(self) -> str:
        """A digest that two features share if and only if they make the same of every record."""
        sha = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        if self.metric is not None:
            sha.update(str(self.metric.shape).encode())
            sha.update(self.metric.astype(np.int64).tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Head:
    """A head `W` (d, outputs) and the features that it stands on, None for the frozen ones of a config."""

    W: Float = field(repr=False)
    features: Features | None = None

    @property
    def width(self) -> int:
        """The number of outputs."""
        return int(self.W.shape[1])


class Wide:
    """The encoder of learned features: wide ones over all columns, then each modality's columns, with ramps.

    A modality with a frozen encoder of its own keeps that. Which columns a feature sees is drawn with it: of three
    features one sees all, and two see one modality each, in turn; where there is one modality, a half and a quarter of
    its columns.
    """

    def __init__(self, config: Config, features: Features) -> None:
        self.joint = _joint(config, features)
        self.learned = [name for name in config.data.modalities if config.learned(name)]
        self.optional = config.optional
        self.own = {
            name: _columns_alone(config, features, name) if config.learned(name) else encoder_of(config, name, columns)
            for name, columns in config.data.modalities.items()
        }

    def grid(self, modalities: Mapping[str, NDArray[Any]]) -> NDArray[np.int8]:
        """z without targets: a one, the features, and every modality's integers, (n, integers)."""
        return self._whole(modalities, self.joint.features(self._values(modalities))[0])

    def grid_and_slopes(self, modalities: Mapping[str, NDArray[Any]]) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """As `grid`; and by how much each feature rises there, and a one, (n, features + 1)."""
        made, rising = self.joint.features(self._values(modalities), slopes=True)
        one = np.ones((len(made), 1), dtype=np.int8)
        return self._whole(modalities, made), np.concatenate([rising, one], axis=1)

    def encode(self, modalities: Mapping[str, NDArray[Any]]) -> Float:
        """phi, (n, d)."""
        return self.basis().phi(self.grid(modalities))

    def predictions(self, modalities: Mapping[str, NDArray[Any]], W: Float) -> Float:
        """Return what a head (d, outputs) makes of records, (n, outputs)."""
        return self.basis().predictions(self.grid(modalities), W)

    def basis(self, targets: Columns | None = None) -> Basis:
        """The way from the integers of a record to phi, and to targets."""
        joint = self.joint.columns
        features = len(self.joint.t)
        own = Columns(joint.index[:features], joint.terms[:features], joint.scale[:features], joint.idle[:features])
        return basis({"": own, **{name: one.columns for name, one in self.own.items()}}, targets)

    def raw(self) -> NDArray[np.intp]:
        """The places in phi of the columns that the metric is over."""
        at = len(self.joint.t)
        found: list[int] = []
        for name, one in self.own.items():
            if name in self.learned and isinstance(one, Encoder):
                ramps = one.bins * len(one.binned)
                found += range(at + ramps, at + ramps + len(one.R))
            at += len(one.columns.scale)
        return np.array(found, dtype=np.intp)

    def _values(self, modalities: Mapping[str, NDArray[Any]]) -> Float:
        """The columns of all modalities whose features are learned, in whole steps; 0 where a modality is missing."""
        parts = (modalities[name] for name in self.learned)
        return fixed(np.concatenate([X[:, :-1] if self.optional else X for X in parts], axis=1))

    def _whole(self, modalities: Mapping[str, NDArray[Any]], made: NDArray[np.int8]) -> NDArray[np.int8]:
        one = np.ones((len(made), 1), dtype=np.int8)
        return np.concatenate([one, made, *(self.own[name].grid(X) for name, X in modalities.items())], axis=1)


def _joint(config: Config, features: Features) -> Encoder:
    """Draw feature by feature, so that fewer features are the first of more."""
    sizes = [config.columns(name) for name in config.data.modalities if config.learned(name)]
    columns, seed, relu = sum(sizes), config.model.seed, features.kind == "relu"
    directions, offsets, sights = (np.random.Generator(np.random.PCG64([seed, stream])) for stream in (1, 2, 3))
    seen = _sights(features.width, sizes, sights)
    R = np.where(seen, directions.standard_normal((features.width, columns)), 0.0) * features.bandwidth
    R *= np.sqrt((2.0 if relu else columns) / seen.sum(axis=1, keepdims=True))
    t = offsets.uniform(-1.0, 1.0, features.width) if relu else offsets.uniform(0.0, 2.0 * np.pi, features.width)
    lattice = 1.0 if features.metric is None else features.lattice
    return Encoder(features.kind, np.ascontiguousarray(R.T), t, False, features.metric, lattice)


def _sights(width: int, sizes: Sequence[int], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw the columns that each feature sees, (width, columns)."""
    columns, number = sum(sizes), np.arange(width)
    whose = np.repeat(np.arange(len(sizes)), sizes)
    turn = (number // MIXED) * (MIXED - 1) + number % MIXED - 1
    if len(sizes) > 1:
        seen = whose == (turn % len(sizes))[:, None]
    else:
        few = np.where(turn % 2, max(1, columns // 4), max(1, columns // 2))
        rank = rng.random((width, columns)).argsort(axis=1).argsort(axis=1)
        seen = rank < few[:, None]
    return np.where((number % MIXED == 0)[:, None], True, seen)


def _columns_alone(config: Config, features: Features, modality: str) -> Encoder:
    """A modality's columns and their ramps, without features."""
    none = np.zeros((config.columns(modality), 0))
    binned = config.continuous(modality) if features.bins else ()
    return Encoder("linear", none, np.zeros(0), config.optional, bins=features.bins, binned=binned)


def without(modalities: Mapping[str, NDArray[Any]], gone: Collection[str]) -> dict[str, NDArray[Any]]:
    """The columns of records as if they lacked some modalities."""
    found = {}
    for name, X in modalities.items():
        blank = np.full_like(X, None) if X.dtype == object else np.zeros_like(X)
        found[name] = blank if name in gone else X
    return found


def features_of(state: State) -> Features | None:
    """Return the features that a state's head stands on, None where they are the frozen ones of its config."""
    learned = state.learned
    if not learned:
        return None
    return Features(
        learned["kind"], learned["width"], float.fromhex(learned["bandwidth"]), learned["bins"],
        float.fromhex(learned["lattice"]), state.parameters.get(f"{METRIC}.{learned['layer']}"),
    )  # fmt: skip


def predictor(config: Config, head: Head | Weights) -> Callable[[Mapping[str, NDArray[Any]]], Float]:
    """Return what predicts for records, (n, outputs), with a head on its features, drawn once; or with a module."""
    if isinstance(head, Weights):
        return partial(predictions, config, head)
    if head.features is not None:
        return partial(Wide(config, head.features).predictions, W=head.W)
    by, whole = encoders(config), basis(layout(config))
    return lambda modalities: whole.predictions(grid(modalities, by), head.W)


def head_of(state: State) -> Head:
    """Return the head of a state, on its features."""
    return Head(state.W, features_of(state))


def model_of(state: State) -> Head | Weights:
    """Return what predicts in a state: its head, or the weights of its module."""
    if HEAD in state.parameters:
        return head_of(state)
    return weights_in(state)


def ridge_of(state: State, config: Config) -> float:
    """Return the ridge that a state's head was solved with."""
    return float.fromhex(state.learned["ridge"]) if state.learned else config.model.frozen_ridge


def what_moved(before: State, after: State) -> str:
    """Say what an erasure did to the features of a state; nothing where they are frozen.

    Where no metric has moved and nothing else was chosen, what other records are made into is as it was.
    """
    if not after.learned:
        return ""
    names = ("kind", "width", "bandwidth", "bins", "share")
    chosen = [name for name in names if before.learned.get(name) != after.learned.get(name)]
    layers = range(1, max(after.learned["layer"], before.learned.get("layer", 0)) + 1)
    moved = sum(not _alike(*(one.parameters.get(f"{METRIC}.{at}") for one in (before, after))) for at in layers)
    if not chosen and not moved:
        return "features unmoved: only the erased rows were subtracted"
    anew = f"; chosen anew: {', '.join(chosen)}" if chosen else ""
    return f"features learned again from what remains: {moved} of {len(layers)} layers{anew}"


def _alike(one: Float | None, other: Float | None) -> bool:
    return one is not None and other is not None and np.array_equal(one, other)


def described(state: State) -> str:
    """Say in a line what the features of a state are; nothing where they are frozen.

    >>> described(State("", "", (), (), {}))
    ''
    """
    said = state.learned
    if not said:
        return ""
    looks = f"a {said['shape']} metric learned in {said['layer']} layers" if said["layer"] else "no metric"
    ramps = f", {said['bins']} bins a column" if said["bins"] else ""
    by = "chosen on validation" if said["chosen"] == "validation" else "by default, for want of validation records"
    return f"{said['width']:,} {said['kind']} features under {looks}{ramps}; {by}"


def basis_of_features(config: Config, features: Features | None, outputs: tuple[str, ...]) -> Basis:
    """The way from the integers of a record to learned features, or to the frozen ones of a config, and targets."""
    if features is None:
        return basis_of(config, outputs)
    return Wide(config, features).basis(target_columns(config, outputs))


def nested(config: Config, wide: Features, narrow: Features, outputs: tuple[str, ...]) -> list[int]:
    """Return which integers of a record under wide features are those under narrower ones of the same metric.

    The features of the narrow are the first of the wide ones; it may be without the ramps of the wide.
    """
    found, place = [0, *range(1, 1 + narrow.width)], 1 + wide.width
    for name, one in Wide(config, wide).own.items():
        size = len(one.columns.idle)
        ramps = wide.bins * len(config.continuous(name)) if config.learned(name) else 0
        found += range(place if narrow.bins else place + ramps, place + size)
        place += size
    return [*found, *range(place, place + len(target_columns(config, outputs).idle))]


def metric_of(wide: Wide, W: Float, C: Sums) -> Float:
    """M = sum over records and outputs of grad f grad f^T, (columns, columns).

    `W` (d, outputs) is a head on the features; `C` are the sums of their slopes, (features + 1).
    """
    one = wide.joint
    features = len(one.t)
    S = C.M.astype(np.float64)
    pairs, rising, n = S[:-1, :-1] * one.slope**2, S[:-1, -1] * one.slope, S[-1, -1]
    w, w_raw = W[:features] * np.sqrt(2.0 / features), W[wide.raw()]
    E = one.directions / (one.steps * one.turn)
    cross = E @ (w * rising[:, None]) @ w_raw.T
    return np.asarray(E @ ((w @ w.T) * pairs) @ E.T + cross + cross.T + n * (w_raw @ w_raw.T), dtype=np.float64)


def on_lattice(M: Float, lattice: float, diagonal: bool) -> Float | None:
    """Return sqrt(M), scaled to that of the unit metric, in whole steps of a lattice; None where nothing is left of it.

    >>> on_lattice(np.diag([4.0, 0.0]), 0.25, diagonal=False).tolist()
    [[6.0, 0.0], [0.0, 0.0]]
    """
    columns = len(M)
    trace = float(np.trace(M))
    if not np.isfinite(trace) or trace <= 0.0:
        return None
    M = M * (columns / trace)
    if diagonal:
        root = np.diag(np.sqrt(np.maximum(np.diag(M), 0.0)))
    else:
        values, vectors = np.linalg.eigh((M + M.T) / 2.0)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    found = np.rint(root / lattice) + 0.0
    return found if found.any() else None


def bins_to_try(config: Config, bins: int, features: int) -> tuple[int, ...]:
    """Return with how many ramps a column to try: none where they would be more than twice the features.

    Sums grow with the square of both.
    """
    columns = sum(len(config.continuous(name)) for name in config.data.modalities if config.learned(name))
    return (0, bins) if columns * bins <= 2 * features else (0,)


def most_features(config: Config, fitted: int, outputs: int) -> int:
    """The most features that a model may have: as declared, or by the records and outputs there are."""
    if config.model.features != "auto":
        return config.model.features
    wide = LEAST if fitted < 2_000 else 512 if fitted < 8_192 else 1024
    return min(MOST, wide * (4 if outputs >= 10 else 1))
