"""Frozen encoders: random features of a modality, drawn from the seed and nothing else.

An encoder that has seen no data carries no trace of any, so it needs no unlearning. ReLU features follow
Rahimi and Recht, "Weighted sums of random kitchen sinks" (NeurIPS 2008); Fourier features follow "Random
features for large-scale kernel machines" (NeurIPS 2007).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from frmu.config import Config
from frmu.types import Float

__all__ = ["Encoder", "encode", "encoders", "width"]


@dataclass(frozen=True, slots=True)
class Encoder:
    """One modality's encoder: directions `R` (columns, features), offsets `t` (features,), and its kind."""

    kind: str
    R: Float
    t: Float

    def __call__(self, X: Float) -> Float:
        """Encode scaled columns, (n, columns), as random features and the columns themselves, (n, width)."""
        if self.kind == "linear":
            return X
        Z = X @ self.R + self.t
        Z = np.maximum(Z, 0.0) if self.kind == "relu" else np.cos(Z)
        return np.concatenate([Z * np.sqrt(2.0 / self.R.shape[1]), X], axis=1)


def encoders(config: Config) -> dict[str, Encoder]:
    """An encoder for each modality of a config."""
    return {name: _draw(config, name, _columns(config, names)) for name, names in config.data.modalities.items()}


def encode(modalities: dict[str, Float], by: dict[str, Encoder]) -> Float:
    """phi: every modality encoded, side by side, and a bias of one, (n, d).

    >>> encode({"a": np.zeros((2, 1))}, {"a": Encoder("linear", np.zeros((1, 0)), np.zeros(0))})
    array([[0., 1.],
           [0., 1.]])
    """
    parts = [by[name](X) for name, X in modalities.items()]
    parts.append(np.ones((len(parts[0]), 1)))
    return np.concatenate(parts, axis=1)


def width(config: Config) -> int:
    """d, the length of an encoded record."""
    per_modality = 0 if config.model.encoder == "linear" else config.model.features
    return 1 + sum(per_modality + _columns(config, names) for names in config.data.modalities.values())


def _columns(config: Config, names: list[str]) -> int:
    # A lag is two columns: its value, and whether there is one.
    return len(names) + sum(name in config.data.lags for name in names)


def _draw(config: Config, modality: str, columns: int) -> Encoder:
    model = config.model
    seed = int.from_bytes(hashlib.blake2b(modality.encode(), digest_size=8).digest(), "big")
    rng = np.random.Generator(np.random.PCG64([model.seed, seed]))
    R = rng.standard_normal((columns, model.features)) * (np.sqrt(2.0 / columns) if model.encoder == "relu" else 1.0)
    t = rng.uniform(-1.0, 1.0, model.features) if model.encoder == "relu" else rng.uniform(0, 2 * np.pi, model.features)
    return Encoder(model.encoder, R, t)
