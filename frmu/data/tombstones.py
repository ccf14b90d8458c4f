"""Tombstones: keyed hashes by which an erased record is known again, and refused.

A tombstone is a keyed BLAKE2b hash (RFC 7693) of a client's name and a record id; without the key it names nobody.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.parquet import files_of, names_in, read_parquet
from frmu.storage.atomic import write_file

__all__ = ["purge_files", "tombstone", "tombstones"]

Tombstones = Mapping[str, Collection[str]]  # by client


def tombstone(key: bytes, client: str, record: str) -> str:
    """The keyed hash of one record.

    >>> tombstone(b"k", "a", "bc") == tombstone(b"k", "ab", "c")
    False
    """
    return next(tombstones(key, client, [record]))


def tombstones(key: bytes, client: str, records: Iterable[str]) -> Iterator[str]:
    """The keyed hashes of many records of one client."""
    keyed = hashlib.blake2b(f"{len(client)}:{client}:".encode(), digest_size=16, key=hashlib.sha256(key).digest())
    for record in records:
        one = keyed.copy()
        one.update(record.encode())
        yield one.hexdigest()


def purge_files(config: Config, tombstoned: Tombstones, key: bytes) -> list[str]:
    """Rewrite the user's own files without the records that have a tombstone; the files that were rewritten.

    Every column stays as it is. A file is replaced atomically, and one without a row left is removed.
    """
    return [file for file in files_of(config) if _purge_file(Path(file), config, tombstoned, key)]


def _purge_file(file: Path, config: Config, tombstoned: Tombstones, key: bytes) -> bool:
    clients, records = names_in(file, config)
    gone = _gone(clients, records, tombstoned, key)
    if not gone.any():
        return False
    if gone.all():
        file.unlink()
        return True
    with pq.ParquetFile(file) as parquet:
        codec = parquet.metadata.row_group(0).column(0).compression
    table = read_parquet(file).filter(pa.array(~gone))
    compression = codec.lower() if codec != "UNCOMPRESSED" else "none"

    def put(out: BinaryIO) -> None:
        os.fchmod(out.fileno(), file.stat().st_mode)
        pq.write_table(table, out, compression=compression)

    write_file(file, put, aside=file.with_name(f".{file.name}.partial"))
    return True


def _gone(clients: NDArray[Any], records: NDArray[Any], tombstoned: Tombstones, key: bytes) -> NDArray[np.bool_]:
    gone = np.zeros(len(clients), dtype=bool)
    for client, names in tombstoned.items():
        rows = np.flatnonzero(clients == client)
        gone[rows] = [name in names for name in tombstones(key, client, records[rows].tolist())]
    return gone
