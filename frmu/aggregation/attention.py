"""Attention over clients: what the others would gain or lose without a client.

The score of client k is the median over clients of the relative change of their validation loss when k is left
out, each an exact refit. The obvious choice, the similarity of a client's gradient to the others', mistakes
"different" for "bad" on non-IID data; the counterfactual does not, and the median keeps a client that lies in
its own validation part from voting itself in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from frmu.models.ridge import solve
from frmu.types import Float, Statistics

__all__ = ["attend", "counterfactual", "electorate", "losses"]

_TINY = 1e-12


def counterfactual(
    fits: Sequence[Statistics], validations: Sequence[Statistics], ridge: float, total: Statistics | None = None
) -> Float:
    """The score of each client, (clients,): above zero, the others lose without it; below, they gain.

    `fits` are the clients' weighted sums, each looked at once; `validations` those of the validation records of who
    votes. Clients without validation records do not; without any vote, or alone, every score is zero. `total` is the
    sum of `fits`, where it is known.
    """
    voters = [validation for validation in validations if validation.n > 0]
    if not voters or len(fits) < 2:
        return np.zeros(len(fits))
    if total is None:
        total = Statistics.total(fits, *fits[0].b.shape)
    H, B = total.G, total.b
    heads = [solve(H, B, ridge)] + [solve(H - fit.G, B - fit.b, ridge) for fit in fits]
    lost = losses(heads, voters)  # (voters, 1 + clients)
    change = lost[:, 1:] / (lost[:, :1] + _TINY) - 1.0
    return np.asarray(np.median(change, axis=0), dtype=np.float64)


def electorate(names: Sequence[str], most: int = 256) -> list[int]:
    """Choose who votes, as places in `names`: all, or of many those whose names hash lowest.

    So the cost grows with the number of clients and not with its square; and whoever leaves takes one vote along and
    moves no other, but for the one who comes in.

    >>> electorate(["a", "b"]), len(electorate([str(n) for n in range(1000)]))
    ([0, 1], 256)
    """
    if len(names) <= most:
        return list(range(len(names)))
    drawn = sorted(range(len(names)), key=lambda at: hashlib.blake2b(names[at].encode()).digest())[:most]
    return sorted(drawn)


def losses(heads: Sequence[Float], voters: Sequence[Statistics]) -> Float:
    """The loss of many heads on the records of each voter, (voters, heads)."""
    outputs = heads[0].shape[1]
    W = np.concatenate(heads, axis=1)  # (d, heads * outputs)
    found = []
    for s in voters:
        fitted = s.G @ W
        fitted -= 2.0 * np.tile(s.b, len(heads))
        fitted *= W
        terms = np.sum(fitted, axis=0)
        found.append(np.maximum(terms.reshape(len(heads), outputs).sum(axis=1) + s.c, 0.0) / s.n)
    return np.stack(found)


def attend(scores: Float, cut: float, temperature: float) -> Float:
    """Attention weights (clients,), mean 1: full for a score above -cut, falling exponentially below.

    Both are in units of a client's fair share, 1 / clients: the more clients there are, the less any one of them
    can do, for better or worse.

    >>> attend(np.array([0.5, 0.0, -10.0]), cut=0.5, temperature=0.5).round(6).tolist()
    [1.5, 1.5, 0.0]
    """
    raw = np.exp(np.minimum(0.0, scores * len(scores) + cut) / temperature)
    return np.asarray(raw / raw.mean(), dtype=np.float64)
