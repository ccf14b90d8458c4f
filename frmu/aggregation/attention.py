"""Attention over clients: what the others would gain or lose without a client.

The score of client k is the median over clients of the relative change of their validation loss when k is left
out, each an exact refit. The obvious choice, the similarity of a client's gradient to the others', mistakes
"different" for "bad" on non-IID data; the counterfactual does not, and the median keeps a client that lies in
its own validation part from voting itself in.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from frmu.models.ridge import solve
from frmu.types import Float, Statistics

__all__ = ["attend", "counterfactual", "losses"]

_TINY = 1e-12


def counterfactual(fits: Sequence[Statistics], validations: Sequence[Statistics], ridge: float) -> Float:
    """The score of each client, (clients,): above zero, the others lose without it; below, they gain.

    `fits` are the clients' weighted sums, `validations` those of their validation records, in the same order.
    Clients without validation records do not vote; without any vote, or alone, every score is zero.
    """
    voters = [validation for validation in validations if validation.n > 0]
    if not voters or len(fits) < 2:
        return np.zeros(len(fits))
    total = Statistics.total(fits, *fits[0].b.shape)
    H, B = total.G, total.b
    heads = [solve(H, B, ridge)] + [solve(H - fit.G, B - fit.b, ridge) for fit in fits]
    lost = np.stack([losses(heads, voter) for voter in voters])  # (voters, 1 + clients)
    change = lost[:, 1:] / (lost[:, :1] + _TINY) - 1.0
    return np.asarray(np.median(change, axis=0), dtype=np.float64)


def losses(heads: Sequence[Float], s: Statistics) -> Float:
    """The loss of many heads on one set of records, in one product, (heads,)."""
    outputs = heads[0].shape[1]
    W = np.concatenate(heads, axis=1)  # (d, heads * outputs)
    terms = np.sum(W * (s.G @ W - 2.0 * np.tile(s.b, len(heads))), axis=0)
    return np.maximum(terms.reshape(len(heads), outputs).sum(axis=1) + s.c, 0.0) / s.n


def attend(scores: Float, cut: float, temperature: float) -> Float:
    """Attention weights (clients,), mean 1: full for a score above -cut, falling exponentially below.

    Both are in units of a client's fair share, 1 / clients: the more clients there are, the less any one of them
    can do, for better or worse.

    >>> attend(np.array([0.5, 0.0, -10.0]), cut=0.5, temperature=0.5).round(6).tolist()
    [1.5, 1.5, 0.0]
    """
    raw = np.exp(np.minimum(0.0, scores * len(scores) + cut) / temperature)
    return np.asarray(raw / raw.mean(), dtype=np.float64)
