"""Gains on validation records beside their noise: squared errors of two heads, paired, in stretches of time.

Where nothing is wrong the best of a few proposals looks better by chance, the more so the fewer records judge. A gain
counts where a mean of paired differences as great would seldom come from noise alone: Student's one-sided t over
stretches of records, since records that are near in time are not independent of each other (batch means: Schmeiser,
"Batch size effects in the analysis of simulation output", Operations Research 1982).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.types import Float

__all__ = ["Paired", "discoveries", "halves", "stretches"]

MOST, LEAST = 12, 8  # stretches of a client's validation records; records in one
FEW = 5  # stretches, below which nothing can be said of noise


@dataclass(frozen=True, slots=True)
class Paired:
    """The records of each stretch, (stretches,), and how much less the squared errors of the second head sum to."""

    n: Float
    gain: Float

    @staticmethod
    def of(found: Iterable[Mapping[str, Any]]) -> Paired:
        """Add up the stretches of several clients, from records with lists `n` and `gain`: the first with the first.

        Sites share their days, and what is odd about one is odd at all of them: so they are not as many witnesses.
        """
        n, gain = np.zeros(MOST), np.zeros(MOST)
        for one in found:
            at = np.arange(len(one["n"])) * MOST // max(1, len(one["n"]))
            np.add.at(n, at, one["n"])
            np.add.at(gain, at, one["gain"])
        return Paired(n[n > 0], gain[n > 0])

    @property
    def mean(self) -> float:
        """The mean gain of a record; 0 without any."""
        return float(self.gain.sum() / max(self.n.sum(), 1.0))

    @property
    def chance(self) -> float:
        """The probability that noise alone gives as great a mean gain; 1 where there are too few stretches to tell.

        >>> Paired(np.full(6, 10.0), np.array([5.0, 6.0, 4.0, 5.0, 5.5, 4.5])).chance < 0.001
        True
        >>> Paired(np.full(6, 10.0), np.array([5.0, -6.0, 4.0, -5.0, 5.5, -2.5])).chance > 0.3
        True
        """
        from scipy.special import stdtr

        B = len(self.n)
        if B < FEW:
            return 1.0
        rest = self.gain - self.mean * self.n
        error = float(np.sqrt(np.sum(rest**2) * B / (B - 1))) / self.n.sum()
        if error == 0.0:
            return 0.0 if self.mean > 0.0 else 1.0
        return float(1.0 - stdtr(B - 1, self.mean / error))


def stretches(rows: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """Cut rows, in the order of time, into up to twelve stretches of eight records at least.

    >>> [len(part) for part in stretches(np.arange(23))], len(stretches(np.arange(600)))
    ([12, 11], 12)
    """
    return np.array_split(rows, max(1, min(MOST, len(rows) // LEAST)))


def halves(number: int) -> list[int]:
    """Return which half each of so many stretches belongs to: every other quarter of their time.

    >>> halves(12), halves(3)
    ([0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1, 1], [0, 1, 0])
    """
    return [4 * at // number % 2 for at in range(number)]


def discoveries(chances: Mapping[str, float], level: float) -> list[str]:
    """Return whose gains stand, the surest first, such that a share of `level` of them at most is noise.

    The more are tried, the surer each must be, and the less so the more are sure (Benjamini and Hochberg, "Controlling
    the false discovery rate", JRSS B 1995).

    >>> discoveries({"a": 0.04, "b": 0.01, "c": 0.9}, 0.05), discoveries({"a": 0.04, "b": 0.03, "c": 0.9}, 0.05)
    (['b'], [])
    """
    order = sorted(chances, key=lambda name: (chances[name], name))
    passed = [rank for rank, name in enumerate(order, start=1) if chances[name] <= level * rank / len(order)]
    return order[: max(passed, default=0)]
