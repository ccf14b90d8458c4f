"""The head: one Cholesky solve in float64.

W = (H + ridge diag(H) + floor I)^-1 B. The ridge is a share of the diagonal, so that nothing has to be
standardised with data; the bias is not shrunk; the floor is a constant that keeps H positive definite when a
feature never fires or no record is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg.lapack import dposv, dpotrf, dpotrs

from frmu.errors import FrmuError
from frmu.types import Float, Statistics

__all__ = ["Factor", "descend", "factorise", "regularised", "shrinkage", "solve", "stable_rate"]

FLOOR = 1e-6


def regularised(H: Float, ridge: float) -> Float:
    """H + ridge diag(H) + floor, (..., d, d): what is factorised.

    >>> regularised(np.diag([1.0, 4.0]), 0.5).diagonal().round(3).tolist()
    [1.5, 4.0]
    """
    A = H.copy()
    diagonal = np.einsum("...ii->...i", A)
    diagonal += shrinkage(diagonal, ridge)
    return A


def shrinkage(diagonal: Float, ridge: float) -> Float:
    """Return what is added to the diagonal (..., d) of H.

    >>> shrinkage(np.array([2.0, 2.0]), ridge=0.5).round(3).tolist()
    [1.0, 0.0]
    """
    shrink = ridge * diagonal + FLOOR
    shrink[..., -1] = FLOOR
    return np.asarray(shrink, dtype=np.float64)


def solve(H: Float, B: Float, ridge: float) -> Float:
    """The ridge head (d, outputs) of weighted sums H (d, d) and B (d, outputs); the last feature is the bias.

    >>> W = solve(np.diag([1.0, 4.0]), np.array([[1.0], [8.0]]), ridge=1e-9)
    >>> [round(float(w), 3) for w in W[:, 0]]
    [1.0, 2.0]
    """
    A = regularised(H, ridge)
    # A is symmetric, so its C order read as Fortran's is itself: no copy is made.
    _, W, info = dposv(A.T, np.asfortranarray(B), lower=0, overwrite_a=1)
    _check(info, len(H), ridge)
    if not np.isfinite(W).all():
        raise FrmuError(
            "the head is not finite in float64: the sums are too large. Declare data.ranges for features of great "
            "size, and give the target in a smaller unit"
        )
    return np.ascontiguousarray(W)


@dataclass(frozen=True, slots=True)
class Factor:
    """A factorisation that answers many right-hand sides: H + ridge = L L^T, one or a stack of them, (..., d, d).

    What a stack answers is, bit for bit, what each of it answers alone.
    """

    L: Float

    def __call__(self, B: Float) -> Float:
        """(H + ridge)^-1 B for B (..., d, columns)."""
        if self.L.ndim > 2:
            X = np.empty(B.shape)
            for at, L in enumerate(self.L):
                X[at] = Factor(L)(B[at])
            return X
        X, _ = dpotrs(self.L, np.asfortranarray(B), lower=1)
        return np.asarray(X, dtype=np.float64)


def factorise(H: Float, ridge: float) -> Factor:
    """Factorise weighted sums H (..., d, d) once; the same shrinkage as `solve`.

    >>> factorise(np.diag([1.0, 4.0]), 1e-9)(np.array([[1.0], [8.0]]))[:, 0].round(3).tolist()
    [1.0, 2.0]
    """
    A = regularised(H, ridge)
    for one in A.reshape(-1, *H.shape[-2:]):
        # Symmetric, so C order read as Fortran's is itself: the factor is written where the sums were.
        _, info = dpotrf(one.T, lower=1, overwrite_a=1)
        _check(info, len(one), ridge)
    return Factor(np.swapaxes(A, -1, -2))


def _check(info: int, d: int, ridge: float) -> None:
    if info > 0:
        raise FrmuError(
            f"the sums of {d} features are not positive definite in float64; raise model.ridge above {ridge:g}, or "
            "declare data.ranges for features of very different size"
        )


def stable_rate(G: Float) -> float:
    """Return the largest step of gradient descent that is stable under sums G (d, d)."""
    return 1.0 / max(float(np.linalg.eigvalsh(G)[-1]), 1e-300)


def descend(W: Float, sums: Statistics, rate: float, steps: int) -> Float:
    """Return a head (d, outputs) after some steps of gradient descent on sums: W - rate (G W - b), again and again."""
    for _ in range(steps):
        W = W - rate * (sums.G @ W - sums.b)
    return W
