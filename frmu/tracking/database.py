"""The one file of an outbox: SQLite, made on the first change, changed in one transaction each, read by anybody.

A job that is killed leaves a change whole or not at all: what it had begun is in the journal beside the file, and the
next one that opens it takes it back. What is removed is overwritten; `scrub` is for the copies that SQLite leaves of
rows that it moved.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from frmu.errors import StoreError

__all__ = ["changing", "insert_host", "insert_run", "insert_step", "parsed", "rows", "scrub"]

_OURS = 0x66726D75  # "frmu", the application id of such a file
_VERSION = 1
_TABLES = (
    "CREATE TABLE runs (number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, name TEXT NOT NULL, tags TEXT NOT NULL,"
    " parent TEXT, start INTEGER NOT NULL, run TEXT)",
    "CREATE TABLE steps (key TEXT NOT NULL REFERENCES runs (key) ON DELETE CASCADE, number INTEGER NOT NULL,"
    " kind TEXT NOT NULL, body TEXT NOT NULL, file TEXT, content BLOB, PRIMARY KEY (key, number))",
    "CREATE TABLE hosts (host TEXT PRIMARY KEY)",
    f"PRAGMA application_id = {_OURS}",
    f"PRAGMA user_version = {_VERSION}",
)
_WRITING = (
    "journal_mode = TRUNCATE",  # with FULL the cut itself goes to the disk; a journal that is unlinked may come back
    "synchronous = FULL",
    "secure_delete = ON",
    "foreign_keys = ON",
    "cache_spill = OFF",  # readers are shut out while a change is committed, not while it is made
    "temp_store = MEMORY",  # no copy of what is learned from records in the system's temporary folder
)
_PATIENCE = 30.0  # seconds that a change waits for readers
_GLANCE = 5.0  # seconds that a reader waits for a commit

_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED")
_DISK = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_TOOBIG")
_RESTORE = "restore it from a backup, or move it away to give up the runs that wait for MLflow in it"


@contextmanager
def changing(file: Path) -> Iterator[sqlite3.Connection]:
    """Change the file in one transaction, which is on the disk when this ends, and never was where it raises."""
    file.parent.mkdir(mode=0o700, exist_ok=True)
    if not file.exists():
        file.touch(mode=0o600)  # SQLite would make it for everybody; its journal gets the mode of the file
    with _opened(file, _PATIENCE) as database:
        made = _is_made(file, database)
        _prepare(database)
        database.execute("BEGIN IMMEDIATE")
        for statement in () if made else _TABLES:
            database.execute(statement)
        yield database
        database.execute("COMMIT")  # one that is not reached is rolled back on the way out


def rows(file: Path, query: str, *values: Any) -> list[Any]:
    """Return what a query finds; nothing where there is no file yet, and none is made."""
    if not file.exists():
        return []
    with _opened(file, _GLANCE) as database:
        database.execute("PRAGMA query_only = ON")
        return database.execute(query, values).fetchall() if _is_made(file, database) else []


def scrub(file: Path) -> None:
    """Write the file anew, from its rows alone.

    SQLite overwrites a row where it lies, but not where it lay before its page was split or merged.
    """
    if not file.exists():
        return
    with _opened(file, _PATIENCE) as database:
        if _is_made(file, database):
            _prepare(database)
            database.execute("VACUUM")


def parsed(file: Path, text: Any) -> dict[str, Any]:
    """Return the JSON object that stands in a row."""
    try:
        value = json.loads(text)
    except (ValueError, TypeError) as error:
        raise _damaged(file, error) from None
    if not isinstance(value, dict):
        raise _damaged(file, f"{str(value)[:40]} is no JSON object")
    return value


# -- one row --------------------------------------------------------------------------------------------------


def insert_run(
    database: sqlite3.Connection,
    key: str,
    name: str,
    tags: Mapping[str, str],
    parent: str | None,
    start: int,
    run: str | None,
) -> bool:
    """Put a run after those that wait already; False where it waits itself."""
    statement = "INSERT OR IGNORE INTO runs (key, name, tags, parent, start, run) VALUES (?, ?, ?, ?, ?, ?)"
    return database.execute(statement, (key, name, json.dumps(dict(tags)), parent, start, run)).rowcount == 1


def insert_step(
    database: sqlite3.Connection, key: str, kind: str, body: Mapping[str, Any], data: Path | None = None
) -> None:
    """Put a step after those of its run, with the file that it is about."""
    name, content = (data.name, data.read_bytes()) if data is not None else (None, None)
    statement = "INSERT INTO steps SELECT ?, coalesce(max(number), 0) + 1, ?, ?, ?, ? FROM steps WHERE key = ?"
    database.execute(statement, (key, kind, json.dumps(dict(body)), name, content, key))


def insert_host(database: sqlite3.Connection, host: str) -> None:
    """Remember a tracking server that has answered."""
    database.execute("INSERT OR IGNORE INTO hosts VALUES (?)", (host,))


# -- the file -------------------------------------------------------------------------------------------------


@contextmanager
def _opened(file: Path, seconds: float) -> Iterator[sqlite3.Connection]:
    """Open a file that is there.

    For writing, also where it is only read: a journal that a killed job left can be taken back by nobody else.
    """
    where = f"{file.absolute().as_uri()}?mode=rw"
    try:
        with closing(sqlite3.connect(where, seconds, isolation_level=None, uri=True)) as database:
            yield database
    except (sqlite3.Error, OverflowError) as error:  # the latter: a file too large for SQLite
        raise _told(file, error) from error


def _prepare(database: sqlite3.Connection) -> None:
    for setting in _WRITING:
        database.execute(f"PRAGMA {setting}")


def _is_made(file: Path, database: sqlite3.Connection) -> bool:
    """Return whether the tables are there; raises `StoreError` where others are."""
    ((mark,),) = database.execute("PRAGMA application_id")
    ((version,),) = database.execute("PRAGMA user_version")
    ((tables,),) = database.execute("SELECT count(*) FROM sqlite_master")
    if (mark, version, tables) == (0, 0, 0):
        return False
    if mark != _OURS:
        raise _damaged(file, "it is another program's database")
    if version != _VERSION:
        raise StoreError(f"{file}: is of version {version}, and this frmu reads {_VERSION}; use the frmu that wrote it")
    return True


def _told(file: Path, error: Exception) -> StoreError:
    name = getattr(error, "sqlite_errorname", "SQLITE_TOOBIG" if isinstance(error, OverflowError) else "")
    if name.startswith(_BUSY):
        return StoreError(f"{file}: another process is at work on it; wait for it to end, and try again")
    if name.startswith(_DISK):
        return StoreError(f"{file}: cannot be used: {error}; make room on its disk, and let its owner write there")
    return _damaged(file, error)


def _damaged(file: Path, reason: Exception | str) -> StoreError:
    return StoreError(f"{file}: cannot be read: {reason}; {_RESTORE}")
