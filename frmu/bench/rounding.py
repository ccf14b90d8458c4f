"""The price of the grid: the test error of a head fitted on rounded records beside one fitted in float64.

The features are the same: random directions, offsets, columns. In float64 nothing is rounded and nothing clipped; on
the grid columns have 16 bits and features 8, as `frmu.models.grid` has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config, load
from frmu.data.parquet import gather, survey
from frmu.data.shard import SPLITS, Shard
from frmu.datasets import cached
from frmu.models.encoders import Encoder, Frozen, encode, encoders
from frmu.models.ridge import solve
from frmu.models.statistics import targets
from frmu.types import Float

__all__ = ["SETS", "bench_rounding", "in_float64"]

SETS = ("appliances", "power", "traffic", "air", "bikes", "parking", "medical", "retail", "flights")
Columns = Mapping[str, NDArray[Any]]


def bench_rounding(sets: Sequence[str], cache: Path) -> dict[str, Any]:
    """Fit all records of each set both ways; test RMSE, and how much greater it is on the grid, in percent."""
    rows: list[dict[str, Any]] = []
    for name in sets:
        config = load(sorted(cached(name, cache).glob("*.toml"))[0])
        by = encoders(config)
        shards = [Shard(table, config) for table in gather(config, survey(config).clients).values()]
        exact, grid = (_error(config, shards, partial(way, by=by)) for way in (in_float64, encode))
        told = {"float64": exact, "grid": grid, "worse": 100.0 * (grid / exact - 1.0)}
        rows.append({"set": name, "records": sum(map(len, shards)), **told})
    return {"rows": rows, "worst": max(float(row["worse"]) for row in rows)}


def in_float64(columns: Columns, by: Mapping[str, Frozen]) -> Float:
    """phi of relu encoders as it would be without a grid, (n, d).

    >>> relu = Encoder("relu", np.array([[2.0, -1.0]]), np.zeros(2))
    >>> in_float64({"a": np.array([[0.5]])}, {"a": relu}).tolist()
    [[1.0, 0.0, 0.5, 1.0]]
    """
    parts = []
    for name, X in columns.items():
        encoder = by[name]
        assert isinstance(encoder, Encoder), f"{name} is no modality of numbers"
        assert encoder.kind == "relu", f"{name} has no relu features"
        there = X[:, -1:] if encoder.optional else np.ones((len(X), 1))
        X = X[:, :-1] if encoder.optional else X
        fired = np.maximum(X @ encoder.R + encoder.t, 0.0) * np.sqrt(2.0 / len(encoder.t))
        parts += [fired * there, X * there, *([there] if encoder.optional else [])]
    return np.concatenate([*parts, np.ones((len(parts[0]), 1))], axis=1)


def _error(config: Config, shards: Sequence[Shard], phi_of: Callable[[Columns], Float]) -> float:
    """Test RMSE of the head that is fitted on every client's records, each in full."""

    def some(shard: Shard, split: str) -> tuple[Float, Float]:
        rows = np.flatnonzero(shard.split == SPLITS.index(split))
        phi = phi_of({name: X[rows] for name, X in shard.modalities.items()})
        return phi, targets(shard.target[rows], config.data.targets)

    fitted = [some(shard, "fit") for shard in shards]
    H, B = (sum((phi.T @ of for phi, of in pairs), np.zeros(1)) for pairs in ([(p, p) for p, _ in fitted], fitted))
    W = solve(H, B, config.model.frozen_ridge)
    tests = [some(shard, "test") for shard in shards]
    square = sum(float(np.sum((phi @ W - Y) ** 2)) for phi, Y in tests)
    return float(np.sqrt(square / sum(len(Y) for _, Y in tests)))
