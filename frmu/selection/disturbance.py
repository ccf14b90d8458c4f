"""Disturbances: what goes wrong with records in the field, made on purpose so that a policy meets it.

A disturbance acts on the rows of some slices, at the client that holds them, before they are encoded: shuffled
labels, a gain or offset fault of the sensor behind the target, scrambled features, a relation that has gone stale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.types import Float

__all__ = ["KINDS", "disturb", "draw"]

KINDS = ("none", "labels", "gain", "features", "stale")


def draw(keys: list[str], rng: np.random.Generator, kind: str | None = None) -> tuple[str, list[str]]:
    """A kind of disturbance, unless given, and the slices it hits: none, or a run or scatter of up to 40 %."""
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    most = max(1, int(0.4 * len(keys)))
    number = int(rng.integers(1, most + 1))
    if kind == "none" or len(keys) < 2:
        return "none", []
    if kind == "stale":  # what is stale is old
        return kind, keys[:number]
    if rng.random() < 0.5:
        start = int(rng.integers(0, len(keys) - number + 1))
        return kind, keys[start : start + number]
    return kind, [keys[i] for i in sorted(rng.choice(len(keys), number, replace=False))]


def disturb(
    kind: str, modalities: Mapping[str, NDArray[Any]], y: NDArray[Any], rng: np.random.Generator
) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    """The rows of one slice, disturbed: modalities (n, columns), numbers or text; targets (n,), or (n, targets)."""
    X = dict(modalities)
    if kind == "features":
        return {name: rng.permuted(block, axis=0) for name, block in X.items()}, y
    if kind == "labels":
        return X, rng.permutation(y)
    if y.dtype.kind != "f":  # classes have no gain: they are shifted by one, stale or faulty alike
        labels = np.unique(y)
        return X, labels[(np.searchsorted(labels, y) + 1) % len(labels)]
    if kind == "gain":
        return X, _fault(y, rng)
    middle = y.mean(axis=0)
    return X, middle - rng.uniform(0.5, 1.0) * (y - middle)


def _fault(y: NDArray[Any], rng: np.random.Generator) -> Float:
    """A sensor that reads too high or too low by a factor, or is off by a constant."""
    if rng.random() < 0.5:
        return np.asarray(y * rng.choice([rng.uniform(0.2, 0.6), rng.uniform(1.6, 3.0)]), dtype=np.float64)
    return np.asarray(y + rng.choice([-1.0, 1.0]) * rng.uniform(1.0, 3.0) * (y.std(axis=0) + 1e-9), dtype=np.float64)
