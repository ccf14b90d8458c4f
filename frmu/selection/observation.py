"""The observation of a task under some influences: a row a slice, and how slices relate, at the price of one refit.

Everything is relative - to the other slices, to the present loss - so that a policy can move to a site, a target
and a unit that it never saw. With one factorisation at hand every counterfactual "without slice s" follows to second
order by back substitution, for all slices at once: that is what makes an observation cost one refit, not one
a slice.

Two slices are related by the cosine of their gradients in the metric of the fit, r_s^T A^-1 r_t: how the one moves
the loss of the other. Slices that are wrong in the same way pull together and against the rest.

Shapes are those of one problem. Of a stack (`frmu.selection.problem.stack`) every array has an axis more in front, and
each problem of it has, bit for bit, what it has alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from frmu.models.ridge import Factor, factorise
from frmu.selection.problem import SelectionProblem, weighted
from frmu.types import Float, Statistics

__all__ = ["FEATURES", "VERSION", "Fit", "Observation", "change", "fit", "observe", "slopes"]

VERSION = 2
FEATURES = (
    "age", "size", "residual", "gain", "steady", "cosine", "recent", "agree", "near", "force", "influence", "step",
    "progress", "level", "slices", "share", "left",
)  # fmt: skip

_TINY = 1e-12
_LEAST = 1e-4  # influences below this look alike


@dataclass(frozen=True)
class Fit:
    """One refit: influences (K,), the sums H (d, d) and B (d, outputs) that they give, the factor of H, the head
    W (d, outputs), its validation loss."""

    task: SelectionProblem = field(repr=False)
    influence: Float
    H: Float = field(repr=False)
    B: Float = field(repr=False)
    factor: Factor = field(repr=False)
    W: Float = field(repr=False)
    loss: Any

    @cached_property
    def slice_gradients(self) -> Float:
        """Half the gradients of the slices' losses by the head, G_s W - b_s, (K, d, outputs)."""
        return np.asarray(self.task.G @ self.W[..., None, :, :] - self.task.b, dtype=np.float64)

    @cached_property
    def newton_steps(self) -> Float:
        """Return what the slices' gradients do to the head, A^-1 (G_s W - b_s), (K, d, outputs)."""
        return _answered(self.factor, self.slice_gradients)


@dataclass(frozen=True, slots=True)
class Observation:
    """An observation: rows (K, features), relation (K, K) with zeros on its diagonal, and the fit seen from."""

    rows: Float
    relation: Float
    fit: Fit


def fit(task: SelectionProblem, influence: Float) -> Fit:
    """Refit under influences (K,) and keep what counterfactuals need."""
    return _fit(task, influence, *weighted(task, influence))


def change(here: Fit, s: int, to: float) -> Fit:
    """Refit with one influence changed: the sums are those of `here` but for one slice, so K does not matter."""
    influence = here.influence.copy()
    influence[s] = to
    by = to - here.influence[s]
    return _fit(here.task, influence, here.H + by * here.task.G[s], here.B + by * here.task.b[s])


def _fit(task: SelectionProblem, influence: Float, H: Float, B: Float) -> Fit:
    factor = factorise(H, task.ridge)
    W = factor(B)
    return Fit(task, influence, H, B, factor, W, _loss(W, task.validation) + _TINY)


def _loss(W: Float, s: Statistics) -> Any:
    """The loss of a head on records, 0 on none; a number, or one a problem of a stack."""
    total = np.sum(W * (s.G @ W - 2.0 * s.b), axis=(-2, -1)) + s.c
    found = np.where(np.asarray(s.n) > 0, np.maximum(total, 0.0) / np.maximum(s.n, 1), 0.0)
    return found if found.ndim else float(found)


def _answered(factor: Factor, stack: Float) -> Float:
    """A^-1 of each of K matrices, (K, d, outputs)."""
    *front, K, d, outputs = stack.shape
    flat = np.ascontiguousarray(np.swapaxes(stack, -3, -2)).reshape(*front, d, K * outputs)
    return np.ascontiguousarray(np.swapaxes(factor(flat).reshape(*front, d, K, outputs), -3, -2))


