"""The value of single records: exact left-out residuals, and the policy over slices that a stated rule cuts.

A record's left-out residual is its error under the head that is fitted on all other records: its sums are subtracted,
which is what an erasure does, and by the hat matrix all residuals of a set cost one solve. (Allen, "The relationship
between variable selection and data augmentation and a method for prediction", Technometrics 1974.)

The policy judges slices of many records, by aggregates. Of single records it gets slices in one of three ways:

- `one`: slices of one record. What a policy has learned of slices says little there.
- `dealt`: records are dealt at random into slices, again and again; the value of a record is the mean influence of
  its slices, as in a group test (Lin et al., "Measuring the effect of training data on deep learning predictions via
  randomized experiments", ICML 2022).
- `ours`: records are split in two by their left-out residuals, where the squares within both sides are least, and
  each side is dealt into slices of its own. The policy says what those count, on the mean of several deals; the head is
  fitted under these influences, and what a record is worth is how well that head, without the record, knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frmu.models.encoders import Encoder, encode
from frmu.models.ridge import Factor, factorise
from frmu.models.statistics import statistics_of
from frmu.selection.network import Network
from frmu.selection.observation import observe
from frmu.selection.problem import PARTS, SelectionProblem, problem_of
from frmu.selection.search import Budget, RefitCounter
from frmu.selection.selectors import guided
from frmu.types import Float, Statistics

__all__ = ["VALUES", "Records", "left_out", "ridge_of", "split_in_two", "values"]

WIDE, NARROW = 512, 64  # relu features of the head that judges records, and of the one that the policy judges slices in
SLICES = 24  # of one deal
DEALS, MORE_DEALS = 8, 32  # of `ours`, and where nothing but the mean influence is the value
AT_ONCE = 250  # slices of one record in one problem
STEPS = 3  # looks of the policy, as in a federation
RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0)
LEAST = 1e-6  # an influence of zero, as a weight: a record that is forgotten still has a left-out residual
Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Records:
    """Records to value, `X` (n, columns) and `Y` (n, outputs), and those that judge, `V` and `U`, of the same columns.

    Targets of classes are one-hot in {-1, +1}; a regression's are in any unit.
    """

    X: Float
    Y: Float
    V: Float
    U: Float
    classes: bool


def left_out(phi: Float, Y: Float, ridge: float, weights: Float | None = None) -> Float:
    """Return each record's residual under the head fitted without it, (n, outputs), all for one solve.

    `phi` (n, d), its last column a one; `Y` (n, outputs); `weights` (n,) are above zero. The ridge is a share of the
    diagonal of all sums, as in `frmu.models.ridge`, and stays what it is when a record is left out.

    >>> phi, Y = np.ones((4, 1)), np.array([[0.0], [0.0], [0.0], [4.0]])
    >>> left_out(phi, Y, ridge=0.1).round(3)[:, 0].tolist()  # the mean of the others is all that this head knows
    [-1.333, -1.333, -1.333, 4.0]
    """
    w = np.ones(len(phi)) if weights is None else weights
    answer, B = _fitted(phi, Y, ridge, w)
    leverage = w * np.sum(phi * answer(phi.T).T, axis=1)
    return np.asarray((Y - phi @ answer(B)) / np.maximum(1.0 - leverage, 1e-9)[:, None], dtype=np.float64)


def _fitted(phi: Float, Y: Float, ridge: float, w: Float) -> tuple[Factor, Float]:
    weighted = phi * w[:, None]
    return factorise(weighted.T @ phi, ridge), weighted.T @ Y


def ridge_of(phi: Float, Y: Float, weights: Float | None = None) -> float:
    """Return the ridge of `RIDGES` under which the weighted squares of left-out residuals are least."""
    w = np.ones(len(phi)) if weights is None else weights
    return min(RIDGES, key=lambda ridge: float(np.sum(w[:, None] * left_out(phi, Y, ridge, w) ** 2)))


def split_in_two(x: Float) -> tuple[Indices, Indices]:
    """Return the places of the lower and of the upper values of x (n,), n > 1, split where the squares are least.

    >>> [side.tolist() for side in split_in_two(np.array([5.0, 0.0, 5.1, 0.2]))]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(x, kind="stable")
    sums = np.cumsum(x[order] - np.mean(x))
    size = np.arange(1, len(x))
    below = sums[:-1] ** 2 / size + (sums[-1] - sums[:-1]) ** 2 / (len(x) - size)
    at = int(np.argmax(below)) + 1
    return order[:at], order[at:]


# -- values ------------------------------------------------------------------------------------------------------


def values(kind: str, records: Records, network: Network, seed: int) -> Float:
    """Return the value of each record, (n,), greater is better; `kind` is one of `VALUES`."""
    return VALUES[kind](records, network, np.random.Generator(np.random.PCG64(seed)))


