"""The attention scores A: what a policy's TD errors made of each slice, normalised, and thresholded by theta.

FRAMU's line 11 adds |TD error| to a score that only grows and has no scale, so its fixed theta fires only early
(`frmu.methods.framu` does just that). Here the sign counts: a step that went better than expected raises what it
kept and lowers what it forgot, by its share in the value. Scores of a client are compared on one scale, mean 1, so
that theta means the same for every client and at every time.

The arrays have any shape, (K,) by slice or (K, modalities): a client's scores share one scale either way. They
remember every step that was ever taken, so they are shown and steer no state of the exact method.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from frmu.types import Float

__all__ = ["RATE", "below", "change", "normalise", "update"]

RATE = 0.1  # eta of line 11


def change(td_error: Float, share: Float, sign: Float) -> Float:
    """Return what some steps say of a client's scores, (K,): the mean over steps of TD error x share x sign.

    `td_error` is (steps,); `share` (steps, K) is each slice's part in the value, `sign` (steps, K) what was done
    with it: 1 kept, -0.5 attenuated, -1 forgotten.

    >>> change(np.array([2.0]), np.array([[0.5, 0.5]]), np.array([[1.0, -1.0]]))
    array([ 1., -1.])
    """
    credit = td_error.reshape(-1, *[1] * (share.ndim - 1)) * share * sign
    return np.asarray(credit.mean(axis=0), dtype=np.float64)


def update(raw: Float, by: Float, rate: float = RATE) -> Float:
    """Line 11, signed: raw scores after one more change, same shape."""
    return np.asarray(raw + rate * by, dtype=np.float64)


def normalise(raw: Float) -> Float:
    """Scores of one client on one scale: a softmax over all its entries, mean 1.

    >>> normalise(np.array([0.0, 0.0, -50.0])).round(3).tolist()
    [1.5, 1.5, 0.0]
    """
    exponents = np.exp(raw - raw.max())
    return np.asarray(exponents / exponents.mean(), dtype=np.float64)


def below(scores: Mapping[str, Mapping[str, float]], theta: float) -> dict[str, dict[str, float]]:
    """The slices whose score is below theta, by client and key: those that would be attenuated.

    >>> below({"a": {"x": 1.7, "y": 0.3}, "b": {"x": 1.0}}, 0.5)
    {'a': {'y': 0.3}}
    """
    found = {client: {key: score for key, score in of.items() if score < theta} for client, of in scores.items()}
    return {client: of for client, of in found.items() if of}
