"""The grid: what is summed is an integer, so sums are exact in any order, on any machine.

An encoded record is a row z of small integers (int8), its targets among them. All sums that a head needs are the one
matrix M = sum z z^T of whole numbers: adding, subtracting and weighing it by whole numbers loses nothing, whatever
the order, the split into blocks, the number of threads or hosts. A record's features phi are linear in z with fixed
coefficients (`Basis`), so the `Statistics` of phi follow from M; only there, and in the solve, is anything rounded.

- A scaled column in [-1, 1] has 16 bits, in two limbs of 8: x = (256 hi + lo) / 32512.
- A feature of a frozen encoder has 8 bits: what fires is 0 to 255 steps, up to the most that it can be or 8.
- A target of a regression has 16 bits of its declared range, in two limbs; a class is -1 or +1.
- An influence and an attention are multiples of 1/64, that of a modality within a slice one of 1/4.

(Integers as what makes parallel sums reproducible: Demmel and Nguyen, "Parallel reproducible summation", IEEE
Transactions on Computers 2015, without the floating point.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.errors import FrmuError
from frmu.types import Float, Statistics, Sums, mirror

__all__ = [
    "LEFT", "ONE", "QUARTERS", "WEIGHTS", "Basis", "Columns", "fixed", "gram", "limbs", "on_grid", "present", "total",
]  # fmt: skip

WEIGHTS = 64  # an influence or an attention of one, in steps
QUARTERS = 4  # the influence of a modality within a slice
ONE = 32512  # a scaled column's one, in steps: 127 times 256, so that both limbs fit in 8 bits
LEFT = 128  # a feature of 0 to 255 steps is kept as -128 to 127
_ROWS = 1024  # of int8 by int8: so many products add up exactly in float32
_LARGEST = 2**63 - 1
_STEP = 2**14  # no product of two entries is greater
_log = logging.getLogger(__name__)


def on_grid(influence: Float) -> Float:
    """Round influences or attentions to the grid of 1/64.

    >>> on_grid(np.array([1.0, 0.3, 0.001])).tolist()
    [1.0, 0.296875, 0.0]
    """
    return np.asarray(np.rint(influence * WEIGHTS) / WEIGHTS, dtype=np.float64)


def fixed(X: Float) -> Float:
    """Scaled columns as whole steps, float64; beyond [-1, 1] they are clipped.

    >>> fixed(np.array([[0.5, -1.0, 7.0]])).tolist()
    [[16256.0, -32512.0, 32512.0]]
    """
    return np.asarray(np.clip(np.rint(X * ONE), -ONE, ONE), dtype=np.float64)


def limbs(steps: Float) -> NDArray[np.int8]:
    """Whole steps (n, columns) in two limbs, (n, 2 columns) of int8: all high ones, then all low ones.

    >>> limbs(np.array([[-300.0, 16384.0]])).tolist()
    [[-1, 64, -44, 0]]
    """
    high = np.floor((steps + 128.0) / 256.0)
    return np.concatenate([high, steps - 256.0 * high], axis=1).astype(np.int8)


def present(Z: NDArray[np.int8], there: NDArray[np.bool_], idle: NDArray[np.int64]) -> NDArray[np.int8]:
    """A modality's integers, (n, integers): idle where it is missing, and whether it is there."""
    whole = np.concatenate([Z, there[:, None].astype(np.int8)], axis=1)
    return np.where(there[:, None], whole, idle.astype(np.int8))


def gram(Z: NDArray[np.int8], weights: NDArray[np.int64] | None = None) -> Sums:
    """M = sum z z^T of rows (n, D) of int8, exact: products add up in float32 as long as no bit is lost, then in int64.

    With `weights` (n,), whole numbers, a row counts so often.

    >>> gram(np.array([[1, 100], [1, -28]], dtype=np.int8)).M.tolist()
    [[2, 72], [72, 10784]]
    """
    if weights is not None:
        parts = ((int(weight), gram(Z[weights == weight])) for weight in np.unique(weights))
        return total(parts, Z.shape[1])
    D, kind = Z.shape[1], _product()
    block, product, M = np.empty((min(len(Z), _ROWS), D), kind), np.empty((D, D), kind), np.zeros((D, D))
    for at in range(0, len(Z), _ROWS):
        rows = block[: len(Z) - at]
        np.copyto(rows, Z[at : at + _ROWS])
        np.matmul(rows.T, rows, out=product)
        M += product  # whole numbers below 2^53 add up exactly
    return Sums.of(M)


