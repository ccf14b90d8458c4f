"""Frozen encoders: random features of a modality on the grid, drawn from the seed and nothing else.

An encoder that has seen no data carries no trace of any, so it needs no unlearning. ReLU features follow
Rahimi and Recht, "Weighted sums of random kitchen sinks" (NeurIPS 2008); Fourier features follow "Random
features for large-scale kernel machines" (NeurIPS 2007); text is hashed as in Weinberger et al., "Feature hashing
for large scale multitask learning" (ICML 2009), which needs no vocabulary.

Columns, directions and offsets are whole steps, so an activation is a whole number, the same on every machine; it is
rounded to 8 bits, and a column keeps 16 (see `frmu.models.grid`).

Where there are several modalities a record may lack one: its block of phi is zero then. The last column of a block
is whether the modality is there, so that missing is not the same as zero.

An encoder may look at columns through a metric, which is learned (`frmu.models.features`), and cut columns into bins:
ramps between knots that lie evenly on the declared range, so that no record moves them (piecewise-linear encodings:
Gorishniy et al., "On embeddings for numerical features in tabular deep learning", NeurIPS 2022).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.models.files import NetEncoder, columns_of_net
from frmu.models.grid import LEFT, ONE, Basis, Columns, fixed, limbs, present
from frmu.types import Float

__all__ = [
    "Encoder", "Frozen", "Words", "basis", "blocks", "encode", "encoder_of", "encoders", "grid", "integers",
    "layout", "spans", "width",
]  # fmt: skip

_FINE = 4096  # steps of a direction
_FAR = 8.0  # activations beyond are clipped: over five standard deviations, were all columns at their ends
_WAVE = np.rint(127.0 * np.cos(2.0 * np.pi * np.arange(1024) / 1024)).astype(np.int8)  # no value is near a half


@dataclass(frozen=True, slots=True)
class Encoder:
    """One modality's encoder: directions `R` (columns, features), offsets `t` (features,), and its kind.

    Where it is `optional`, the last of the columns it is given is whether the modality is there, 1 or 0. A `metric`
    (columns, columns) of whole steps of `lattice` turns the directions; each of the columns `binned` has `bins` ramps.
    """

    kind: str
    R: Float
    t: Float
    optional: bool = False
    metric: Float | None = None
    lattice: float = 1.0
    bins: int = 0
    binned: tuple[int, ...] = ()
    directions: Float = field(init=False, repr=False)  # in whole steps, (columns, features), of which `steps` are one
    top: Float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Work out the directions, exact on every machine, and the activation at which each relu is clipped.

        That is the greatest there is, 8 at most: of few columns no direction reaches far, so its 255 steps are small.
        """
        R = np.rint(self.R * self.turn * _FINE)
        directions = R if self.metric is None else self.metric @ R
        reach = np.sum(np.abs(directions), axis=0) + np.rint(self.t * self.steps)  # whole: the same anywhere
        object.__setattr__(self, "directions", directions)
        object.__setattr__(self, "top", np.clip(reach / self.steps, 1.0 / self.steps, _FAR))

    def grid(self, X: Float) -> NDArray[np.int8]:
        """Scaled columns, (n, columns), as the integers of features, ramps, columns and presence, (n, integers)."""
        values = fixed(X[:, :-1] if self.optional else X)
        Z = np.concatenate([self.features(values)[0], self._ramps(values), limbs(values)], axis=1)
        return present(Z, X[:, -1] != 0.0, self.columns.idle) if self.optional else Z

    @property
    def slope(self) -> float:
        """The worth of a step of a slope: a relu rises or does not, a wave by 127 steps at most."""
        return 1.0 if self.kind == "relu" else 1.0 / 127.0

    @property
    def steps(self) -> float:
        """The steps of a direction of one."""
        return _FINE if self.metric is None else _FINE / self.lattice

    @property
    def turn(self) -> float:
        """The factor of every direction: a wave counts in turns."""
        return 1.0 / (2.0 * np.pi) if self.kind == "fourier" else 1.0

    def features(self, values: Float, slopes: bool = False) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
        """The features of whole steps (n, columns): what fires, in 255 steps of its own, or a wave of 1,024.

        With `slopes` also by how much each rises there, (n, features), in whole steps of `slope`.
        """
        none = np.zeros((len(values), 0), dtype=np.int8)
        if self.kind == "linear":
            return none, none
        A = values @ self.directions
        A += np.rint(self.t * self.turn * (self.steps * ONE))
        A *= (255.0 / self.top if self.kind == "relu" else len(_WAVE)) / (self.steps * ONE)
        A += 0.5
        np.floor(A, out=A)  # in place: these passes cost as much as the sums
        if self.kind == "fourier":
            phase = A.astype(np.int64) % len(_WAVE)
            # the slope of a cosine is minus the sine: the wave a quarter of a turn on
            return _WAVE[phase], _WAVE[(phase + len(_WAVE) // 4) % len(_WAVE)] if slopes else none
        np.clip(A, 0.0, 255.0, out=A)
        A -= LEFT
        Z = A.astype(np.int8)
        return Z, (Z > -LEFT).astype(np.int8) if slopes else none

    def _ramps(self, values: Float) -> NDArray[np.int8]:
        """The ramps of the columns that are binned, bin by bin, (n, bins * binned), of 0 to 255 steps, less 128."""
        if not self.bins or not self.binned:
            return np.zeros((len(values), 0), dtype=np.int8)
        width = 2.0 * ONE / self.bins
        own = values[:, list(self.binned)]
        parts = [np.clip(np.floor((own + ONE - width * j) * (255.0 / width) + 0.5), 0.0, 255.0) - LEFT
                 for j in range(self.bins)]  # fmt: skip
        return np.concatenate(parts, axis=1).astype(np.int8)

    @property
    def columns(self) -> Columns:
        """The columns of a block of phi, as they are made of the integers."""
        columns, features = self.R.shape
        top = self.top if self.kind == "relu" else None
        return _columns_of(self.kind, features, columns, self.optional, top, self.bins * len(self.binned))


@dataclass(frozen=True, slots=True)
class Words:
    """The encoder of text: every word is hashed, with a sign, into one of `features` buckets.

    A word is hashed with the name of its column, of `names`, and the seed. No word is kept from one call to the next.
    """

    names: tuple[str, ...]
    features: int
    seed: int
    optional: bool = False

    def grid(self, X: NDArray[Any]) -> NDArray[np.int8]:
        """Encode texts, (n, columns) of str or None, as sums of signs of norm one, in steps of 1/127, (n, integers).

        >>> Z = Words(("note",), 4, 0).grid(np.array([["Red red lamp"], ["lamp RED, red!"], [""]], dtype=object))
        >>> bool((Z[0] == Z[1]).all()), bool(Z[2].any())
        (True, False)
        """
        Z = np.zeros((len(X), self.features))
        for column, texts in zip(self.names, X.T, strict=True):
            known: dict[str, tuple[int, float]] = {}
            for row, text in enumerate(texts):
                for word in _WORD.findall((text or "").lower()):
                    if word not in known:
                        known[word] = self._place(column, word)
                    bucket, sign = known[word]
                    Z[row, bucket] += sign
        Z /= np.maximum(np.sqrt(np.sum(Z * Z, axis=1, keepdims=True)), 1.0)  # a sum of signs is whole
        steps = np.rint(Z * 127.0).astype(np.int8)
        if not self.optional:
            return steps
        there = np.array([any(text is not None for text in row) for row in X], dtype=bool)
        return present(steps, there, self.columns.idle)

    @property
    def columns(self) -> Columns:
        """The columns of a block of phi, as they are made of the integers."""
        return _columns_of("hash", self.features, 0, self.optional)

    def _place(self, column: str, word: str) -> tuple[int, float]:
        """The bucket of a word, and its sign."""
        raw = hashlib.blake2b(f"{column}\0{word}".encode(), digest_size=8, key=str(self.seed).encode()).digest()
        number = int.from_bytes(raw, "big")
        return (number >> 1) % self.features, 1.0 if number & 1 else -1.0


def _columns_of(
    kind: str, features: int, raw: int, optional: bool, top: Float | None = None, ramps: int = 0
) -> Columns:
    found = Columns.of_limbs(raw)
    if ramps:
        found = Columns.shifted(ramps, np.full(ramps, 1.0 / 255.0)).beside(found)
    if kind == "relu":
        steps = np.ones(features) if top is None else top / 255.0
        found = Columns.shifted(features, np.sqrt(2.0 / features) * steps).beside(found)
    elif kind == "fourier":
        found = Columns.plain(features, np.sqrt(2.0 / features) / 127.0).beside(found)
    elif kind == "hash":
        found = Columns.plain(features, 1.0 / 127.0)
    return found.beside(Columns.plain(1, 1.0)) if optional else found


_WORD = re.compile(r"\w+")
Frozen = Encoder | Words | NetEncoder  # the encoder of a modality


def encoders(config: Config) -> dict[str, Frozen]:
    """An encoder for each modality of a config."""
    return {name: encoder_of(config, name, columns) for name, columns in config.data.modalities.items()}


def grid(modalities: Mapping[str, NDArray[Any]], by: Mapping[str, Frozen]) -> NDArray[np.int8]:
    """z without targets: a one, and every modality's integers side by side, (n, integers)."""
    parts = [by[name].grid(X) for name, X in modalities.items()]
    return np.concatenate([np.ones((len(parts[0]), 1), dtype=np.int8), *parts], axis=1)


def basis(columns: Mapping[str, Columns], targets: Columns | None = None) -> Basis:
    """The basis of phi - every modality's block side by side, and a bias of one - and of targets."""
    made = Columns.of_blocks(list(columns.values()))
    return made.basis() if targets is None else made.beside(targets).basis(len(made.scale))


def encode(modalities: Mapping[str, NDArray[Any]], by: Mapping[str, Frozen]) -> Float:
    """phi: every modality encoded, side by side, and a bias of one, (n, d).

    >>> encode({"a": np.zeros((2, 1))}, {"a": Encoder("linear", np.zeros((1, 0)), np.zeros(0))})
    array([[0., 1.],
           [0., 1.]])
    """
    return basis({name: by[name].columns for name in modalities}).phi(grid(modalities, by))


def layout(config: Config) -> dict[str, Columns]:
    """Return the columns of each modality's block of phi, as they are made of integers."""
    return {name: _block(config, name, columns) for name, columns in config.data.modalities.items()}


def _block(config: Config, modality: str, columns: list[str]) -> Columns:
    """The columns of a modality's block; of what is drawn they depend on what was."""
    kind, model, optional = config.encoder(modality), config.model, config.optional
    if kind in ("hash", "file"):
        return _shape(config, modality, columns)
    return _drawn(model.seed, modality, kind, model.frozen_features, _columns(config, columns), optional)


@cache
def _drawn(seed: int, modality: str, kind: str, features: int, raw: int, optional: bool) -> Columns:
    return _draw(seed, modality, kind, features, raw, optional).columns


def _shapes(config: Config) -> dict[str, Columns]:
    """As many columns as `layout` has, of as many integers; nothing is drawn for it."""
    return {name: _shape(config, name, columns) for name, columns in config.data.modalities.items()}


def _shape(config: Config, modality: str, columns: list[str]) -> Columns:
    kind, optional = config.encoder(modality), config.optional
    if kind == "file":
        return columns_of_net(config.model.files[modality].outputs, optional)
    return _columns_of(kind, config.model.frozen_features, _columns(config, columns) * (kind != "hash"), optional)


def spans(columns: Mapping[str, Columns]) -> dict[str, slice]:
    """Return the integers of a record by modality, in their order; the first, a one, is nobody's."""
    return _side_by_side({name: len(block.idle) for name, block in columns.items()}, 1)


def blocks(config: Config) -> dict[str, slice]:
    """Return the columns of phi by modality, in their order; the last column, the bias, is nobody's."""
    return _side_by_side({name: len(block.scale) for name, block in _shapes(config).items()}, 0)


def width(config: Config) -> int:
    """d, the length of an encoded record."""
    return 1 + sum(len(block.scale) for block in _shapes(config).values())


def integers(config: Config) -> int:
    """The integers of a record, without its targets."""
    return 1 + sum(len(block.idle) for block in _shapes(config).values())


def _side_by_side(sizes: Mapping[str, int], at: int) -> dict[str, slice]:
    found = {}
    for name, size in sizes.items():
        found[name] = slice(at, at + size)
        at += size
    return found


def _columns(config: Config, names: list[str]) -> int:
    return sum(map(config.data.scaled, names))


def encoder_of(config: Config, modality: str, columns: list[str]) -> Frozen:
    """The frozen encoder of one modality of a config."""
    kind = config.encoder(modality)
    if kind == "file":
        return NetEncoder(config.net(modality), config.optional)
    if kind == "hash":
        return Words(tuple(columns), config.model.frozen_features, config.model.seed, config.optional)
    model = config.model
    return _draw(model.seed, modality, kind, model.frozen_features, _columns(config, columns), config.optional)


def _draw(seed: int, modality: str, kind: str, features: int, columns: int, optional: bool) -> Encoder:
    own = int.from_bytes(hashlib.blake2b(modality.encode(), digest_size=8).digest(), "big")
    rng = np.random.Generator(np.random.PCG64([seed, own]))
    R = rng.standard_normal((columns, features)) * (np.sqrt(2.0 / columns) if kind == "relu" else 1.0)
    t = rng.uniform(-1.0, 1.0, features) if kind == "relu" else rng.uniform(0, 2 * np.pi, features)
    return Encoder(kind, R, t, optional)
