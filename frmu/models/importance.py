"""The inputs that a learned metric leans on.

A layer sees its inputs through S, so it moves by e^T S^2 e for a small step e; the diagonal of S^2 is, up to the
lattice, the mean squared slope of the model before it along each scaled column (the average gradient outer product:
Radhakrishnan et al., Science 2024). A column's importance is its share of that diagonal. What is off the diagonal says
which columns act together. Columns are on their declared ranges, so a range that is too wide makes a column look weak.

Only the metric is read, and it is whole numbers of a state: no record is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from frmu.config import Config
from frmu.models.features import METRIC, features_of
from frmu.types import Float, State

__all__ = ["Column", "Pair", "importances", "learned_columns", "shares", "strongest_pairs"]


@dataclass(frozen=True, slots=True)
class Column:
    """A scaled column that learned features see."""

    modality: str
    name: str


@dataclass(frozen=True, slots=True)
class Pair:
    """Two columns that act together; `share` is of the trace of S^2, below zero where they act against each other."""

    one: Column
    other: Column
    share: float


def learned_columns(config: Config) -> tuple[Column, ...]:
    """The columns that a metric is over, in its order."""
    names = (name for name in config.data.modalities if config.learned(name))
    return tuple(Column(modality, name) for modality in names for name in config.column_names(modality))


def importances(state: State) -> list[Float]:
    """The shares of the columns, (columns,), one array for each metric of a state, the first layer's first."""
    return [shares(metric) for metric in _metrics(state)]


def shares(metric: Float) -> Float:
    """The diagonal of S^2, (columns,), made to sum to one; the step of the lattice does not matter.

    >>> shares(np.array([[3.0, 0.0], [0.0, 1.0]])).tolist()
    [0.9, 0.1]
    """
    squared = np.sum(metric * metric, axis=1)
    return np.asarray(squared / squared.sum())


def strongest_pairs(state: State, columns: Sequence[Column], most: int = 10) -> list[Pair]:
    """The pairs that a state's last metric couples most, the strongest first; none where it is diagonal."""
    metrics = _metrics(state)
    if not metrics:
        return []
    S = metrics[-1]
    squared = S @ S
    upper = np.triu(squared, 1) / np.trace(squared)
    order = np.argsort(-np.abs(upper), axis=None, kind="stable")[:most]
    places = zip(*np.unravel_index(order, upper.shape), strict=True)
    return [Pair(columns[i], columns[j], float(upper[i, j])) for i, j in places if upper[i, j] != 0.0]


def _metrics(state: State) -> list[Float]:
    if features_of(state) is None:
        return []
    return [state.parameters[f"{METRIC}.{layer}"] for layer in range(1, state.learned["layer"] + 1)]
