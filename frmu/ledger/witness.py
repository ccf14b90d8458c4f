"""A witness in a database: one row a ledger, in a table that is made on first use.

The database is opened as the ledger's is: `postgresql://user@host/db`, with the password where libpq looks for one
(PGPASSWORD, ~/.pgpass). It must be another database than the ledger's own, which would be put back with its lines.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sql
from sqlalchemy.engine import Connection

from frmu.errors import StoreError
from frmu.ledger.chain import engine_of, reason_of
from frmu.ledger.chain import tables as of_a_ledger
from frmu.storage.witness import code_of
from frmu.storage.workspace import Anchor

__all__ = ["DatabaseWitness"]

_own = sql.MetaData()  # not the ledger's, which makes every table of its own
_witness = sql.Table(
    "frmu_witness",
    _own,
    sql.Column("store", sql.Text, primary_key=True),
    sql.Column("line", sql.BigInteger, nullable=False),
    sql.Column("hash", sql.Text, nullable=False),
    sql.Column("written", sql.DateTime(timezone=True), nullable=False),
)


class DatabaseWitness:
    """The row of a store, by its `Ledger.store_id`, in the database at a SQLAlchemy URL; raises `StoreError`."""

    kind = "database"

    def __init__(self, url: str, store: str) -> None:
        self._url, self._store = url, store
        try:
            there = sql.make_url(url)
        except (sql.exc.SQLAlchemyError, ValueError):  # not shown: a password may be what cannot be read
            raise StoreError("the address of the witness cannot be read; check store.witness") from None
        bare = sql.URL.create(there.get_backend_name(), host=there.host, port=there.port, database=there.database)
        self.place = bare.render_as_string()
        self.code = code_of(self.place)

    def last(self) -> tuple[int, str] | None:
        """Return the line that it saw last, None where it saw nothing yet."""
        with self._opened("read") as connection:
            if not sql.inspect(connection).has_table(_witness.name):
                return None
            row = connection.execute(sql.select(_witness).where(_witness.c.store == self._store)).one_or_none()
            return (int(row.line), str(row.hash)) if row else None

    def keep(self, anchor: Anchor) -> None:
        """Show it the ledger's last line; it must not be in the ledger's own database."""
        with self._opened("written") as connection:
            if self._beside(connection, anchor):
                raise StoreError(
                    f"{self.place}: the ledger itself lies in this database, and a witness there is put back with it; "
                    "set store.witness to another database, a file, or the tracking server"
                )
            _own.create_all(connection)
            connection.execute(_witness.delete().where(_witness.c.store == self._store))
            now = dt.datetime.now(dt.UTC)
            row = {"store": self._store, "line": anchor.number, "hash": anchor.digest, "written": now}
            connection.execute(_witness.insert().values(row))

    def _beside(self, connection: Connection, anchor: Anchor) -> bool:
        """Return whether the line stands in this very database: one may be reached by several addresses."""
        line = of_a_ledger.tables["frmu_line"]
        if not sql.inspect(connection).has_table(line.name):
            return False
        query = sql.select(line.c.digest).where(line.c.number == anchor.number)
        return bool(connection.execute(query).scalar() == anchor.digest)

    @contextmanager
    def _opened(self, what: str) -> Iterator[Connection]:
        try:
            engine = engine_of(self._url)
            try:
                with engine.execution_options(frmu_reads=what == "read").begin() as connection:
                    yield connection
            finally:
                engine.dispose()
        except (sql.exc.SQLAlchemyError, ImportError, ValueError) as error:
            raise StoreError(
                f"{self.place}: the witness cannot be {what}: {reason_of(error)}; check store.witness"
            ) from None
