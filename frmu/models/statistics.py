"""From encoded records to additive statistics, and from statistics to losses.

Every product here runs on one thread over the rows of one slice, so its bits depend on those rows alone:
not on the rows of other slices, not on where it runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from frmu.config import Config
from frmu.data.transform import learned_range, target_ranges
from frmu.models.encoders import basis, layout
from frmu.models.grid import ONE, QUARTERS, WEIGHTS, Basis, Columns, fixed, limbs
from frmu.types import Float, Statistics

__all__ = [
    "basis_of", "denominator", "loss", "numerics", "one_thread", "pack", "statistics_of", "target_columns",
    "target_grid", "targets", "unpack", "weights_of",
]  # fmt: skip


def targets(y: NDArray[Any], outputs: Sequence[str]) -> Float:
    """Targets as a matrix: one column for a regression, else one a class in {-1, +1}, (n, outputs).

    >>> targets(np.array(["b", "a"]), ["a", "b"])
    array([[-1.,  1.],
           [ 1., -1.]])
    """
    if y.dtype.kind == "f":
        return np.asarray(y, dtype=np.float64).reshape(len(y), len(outputs))
    return np.where(y[:, None] == np.array(outputs)[None, :], 1.0, -1.0)


def target_columns(config: Config, outputs: Sequence[str]) -> Columns:
    """The columns of targets: a regression's are made of two limbs of its declared range, a class's of one integer."""
    if config.data.task != "regression":
        return Columns.plain(len(outputs), 1.0)
    if len(outputs) > 1:
        return Columns.of_limbs(len(outputs))
    low, high = learned_range(config, outputs[0])
    return Columns.of_limbs(1, (high - low) / (2.0 * ONE), ONE * (high + low) / (high - low))


def target_grid(y: NDArray[Any], config: Config, outputs: Sequence[str]) -> NDArray[np.int8]:
    """Targets as they are learned, as integers, (n, integers); see `target_columns` and `frmu.data.transform`."""
    if config.data.task != "regression":
        return targets(y, outputs).astype(np.int8)
    low, high = target_ranges(config)
    return limbs(fixed(2.0 * (y.reshape(len(y), len(low)) - low) / (high - low) - 1.0))


def weights_of(y: NDArray[Any], config: Config) -> NDArray[np.int64] | None:
    """Return how often each record counts, (n,), by its class; None where all count once."""
    weights = config.data.weights
    if not weights or y.dtype.kind == "f":
        return None
    labels, at = np.unique(y, return_inverse=True)
    return np.array([weights.get(str(label), 1) for label in labels], dtype=np.int64)[at]


def basis_of(config: Config, outputs: Sequence[str]) -> Basis:
    """The way from the integers of a record to the features and targets of a config."""
    return basis(layout(config), target_columns(config, outputs))


def denominator(config: Config) -> int:
    """Steps of weight in one record of a client's sums: of influence, and of each modality that a record may lack."""
    return WEIGHTS * QUARTERS ** (len(config.data.modalities) if config.optional else 0)


def statistics_of(phi: Float, Y: Float) -> Statistics:
    """The statistics of encoded records phi, (n, d), and their targets Y, (n, outputs)."""
    return Statistics(len(phi), phi.T @ phi, phi.T @ Y, float(np.sum(Y * Y)))


def loss(W: Float, s: Statistics) -> float:
    """Mean squared error of the head W, (d, outputs), over the records behind s, in O(d^2); 0 for none.

    >>> s = statistics_of(np.array([[1.0], [1.0]]), np.array([[1.0], [3.0]]))
    >>> loss(np.array([[2.0]]), s)
    1.0
    """
    if s.n == 0:
        return 0.0
    return max(0.0, float(np.sum(W * (s.G @ W - 2.0 * s.b)) + s.c) / s.n)


def pack(G: Float) -> Float:
    """The upper triangle of a symmetric matrix, (d (d + 1) / 2,): half the bytes on the wire."""
    return G[np.triu_indices(len(G))]


def unpack(packed: Float, d: int) -> Float:
    """The inverse of `pack`, (d, d).

    >>> unpack(pack(np.array([[1.0, 2.0], [2.0, 5.0]])), 2)
    array([[1., 2.],
           [2., 5.]])
    """
    G = np.zeros((d, d))
    G[np.triu_indices(d)] = packed
    return G + np.triu(G, 1).T


@cache
def _pools() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401 - its own BLAS must be loaded to be limited

    return ThreadpoolController()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run products on one thread: the order of a sum, and so its last bit, depends on the number of threads."""
    with _pools().limit(limits=1):
        yield


def numerics() -> str:
    """Return what the last bits of a head depend on: the library that solves for it, and its kernel."""
    import scipy

    blas = {
        f"{pool.get('internal_api')} {pool.get('version')} {pool.get('architecture')}"
        for pool in _pools().info()
        if pool.get("user_api") == "blas"
    }
    return f"scipy {scipy.__version__}, {', '.join(sorted(blas))}"
