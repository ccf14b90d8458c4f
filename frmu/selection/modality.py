"""Muting: one modality of a slice counts less, and the rest of the slice stays.

A slice whose thermometer broke still has a calendar and a load. After the influences of slices are decided, every
slice is looked at again, modality by modality: what would the validation loss be if this one were muted in it, or,
for a slice that was forgotten or attenuated, if it were kept with this one muted. All these heads are solved for
together, from one factorisation: (A + dA) (W' - W) = dB - dA W by a few steps of conjugate gradients, preconditioned
with A. Their first step is the influence function; it alone does not do, for whether a modality is there is nearly
collinear with the bias, and along that a single slice changes A a lot. What the slice's own records say as well
(`_moves`) is confirmed by exact refits, alone and together, and what does not gain the margin is not applied.

Muting leaves in a slice what the lost modality would have explained as noise. So it beats forgetting where records
are scarce, and merely equals it where the other slices tell enough.

(Influence functions by conjugate gradients: Koh and Liang, "Understanding black-box predictions via influence
functions", ICML 2017.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from frmu.models.modality import attenuated
from frmu.models.ridge import Factor, factorise, regularised, solve
from frmu.models.statistics import loss
from frmu.selection.problem import SelectionProblem, weighted
from frmu.types import Float, Statistics

__all__ = ["Muting", "mute"]

ROUNDS = 4  # observations of all slices; each must gain the margin
GATE = 0.1  # by how much a slice's own records must be told better without a modality
STEPS = 5  # of conjugate gradients
_TINY = 1e-12
_BELOW = (0.0, 0.25)  # influences of a modality that are tried


@dataclass(frozen=True, slots=True)
class Muting:
    """The influences that are applied: of slices (K,), of modalities within them (K, M), and what was seen.

    `scores` (K, M) say how much the validation loss grows, relative to the present one, if the modality is muted in
    a slice that is kept: above 0 it helps. They are predicted, under the influences that were decided for slices.
    `loss` is the validation loss of what is applied, `refits` the solves it took.
    """

    influence: Float
    modality: Float
    scores: Float
    loss: float
    refits: int

    def below(self, task: SelectionProblem, blocks: Mapping[str, slice]) -> dict[str, dict[str, float]]:
        """The influences below one of modalities in slices that count, by slice and modality."""
        found = {
            key: {name: float(q) for name, q in zip(blocks, row, strict=True) if q < 1.0}
            for key, row, i in zip(task.keys, self.modality, self.influence, strict=True)
            if i > 0.0
        }
        return {key: of for key, of in found.items() if of}


def mute(task: SelectionProblem, influence: Float, blocks: Mapping[str, slice], margin: float) -> Muting:
    """Mute modalities of slices where it lowers the validation loss by the margin, given influences (K,).

    `blocks` are the columns of phi by modality. With fewer than two, or without a validation record, nothing is
    muted. No slice is left without a modality that counts in full: to forget it whole is not for this function.
    """
    view = _View.of(task, influence, np.ones((len(task), len(blocks))), blocks)
    if len(blocks) < 2 or task.validation.n == 0:
        return Muting(influence, view.q, np.zeros_like(view.q), view.loss, 0)
    change = _changes(view)
    scores = (change[:, :-1] - change[:, -1:]) / (view.loss + _TINY)
    heads = _heads(view)
    refits = 1 + len(heads)
    for _ in range(ROUNDS):
        moves = _moves(view, change, heads)
        tried = [view.after(moves[:size], level) for size in _sizes(len(moves)) for level in _BELOW]
        refits += len(tried)
        best = min(tried, key=lambda one: one.loss, default=view)
        if best.loss >= view.loss or best.loss > (1.0 - margin) * view.loss:
            break
        view, change = best, _changes(best)
    return Muting(view.influence, view.q, scores, view.loss, refits)


@dataclass(frozen=True, slots=True)
class _View:
    """The head under some influences, and the sums behind it."""

    task: SelectionProblem
    blocks: Mapping[str, slice]
    influence: Float
    q: Float
    H: Float
    B: Float
    W: Float
    loss: float

    @staticmethod
    def of(task: SelectionProblem, influence: Float, q: Float, blocks: Mapping[str, slice]) -> _View:
        """The view from full influence of all modalities."""
        return _View._solved(task, blocks, influence, q, *weighted(task, influence))

    @staticmethod
    def _solved(
        task: SelectionProblem, blocks: Mapping[str, slice], influence: Float, q: Float, H: Float, B: Float
    ) -> _View:
        W = solve(H, B, task.ridge)
        return _View(task, blocks, influence, q, H, B, W, loss(W, task.validation))

    def part(self, s: int) -> Statistics:
        """A slice under the influences of its modalities, but not its own."""
        return attenuated(
            self.task.slice(s), self.blocks, {m: float(q) for m, q in zip(self.blocks, self.q[s], strict=True) if q < 1}
        )

    def after(self, moves: list[tuple[int, int]], level: float) -> _View:
        """The view once some slices, each once, are kept with a modality under the influence `level`."""
        influence, q, H, B = self.influence.copy(), self.q.copy(), self.H.copy(), self.B.copy()
        names = list(self.blocks)
        for s, m in moves:
            before = self.part(s)
            new = attenuated(before, self.blocks, {names[m]: level})
            H += new.G - influence[s] * before.G
            B += new.b - influence[s] * before.b
            influence[s], q[s, m] = 1.0, level
        return _View._solved(self.task, self.blocks, influence, q, H, B)


def _changes(view: _View) -> Float:
    """Return how the validation loss is predicted to change, (K, M + 1), if a slice is kept with one modality muted.

    And, in the last column, if it is kept with none muted more than it is.
    """
    task, d = view.task, len(view.W)
    keep = np.ones((len(view.blocks) + 1, d, 1))  # 0 where a modality is muted
    for row, block in zip(keep, view.blocks.values(), strict=False):
        row[block] = 0.0
    shrink = np.full((d, 1), task.ridge)
    shrink[-1] = 0.0
    parts = [view.part(s) for s in range(len(task))]

    def times(X: Float) -> Float:
        """dA X for each slice and candidate, (K, M + 1, d, outputs)."""
        out = np.empty_like(X)
        for s, (part, i) in enumerate(zip(parts, view.influence, strict=True)):
            masked = keep * (part.G @ (keep * X[s]))
            out[s] = masked - i * (part.G @ X[s]) + shrink * (keep - i) * part.G.diagonal()[:, None] * X[s]
        return out

    rest = np.stack([(keep - i) * part.b for part, i in zip(parts, view.influence, strict=True)])  # dB
    rest -= times(np.broadcast_to(view.W, rest.shape))
    delta = _conjugate(regularised(view.H, task.ridge), factorise(view.H, task.ridge), times, rest)
    slope = 2.0 * (task.validation.G @ view.W - task.validation.b)
    return np.asarray(np.sum(delta * (task.validation.G @ delta + slope), axis=(2, 3)) / task.validation.n)


def _conjugate(A: Float, factor: Factor, times: Callable[[Float], Float], R: Float) -> Float:
    """(A + dA)^-1 R for many dA at once, (K, M + 1, d, outputs), by conjugate gradients from A^-1."""

    def near(X: Float) -> Float:
        flat = np.ascontiguousarray(np.moveaxis(X, 2, 0)).reshape(len(A), -1)
        return np.moveaxis(factor(flat).reshape(len(A), *X.shape[:2], X.shape[3]), 0, 2)

    def dot(X: Float, Y: Float) -> Float:
        return np.asarray(np.sum(X * Y, axis=2, keepdims=True))

    X, Z = np.zeros_like(R), near(R)
    P, size = Z, dot(R, Z)
    for _ in range(STEPS):
        Q = A @ P + times(P)
        step = size / (dot(P, Q) + _TINY)
        X, R = X + step * P, R - step * Q
        Z = near(R)
        last, size = size, dot(R, Z)
        P = Z + size / (last + _TINY) * P
    return X


def _sizes(moves: int) -> list[int]:
    """1, 2, 4, ... and all of the moves.

    >>> _sizes(6)
    [1, 2, 4, 6]
    """
    return sorted({min(2**power, moves) for power in range(moves.bit_length() + 1)} - {0})


def _heads(view: _View) -> list[Float]:
    """The heads if the whole federation lacked a modality, one a modality, and if it lacked all of them."""
    whole = Statistics(0, view.H, view.B, 0.0)
    lacking = [{name: 0.0} for name in view.blocks] + [dict.fromkeys(view.blocks, 0.0)]
    parts = [attenuated(whole, view.blocks, some) for some in lacking]
    return [solve(part.G, part.b, view.task.ridge) for part in parts]


def _moves(view: _View, change: Float, heads: Sequence[Float]) -> list[tuple[int, int]]:
    """Slices, and the modality that each had better be kept without, by predicted gain, the greatest first.

    A validation loss alone would be fitted by choosing among so many. So the slice's own records must say it too:
    without the modality they are told better than with it, and better than with none, which a slice with wrong
    targets is not.
    """
    found = []
    for s, row in enumerate(change[:, :-1]):
        one, full = view.task.slice(s), view.q[s] == 1.0
        own = np.array([loss(W, one) for W in heads])
        wrong = (1.0 + GATE) * own[:-1] < min(loss(view.W, one), own[-1])
        gains = np.where(wrong & full.all(), -row, -np.inf)  # (M,)
        m = int(np.argmax(gains))
        if gains[m] > 0.0:
            found.append((float(gains[m]), s, m))
    return [(s, m) for _, s, m in sorted(found, key=lambda one: (-one[0], one[1]))]
