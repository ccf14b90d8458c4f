"""The erasure at a client: what requests mean is located, the shard is purged of it, and scanned again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.data.columns import RECORD
from frmu.data.tombstones import tombstones
from frmu.federation import Answer
from frmu.types import Selection

__all__ = ["LocateRecords", "PurgeShard", "ScanShard"]


@dataclass(frozen=True, slots=True)
class LocateRecords(EachClient):
    """Search the shard for what requests mean; answer with counts and the tombstones of what was found."""

    doing: ClassVar[str] = "searching"

    requests: Mapping[str, Selection]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Rows looked through; for each request that means any, keyed hashes."""
        if not client.has_shard:
            return Answer(client.name, {"held": False, "searched": 0, "found": {}, "digest": ""})
        shard = client.shard
        rows = shard.find(self.requests, client.name, client.config)
        found = {}
        for request, hits in rows.items():
            names = shard.table[RECORD].take(pa.array(hits)).to_pylist()
            found[request] = list(tombstones(self.key, client.name, names))
            client.located |= zip(found[request], hits.tolist(), strict=True)
        return Answer(client.name, {"held": True, "searched": len(shard), "found": found, "digest": client.digest})


@dataclass(frozen=True, slots=True)
class ScanShard(EachClient):
    """Count the records in the shard that have a tombstone: after a purge there must be none."""

    doing: ClassVar[str] = "scanning the shards"

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Read the shard from disk again, not from memory."""
        client.reload()
        tombstoned = self.tombstones.get(client.name, frozenset())
        left = int(np.sum(_tombstoned(client, self.key, tombstoned))) if client.has_shard and tombstoned else 0
        return Answer(client.name, {"left": left, **_left(client)})


@dataclass(frozen=True, slots=True)
class PurgeShard(EachClient):
    """Rewrite the shard without the records that have a tombstone; doing it twice is doing it once."""

    doing: ClassVar[str] = "purging"

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Counts: rows dropped, rows left; the digest of what is left."""
        tombstoned = self.tombstones.get(client.name, frozenset())
        if not client.has_shard or not tombstoned:
            return Answer(client.name, {"dropped": 0, **_left(client)})
        rows = _tombstoned(client, self.key, tombstoned)
        if rows.any():
            client.drop(rows)
        return Answer(client.name, {"dropped": int(rows.sum()), **_left(client)})


def _left(client: Client) -> dict[str, Any]:
    """Rows left, and the digest of the shard that holds them."""
    return {"rows": len(client.shard), "digest": client.digest} if client.has_shard else {"rows": 0, "digest": ""}


def _tombstoned(client: Client, key: bytes, tombstoned: frozenset[str]) -> NDArray[np.bool_]:
    """The rows that have a tombstone, (n,); not every row is hashed where a search has met them all."""
    if tombstoned <= client.located.keys():
        rows = np.zeros(len(client.shard), dtype=bool)
        rows[[client.located[name] for name in tombstoned]] = True
        return rows
    return np.array([name in tombstoned for name in client.tombstones(key)], dtype=bool)
