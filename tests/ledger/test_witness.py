"""A witness in a database: one row a store, on SQLite and PostgreSQL; its address is told without a password."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import sqlalchemy as sql

from frmu.errors import StoreError
from frmu.ledger.ledger import Ledger
from frmu.ledger.witness import DatabaseWitness
from frmu.storage.workspace import Anchor

KEY = b"k" * 32


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'witness.db'}"
    return str(request.getfixturevalue("postgres_database"))


def test_it_keeps_the_last_line_of_each_store(url: str) -> None:
    one, other = DatabaseWitness(url, "one"), DatabaseWitness(url, "other")
    assert one.last() is None
    one.keep(Anchor("home", 3, "c"))
    assert (one.last(), other.last()) == ((3, "c"), None)
    other.keep(Anchor("another", 7, "g"))
    one.keep(Anchor("home", 4, "d"))
    assert (one.last(), other.last()) == ((4, "d"), (7, "g"))
    engine = sql.create_engine(url)
    with engine.connect() as connection:
        rows = connection.execute(sql.text("SELECT store, line, hash FROM frmu_witness ORDER BY store")).all()
        written = connection.execute(sql.text("SELECT written FROM frmu_witness")).scalars().all()
    engine.dispose()
    assert rows == [("one", 4, "d"), ("other", 7, "g")]
    if url.startswith("postgresql"):
        assert all(abs(dt.datetime.now(dt.UTC) - time) < dt.timedelta(minutes=5) for time in written)


def test_the_ledgers_own_database_is_refused_and_left_as_it_was(url: str) -> None:
    ledger = Ledger(url, KEY)
    ledger.note("opened", {"home": "h"})
    with pytest.raises(StoreError, match="the ledger itself lies in this database"):
        DatabaseWitness(url, ledger.store_id).keep(Anchor("h", *ledger.head()))
    assert DatabaseWitness(url, ledger.store_id).last() is None
    DatabaseWitness(url, "another").keep(Anchor("h", 1, "of another ledger"))
    ledger.close()


def test_where_there_is_no_database_it_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    witness = DatabaseWitness("postgresql://ada:hush@127.0.0.1:1/frmu?application_name=hush", "one")
    assert witness.place == "postgresql://127.0.0.1:1/frmu"
    assert witness.code == DatabaseWitness("postgresql+psycopg://bob@127.0.0.1:1/frmu", "one").code
    for what, act in (("read", witness.last), ("written", lambda: witness.keep(Anchor("h", 1, "a")))):
        with pytest.raises(StoreError, match=rf"^postgresql://127.*: the witness cannot be {what}: .*store\.") as told:
            act()
        assert "hush" not in str(told.value)


def test_an_address_that_is_none_is_not_shown() -> None:
    with pytest.raises(StoreError, match=r"cannot be read; check store\.witness") as told:
        DatabaseWitness("postgresql://ada:hu/sh@there:x/frmu", "one")
    assert "sh@" not in str(told.value)


def test_a_table_of_another_shape_is_named(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'witness.db'}"
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sql.text("CREATE TABLE frmu_witness (a TEXT)"))
    engine.dispose()
    with pytest.raises(StoreError, match="the witness cannot be read: no such column"):
        DatabaseWitness(url, "one").last()
