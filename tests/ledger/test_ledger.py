"""The ledger is append-only, says when it was touched, and forgets what requests meant."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from frmu.errors import LedgerError, RequestError
from frmu.ledger.ledger import Ledger
from frmu.types import Selection

KEY = b"k" * 32
SELECTION = Selection("subject", subject="ada lovelace")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)
    yield book
    book.close()


def fill(ledger: Ledger, number: int = 4) -> None:
    for _ in range(number):
        ledger.receive(SELECTION, "asked", 30)


def alter(tmp_path: Path, statement: str) -> None:
    connection = sqlite3.connect(tmp_path / "ledger.db")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE frmu_line SET body = replace(body, 'asked', 'never asked') WHERE number = 2", "line 2 .*changed"),
        ("UPDATE frmu_line SET time = '2020' WHERE number = 3", "line 3 .*changed"),
        ("DELETE FROM frmu_line WHERE number = 2", "line 2 .*missing"),
        ("UPDATE frmu_line SET previous = digest WHERE number = 4", "line 4 .*does not follow"),
    ],
)
def test_a_touched_line_is_named(ledger: Ledger, tmp_path: Path, statement: str, message: str) -> None:
    fill(ledger)
    assert ledger.check() == 4
    alter(tmp_path, statement)
    with pytest.raises(LedgerError, match=message):
        ledger.check()


def test_two_lines_that_change_places_are_named(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    alter(tmp_path, "UPDATE frmu_line SET number = 99 WHERE number = 2")
    alter(tmp_path, "UPDATE frmu_line SET number = 2 WHERE number = 3")
    alter(tmp_path, "UPDATE frmu_line SET number = 3 WHERE number = 99")
    with pytest.raises(LedgerError, match="line 2"):
        ledger.check()


def test_the_chain_does_not_say_who_was_meant(ledger: Ledger) -> None:
    fill(ledger, 1)
    assert "ada" not in str(ledger.lines())
    assert ledger.pending()[0].selection == SELECTION


def test_what_is_written_survives_reopening(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    again = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)
    assert again.lines() == ledger.lines()
    again.close()


def test_writers_side_by_side_lose_nothing(tmp_path: Path) -> None:
    books = [Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda book: fill(book, 10), books))
    assert books[0].check() == 40
    assert len({request.id for request in books[0].pending()}) == 40
    for book in books:
        book.close()


def test_tombstones_name_nobody_without_the_key(ledger: Ledger) -> None:
    ledger.bury({"r1": {"home 1": ["aa", "bb"]}})
    ledger.bury({"r2": {"home 1": ["bb", "cc"]}})
    assert ledger.tombstones(["home 1", "home 2"]) == {"home 1": frozenset({"aa", "bb", "cc"})}
    assert ledger.tombstones(["home 1"], "r2") == {"home 1": frozenset({"bb", "cc"})}


def test_a_ledger_of_another_version_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    alter(tmp_path, "UPDATE frmu_version SET version = 99")
    with pytest.raises(LedgerError, match="version 99"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but long enough to be looked at as one" * 40)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)


def test_a_password_is_not_told() -> None:
    with pytest.raises(LedgerError) as error:
        Ledger("postgresql://ada:secret@127.0.0.1:1/frmu", KEY)
    assert "secret" not in str(error.value)


def test_a_due_date_in_the_past_is_refused(ledger: Ledger) -> None:
    with pytest.raises(RequestError, match="due"):
        ledger.receive(SELECTION, "", -1)
