"""Orders and draws by hash: each follows from the keys of who is asked, and from nobody else's. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["draws", "orders"]

_GOLDEN = 0x9E3779B97F4A7C15


def draws(keys: NDArray[np.uint64], number: int) -> NDArray[np.uint64]:
    """Draw 64 bits for each key, (keys,), in a round."""
    return np.asarray(_mix(keys ^ np.uint64((number * _GOLDEN + 1) % 2**64)))


def orders(keys: Sequence[int], sizes: Sequence[int], number: int, epoch: int, rows: int) -> NDArray[np.int64]:
    """The order in which each client's records are gone through, (clients, rows); those that are not there are 0.

    >>> orders([7], [3], 0, 0, 4).tolist() == orders([5, 7], [4, 3], 0, 0, 4)[1:].tolist()
    True
    """
    own, n = np.array(keys, dtype=np.uint64)[:, None], np.array(sizes)[:, None]
    seed = np.uint64((number * _GOLDEN + epoch * 0xD1B54A32D192ED03) % 2**64)
    with np.errstate(over="ignore"):
        places = np.arange(rows, dtype=np.uint64)[None, :] * np.uint64(_GOLDEN)
        hashed = _mix(_mix(own ^ seed) + places) >> np.uint64(1)
    there = np.arange(rows)[None, :] < n
    order = np.argsort(np.where(there, hashed, np.uint64(2**64 - 1)), axis=1, kind="stable")
    return np.where(there, order, 0)


def _mix(x: Any) -> Any:
    """Hash 64 bits (splitmix64: Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014)."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))