@cache
def _product() -> Any:
    """Return in what products are made here: float32, unless a library that rounds it down to fewer bits is at work.

    It takes half of the time of float64 (`frmu bench speed`). An 8-bit product, as torch has one, would need torch in
    every host.
    """
    return _exact_in(lambda block: block.T @ block)


def _exact_in(product: Callable[[Any], Any]) -> Any:
    """Return float32 if a product is exact in it to the last bit that `gram` relies on, else float64, and say so."""
    rng = np.random.default_rng(0)
    Z = rng.integers(-128, 128, (_ROWS, 40), dtype=np.int8)
    Z[:, :2] = -128  # the greatest sum that there is
    whole = Z.astype(np.int64)
    if np.array_equal(product(Z.astype(np.float32)), whole.T @ whole):
        return np.float32
    _log.warning(
        "Products in float32 are not exact on this machine (its linear algebra rounds to fewer bits), so sums are made "
        "in float64: the same numbers, at twice the time"
    )
    return np.float64


def total(parts: Iterable[tuple[int, Sums]], D: int) -> Sums:
    """The sum of sums (D, D) under whole weights.

    Raises `FrmuError` before anything is added that might not fit in 64 bits.
    """
    packed, most = np.zeros(D * (D + 1) // 2, dtype=np.int64), 0
    for weight, sums in parts:
        most += abs(weight * sums.n)
        if most * _STEP > _LARGEST:
            raise FrmuError(
                f"the sums of records under their weights, {most} in all, might overflow 64 bits; fit fewer records, "
                "or fewer modalities that a record may lack"
            )
        packed += sums.packed if weight == 1 else np.multiply(sums.packed, weight, dtype=np.int64)
    return Sums(packed) + Sums.zero(D)


@dataclass(frozen=True, slots=True)
class Columns:
    """Some columns of phi, or targets, as they are made of integers of their own and of the record's one.

    `index` (columns, 3) counts from the first of their own integers, and -1 is the one.
    """

    index: NDArray[np.intp]
    terms: Float
    scale: Float
    idle: NDArray[np.int64]

    @staticmethod
    def plain(columns: int, scale: float) -> Columns:
        """An integer a column."""
        own = np.arange(columns)
        return Columns(_three(own), _three(np.ones(columns)), np.full(columns, scale), np.zeros(columns, np.int64))

    @staticmethod
    def shifted(columns: int, scale: Float) -> Columns:
        """An integer a column, of 0 to 255 steps of its own scale, kept less 128."""
        own, one = np.arange(columns), np.ones(columns)
        index, terms = _three(own, np.full(columns, -1)), _three(one, LEFT * one)
        return Columns(
            index, terms, np.broadcast_to(scale, columns).astype(np.float64), np.full(columns, -LEFT, np.int64)
        )

    @staticmethod
    def of_limbs(columns: int, scale: float = 1.0 / ONE, middle: float = 0.0) -> Columns:
        """Two limbs a column, as `limbs` gives them, about a middle in steps."""
        own, one = np.arange(columns), np.ones(columns)
        index = _three(own, own + columns, np.full(columns, -1))
        return Columns(
            index, _three(256.0 * one, one, middle * one), np.full(columns, scale), np.zeros(2 * columns, np.int64)
        )

    @staticmethod
    def of_blocks(blocks: Sequence[Columns]) -> Columns:
        """Blocks side by side, and a bias: a column that is the record's one."""
        found = Columns.plain(0, 1.0)
        for block in blocks:
            found = found.beside(block)
        bias = Columns(_three(np.full(1, -1)), _three(np.ones(1)), np.ones(1), np.zeros(0, np.int64))
        return found.beside(bias)

    def beside(self, other: Columns) -> Columns:
        """These and others to the right of them."""
        moved = np.where(other.index >= 0, other.index + len(self.idle), -1)
        return Columns(
            np.concatenate([self.index, moved]),
            np.concatenate([self.terms, other.terms]),
            np.concatenate([self.scale, other.scale]),
            np.concatenate([self.idle, other.idle]),
        )

    def basis(self, d: int | None = None) -> Basis:
        """The basis of whole records, in which the one comes first; the first `d` columns are phi."""
        idle = np.concatenate([np.ones(1, np.int64), self.idle])
        return Basis(self.index + 1, self.terms, self.scale, idle, len(self.scale) if d is None else d)


def _three(*parts: NDArray[Any]) -> NDArray[Any]:
    """Up to three parts, one a column, (columns, 3); what is left is none of the record's one."""
    blank = np.zeros_like(parts[0])
    if parts[0].dtype.kind == "i":
        blank = blank - 1
    return np.stack([*parts, *[blank] * (3 - len(parts))], axis=1)


@dataclass(frozen=True, slots=True)
class Basis:
    """The way from the integers of a record to features and targets: each is a sum of up to three of them, scaled.

    `index` (columns, 3) and `terms` (columns, 3) say of which and how often, `scale` (columns,) by what. The first
    `d` columns are phi, the rest targets. `idle` (D,) is what an integer is where its modality is missing.
    """

    index: NDArray[np.intp]
    terms: Float
    scale: Float
    idle: NDArray[np.int64]
    d: int

    @property
    def D(self) -> int:  # noqa: N802 - the symbol of the equations
        """The integers of a record."""
        return len(self.idle)

    def phi(self, Z: NDArray[np.int8]) -> Float:
        """The features (n, d) of records (n, D)."""
        whole = Z.astype(np.float64)
        made = sum(whole[:, self.index[: self.d, term]] * self.terms[: self.d, term] for term in range(3))
        return np.asarray(made * self.scale[: self.d])

    def predictions(self, Z: NDArray[np.int8], W: Float) -> Float:
        """Return phi W (n, outputs) of records (n, D) and a head (d, outputs), without making phi.

        phi is linear in z, so the head is taken to z once.
        """
        V = np.zeros((self.D, W.shape[1]))
        scaled = W * self.scale[: self.d, None]
        for term in range(3):
            np.add.at(V, self.index[: self.d, term], scaled * self.terms[: self.d, term, None])
        return np.asarray(Z.astype(np.float64) @ V)

    def statistics(self, sums: Sums, weight: int = 1, n: int | None = None) -> Statistics:
        """The statistics of features and targets behind sums of `n` records, each of so many steps of weight."""
        (one,) = self.each([sums], weight)
        return one if n is None else replace(one, n=n)

    def each(self, many: Sequence[Sums], weight: int = 1) -> list[Statistics]:
        """The statistics behind each of many sums."""
        if not many:
            return []
        packed = np.stack([sums.packed for sums in many]).astype(np.float64)
        half = self._made(packed[:, mirror(self.D)])
        S = self._made(np.swapaxes(half, 1, 2))  # symmetric, and rows are faster to reach than columns
        S *= self.scale[:, None] * self.scale / weight
        d = self.d
        G, b = np.ascontiguousarray(S[:, :d, :d]), np.ascontiguousarray(S[:, :d, d:])
        c = np.trace(S[:, d:, d:], axis1=1, axis2=2).tolist()
        return [Statistics(sums.n, *of) for sums, *of in zip(many, G, b, c, strict=True)]

    def _made(self, M: Float) -> Float:
        """Rows of integers (..., D, columns) made into rows of features and targets, not scaled."""
        made = self.terms[:, 0, None] * M[..., self.index[:, 0], :]
        for term in (1, 2):
            more = np.flatnonzero(self.terms[:, term])
            made[..., more, :] += self.terms[more, term, None] * M[..., self.index[more, term], :]
        return np.asarray(made)

    def muted(self, sums: Sums, columns: slice, quarters: int) -> Sums:
        """Four times the sums under an influence of `quarters` / 4 of the modality that the integers `columns` are of.

        As if that share of the records had the modality and the rest lacked it; see `frmu.models.modality`.
        """
        whole, idle = sums.M, self.idle[columns]
        M = whole.copy()
        M[columns] = idle[:, None] * M[0]
        M[:, columns] = M[:, :1] * idle
        return Sums.of(quarters * whole + (QUARTERS - quarters) * M)
