"""An append-only, hash-chained table in a SQL database.

Each line carries the keyed digest of itself and of the line before it, and a keyed head says which line is the
last: a line that is changed, missing, moved or cut off breaks the chain at a place that `check` names. One writer
at a time, across processes and machines: SQLite by BEGIN IMMEDIATE, PostgreSQL by an advisory lock.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from frmu.errors import LedgerError
from frmu.ledger.keys import Keys

__all__ = ["Chain", "Line", "Writer", "engine_of", "reason_of", "tables"]

VERSION = 2
_GENESIS = "0" * 64
_LOCK = 7231945

tables = sql.MetaData()
_line = sql.Table(
    "frmu_line",
    tables,
    sql.Column("number", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("time", sql.String(40), nullable=False),
    sql.Column("kind", sql.String(20), nullable=False, index=True),
    sql.Column("request", sql.String(40), nullable=False),
    sql.Column("body", sql.Text, nullable=False),
    sql.Column("previous", sql.String(64), nullable=False),
    sql.Column("digest", sql.String(64), nullable=False),
)
_head = sql.Table(
    "frmu_head",
    tables,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("number", sql.Integer, nullable=False),
    sql.Column("mac", sql.String(64), nullable=False),
)
_version = sql.Table("frmu_version", tables, sql.Column("version", sql.Integer, primary_key=True))


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


class Writer:
    """The end of the chain inside one transaction: what is appended here is written whole or not at all."""

    def __init__(self, connection: Connection, keys: Keys, now: dt.datetime) -> None:
        self.connection = connection
        self._keys = keys
        self._now = now
        last = connection.execute(sql.select(_line).order_by(_line.c.number.desc()).limit(1)).one_or_none()
        self.number: int = last.number if last else 0
        self.digest: str = last.digest if last else _GENESIS
        self._time: str = last.time if last else ""
        self._rows: list[dict[str, Any]] = []

    def append(self, kind: str, request: str, body: Mapping[str, Any]) -> None:
        """Add a line; where the clock stands before the last line, the line says by how much."""
        stamp = self._now.isoformat(timespec="microseconds")
        if self._time and (back := (dt.datetime.fromisoformat(self._time) - self._now).total_seconds()) > 1:
            body = {**body, "clock_went_back_seconds": round(back)}
        text = json.dumps(body, sort_keys=True, default=list)
        number, previous = self.number + 1, self.digest
        digest = _digest(self._keys, number, stamp, kind, request, text, previous)
        self._rows.append(
            {"number": number, "time": stamp, "kind": kind, "request": request, "body": text, "previous": previous}
            | {"digest": digest}
        )
        self.number, self.digest, self._time = number, digest, stamp

    def flush(self) -> None:
        """Hand what was appended to the database."""
        if self._rows:
            self.connection.execute(_line.insert(), self._rows)
            mac = _mac(self._keys, self.number, self.digest)
            self.connection.execute(_head.update().values(number=self.number, mac=mac))
            self._rows = []


class Chain:
    """The chain at a SQLAlchemy URL; raises `LedgerError` where the database cannot be opened with these keys."""

    def __init__(self, url: str, keys: Keys, clock: Callable[[], dt.datetime], make: bool) -> None:
        self._keys = keys
        self._clock = clock
        self._make = make
        try:
            self.engine = engine_of(url)
            try:
                with self.engine.begin() as connection:
                    _lock(connection)
                    self._open(connection)
            except BaseException:
                self.engine.dispose()
                raise
        except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
            where = sql.make_url(url).render_as_string(hide_password=True) if "://" in url else url
            raise LedgerError(f"{where}: the ledger cannot be opened: {reason_of(error)}; check store.ledger") from None

    def _open(self, connection: Connection) -> None:
        if sql.inspect(connection).has_table(_version.name):
            version = connection.execute(sql.select(_version.c.version)).scalar()
            if version != VERSION:
                raise LedgerError(
                    f"the ledger has version {version}, this frmu reads and writes version {VERSION}; nothing was "
                    "changed. Use the frmu that wrote it, or set another store.ledger"
                )
            self._own(connection, *self.last(connection))
            return
        if not self._make:
            raise LedgerError("there is no ledger in this database; restore it, or check store.ledger")
        tables.create_all(connection)
        connection.execute(_version.insert().values(version=VERSION))
        connection.execute(_head.insert().values(id=1, number=0, mac=_mac(self._keys, 0, _GENESIS)))

    def close(self) -> None:
        """Let go of the database."""
        self.engine.dispose()

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """A transaction with the end of the chain in hand; the head must be ours, or nothing is added to it."""
        try:
            with self.engine.begin() as connection:
                _lock(connection)
                writer = Writer(connection, self._keys, self._clock())
                self._own(connection, writer.number, writer.digest)
                yield writer
                writer.flush()
        except sql.exc.SQLAlchemyError as error:
            raise LedgerError(
                f"the ledger cannot be written: {reason_of(error)}; nothing was changed. Free or mount what it lies "
                "on, or check store.ledger"
            ) from None

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads."""
        try:
            with self.engine.connect().execution_options(frmu_reads=True) as connection:
                if connection.dialect.name == "postgresql":  # several statements see one state, as on SQLite
                    connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                yield connection
        except (sql.exc.SQLAlchemyError, KeyError, TypeError, ValueError) as error:
            raise LedgerError(f"the ledger cannot be read: {reason_of(error)}; restore it from a backup") from None

    @contextmanager
    def aside(self) -> Iterator[Connection]:
        """A connection outside any transaction, for what the database does to its own files."""
        try:
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                yield connection
        except sql.exc.SQLAlchemyError as error:
            raise LedgerError(f"what was forgotten may still be in the ledger's files: {reason_of(error)}") from None

    def lines(self, connection: Connection, kinds: Collection[str] | None = None) -> list[Line]:
        """Lines in order, all or those of some kinds."""
        query = sql.select(_line).order_by(_line.c.number)
        if kinds is not None:
            query = query.where(_line.c.kind.in_(kinds))
        rows = connection.execute(query)
        return [Line(r.number, r.time, r.kind, r.request, _body(r.number, r.body), r.previous, r.digest) for r in rows]

    def last(self, connection: Connection) -> tuple[int, str]:
        """The number and the digest of the last line; 0 and zeros where there is none."""
        row = connection.execute(sql.select(_line).order_by(_line.c.number.desc()).limit(1)).one_or_none()
        return (row.number, row.digest) if row else (0, _GENESIS)

    def count(self, connection: Connection, kind: str) -> int:
        """Return how many lines of a kind there are."""
        return connection.execute(sql.select(sql.func.count()).where(_line.c.kind == kind)).scalar_one()

    def digest_of(self, connection: Connection, number: int) -> str | None:
        """The digest of a line, or None where it is not there."""
        return connection.execute(sql.select(_line.c.digest).where(_line.c.number == number)).scalar()

    def stages(self, connection: Connection, kinds: Collection[str]) -> dict[str, str]:
        """The last of these kinds of line that each request has."""
        query = sql.select(_line.c.request, _line.c.kind).where(_line.c.kind.in_(kinds)).order_by(_line.c.number)
        return {row.request: row.kind for row in connection.execute(query)}

    def check(self, connection: Connection) -> int:
        """The number of lines, if the chain holds; else a `LedgerError` that names the first line that does not."""
        previous, number = _GENESIS, 0
        for number, row in enumerate(connection.execute(sql.select(_line).order_by(_line.c.number)), start=1):
            if row.number != number:
                raise LedgerError(f"line {number} of the ledger is missing: the next one is number {row.number}")
            if row.previous != previous:
                raise LedgerError(f"line {number} of the ledger does not follow line {number - 1}")
            if row.digest != _digest(self._keys, number, row.time, row.kind, row.request, row.body, row.previous):
                raise LedgerError(
                    f"line {number} of the ledger ({row.kind} {row.request}) was changed{_KEY if number == 1 else ''}"
                )
            previous = row.digest
        self._own(connection, number, previous)
        return number

    def _own(self, connection: Connection, number: int, digest: str) -> None:
        """The head must name the last line, under our key."""
        head = connection.execute(sql.select(_head)).one_or_none()
        if head is None or head.number != number or head.mac != _mac(self._keys, number, digest):
            first = connection.execute(sql.select(_line).where(_line.c.number == 1)).one_or_none()
            if first is not None and first.digest != _digest(
                self._keys, 1, first.time, first.kind, first.request, first.body, first.previous
            ):
                raise LedgerError(_OTHER)
            raise LedgerError(f"the ledger ends with line {number}, its head says otherwise: lines were cut off{_KEY}")


