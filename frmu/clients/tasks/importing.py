"""From the user's files to a shard: staged by all clients, then committed by all or by none, described, discarded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np

from frmu.clients.client import Client
from frmu.clients.tasks.task import EachClient
from frmu.data import shard as shards
from frmu.data.clipping import let_in
from frmu.data.columns import RECORD
from frmu.data.parquet import gather, read_parquet, without_flags
from frmu.data.shard import SPLITS, Shard
from frmu.data.tombstones import tombstones
from frmu.federation import Answer
from frmu.storage.atomic import put_in_place
from frmu.types import Selection

__all__ = ["CommitShard", "DescribeShard", "DiscardShard", "StageShard"]


@dataclass(frozen=True, slots=True)
class StageShard:
    """Read and check the client's records in the user's files, and set them aside as the shard to come.

    Records with a tombstone are refused, and those that an open request means, and those that are private: the
    tombstones of the former, and of private ones in the present shard, are told. Nothing that is there changes until
    `CommitShard`.
    """

    doing: ClassVar[str] = "reading the records"

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)
    requests: Mapping[str, Selection] = field(default_factory=dict)

    def prepare(self, clients: Sequence[Client]) -> None:
        """One reading of the files for all clients of this host."""
        tables = gather(clients[0].config, [client.name for client in clients])
        for client in clients:
            client.prepared = tables[client.name]

    def perform(self, client: Client) -> Answer:
        """Counts: rows taken, refused, private, values clipped by column; tombstones by request, and of what must go.

        Raises `DataError` where more values are beyond their range than `data.clip` lets in.
        """
        table, private = without_flags(client.prepared)
        client.prepared = None
        tombstoned = self.tombstones.get(client.name, frozenset())
        alive = np.ones(table.num_rows, dtype=bool)
        if tombstoned:
            alive[:] = [name not in tombstoned for name in tombstones(self.key, client.name, table[RECORD].to_pylist())]
        found = {}
        if self.requests:
            shard = Shard(table, client.config)
            for request, rows in shard.find(self.requests, client.name, client.config).items():
                found[request] = list(tombstones(self.key, client.name, shard.ids[rows].tolist()))
                alive[rows] = False
        counts = {"refused": int(np.sum(~alive & ~private)), "private": int(np.sum(private))}
        flagged = tombstones(self.key, client.name, table.filter(private)[RECORD].to_pylist())
        held = self._held(client) if private.any() else frozenset()
        alive &= ~private
        taken = table if alive.all() else table.filter(alive)
        clipped = let_in(taken, client.name, client.config)  # of what remains: what is gone must not decide
        with client.writing():
            shards.write(taken, _incoming(client.path))
        must_go = [name for name in flagged if name in held]
        digest = shards.digest_of_file(_incoming(client.path))
        told = {"found": found, "must_go": must_go, "digest": digest, "clipped": clipped}
        return Answer(client.name, {"rows": int(np.sum(alive)), **counts, **told})

    def _held(self, client: Client) -> frozenset[str]:
        """The tombstones of what the present shard holds, whatever config it was written with."""
        if not client.path.exists():
            return frozenset()
        return frozenset(tombstones(self.key, client.name, read_parquet(client.path, [RECORD])[RECORD].to_pylist()))


def _incoming(path: Path) -> Path:
    return path.with_suffix(".incoming")


@dataclass(frozen=True, slots=True)
class CommitShard(EachClient):
    """Make the imported shard the client's own, or throw it away."""

    keep: bool

    def perform(self, client: Client) -> Answer:
        """Rename the file set aside over the shard; a shard without rows is no shard."""
        incoming = _incoming(client.path)
        with client.writing():
            if not self.keep:
                with contextlib.suppress(FileNotFoundError):
                    incoming.unlink()
                return Answer(client.name, {})
            if incoming.exists():
                put_in_place(incoming, client.path)
                client.reload()
            if client.has_shard and not len(client.shard):
                client.path.unlink()
                client.reload()
        return Answer(client.name, {"held": client.has_shard})


@dataclass(frozen=True, slots=True)
class DiscardShard(EachClient):
    """Remove the shard of a client that the source no longer has."""

    def perform(self, client: Client) -> Answer:
        """Unlink the shard."""
        with client.writing():
            client.path.unlink(missing_ok=True)
        client.reload()
        return Answer(client.name, {})


@dataclass(frozen=True, slots=True)
class DescribeShard(EachClient):
    """Say what is held: rows, rows by split, classes, the digest of the shard."""

    def perform(self, client: Client) -> Answer:
        """Counts, class names and digests."""
        if not client.has_shard:
            return Answer(
                client.name, {"rows": 0, "splits": {}, "slices": [], "classes": [], "policy": "", "digest": ""}
            )
        shard = client.shard
        labels = sorted(set(shard.target.tolist())) if shard.target.dtype.kind != "f" else []
        counts = np.bincount(shard.split, minlength=len(SPLITS))
        record = {
            "rows": len(shard),
            "splits": {name: int(count) for name, count in zip(SPLITS, counts, strict=True)},
            "slices": list(client.groups(0)),
            "classes": labels,
            "policy": client.network.digest if client.network else "",
            "digest": client.digest,
        }
        return Answer(client.name, record)
