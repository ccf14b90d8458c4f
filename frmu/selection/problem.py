"""A task: the slices of one client, and what any influences over them would give, exactly.

With slice statistics in hand a refit is one factorisation and a loss is a product, so "what if this slice counted
less" has an exact answer in a fraction of a millisecond, not an estimate. A slice is judged as it will be used: in a
head fitted together with the rest of the federation, on the client's own validation records. Judged in a
head of the client's own it looks more harmful than it is, and clean slices are forgotten.

(Leave-one-out as influence: Koh and Liang, "Understanding black-box predictions via influence functions", ICML
2017, here without the approximation, because the head is linear.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.models.ridge import solve
from frmu.models.statistics import loss
from frmu.types import Float, Statistics

__all__ = ["PARTS", "SelectionProblem", "pick", "problem_of", "refit", "stack", "validation_loss", "weighted"]

PARTS = 4  # stretches of the validation records: what helps in one only, helps by chance


@dataclass(frozen=True, slots=True)
class SelectionProblem:
    """K slices in the order of their keys; `G` (K, d, d), `b` (K, d, outputs), `n`, `c` and `age` (K,).

    `rest` holds the sums of all other clients. `validation` judges in production, and is there once more in
    stretches, `parts`; `later`, what came after it, is seen by the reward alone.

    Problems of as many slices and stretches can stand side by side, see `stack`: then every array, those of `rest` and
    of what judges among them, has one axis more in front, and so has whatever is made of them.
    """

    keys: tuple[str, ...]
    n: Float
    G: Float
    b: Float
    c: Float
    age: Float
    rest: Statistics
    validation: Statistics
    parts: tuple[Statistics, ...]
    later: Statistics
    ridge: float

    def __len__(self) -> int:
        return self.n.shape[-1]

    def slice(self, s: int) -> Statistics:
        """The statistics of one slice."""
        return Statistics(int(self.n[s]), self.G[s], self.b[s], float(self.c[s]))

    @property
    def keep(self) -> Float:
        """Full influence of every slice, (K,)."""
        return np.ones(self.n.shape)

    @property
    def by_itself(self) -> bool:
        """Return whether there is no other client: then only how slices count against each other matters."""
        return bool(np.all(self.rest.G[..., -1, -1] == 0.0))


def problem_of(
    slices: Mapping[str, Statistics],
    age: Float,
    rest: Statistics,
    parts: Sequence[Statistics],
    later: Statistics,
    ridge: float,
) -> SelectionProblem:
    """Stack the statistics of slices, in the order of their keys; there must be at least one."""
    keys = tuple(sorted(slices))
    stacked = [slices[key] for key in keys]
    return SelectionProblem(
        keys=keys,
        n=np.array([part.n for part in stacked], dtype=np.float64),
        G=np.stack([part.G for part in stacked]),
        b=np.stack([part.b for part in stacked]),
        c=np.array([part.c for part in stacked]),
        age=age,
        rest=rest,
        validation=Statistics.total(parts, *stacked[0].b.shape),
        parts=tuple(part for part in parts if part.n),
        later=later,
        ridge=ridge,
    )


@dataclass(frozen=True, slots=True)
class _Stacked(Statistics):
    """Statistics side by side, with an axis in front: `n` and `c` are arrays, too."""

    n: Any
    c: Any


def stack(problems: Sequence[SelectionProblem]) -> SelectionProblem:
    """Problems side by side, of as many slices and as many stretches each, and by themselves or not, all alike.

    `later` is that of the first: what judges side by side is not shown what came later.
    """
    one = problems[0]
    arrays = {name: np.stack([getattr(p, name) for p in problems]) for name in ("n", "G", "b", "c", "age")}
    return SelectionProblem(
        keys=(),
        **arrays,
        rest=_side_by_side([p.rest for p in problems]),
        validation=_side_by_side([p.validation for p in problems]),
        parts=tuple(_side_by_side(same) for same in zip(*(p.parts for p in problems), strict=True)),
        later=one.later,
        ridge=one.ridge,
    )


def pick(stacked: SelectionProblem, which: NDArray[np.bool_]) -> SelectionProblem:
    """Some of the problems of a stack, (problems,) bool."""
    arrays = {name: getattr(stacked, name)[which] for name in ("n", "G", "b", "c", "age")}

    def some(of: Any) -> Statistics:
        return _Stacked(of.n[which], of.G[which], of.b[which], of.c[which])

    return SelectionProblem(
        keys=(), **arrays, rest=some(stacked.rest), validation=some(stacked.validation),
        parts=tuple(map(some, stacked.parts)), later=stacked.later, ridge=stacked.ridge,
    )  # fmt: skip


def _side_by_side(parts: Sequence[Statistics]) -> Statistics:
    n, c = (np.array([getattr(part, name) for part in parts], dtype=np.float64) for name in ("n", "c"))
    return _Stacked(n, np.stack([part.G for part in parts]), np.stack([part.b for part in parts]), c)


def weighted(task: SelectionProblem, influence: Float) -> tuple[Float, Float]:
    """H = rest + sum i_s G_s, (d, d), and B = rest + sum i_s b_s, (d, outputs), added slice by slice."""
    H, B = task.rest.G.copy(), task.rest.b.copy()
    for s in range(len(task)):
        weight, G, b = influence[..., s, None, None], task.G[..., s, :, :], task.b[..., s, :, :]
        if np.all(weight == 1.0):
            H += G
            B += b
        elif np.any(weight != 0.0):
            H += weight * G
            B += weight * b
    return H, B


def refit(task: SelectionProblem, influence: Float) -> Float:
    """The head (d, outputs) under influences (K,) in [0, 1]."""
    return solve(*weighted(task, influence), task.ridge)


def validation_loss(task: SelectionProblem, influence: Float) -> float:
    """The validation loss of the head that these influences give."""
    return loss(refit(task, influence), task.validation)
