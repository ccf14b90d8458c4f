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
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from frmu.config import Config
from frmu.models.encoders import Encoder, Words, basis, encoder_of, encoders, seed_of
from frmu.models.grid import Basis
from frmu.models.statistics import target_columns
from frmu.types import Float, State, Sums

__all__ = [
    "LEAST",
    "METRIC", "Features", "Head", "basis_of_features", "described", "encoders_of", "features_of", "head_of",
    "metric_of", "model_encoders",
    "most_features", "nested", "on_lattice", "ridge_of", "what_moved",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Head:
    """A head `W` (d, outputs) and the features that it stands on, None for the frozen ones of a config."""

    W: Float = field(repr=False)
    features: Features | None = None


LEAST, MOST = 256, 4096  # features of a modality, where a config says nothing else
METRIC = "metric"  # what parameters of a state are called that hold one, with layer and modality after it


@dataclass(frozen=True, slots=True)
class Features:
    """The features that a record is made into: their kind and number a modality, ramps, and each modality's metric.

    `metrics` (columns, columns) are whole steps of `lattice`, by modality; a modality without one has S = I.
    """

    kind: str
    width: int
    bandwidth: float = 1.0
    bins: int = 0
    lattice: float = 0.25
    metrics: Mapping[str, Float] = field(default_factory=dict, repr=False)

    @property
    def header(self) -> dict[str, Any]:
        """Everything but the metrics, as plain JSON types."""
        return {
            "kind": self.kind, "width": self.width, "bandwidth": self.bandwidth.hex(), "bins": self.bins,
            "lattice": self.lattice.hex(),
        }  # fmt: skip

    @property
    def key(self) -> str:
        """A digest that two features share if and only if they make the same of every record."""
        sha = hashlib.sha256(json.dumps(self.header, sort_keys=True).encode())
        for name in sorted(self.metrics):
            sha.update(f"{name}\0{self.metrics[name].shape}".encode())
            sha.update(self.metrics[name].astype(np.int64).tobytes())
        return sha.hexdigest()


def features_of(state: State) -> Features | None:
    """Return the features that a state's head stands on, None where they are the frozen ones of its config."""
    learned = state.learned
    if not learned:
        return None
    named = {
        name.split(".", 2)[2]: name for name in state.parameters if name.startswith(f"{METRIC}.{learned['layer']}.")
    }
    return Features(
        learned["kind"], learned["width"], float.fromhex(learned["bandwidth"]), learned["bins"],
        float.fromhex(learned["lattice"]), {modality: state.parameters[name] for modality, name in named.items()},
    )  # fmt: skip


def head_of(state: State) -> Head:
    """Return the head of a state, on its features."""
    return Head(state.W, features_of(state))


def ridge_of(state: State, config: Config) -> float:
    """Return the ridge that a state's head was solved with."""
    return float.fromhex(state.learned["ridge"]) if state.learned else config.model.frozen_ridge


def what_moved(before: State, after: State) -> str:
    """Say what an erasure did to the features of a state; nothing where they are frozen.

    Where no metric has moved and nothing else was chosen, what other records are made into is as it was.
    """
    if not after.learned:
        return ""
    said = [
        name for name in ("kind", "width", "bandwidth", "bins", "share") if _said(before, name) != _said(after, name)
    ]
    layers = range(1, max(after.learned["layer"], before.learned.get("layer", 0)) + 1)
    there = [{n: S for n, S in one.parameters.items() if n.startswith(f"{METRIC}.")} for one in (before, after)]
    others = [
        at
        for at in layers
        if not _alike(*({n: S for n, S in of.items() if n.split(".")[1] == str(at)} for of in there))
    ]
    if not said and not others:
        return "features unmoved: only the erased rows were subtracted"
    chosen = f"; chosen anew: {', '.join(said)}" if said else ""
    return f"features learned again from what remains: {len(others)} of {len(layers)} layers{chosen}"


def _said(state: State, name: str) -> Any:
    return state.learned.get(name)


def _layer(state: State, at: int) -> dict[str, Float]:
    return {name: S for name, S in state.parameters.items() if name.startswith(f"{METRIC}.{at}.")}


def _alike(one: Mapping[str, Float], other: Mapping[str, Float]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


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
    return f"{said['width']:,} {said['kind']} features a modality under {looks}{ramps}; {by}"


def encoders_of(config: Config, features: Features) -> dict[str, Encoder | Words]:
    """An encoder for each modality: wide where its features are learned, the frozen one elsewhere."""
    return {
        name: _wide(config, features, name) if config.learned(name) else encoder_of(config, name, columns)
        for name, columns in config.data.modalities.items()
    }


def model_encoders(config: Config, features: Features | None) -> dict[str, Encoder | Words]:
    """The encoders that a head stands on: of learned features, or the frozen ones of a config."""
    return encoders(config) if features is None else encoders_of(config, features)


def _wide(config: Config, features: Features, modality: str) -> Encoder:
    """Draw feature by feature, so that fewer features are the first of more."""
    columns, binned = config.columns(modality), config.continuous(modality)
    own = [config.model.seed, seed_of(modality)]
    rng, offsets = (np.random.Generator(np.random.PCG64([*own, stream])) for stream in (1, 2))
    R = rng.standard_normal((features.width, columns)).T * features.bandwidth
    relu = features.kind == "relu"
    R = R * np.sqrt(2.0 / columns) if relu else R
    t = offsets.uniform(-1.0, 1.0, features.width) if relu else offsets.uniform(0, 2 * np.pi, features.width)
    metric = features.metrics.get(modality)
    lattice = 1.0 if metric is None else features.lattice
    return Encoder(
        features.kind, R, t, config.optional, metric, lattice, features.bins, binned if features.bins else ()
    )


def basis_of_features(config: Config, features: Features, outputs: tuple[str, ...]) -> Basis:
    """The way from the integers of a record to learned features and targets."""
    by = encoders_of(config, features)
    return basis({name: one.columns for name, one in by.items()}, target_columns(config, outputs))


def nested(config: Config, wide: Features, narrow: Features, outputs: tuple[str, ...]) -> list[int]:
    """Return which integers of a record under wide features are those under narrower ones of the same metric.

    The features of the narrow are the first of the wide ones; it may be without the ramps of the wide.
    """
    place, found = 1, [0]
    more, less = encoders_of(config, wide), encoders_of(config, narrow)
    for name in config.data.modalities:
        size = len(more[name].columns.idle)
        if config.learned(name):
            ramps = wide.bins * len(config.continuous(name))
            kept = [*range(narrow.width), *(range(wide.width, wide.width + ramps) if narrow.bins else ())]
            kept += range(wide.width + ramps, size)
        else:
            kept = list(range(size))
        assert len(kept) == len(less[name].columns.idle)
        found += [place + at for at in kept]
        place += size
    targets = len(target_columns(config, outputs).idle)
    return [*found, *range(place, place + targets)]


def metric_of(one: Encoder, W: Float, C: Sums) -> Float:
    """M = sum over records and outputs of grad f grad f^T, (columns, columns), for one modality.

    `W` (block, outputs) are the weights of the modality's block of phi; `C` are the sums of slopes, (features + 1).
    """
    features, raw = one.R.shape[1], one.R.shape[0]
    ramps = one.bins * len(one.binned)
    S = C.M.astype(np.float64)
    pairs, rising, n = S[:-1, :-1] * one.slope**2, S[:-1, -1] * one.slope, S[-1, -1]
    height = np.sqrt(2.0 / features)  # of a feature in phi
    w, w_raw = W[:features] * height, W[features + ramps : features + ramps + raw]
    E = one.directions / (one.steps * one.turn)
    inner = (w @ w.T) * pairs
    cross = E @ (w * rising[:, None]) @ w_raw.T
    return np.asarray(E @ inner @ E.T + cross + cross.T + n * (w_raw @ w_raw.T), dtype=np.float64)


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


def most_features(config: Config, fitted: int, outputs: int) -> int:
    """The most features a modality that a model may have: as declared, or by the records and outputs there are."""
    if config.model.features != "auto":
        return config.model.features
    wide = 256 if fitted < 2_000 else 512 if fitted < 10_000 else 1024
    if outputs >= 10:
        wide *= 4
    each = max(1, len([name for name in config.data.modalities if config.learned(name)]))
    return int(min(MOST, max(LEAST, 2 ** math.floor(math.log2(wide / each)))))