def slopes(task: SelectionProblem, at: Fit, judged: Statistics) -> Float:
    """The derivative of the log of a loss by each influence, (K,): below zero where more of a slice would help."""
    slope = at.factor(judged.G @ at.W - judged.b)
    now = (_loss(at.W, judged) + _TINY) * judged.n
    return np.asarray(-2.0 * _crossed(at.slice_gradients, slope) / _wide(now), dtype=np.float64)


def _crossed(stack: Float, one: Float) -> Float:
    """The sums of products of K matrices (K, d, outputs) with one (d, outputs), (K,)."""
    return np.asarray(np.sum(stack * one[..., None, :, :], axis=(-2, -1)))


def _wide(value: Any) -> Any:
    """A number that holds for all slices, as it meets rows (..., K)."""
    return np.asarray(value)[..., None]


def observe(task: SelectionProblem, at: Fit, step: float, keep: float) -> Observation:
    """Rows and relation under the influences of a fit; `keep` is the validation loss with everything kept.

    - age: 1 is the oldest slice, 0 the newest; size: log of the records against the mean slice;
    - residual: log of the loss on the slice, under the head fitted without it, against the median slice;
    - gain: how much the validation loss grows if the slice is left out (for one that counts less than half: shrinks
      if it counts in full), in percent, as the inverse hyperbolic sine; steady: its mean over stretches of
      validation records, in standard errors;
    - cosine: of the slice's gradient with the validation gradient, in the metric of the fit;
    - recent: as gain, on the newer slices instead of validation records; agree, near: mean relation to all slices by
      influence, and to both neighbours; force: log of the size of its gradient against the median;
    - influence: log of its present influence; step: the share of steps taken;
    - progress: log of the validation loss against `keep`; level: of it against the median residual;
    - slices: log of their number; share: of the client's records among all; left: log of what still counts.
    """
    influence = at.influence
    without = _without(task, at)
    residual = np.log(_losses(without, task.G, task.b, task.c, np.maximum(task.n, 1.0)))
    sign = np.where(influence > 0.5, 1.0, -1.0)
    gain = sign * (_judged(without, task.validation) / _wide(at.loss) - 1.0)
    power, relation = _relation(at)
    counts = np.sum(task.n, axis=-1)
    beside = np.diagonal(relation, 1, -2, -1)  # of each slice and the next
    edge = np.zeros((*beside.shape[:-1], 1))
    columns = [
        task.age,
        np.log(task.n / np.mean(task.n, axis=-1, keepdims=True)),
        residual - _median(residual),
        np.arcsinh(100.0 * gain),
        np.clip(_steady(task, at, without, sign), -4.0, 4.0) / 1.5,
        2.0 * _cosine(task, at, power),
        np.arcsinh(100.0 * _recent(task, at, sign)),
        4.0 * (relation @ influence[..., None])[..., 0] / (influence.sum(axis=-1, keepdims=True) + 1e-9),
        np.concatenate([edge, beside], axis=-1) + np.concatenate([beside, edge], axis=-1),
        np.log(power / _median(power)),
        np.log(np.maximum(influence, _LEAST)) / 3.0 + 1.0,
        *(
            np.broadcast_to(_wide(value), influence.shape)
            for value in (
                step,
                3.0 * np.clip(np.log(at.loss / keep), -1.0, 1.0),
                np.log(at.loss) - _median(residual)[..., 0],
                np.log(len(task)) - 3.0,
                2.0 * counts / (counts + task.rest.G[..., -1, -1]) - 1.0,
                np.log(np.sum(influence * task.n, axis=-1) / counts + 1e-3) / 2.0 + 1.0,
            )
        ),
    ]
    return Observation(np.clip(np.stack(columns, axis=-1), -3.0, 3.0), relation, at)


def _median(x: Float) -> Float:
    """The lower median, (..., 1): one of the values, as the twin in torch has it."""
    at = (x.shape[-1] - 1) // 2
    return np.asarray(np.sort(x, axis=-1)[..., at : at + 1])


