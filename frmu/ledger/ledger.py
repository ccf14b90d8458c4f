"""The ledger: an append-only, hash-chained table, written before anything is done.

Each line carries the digest of the line before it, keyed with the store's secret, and a keyed head says which line
is the last: a line that is changed, missing, moved or cut off breaks the chain at a place that `check` names. A
plan carries the digest of the tombstones that it set, so these cannot be taken away unnoticed either. What a
request means (a person, record ids) stands in a table of its own and is deleted when the request is closed; the
chain keeps a keyed hash of it, which is compared before the request is acted on.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
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
    sql.Column("request", sql.String(40), primary_key=True),
)
_head = sql.Table(
    "frmu_head",
    _tables,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("number", sql.Integer, nullable=False),
    sql.Column("mac", sql.String(64), nullable=False),
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
        except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
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
        head = connection.execute(sql.select(_head)).one_or_none()
        if head is None:
            connection.execute(_head.insert().values(id=1, number=0, mac=self._mac(0, _GENESIS)))

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def now(self) -> dt.datetime:
        """The ledger's clock."""
        return self._clock()

    # -- requests ---------------------------------------------------------------------------------------------

    def receive(
        self,
        selection: Selection,
        reason: str,
        due_days: int,
        found: Mapping[str, Iterable[str]] | None = None,
        records: Mapping[str, int] | None = None,
    ) -> EraseRequest:
        """Write a request down, with the tombstones by client of what is known to be meant; it is pending now."""
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
                "selection": self._keyed(text),
                "reason": reason,
                "due": due.isoformat(timespec="seconds"),
                "records": dict(records or {}),
            }
            self._append(connection, "received", request, body, received)
            connection.execute(_pending.insert().values(request=request, selection=text))
            self._bury(connection, request, found or {})
        return EraseRequest(request, selection, reason, received, due, "received")

    def advance(self, requests: Iterable[str], stage: Stage, body: Mapping[str, Any]) -> None:
        """Write that some requests reached a stage; before the work of that stage's successor begins."""
        with self._writing() as connection:
            for request in requests:
                self._append(connection, stage, request, body, self.now())

    def bury(self, found: Mapping[str, Mapping[str, Iterable[str]]]) -> None:
        """Write tombstones, by request and client: before the records are purged, so that none can come back."""
        with self._writing() as connection:
            for request, clients in found.items():
                self._bury(connection, request, clients)

    def _bury(self, connection: Connection, request: str, clients: Mapping[str, Iterable[str]]) -> None:
        known = sql.select(_tombstone.c.owner, _tombstone.c.hash).where(_tombstone.c.request == request)
        there = {tuple(row) for row in connection.execute(known)}
        rows = [
            {"owner": owner, "hash": name, "request": request}
            for client, hashes in clients.items()
            for owner in [self._owner(client)]
            for name in dict.fromkeys(hashes)
            if (owner, name) not in there
        ]
        if rows:
            connection.execute(_tombstone.insert(), rows)

    def plan(self, request: str, records: Mapping[str, int]) -> None:
        """Write what a request takes, records by client, and the digest of its tombstones."""
        with self._writing() as connection:
            body = {"records": dict(records), "tombstones": self._tombstone_digest(connection, request)}
            self._append(connection, "planned", request, body, self.now())

    def tombstones(self, clients: Iterable[str], request: str | None = None) -> dict[str, frozenset[str]]:
        """Which records of these clients must not come back, as keyed hashes; all, or those of one request."""
        query = sql.select(_tombstone.c.owner, _tombstone.c.hash)
        if request is not None:
            query = query.where(_tombstone.c.request == request)
        buried: dict[str, set[str]] = {}
        with self._reading() as connection:
            for owner, name in connection.execute(query):
                buried.setdefault(owner, set()).add(name)
        owners = {client: self._owner(client) for client in clients}
        return {client: frozenset(buried[owner]) for client, owner in owners.items() if owner in buried}

    def close_requests(self, receipts: Iterable[Receipt]) -> None:
        """File receipts, and forget what their requests meant in clear."""
        with self._writing() as connection:
            for receipt in receipts:
                self._append(connection, "closed", receipt.request, receipt.to_json(), self.now())
                connection.execute(_pending.delete().where(_pending.c.request == receipt.request))
        if self._engine.dialect.name == "sqlite":  # what was deleted must not live on in the write-ahead log
            raw = self._engine.raw_connection()
            try:
                raw.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)")
            finally:
                raw.close()

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write a line that belongs to no request, such as a policy that was retired."""
        with self._writing() as connection:
            self._append(connection, kind, "", body, self.now())

    # -- reading ----------------------------------------------------------------------------------------------

    def pending(self) -> list[EraseRequest]:
        """The requests that are not closed, oldest first; raises `LedgerError` where what one means was changed."""
        with self._reading() as connection:
            lines = self._lines(connection)
            meant = {row.request: row.selection for row in connection.execute(sql.select(_pending))}
        stages = {line.request: line.kind for line in lines if line.kind in STAGES}
        return [
            EraseRequest(
                line.request,
                self._meant(line, meant),
                line.body["reason"],
                dt.datetime.fromisoformat(line.time),
                dt.datetime.fromisoformat(line.body["due"]),
                stages[line.request],  # type: ignore[arg-type]
            )
            for line in lines
            if line.kind == "received" and stages[line.request] != "closed"
        ]

    def _meant(self, line: Line, meant: Mapping[str, str]) -> Selection:
        text = meant.get(line.request, "")
        if not hmac.compare_digest(self._keyed(text), line.body["selection"]):
            raise LedgerError(
                f"what request {line.request} means was changed or removed in the ledger's database; it is not acted "
                "on. Restore the ledger from a backup"
            )
        return Selection.from_json(json.loads(text))

    def receipts(self) -> list[dict[str, Any]]:
        """Every receipt, oldest first."""
        return [dict(line.body) for line in self.lines() if line.kind == "closed"]

    def holders(self, requests: Collection[str] | None = None) -> set[str]:
        """The clients that lines name as holders of what requests (all by default) mean."""
        lines = [line for line in self.lines() if line.kind in ("received", "planned")]
        return {client for line in lines if not requests or line.request in requests for client in line.body["records"]}

    def retired(self) -> frozenset[str]:
        """Digests of policies that must not be used again."""
        return frozenset(line.body["policy"] for line in self.lines() if line.kind == "retired")

    def lines(self) -> list[Line]:
        """Every line, in order."""
        with self._reading() as connection:
            return self._lines(connection)

    def _lines(self, connection: Connection) -> list[Line]:
        rows = connection.execute(sql.select(_line).order_by(_line.c.number)).all()
        return [Line(r.number, r.time, r.kind, r.request, _body(r.number, r.body), r.previous, r.digest) for r in rows]

    def check(self) -> int:
        """The number of lines, if the chain holds; else a `LedgerError` that names the first line that does not."""
        with self._reading() as connection:
            lines = self._lines(connection)
            head = connection.execute(sql.select(_head)).one_or_none()
            plans = {line.request: line for line in lines if line.kind == "planned"}
            found = {request: self._tombstone_digest(connection, request) for request in plans}
        previous = _GENESIS
        for expected, line in enumerate(lines, start=1):
            if line.number != expected:
                raise LedgerError(f"line {expected} of the ledger is missing: the next one is number {line.number}")
            if line.previous != previous:
                raise LedgerError(f"line {line.number} of the ledger does not follow line {line.number - 1}")
            if line.digest != self._digest(line.number, line.time, line.kind, line.request, line.body, line.previous):
                raise LedgerError(f"line {line.number} of the ledger ({line.kind} {line.request}) was changed")
            previous = line.digest
        if head is None or head.number != len(lines) or head.mac != self._mac(len(lines), previous):
            raise LedgerError(
                f"the ledger ends with line {len(lines)}, its head says otherwise: lines were cut off, or it was "
                "written with another key"
            )
        for request, line in plans.items():
            if line.body["tombstones"] != found[request]:
                raise LedgerError(f"the tombstones of request {request} are not those of line {line.number}, its plan")
        return len(lines)

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except (sql.exc.SQLAlchemyError, KeyError, TypeError, ValueError) as error:
            reason = str(getattr(error, "orig", None) or repr(error)).splitlines()[0]
            raise LedgerError(f"the ledger cannot be read: {reason}; restore it from a backup") from None

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
                digest=(digest := self._digest(number, stamp, kind, request, plain, previous)),
            )
        )
        connection.execute(_head.update().values(number=number, mac=self._mac(number, digest)))

    def _owner(self, client: str) -> str:
        return self._keyed(client)[:32]

    def _keyed(self, text: str) -> str:
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    def _mac(self, number: int, digest: str) -> str:
        return self._keyed(f"head {number} {digest}")

    def _digest(self, number: int, time: str, kind: str, request: str, body: Mapping[str, Any], previous: str) -> str:
        return self._keyed(json.dumps([number, time, kind, request, body, previous], sort_keys=True))

    def _tombstone_digest(self, connection: Connection, request: str) -> str:
        query = sql.select(_tombstone.c.owner, _tombstone.c.hash).where(_tombstone.c.request == request)
        return self._keyed("\n".join(sorted(f"{owner} {name}" for owner, name in connection.execute(query))))


def _body(number: int, text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise LedgerError(f"line {number} of the ledger was changed: its body is not what frmu writes")
    return body


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
