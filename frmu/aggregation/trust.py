"""Attention over clients: whom the others trust, by what they would gain or lose without it.

The score of a client is counterfactual: the relative change of the loss of the trusted others when it is left out,
an exact refit. The obvious choice, the similarity of a client's gradient to the others', mistakes "different" for
"bad" on non-IID data. One refit without each client is not enough either: bad clients who agree mask each other, as two
faults of opposite sign do, and liars vote. So the trusted are *searched*, and only their votes count in the end:

1. Search. A client's residual is its validation loss in units of the variance of its own targets. A set of clients is
   good if the head fitted on it leaves small residuals r, each counted as r / (r + 1/2), so that who cannot be
   explained, a liar above all, cannot outvote who can. Clients are flipped in and out of the set while that falls, from
   everybody and from the best set that one client's own head brings together.
2. Judgement. Small gains must not cost an honest client its place. Whoever is explained with it in (residual at most
   1, better than its own mean) comes back, if the trusted do not lose more than `cut` by it; others stay out.

At least a majority is trusted: of two clients nobody can say who is bad. What comes out is a pure function of the sums.

(Search from elemental starts with concentration: Rousseeuw and Van Driessen, "Computing LTS regression for large data
sets", Data Mining and Knowledge Discovery 2006. The bounded loss: Geman and McClure, 1987.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frmu.aggregation.attention import losses
from frmu.models.ridge import solve
from frmu.types import Float, Statistics

__all__ = ["Trust", "trust"]

_TINY = 1e-12
_HALF = 0.5  # the residual at which a client counts half of the most it can
_EXPLAINED = 1.0  # the residual of a client's own mean
_SWEEPS = 6
_SOLE = 0.1  # what counts of a client that is not trusted and alone holds records of some class

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Trust:
    """The server's opinion of its clients: scores (clients,) and weights (clients,) of mean 1.

    A score above zero: the trusted others lose without it. A weight of zero, or a small one: not trusted.
    """

    scores: Float
    weights: Float


def trust(fits: Sequence[Statistics], validations: Sequence[Statistics], ridge: float, cut: float) -> Trust:
    """Search the trusted clients, and weigh them alike; of the others, only who alone holds some class counts a little.

    `fits` are the clients' weighted sums, `validations` those of their validation records, in the same order. `cut` is
    in units of a client's fair share, 1 / clients: the more clients there are, the less any one of them can do. Clients
    without validation records do not vote; without two votes, or with fewer than three clients, everybody is trusted.
    """
    voters = [k for k, validation in enumerate(validations) if validation.n > 0]
    if len(voters) < 2 or len(fits) < 3:
        return Trust(np.zeros(len(fits)), np.ones(len(fits)))
    court = _Court(fits, [validations[k] for k in voters], np.array(voters), ridge)
    trusted = _judge(court, _search(court), cut)
    raw = np.where(trusted, 1.0, np.where(_alone(fits, trusted), _SOLE, 0.0))
    return Trust(court.scores(trusted), np.asarray(raw / raw.mean(), dtype=np.float64))


class _Court:
    """The sums of all, and the residuals of the voters (those with validation records) in any head."""

    def __init__(self, fits: Sequence[Statistics], votes: Sequence[Statistics], voters: NDArray[np.intp], ridge: float):
        self.fits, self.votes, self.voters, self.ridge = fits, votes, voters, ridge
        self.least = len(fits) // 2 + 1
        variances = np.array([_variance(vote) for vote in votes])
        self.scale = np.maximum(variances, 0.5 * np.median(variances) + _TINY)  # one class, one value: no variance

    def total(self, members: Mask) -> Statistics:
        return Statistics.total((self.fits[int(k)] for k in np.flatnonzero(members)), *self.fits[0].b.shape)

    def residuals(self, sums: Sequence[Statistics]) -> Float:
        """Of every voter in the head of each sum, (voters, sums)."""
        heads = [solve(one.G, one.b, self.ridge) for one in sums]
        return losses(heads, self.votes) / self.scale[:, None]

    def own(self, residuals: Float, client: int) -> float:
        """A client's own residual among those of the voters; 0 where it has no vote."""
        return float(np.sum(residuals[self.voters == client]))

    def flipped(self, members: Mask, total: Statistics, client: int) -> Statistics:
        fit = self.fits[client]
        sign = -1.0 if members[client] else 1.0
        return Statistics(total.n, total.G + sign * fit.G, total.b + sign * fit.b, 0.0)

    def scores(self, trusted: Mask) -> Float:
        """Return what the trusted others lose without each client, relative, (clients,)."""
        total, clients = self.total(trusted), range(len(self.fits))
        found = self.residuals([total, *(self.flipped(trusted, total, k) for k in clients)])
        scores = np.zeros(len(self.fits))
        for k in clients:
            others = trusted[self.voters] & (self.voters != k)
            here, flipped = (float(found[others, at].sum()) + _TINY for at in (0, k + 1))
            scores[k] = flipped / here - 1.0 if trusted[k] else here / flipped - 1.0
        return scores