def _without(task: SelectionProblem, at: Fit) -> Float:
    """The heads without each slice (with it, where it counts less than half), (K, d, outputs), to second order.

    The series W + w U + w^2 A^-1 G U + ... is summed as if geometric, which keeps a slice of great leverage finite.
    """
    by = np.where(at.influence > 0.5, at.influence, at.influence - 1.0)[..., None, None]
    first = by * at.newton_steps
    second = by * by * _answered(at.factor, task.G @ at.newton_steps)
    size = np.sum(first * at.slice_gradients, axis=(-2, -1))
    ratio = np.sum(second * at.slice_gradients, axis=(-2, -1)) / (np.abs(size) + 1e-30) * np.sign(size)
    return np.asarray(at.W[..., None, :, :] + first / np.maximum(1.0 - ratio, 0.05)[..., None, None], dtype=np.float64)


def _losses(heads: Float, G: Float, b: Float, c: Float, n: Float) -> Float:
    """The loss of each head, (K, d, outputs), on statistics of its own, (K,)."""
    return np.asarray(np.maximum(np.sum(heads * (G @ heads - 2.0 * b), axis=(-2, -1)) + c, _TINY) / n)


def _judged(heads: Float, s: Statistics) -> Float:
    """The loss of each head, (K, d, outputs), on the same records, (K,)."""
    *front, K, d, outputs = heads.shape
    W = np.ascontiguousarray(np.swapaxes(heads, -3, -2)).reshape(*front, d, K * outputs)
    fitted = (s.G @ W).reshape(*front, d, K, outputs) - 2.0 * s.b[..., :, None, :]
    products = np.swapaxes(W.reshape(*front, d, K, outputs) * fitted, -3, -2)
    total = np.sum(np.ascontiguousarray(products), axis=(-2, -1)) + _wide(s.c)
    return np.asarray(np.maximum(total, _TINY) / _wide(np.maximum(s.n, 1)), dtype=np.float64)


def _steady(task: SelectionProblem, at: Fit, without: Float, sign: Float) -> Float:
    gains = np.stack(
        [
            sign * (_judged(without, part) - _wide(np.maximum(_loss(at.W, part), _TINY / part.n))) / _wide(at.loss)
            for part in task.parts
        ]
    )
    if len(gains) < 2:
        return np.zeros_like(sign)
    error = gains.std(axis=0, ddof=1) / np.sqrt(len(gains)) + 2e-5
    return np.asarray(gains.mean(axis=0) / error, dtype=np.float64)


def _cosine(task: SelectionProblem, at: Fit, power: Float) -> Float:
    slope = task.validation.G @ at.W - task.validation.b
    size = np.sum(slope * at.factor(slope), axis=(-2, -1))
    return np.asarray(_crossed(at.newton_steps, slope) / np.sqrt(power * _wide(np.maximum(size, 1e-20))))


def _relation(at: Fit) -> tuple[Float, Float]:
    """r_s^T A^-1 r_s, (K,), and the cosines r_s^T A^-1 r_t with a diagonal of zeros, (K, K)."""
    flat = (*at.slice_gradients.shape[:-2], -1)
    kernel = at.slice_gradients.reshape(flat) @ np.swapaxes(at.newton_steps.reshape(flat), -1, -2)
    power = np.maximum(np.diagonal(kernel, 0, -2, -1), 1e-20)
    relation = kernel / np.sqrt(power[..., :, None] * power[..., None, :])
    np.einsum("...ii->...i", relation)[...] = 0.0
    return power, relation


def _recent(task: SelectionProblem, at: Fit, sign: Float) -> Float:
    """Return what leaving a slice out does to the loss on all other slices, weighed by how new they are, to first
    order."""
    newer = np.exp(-4.0 * task.age) * at.influence
    total = np.sum(at.W[..., None, :, :] * (at.slice_gradients - task.b), axis=(-2, -1)) + task.c
    by = np.where(at.influence > 0.5, at.influence, at.influence - 1.0)
    flat = (*at.slice_gradients.shape[:-2], -1)
    all_of_it = newer[..., None, :] @ at.slice_gradients.reshape(flat)
    crossed = np.sum(at.newton_steps.reshape(flat) * all_of_it, axis=-1)
    crossed -= newer * np.sum(at.newton_steps * at.slice_gradients, axis=(-2, -1))
    scale = np.sum(newer * np.maximum(total, _TINY), axis=-1, keepdims=True) + _TINY
    return np.asarray(2.0 * sign * by * crossed / scale, dtype=np.float64)
