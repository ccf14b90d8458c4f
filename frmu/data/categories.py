"""Categories as columns: one a declared value and one for any other, or one a bucket of a hash.

All values that are told apart are declared, so no record decides how another is encoded. A value that nobody declared,
which one site may have and no other has ever seen, falls into the last column, "other". Buckets need no list: a value
is hashed with the name of its column and the seed (feature hashing: Weinberger et al., ICML 2009), and two values may
share one.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frmu.config import Config
from frmu.types import Float

__all__ = ["bucket", "one_hot"]


def one_hot(column: pa.ChunkedArray, name: str, config: Config) -> list[Float]:
    """Return the columns of a category, each (n,): 1 where a record has the value; all 0 where it has none."""
    declared = config.data.categories[name]
    if isinstance(declared, int):
        places, width = _hashed(column, name, declared, config.model.seed), declared
    else:
        found = pc.fill_null(pc.index_in(column, pa.array(declared, pa.string())), len(declared))
        places, width = found.to_numpy(zero_copy_only=False), len(declared) + 1
    columns = np.zeros((width, len(column)))
    rows = np.flatnonzero(~column.is_null().to_numpy(zero_copy_only=False))
    columns[places[rows], rows] = 1.0
    return list(columns)


def bucket(column: str, value: str, buckets: int, seed: int) -> int:
    """Return the bucket of a value: of it, its column and the seed alone.

    >>> bucket("city", "Lyon", 64, 0) == bucket("city", "Lyon", 64, 0), 0 <= bucket("city", "Nice", 64, 0) < 64
    (True, True)
    """
    raw = hashlib.blake2b(f"{column}\0{value}".encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(raw, "big") % buckets


def _hashed(column: pa.ChunkedArray, name: str, buckets: int, seed: int) -> NDArray[Any]:
    """The bucket of each row, 0 where it has no value; each value is hashed once."""
    known = pc.unique(column).drop_null()
    by = np.array([bucket(name, value, buckets, seed) for value in known.to_pylist()] or [0], dtype=np.int64)
    return by[pc.fill_null(pc.index_in(column, known), 0).to_numpy(zero_copy_only=False)]