_OTHER = (
    "the ledger in this database was begun with another key: a database holds the ledger of one federation, so a "
    "second one needs a database of its own in store.ledger. If this is the same federation, put its key back"
)
_KEY = ", or it was written with another key; restore the ledger, or the key, from a backup"


def engine_of(url: str) -> sql.Engine:
    """An engine for a URL; `postgresql://` means the driver that frmu[postgres] installs."""
    url = "postgresql+psycopg://" + url.removeprefix("postgresql://") if url.startswith("postgresql://") else url
    engine = sql.create_engine(url, insertmanyvalues_page_size=1000)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine)
    return engine


def _prepare_sqlite(engine: sql.Engine) -> None:
    @sql.event.listens_for(engine, "connect")
    def _connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions are begun below, not by the driver
        connection.execute("PRAGMA busy_timeout=60000")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten

    @sql.event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        if options.get("isolation_level") != "AUTOCOMMIT":
            connection.exec_driver_sql("BEGIN" if options.get("frmu_reads") else "BEGIN IMMEDIATE")


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(sql.text(f"SELECT pg_advisory_xact_lock({_LOCK})"))


def reason_of(error: BaseException) -> str:
    """Return the first line of what a database said."""
    return (str(getattr(error, "orig", None) or error).strip() or repr(error)).splitlines()[0]


def _digest(keys: Keys, number: int, time: str, kind: str, request: str, body: str, previous: str) -> str:
    return keys.keyed(json.dumps([number, time, kind, request, body, previous]))


def _mac(keys: Keys, number: int, digest: str) -> str:
    return keys.keyed(f"head {number} {digest}")


def _body(number: int, text: str) -> Mapping[str, Any]:
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise LedgerError(f"line {number} of the ledger was changed: its body is not what frmu writes")
    return body