def _alone(fits: Sequence[Statistics], trusted: Mask) -> Mask:
    """Return who holds records of a class that no trusted client holds, (clients,); nobody in a regression.

    The trusted cannot contradict it there, and a small weight is enough to be heard where nobody else speaks.
    """
    if fits[0].b.shape[1] == 1:
        return np.zeros(len(fits), dtype=bool)
    # The last feature is the bias, so the last row of b is the sum of the targets, -1 or +1 a class; halves are clear.
    held = np.stack([fit.b[-1] + fit.G[-1, -1] for fit in fits]) > 1.0  # (clients, outputs)
    return np.asarray(np.any(held & ~np.any(held[trusted], axis=0), axis=1), dtype=np.bool_)


def _variance(vote: Statistics) -> float:
    """Of the targets about their mean; the last feature is the bias."""
    mean = vote.b[-1] / vote.n
    return max(vote.c / vote.n - float(mean @ mean), 0.0)


def _price(residuals: Float) -> Float:
    """Of each set, (sets,), from residuals (voters, sets); bounded a voter."""
    return np.asarray(np.sum(residuals / (residuals + _HALF), axis=0), dtype=np.float64)


def _search(court: _Court) -> Mask:
    """The better of two searches; everybody first, so that a tie keeps them."""
    found = [_descend(court, start) for start in (np.ones(len(court.fits), dtype=bool), _brought_together(court))]
    return min(found, key=lambda pair: pair[1])[0]


def _brought_together(court: _Court) -> Mask:
    """Of the sets that the clients' own heads explain best, the best after two steps of concentration."""
    residuals = court.residuals(court.fits)
    for _ in range(3):
        sets = [_nearest(court, residuals[:, at]) for at in range(residuals.shape[1])]
        residuals = court.residuals([court.total(members) for members in sets])
    return sets[int(np.argmin(_price(residuals)))]


def _nearest(court: _Court, residuals: Float) -> Mask:
    """The three fifths of the clients that a head explains best, a majority at least; voters come first."""
    members = np.zeros(len(court.fits), dtype=bool)
    size = max(court.least, -(-3 * len(court.fits) // 5))
    silent = np.setdiff1d(np.arange(len(court.fits)), court.voters)
    members[np.concatenate([court.voters[np.argsort(residuals, kind="stable")], silent])[:size]] = True
    return members


def _descend(court: _Court, members: Mask) -> tuple[Mask, float]:
    """Flip clients, the most useful first, while the price falls."""
    total = court.total(members)
    price = float(_price(court.residuals([total]))[0])
    for _ in range(_SWEEPS):
        before = price
        flips = _price(court.residuals([court.flipped(members, total, k) for k in range(len(members))]))
        for k in (k for k in np.argsort(flips, kind="stable") if flips[k] < before):
            tried = members.copy()
            tried[k] = not members[k]
            sums = court.total(tried)
            if tried.sum() >= court.least and (cost := float(_price(court.residuals([sums]))[0])) < price:
                members, total, price = tried, sums, cost
        if price == before:
            break
    return members, price


def _judge(court: _Court, members: Mask, cut: float) -> Mask:
    """Let go of who is not explained though it is in, and take back who is and does no harm."""
    members = members.copy()
    residuals = court.residuals([court.total(members)])[:, 0]
    bar = max(_EXPLAINED, 1.25 * float(np.median(residuals[members[court.voters]])))  # where nothing explains anybody
    for k in sorted(np.flatnonzero(members), key=lambda k: -court.own(residuals, int(k))):
        if members.sum() > court.least and court.own(court.residuals([court.total(members)])[:, 0], int(k)) > bar:
            members[k] = False
    for _ in range(2):  # who comes back may explain another
        residuals = court.residuals([court.total(members)])[:, 0]
        for k in sorted(np.flatnonzero(~members), key=lambda k: court.own(residuals, int(k))):
            members[k] = _welcome(court, members, int(k), bar, cut)
    return members


def _welcome(court: _Court, members: Mask, k: int, bar: float, cut: float) -> bool:
    total = court.total(members)
    found = court.residuals([total, court.flipped(members, total, k)])
    without, within = np.minimum(found[members[court.voters]], bar + 0.3).sum(axis=0) + _TINY
    return court.own(found[:, 1], k) <= bar and bool((within / without - 1.0) * len(court.fits) <= cut)
