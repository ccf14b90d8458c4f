"""The tables beside the chain: keys of requests, which owner code is which client, and tombstones.

What stands here can be deleted, as the chain cannot: a key that is gone takes what was sealed with it along.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from frmu.ledger.chain import tables
from frmu.ledger.keys import Keys

__all__ = ["FILE", "MEANING", "Found", "Rows"]

FILE, MEANING = "file", "meaning"  # purposes of a request's keys: who asked, why and the receipt; what is meant
Found = Mapping[str, Mapping[str, Iterable[str]]]  # tombstones by request and client

_key = sql.Table(
    "frmu_key",
    tables,
    sql.Column("request", sql.String(40), primary_key=True),
    sql.Column("purpose", sql.String(10), primary_key=True),
    sql.Column("about", sql.String(64), nullable=True, index=True),
    sql.Column("wrapped", sql.Text, nullable=False),
)
_owner = sql.Table(
    "frmu_owner",
    tables,
    sql.Column("owner", sql.String(32), primary_key=True),
    sql.Column("wrapped", sql.Text, nullable=False),
)
_tombstone = sql.Table(
    "frmu_tombstone",
    tables,
    sql.Column("owner", sql.String(32), primary_key=True),
    sql.Column("hash", sql.String(32), primary_key=True),
    sql.Column("request", sql.String(40), primary_key=True, index=True),
)


class Rows:
    """The rows of the tables, read and written inside a transaction of the chain's."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def keep(self, connection: Connection, request: str, purpose: str, key: bytes, about: str | None = None) -> None:
        """Keep a key of a request; `about` is what it can be found by, as a keyed hash."""
        values = {"request": request, "purpose": purpose, "wrapped": self._keys.wrap(key.hex(), f"{request} {purpose}")}
        hashed = self._keys.keyed(about) if about else None
        connection.execute(_key.insert().values(about=hashed, **values))

    def keys_of(self, connection: Connection, purpose: str, requests: Collection[str]) -> dict[str, bytes]:
        """The keys of some requests, those that are still there."""
        query = sql.select(_key).where(_key.c.purpose == purpose)
        if len(requests) == 1:
            query = query.where(_key.c.request == next(iter(requests)))
        rows = [row for row in connection.execute(query) if row.request in requests]
        return {row.request: bytes.fromhex(self._keys.unwrap(row.wrapped, f"{row.request} {purpose}")) for row in rows}

    def requests_with(self, connection: Connection, purpose: str) -> set[str]:
        """Return the requests that have a key for a purpose."""
        return {row.request for row in connection.execute(sql.select(_key.c.request).where(_key.c.purpose == purpose))}

    def find(self, connection: Connection, request: str | None, about: str | None) -> list[str]:
        """Return the requests with a key of their file: the one of a name, or those about something."""
        which = (_key.c.request == request) if request is not None else (_key.c.about == about)
        query = sql.select(_key.c.request).where(_key.c.purpose == FILE).where(which)
        return [row.request for row in connection.execute(query)]

    def forget(self, connection: Connection, requests: Sequence[str], purpose: str | None = None) -> None:
        """Delete the keys of requests, for one purpose or all; and then who is who, where nothing needs it any more."""
        for at in range(0, len(requests), 500):
            query = _key.delete().where(_key.c.request.in_(requests[at : at + 500]))
            connection.execute(query if purpose is None else query.where(_key.c.purpose == purpose))
        if purpose is None:
            kept = sql.select(_tombstone.c.owner).where(_tombstone.c.request.in_(sql.select(_key.c.request)))
            connection.execute(_owner.delete().where(_owner.c.owner.not_in(kept)))

    def remove_tombstones(self, connection: Connection, request: str) -> None:
        """Delete the tombstones of a request that was withdrawn."""
        connection.execute(_tombstone.delete().where(_tombstone.c.request == request))

    def counts(self, connection: Connection) -> dict[str, int]:
        """Return how many tombstones each request has; those without any are left out."""
        count = sql.select(_tombstone.c.request, sql.func.count()).group_by(_tombstone.c.request)
        return {name: number for name, number in connection.execute(count)}  # noqa: C416 - rows are no tuples

    def by_request(self, connection: Connection) -> dict[str, dict[str, list[str]]]:
        """Return all tombstones by request and owner."""
        query = sql.select(_tombstone.c.request, _tombstone.c.owner, _tombstone.c.hash)
        found: dict[str, dict[str, list[str]]] = {}
        for request, owner, name in connection.execute(query):
            found.setdefault(request, {}).setdefault(owner, []).append(name)
        return found

    def tombstones(
        self, connection: Connection, request: str | None = None, without: Collection[str] = ()
    ) -> dict[str, list[str]]:
        """Tombstones by owner, all or of one request, without those of some."""
        query = sql.select(_tombstone.c.owner, _tombstone.c.hash, _tombstone.c.request)
        if request is not None:
            query = query.where(_tombstone.c.request == request)
        found: dict[str, list[str]] = {}
        for owner, name, of in connection.execute(query):
            if of not in without:
                found.setdefault(owner, []).append(name)
        return found

    def names(self, connection: Connection) -> dict[str, str]:
        """Clients by owner code."""
        return {row.owner: self._keys.unwrap(row.wrapped, row.owner) for row in connection.execute(sql.select(_owner))}

    def add_tombstones(self, connection: Connection, found: Found, owner_of: Callable[[str], str]) -> None:
        """Write tombstones by request and client; those that are there already stay."""
        owners = {client: owner_of(client) for clients in found.values() for client in clients}
        rows = [
            {"owner": owners[client], "hash": name, "request": request}
            for request, clients in found.items()
            for client, names in clients.items()
            for name in dict.fromkeys(names)
        ]
        if not rows:
            return
        insert = _insert_missing(connection)
        known = {row.owner for row in connection.execute(sql.select(_owner.c.owner))}
        names = [{"owner": o, "wrapped": self._keys.wrap(client, o)} for client, o in owners.items() if o not in known]
        if names:
            connection.execute(insert(_owner), names)
        connection.execute(insert(_tombstone), rows)

    def digest(self, tombstoned: Mapping[str, Iterable[str]]) -> str:
        """Return the keyed digest of tombstones by owner, as lines of the chain carry it."""
        pairs = sorted(f"{owner} {name}" for owner, names in tombstoned.items() for name in names)
        return self._keys.keyed("\n".join(pairs))


def _insert_missing(connection: Connection) -> Callable[[sql.Table], Any]:
    """An INSERT that leaves rows alone that are there already."""
    if connection.dialect.name == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as postgresql

        return lambda table: postgresql(table).on_conflict_do_nothing()
    from sqlalchemy.dialects.sqlite import insert as sqlite

    return lambda table: sqlite(table).on_conflict_do_nothing()