Rng = np.random.Generator


def _ours(records: Records, network: Network, rng: Rng) -> Float:
    wide, _ = _encoded(records, WIDE, rng)
    first = _worth(records, wide, None)
    influence = _dealt(records, network, rng, DEALS, split_in_two(first))
    return _worth(records, wide, np.maximum(influence, LEAST))


def _residual(records: Records, network: Network, rng: Rng) -> Float:
    wide, _ = _encoded(records, WIDE, rng)
    return _worth(records, wide, None)


def _mean_influence(records: Records, network: Network, rng: Rng) -> Float:
    return _dealt(records, network, rng, MORE_DEALS, [np.arange(len(records.X))])


def _one(records: Records, network: Network, rng: Rng) -> Float:
    phi, judges = _encoded(records, NARROW, rng)
    ridge, found = ridge_of(phi, records.Y), np.zeros(len(phi))
    order = rng.permutation(len(phi))
    for some in np.array_split(order, -(-len(order) // AT_ONCE)):
        rest = np.setdiff1d(order, some)
        problem = _problem(records, phi, judges, [np.array([at]) for at in some], ridge, rest)
        found[some] = _judged(problem, network)
    return found


VALUES: Mapping[str, Callable[[Records, Network, Rng], Float]] = {
    "ours": _ours, "residual": _residual, "one": _one, "dealt": _mean_influence,
}  # fmt: skip


def _worth(records: Records, phi: Float, weights: Float | None) -> Float:
    """Minus the size of left-out residuals, (n,); of classes its square, as the head has it."""
    ridge = ridge_of(phi, records.Y, weights)
    squares = np.sum(left_out(phi, records.Y, ridge, weights) ** 2, axis=1)
    return -squares if records.classes else -np.sqrt(squares)


def _dealt(records: Records, network: Network, rng: Rng, deals: int, sides: Sequence[Indices]) -> Float:
    """Return the mean influence of each record's slices over some deals, (n,)."""
    phi, judges = _encoded(records, NARROW, rng)
    ridge, found = ridge_of(phi, records.Y), np.zeros(len(phi))
    for _ in range(deals):
        slices = deal(sides, min(SLICES, len(phi)), rng)
        problem = _problem(records, phi, judges, slices, ridge, np.zeros(0, dtype=np.intp))
        for rows, influence in zip(slices, _judged(problem, network), strict=True):
            found[rows] += influence / deals
    return found


def deal(sides: Sequence[Indices], slices: int, rng: Rng) -> list[Indices]:
    """Deal the records of each side into slices of its own, about as many as it has records, in a drawn order."""
    total, found = sum(map(len, sides)), []
    for side in sides:
        number = min(len(side), max(1, round(slices * len(side) / total)))
        found += np.array_split(rng.permutation(side), number)
    return [found[at] for at in rng.permutation(len(found))]


def _problem(
    records: Records, phi: Float, judges: Float, slices: Sequence[Indices], ridge: float, rest: Indices
) -> SelectionProblem:
    """Slices beside the other records; all are of one age, and validation records are taken in turn for stretches."""
    nothing = Statistics.zero(phi.shape[1], records.Y.shape[1])
    return problem_of(
        {f"{at:04d}": statistics_of(phi[rows], records.Y[rows]) for at, rows in enumerate(slices)},
        np.full(len(slices), 0.5),
        statistics_of(phi[rest], records.Y[rest]) if len(rest) else nothing,
        [statistics_of(judges[at::PARTS], records.U[at::PARTS]) for at in range(PARTS)],
        nothing,
        ridge,
    )


def _judged(problem: SelectionProblem, network: Network) -> Float:
    """Return the influences that the policy proposes, (K,); no guard is asked."""
    account = RefitCounter(problem, Budget(STEPS + 1))
    kept = account.fit(problem.keep)
    return guided(network, account, observe(problem, kept, 0.0, kept.loss), STEPS).fit.influence


def _encoded(records: Records, features: int, rng: Rng) -> tuple[Float, Float]:
    """Relu features, columns and a one, of the records and of those that judge; 1 % of a column lies beyond its range.

    The range is that of the records to value: of a federation it would be declared.
    """
    low, high = np.quantile(records.X, [0.005, 0.995], axis=0)
    columns = records.X.shape[1]
    R = rng.standard_normal((columns, features)) * np.sqrt(2.0 / columns)
    by = {"": Encoder("relu", R, rng.uniform(-1.0, 1.0, features))}

    def encoded(X: Float) -> Float:
        return encode({"": np.clip(2.0 * (X - low) / np.maximum(high - low, 1e-9) - 1.0, -1.0, 1.0)}, by)

    return encoded(records.X), encoded(records.V)
