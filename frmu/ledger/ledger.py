"""The ledger: an append-only, hash-chained table, written before anything is done.

Each line carries the digest of the line before it, so a changed, missing or reordered line breaks the chain at
a place that `check` names. What a request means (a person, record ids) stands in a table of its own and is
deleted when the request is closed; the chain keeps a keyed hash of it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from frmu.errors import LedgerError, RequestError
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest, Stage
from frmu.types import Selection

__all__ = ["Ledger", "Line"]

VERSION = 1
STAGES: tuple[str, ...] = get_args(Stage)
_GENESIS = "0" * 64

_tables = sql.MetaData()
_line = sql.Table(
    "frmu_line",
    _tables,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("time", sql.String(40), nullable=False),
    sql.Column("kind", sql.String(20), nullable=False),
    sql.Column("request", sql.String(40), nullable=False),
    sql.Column("body", sql.Text, nullable=False),
    sql.Column("previous", sql.String(64), nullable=False),
    sql.Column("digest", sql.String(64), nullable=False),
)
_pending = sql.Table(
    "frmu_pending",
    _tables,
    sql.Column("request", sql.String(40), primary_key=True),
    sql.Column("selection", sql.Text, nullable=False),
)
_tombstone = sql.Table(
    "frmu_tombstone",
    _tables,
    sql.Column("owner", sql.String(32), primary_key=True),
    sql.Column("hash", sql.String(32), primary_key=True),
    sql.Column("request", sql.String(40), nullable=False),
)
_version = sql.Table("frmu_version", _tables, sql.Column("version", sql.Integer, primary_key=True))


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the ledger."""

    number: int
    time: str
    kind: str
    request: str
    body: Mapping[str, Any]
    previous: str
    digest: str


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Ledger:
    """The ledger at a SQLAlchemy URL; `key` is the store's secret, `clock` gives aware UTC times."""

    def __init__(self, url: str, key: bytes, clock: Callable[[], dt.datetime] = _utc) -> None:
        self._key = key
        self._clock = clock
        try:
            self._engine = sql.create_engine(url)
            if self._engine.dialect.name == "sqlite":
                _prepare_sqlite(self._engine)
            with self._engine.begin() as connection:
                self._open(connection)
        except (sql.exc.SQLAlchemyError, ImportError) as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            where = sql.make_url(url).render_as_string(hide_password=True) if "://" in url else url
            raise LedgerError(f"{where}: the ledger cannot be opened: {reason}; check store.ledger") from None

    def _open(self, connection: Connection) -> None:
        _tables.create_all(connection)
        version = connection.execute(sql.select(_version.c.version)).scalar()
        if version is None:
            connection.execute(_version.insert().values(version=VERSION))
        elif version != VERSION:
            raise LedgerError(f"the ledger has version {version}, this frmu writes version {VERSION}; upgrade frmu")

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def now(self) -> dt.datetime:
        """The ledger's clock."""
        return self._clock()

    # -- requests ---------------------------------------------------------------------------------------------

    def receive(self, selection: Selection, reason: str, due_days: int) -> EraseRequest:
        """Write a request down; from here on it is pending."""
        if due_days < 0:
            raise RequestError(f"due must be a number of days from now, got {due_days}")
        received = self.now()
        due = received + dt.timedelta(days=due_days)
        text = json.dumps(selection.to_json(), sort_keys=True)
        with self._writing() as connection:
            number = self._next(connection)
            request = f"r{number}"
            body = {
                "kind": selection.kind,
                "selection": hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest(),
                "reason": reason,
                "due": due.isoformat(timespec="seconds"),
            }
            self._append(connection, "received", request, body, received)
            connection.execute(_pending.insert().values(request=request, selection=text))
        return EraseRequest(request, selection, reason, received, due, "received")

    def advance(self, requests: Iterable[str], stage: Stage, body: Mapping[str, Any]) -> None:
        """Write that some requests reached a stage; before the work of that stage's successor begins."""
        with self._writing() as connection:
            for request in requests:
                self._append(connection, stage, request, body, self.now())

    def bury(self, found: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        """Write tombstones, by request and client: before the records are purged, so that none can come back."""
        with self._writing() as connection:
            there = {tuple(row) for row in connection.execute(sql.select(_tombstone.c.owner, _tombstone.c.hash))}
            for request, clients in found.items():
                for client, hashes in clients.items():
                    owner = self._owner(client)
                    new = [name for name in dict.fromkeys(hashes) if (owner, name) not in there]
                    there.update((owner, name) for name in new)
                    if new:
                        rows = [{"owner": owner, "hash": name, "request": request} for name in new]
                        connection.execute(_tombstone.insert(), rows)

    def tombstones(self, clients: Iterable[str]) -> dict[str, frozenset[str]]:
        """Which records of these clients must not come back, as keyed hashes."""
        buried: dict[str, set[str]] = {}
        with self._engine.connect() as connection:
            for owner, name in connection.execute(sql.select(_tombstone.c.owner, _tombstone.c.hash)):
                buried.setdefault(owner, set()).add(name)
        owners = {client: self._owner(client) for client in clients}
        return {client: frozenset(buried[owner]) for client, owner in owners.items() if owner in buried}

    def buried_by(self, request: str, clients: Iterable[str]) -> dict[str, frozenset[str]]:
        """The tombstones that one request set, by client."""
        query = sql.select(_tombstone.c.owner, _tombstone.c.hash).where(_tombstone.c.request == request)
        mine: dict[str, set[str]] = {}
        with self._engine.connect() as connection:
            for owner, name in connection.execute(query):
                mine.setdefault(owner, set()).add(name)
        owners = {client: self._owner(client) for client in clients}
        return {client: frozenset(mine[owner]) for client, owner in owners.items() if owner in mine}

    def close_requests(self, receipts: Iterable[Receipt]) -> None:
        """File receipts, and forget what their requests meant in clear."""
        with self._writing() as connection:
            for receipt in receipts:
                self._append(connection, "closed", receipt.request, receipt.to_json(), self.now())
                connection.execute(_pending.delete().where(_pending.c.request == receipt.request))

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write a line that belongs to no request, such as a policy that was retired."""
        with self._writing() as connection:
            self._append(connection, kind, "", body, self.now())

    # -- reading ----------------------------------------------------------------------------------------------

    def pending(self) -> list[EraseRequest]:
        """The requests that are not closed, oldest first."""
        stages: dict[str, Line] = {}
        first: dict[str, Line] = {}
        for line in self.lines():
            if line.kind == "received":
                first[line.request] = line
            if line.kind in STAGES:
                stages[line.request] = line
        with self._engine.connect() as connection:
            meant = {row.request: json.loads(row.selection) for row in connection.execute(sql.select(_pending))}
        return [
            EraseRequest(
                request,
                Selection.from_json(meant[request]),
                line.body["reason"],
                dt.datetime.fromisoformat(line.time),
                dt.datetime.fromisoformat(line.body["due"]),
                stages[request].kind,  # type: ignore[arg-type]
            )
            for request, line in first.items()
            if stages[request].kind != "closed"
        ]

    def receipts(self) -> list[dict[str, Any]]:
        """Every receipt, oldest first."""
        return [dict(line.body) for line in self.lines() if line.kind == "closed"]

    def retired(self) -> frozenset[str]:
        """Digests of policies that must not be used again."""
        return frozenset(line.body["policy"] for line in self.lines() if line.kind == "retired")

    def lines(self) -> list[Line]:
        """Every line, in order."""
        with self._engine.connect() as connection:
            rows = connection.execute(sql.select(_line).order_by(_line.c.number)).all()
        return [Line(r.number, r.time, r.kind, r.request, json.loads(r.body), r.previous, r.digest) for r in rows]

    def check(self) -> int:
        """The number of lines, if the chain holds; else a `LedgerError` that names the first line that does not."""
        previous = _GENESIS
        lines = self.lines()
        for expected, line in enumerate(lines, start=1):
            if line.number != expected:
                raise LedgerError(f"line {expected} of the ledger is missing: the next one is number {line.number}")
            if line.previous != previous:
                raise LedgerError(f"line {line.number} of the ledger does not follow line {line.number - 1}")
            if line.digest != _digest(line.number, line.time, line.kind, line.request, line.body, line.previous):
                raise LedgerError(f"line {line.number} of the ledger ({line.kind} {line.request}) was changed")
            previous = line.digest
        return len(lines)

    # -- writing ----------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One writer at a time, across processes: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock."""
        try:
            with self._engine.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(sql.text("SELECT pg_advisory_xact_lock(7231945)"))
                yield connection
        except sql.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise LedgerError(f"the ledger cannot be written: {reason}; nothing was changed") from None

    def _next(self, connection: Connection) -> int:
        last = connection.execute(sql.select(sql.func.max(_line.c.number))).scalar()
        return int(last or 0) + 1

    def _append(
        self, connection: Connection, kind: str, request: str, body: Mapping[str, Any], time: dt.datetime
    ) -> None:
        number = self._next(connection)
        before = connection.execute(sql.select(_line.c.digest).where(_line.c.number == number - 1)).scalar()
        previous = before or _GENESIS
        stamp = time.isoformat(timespec="microseconds")
        plain = json.loads(json.dumps(body, sort_keys=True, default=list))
        connection.execute(
            _line.insert().values(
                number=number,
                time=stamp,
                kind=kind,
                request=request,
                body=json.dumps(plain, sort_keys=True),
                previous=previous,
                digest=_digest(number, stamp, kind, request, plain, previous),
            )
        )

    def _owner(self, client: str) -> str:
        return hmac.new(self._key, client.encode(), hashlib.sha256).hexdigest()[:32]


def _digest(number: int, time: str, kind: str, request: str, body: Mapping[str, Any], previous: str) -> str:
    text = json.dumps([number, time, kind, request, body, previous], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _prepare_sqlite(engine: sql.Engine) -> None:
    @sql.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA busy_timeout=30000")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")
