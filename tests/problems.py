"""Selection problems that cost nothing: a few slices, two of which have shuffled labels."""

from __future__ import annotations

import numpy as np

from frmu.models.statistics import statistics_of
from frmu.selection.problem import SelectionProblem, problem_of
from frmu.types import Statistics

__all__ = ["SLICES", "shuffled"]

SLICES = 6


def shuffled(rng: np.random.Generator) -> SelectionProblem:
    """A task of six slices of thirty records each; half of the tasks are of a client in a federation."""
    w = rng.normal(size=5)

    def block(n: int, wrong: bool = False) -> Statistics:
        X = np.c_[rng.normal(size=(n, 4)), np.ones(n)]
        y = X @ w + 0.2 * rng.normal(size=n)
        return statistics_of(X, (rng.permutation(y) if wrong else y)[:, None])

    bad = set(rng.choice(SLICES, 2, replace=False).tolist())
    slices = {f"s{s}": block(30, s in bad) for s in range(SLICES)}
    parts = [block(10) for _ in range(4)]
    rest = block(60) if rng.random() < 0.5 else Statistics.zero(5, 1)
    return problem_of(slices, np.linspace(1, 0, SLICES), rest, parts, block(60), 1e-3)
