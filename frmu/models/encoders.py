"""Frozen encoders: random features of a modality, drawn from the seed and nothing else.

An encoder that has seen no data carries no trace of any, so it needs no unlearning. ReLU features follow
Rahimi and Recht, "Weighted sums of random kitchen sinks" (NeurIPS 2008); Fourier features follow "Random
features for large-scale kernel machines" (NeurIPS 2007); text is hashed as in Weinberger et al., "Feature hashing
for large scale multitask learning" (ICML 2009), which needs no vocabulary.

Where there are several modalities a record may lack one: its block of phi is zero then. The last column of a block
is whether the modality is there, so that missing is not the same as zero.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.types import Float

__all__ = ["Encoder", "Words", "blocks", "encode", "encoders", "width"]


@dataclass(frozen=True, slots=True)
class Encoder:
    """One modality's encoder: directions `R` (columns, features), offsets `t` (features,), and its kind.

    Where it is `optional`, the last of the columns it is given is whether the modality is there, 1 or 0.
    """

    kind: str
    R: Float
    t: Float
    optional: bool = False

    def __call__(self, X: Float) -> Float:
        """Encode scaled columns, (n, columns), as random features and the columns themselves, (n, width)."""
        if not self.optional:
            return self._features(X)
        return _block(self._features(X[:, :-1]), X[:, -1] != 0.0)

    def _features(self, X: Float) -> Float:
        if self.kind == "linear":
            return X
        Z = X @ self.R + self.t
        Z = np.maximum(Z, 0.0) if self.kind == "relu" else np.cos(Z)
        return np.concatenate([Z * np.sqrt(2.0 / self.R.shape[1]), X], axis=1)


@dataclass(frozen=True, slots=True)
class Words:
    """The encoder of text: every word is hashed, with a sign, into one of `features` buckets.

    A word is hashed with the name of its column and the seed. No word is kept from one call to the next.
    """

    columns: tuple[str, ...]
    features: int
    seed: int
    optional: bool = False

    def __call__(self, X: NDArray[Any]) -> Float:
        """Encode texts, (n, columns) of str or None, as sums of signs of norm one, (n, width); no word gives zeros.

        >>> Z = Words(("note",), 4, 0)(np.array([["Red red lamp"], ["lamp RED, red!"], [""]], dtype=object))
        >>> bool((Z[0] == Z[1]).all()), bool(Z[2].any()), round(float(Z[0] @ Z[0]), 6)
        (True, False, 1.0)
        """
        Z = np.zeros((len(X), self.features))
        for column, texts in zip(self.columns, X.T, strict=True):
            known: dict[str, tuple[int, float]] = {}
            for row, text in enumerate(texts):
                for word in _WORD.findall((text or "").lower()):
                    if word not in known:
                        known[word] = self._place(column, word)
                    bucket, sign = known[word]
                    Z[row, bucket] += sign
        Z /= np.maximum(np.sqrt(np.sum(Z * Z, axis=1, keepdims=True)), 1.0)  # a sum of signs is whole
        if not self.optional:
            return Z
        return _block(Z, np.array([any(text is not None for text in row) for row in X], dtype=bool))

    def _place(self, column: str, word: str) -> tuple[int, float]:
        """The bucket of a word, and its sign."""
        raw = hashlib.blake2b(f"{column}\0{word}".encode(), digest_size=8, key=str(self.seed).encode()).digest()
        number = int.from_bytes(raw, "big")
        return (number >> 1) % self.features, 1.0 if number & 1 else -1.0


_WORD = re.compile(r"\w+")


def _block(Z: Float, present: NDArray[np.bool_]) -> Float:
    """A modality's columns of phi: zero where it is missing, and whether it is there."""
    there = present[:, None]
    return np.concatenate([np.where(there, Z, 0.0), there.astype(np.float64)], axis=1)


def encoders(config: Config) -> dict[str, Encoder | Words]:
    """An encoder for each modality of a config."""
    return {name: _encoder(config, name, columns) for name, columns in config.data.modalities.items()}


def encode(modalities: Mapping[str, NDArray[Any]], by: Mapping[str, Encoder | Words]) -> Float:
    """phi: every modality encoded, side by side, and a bias of one, (n, d).

    >>> encode({"a": np.zeros((2, 1))}, {"a": Encoder("linear", np.zeros((1, 0)), np.zeros(0))})
    array([[0., 1.],
           [0., 1.]])
    """
    parts = [by[name](X) for name, X in modalities.items()]
    parts.append(np.ones((len(parts[0]), 1)))
    return np.concatenate(parts, axis=1)


def blocks(config: Config) -> dict[str, slice]:
    """Return the columns of phi by modality, in their order; the last column, the bias, is nobody's."""
    found, at = {}, 0
    for name, columns in config.data.modalities.items():
        wide = _width(config, name, columns)
        found[name] = slice(at, at + wide)
        at += wide
    return found


def width(config: Config) -> int:
    """d, the length of an encoded record."""
    return 1 + sum(_width(config, name, columns) for name, columns in config.data.modalities.items())


def _width(config: Config, modality: str, columns: list[str]) -> int:
    kind = config.encoder(modality)
    random = 0 if kind == "linear" else config.model.features
    return random + (0 if kind == "hash" else _columns(config, columns)) + config.optional


def _columns(config: Config, names: list[str]) -> int:
    # A lag is two columns: its value, and whether there is one.
    return len(names) + sum(name in config.data.lags for name in names)


def _encoder(config: Config, modality: str, columns: list[str]) -> Encoder | Words:
    kind = config.encoder(modality)
    if kind == "hash":
        return Words(tuple(columns), config.model.features, config.model.seed, config.optional)
    return _draw(config, modality, kind, _columns(config, columns))


def _draw(config: Config, modality: str, kind: str, columns: int) -> Encoder:
    model = config.model
    seed = int.from_bytes(hashlib.blake2b(modality.encode(), digest_size=8).digest(), "big")
    rng = np.random.Generator(np.random.PCG64([model.seed, seed]))
    R = rng.standard_normal((columns, model.features)) * (np.sqrt(2.0 / columns) if kind == "relu" else 1.0)
    t = rng.uniform(-1.0, 1.0, model.features) if kind == "relu" else rng.uniform(0, 2 * np.pi, model.features)
    return Encoder(kind, R, t, config.optional)
