"""The ledger is append-only, says when it was touched, and forgets what requests meant; on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sql

from frmu.errors import LedgerError, RequestError
from frmu.ledger.keys import Keys, canonical, seal, unseal
from frmu.ledger.ledger import Ledger
from frmu.ledger.receipt import Receipt, check_receipt
from frmu.types import Selection

KEY = b"k" * 32
SELECTION = Selection("subject", subject="ada lovelace")
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    book = Ledger(url, KEY)
    yield book
    book.close()


@pytest.fixture
def opened(url: str) -> Iterator[Callable[..., Ledger]]:
    """Opens the ledger again, as another process would."""
    books = []

    def make(key: bytes = KEY, clock: Callable[[], dt.datetime] = lambda: NOW) -> Ledger:
        books.append(Ledger(url, key, clock))
        return books[-1]

    yield make
    for book in books:
        book.close()


def fill(ledger: Ledger, number: int = 4) -> list[str]:
    return [ledger.receive(SELECTION, "asked", 30, "a clerk").id for _ in range(number)]


def alter(url: str, *statements: str) -> None:
    engine = sql.create_engine(url)
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(sql.text(statement))
    engine.dispose()


def everything(url: str) -> str:
    """All that stands in any table."""
    engine = sql.create_engine(url)
    with engine.connect() as connection:
        tables = sql.inspect(connection).get_table_names()
        text = "\n".join(str(row) for name in tables for row in connection.execute(sql.text(f"SELECT * FROM {name}")))
    engine.dispose()
    return text


def receipt(request: str) -> Receipt:
    return Receipt(
        experiment="homes", store="s", request=request, kind="subject", outcome="erased", requester="a clerk",
        reason="asked", received=NOW.isoformat(), due=NOW.isoformat(), closed=NOW.isoformat(),
        searched={"home 1": 9}, removed={"home 1": 2}, level="L5", verified=True, before_digest="0" * 64,
        state_digest="1" * 64, seconds=0.1, bytes=10, requests_in_batch=1, evidence={"digest": "1" * 64}, purge={},
        not_covered=("backups",),
    )  # fmt: skip


def close(ledger: Ledger, request: str) -> dict:
    ledger.add_tombstones({request: {"home 1": ["aa", "bb"]}})
    ledger.plan([request])
    return ledger.close_requests([receipt(request)])[0]


# -- the chain ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        (["UPDATE frmu_line SET body = replace(body, 'subject', 'records') WHERE number = 2"], "line 2 .*changed"),
        (["UPDATE frmu_line SET body = body || ' ' WHERE number = 2"], "line 2 .*changed"),
        (["UPDATE frmu_line SET time = '2020' WHERE number = 3"], "line 3 .*changed"),
        (["DELETE FROM frmu_line WHERE number = 2"], "line 2 .*missing"),
        (["UPDATE frmu_line SET previous = digest WHERE number = 4"], "line 4 .*does not follow"),
        (["DELETE FROM frmu_line WHERE number = 4"], "ends with line 3.*cut off"),
        (["DELETE FROM frmu_line"], "ends with line 0.*cut off"),
        (["DELETE FROM frmu_head"], "cut off"),
        (
            [
                "UPDATE frmu_line SET number = 99 WHERE number = 2",
                "UPDATE frmu_line SET number = 2 WHERE number = 3",
                "UPDATE frmu_line SET number = 3 WHERE number = 99",
            ],
            "line 2",
        ),
    ],
)
def test_a_touched_line_is_named(ledger: Ledger, url: str, statements: list[str], message: str) -> None:
    fill(ledger)
    assert ledger.check() == 4
    alter(url, *statements)
    with pytest.raises(LedgerError, match=message):
        ledger.check()


def test_nothing_is_added_to_a_chain_that_was_cut(ledger: Ledger, url: str) -> None:
    fill(ledger)
    alter(url, "DELETE FROM frmu_line WHERE number = 4")
    with pytest.raises(LedgerError, match="cut off"):
        fill(ledger, 1)


def test_what_is_written_survives_reopening(ledger: Ledger, opened: Callable[..., Ledger]) -> None:
    fill(ledger)
    assert opened().lines() == ledger.lines()


def test_another_key_adds_nothing_and_reads_nothing(ledger: Ledger, opened: Callable[..., Ledger]) -> None:
    fill(ledger)
    with pytest.raises(LedgerError, match=r"begun with another key: .* needs a database of its own in store\.ledger"):
        opened(b"x" * 32)
    assert ledger.check() == 4


@pytest.mark.parametrize("version", [1, 99])
def test_a_ledger_of_another_version_is_refused_and_left_as_it_is(ledger: Ledger, url: str, version: int) -> None:
    fill(ledger)
    alter(url, f"UPDATE frmu_version SET version = {version}")
    before = everything(url)
    with pytest.raises(LedgerError, match=f"version {version}, this frmu reads and writes version 2"):
        Ledger(url, KEY)
    assert everything(url) == before


def test_a_clock_that_goes_back_is_written_down(ledger: Ledger, opened: Callable[..., Ledger]) -> None:
    fill(ledger, 1)
    early = opened(clock=lambda: dt.datetime(2020, 1, 1, tzinfo=dt.UTC))
    fill(early, 1)
    fill(ledger, 1)
    first, second, third = ledger.lines()
    assert second.body["clock_went_back_seconds"] > 5 * 365 * 86400
    assert "clock_went_back_seconds" not in {**first.body, **third.body}
    assert ledger.check() == 3
    assert [request.id for request in ledger.pending()] == ["r1", "r2", "r3"]


WRITE = """
import sys
from frmu.ledger.ledger import Ledger
from frmu.types import Selection

book = Ledger(sys.argv[1], b"k" * 32)
for _ in range(int(sys.argv[2])):
    book.receive(Selection("subject", subject="ada lovelace"), "asked", 30, "a clerk")
book.close()
"""


def write_side_by_side(url: str, writers: int, each: int) -> None:
    command = [sys.executable, "-c", WRITE, url, str(each)]
    processes = [subprocess.Popen(command) for _ in range(writers)]
    assert [process.wait(300) for process in processes] == [0] * writers


def none_lost_none_doubled(ledger: Ledger, number: int) -> None:
    assert ledger.check() == number
    assert [request.id for request in ledger.pending()] == [f"r{n}" for n in range(1, number + 1)]


def test_processes_side_by_side_lose_nothing(ledger: Ledger, url: str) -> None:
    write_side_by_side(url, 3, 40)
    none_lost_none_doubled(ledger, 120)


@pytest.mark.long
def test_ten_thousand_requests_from_eight_writers(ledger: Ledger, url: str) -> None:
    write_side_by_side(url, 8, 1250)
    none_lost_none_doubled(ledger, 10_000)


# -- what it does not say -------------------------------------------------------------------------------------


def test_nobody_is_named_in_clear(ledger: Ledger, url: str) -> None:
    request = fill(ledger, 1)[0]
    close(ledger, request)
    stands = everything(url)
    for word in ("lovelace", "clerk", "asked", "home 1"):
        assert word not in stands
    assert ledger.receipts()[0]["requester"] == "a clerk"
    assert ledger.requests()[0].selection is None


def test_a_shredded_subject_is_gone_and_the_chain_still_checks(ledger: Ledger, url: str) -> None:
    one, other = fill(ledger, 2)
    bystander = ledger.receive(Selection("subject", subject="bo"), "asked", 30, "somebody").id
    for request in (one, other, bystander):
        close(ledger, request)
    lines = ledger.check()
    assert ledger.shred(subject="ada lovelace") == [one, other]
    assert ledger.check() == lines + 2
    assert [entry["request"] for entry in ledger.receipts()] == [bystander]
    assert [request.requester for request in ledger.requests()] == ["", "", "somebody"]
    assert ledger.tombstones(["home 1"]) == {"home 1": frozenset({"aa", "bb"})}
    with pytest.raises(RequestError, match="nothing is left to shred"):
        ledger.shred(subject="ada lovelace")


def test_an_open_request_is_not_shredded(ledger: Ledger) -> None:
    request = fill(ledger, 1)[0]
    with pytest.raises(RequestError, match="is open; drain or withdraw"):
        ledger.shred(request)


@pytest.mark.parametrize(
    "statements",
    [
        ["DELETE FROM frmu_key WHERE purpose = 'meaning'"],
        ["UPDATE frmu_key SET request = 'r3' WHERE request = 'r1' AND purpose = 'meaning'"],
        [
            "UPDATE frmu_key SET request = 'x' WHERE request = 'r1' AND purpose = 'meaning'",
            "UPDATE frmu_key SET request = 'r1' WHERE request = 'r2' AND purpose = 'meaning'",
            "UPDATE frmu_key SET request = 'r2' WHERE request = 'x'",
        ],
    ],
)
def test_a_request_whose_meaning_was_changed_is_not_acted_on(ledger: Ledger, url: str, statements: list[str]) -> None:
    fill(ledger, 2)
    alter(url, *statements)
    with pytest.raises(LedgerError, match=r"not acted on|sealed text was changed"):
        ledger.pending()


def test_clients_that_were_exchanged_are_noticed(ledger: Ledger, url: str) -> None:
    request = fill(ledger, 1)[0]
    ledger.add_tombstones({request: {"home 1": ["aa"], "home 2": ["bb", "cc"]}})
    one, other = (ledger.owner(client) for client in ("home 1", "home 2"))
    swap = f"(SELECT wrapped FROM frmu_owner WHERE owner = '{other}')"
    alter(url, f"UPDATE frmu_owner SET wrapped = {swap} WHERE owner = '{one}'")
    with pytest.raises(LedgerError, match="sealed text was changed"):
        ledger.plan([request])


def test_a_password_is_not_told() -> None:
    with pytest.raises(LedgerError) as error:
        Ledger("postgresql://ada:secret@127.0.0.1:1/frmu", KEY)
    assert "secret" not in str(error.value)


# -- requests -------------------------------------------------------------------------------------------------


def test_a_withdrawn_request_is_over(ledger: Ledger) -> None:
    one, other = (ledger.receive(SELECTION, found={"home 1": ["aa"]}).id for _ in range(2))
    ledger.withdraw(one)
    assert [request.id for request in ledger.pending()] == [other]
    assert ledger.tombstones(["home 1"], one) == {}
    assert ledger.plan([one, other]) == {other: {"home 1": 1}}
    with pytest.raises(RequestError, match="is planned; only one that is received can be"):
        ledger.withdraw(other)
    with pytest.raises(RequestError, match="r1 is withdrawn"):
        ledger.withdraw(one)
    with pytest.raises(RequestError, match='no request "r9"'):
        ledger.withdraw("r9")


def test_tombstones_are_told_by_client_and_request(ledger: Ledger) -> None:
    one, other = fill(ledger, 2)
    ledger.add_tombstones({one: {"home 1": ["aa", "bb"]}})
    ledger.add_tombstones({other: {"home 1": ["bb", "cc"]}, one: {"home 1": ["aa"]}})
    assert ledger.tombstones(["home 1", "home 2"]) == {"home 1": frozenset({"aa", "bb", "cc"})}
    assert ledger.tombstones(["home 1"], other) == {"home 1": frozenset({"bb", "cc"})}
    assert ledger.holding([one, other, "r9"]) == {one, other}


def test_what_is_over_takes_no_tombstones(ledger: Ledger) -> None:
    """A search that began before a withdrawal ends after it."""
    request = ledger.receive(SELECTION, found={"home 1": ["aa"]}).id
    ledger.withdraw(request)
    ledger.add_tombstones({request: {"home 1": ["aa", "bb"]}})
    assert ledger.tombstones(["home 1"]) == {}
    assert ledger.check() == 2


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM frmu_tombstone WHERE request = 'r1'",
        "UPDATE frmu_tombstone SET request = 'r2' WHERE request = 'r1'",
        "UPDATE frmu_tombstone SET request = 'r999' WHERE request = 'r1'",
        "UPDATE frmu_tombstone SET hash = 'zz'",
    ],
)
def test_tombstones_of_an_open_request_are_kept_account_of(ledger: Ledger, url: str, statement: str) -> None:
    one = ledger.receive(SELECTION, found={"home 1": ["aa"]}).id
    other = ledger.receive(SELECTION).id
    alter(url, statement)
    for attempt in (ledger.check, lambda: ledger.plan([one, other])):
        with pytest.raises(LedgerError, match="tombstones of"):
            attempt()


def test_tombstones_that_were_put_in_are_not_blessed_by_a_search(ledger: Ledger, url: str) -> None:
    request = ledger.receive(SELECTION, found={"home 1": ["aa"]}).id
    alter(url, f"INSERT INTO frmu_tombstone VALUES ('{ledger.owner('home 1')}', 'bb', '{request}')")
    with pytest.raises(LedgerError, match="tombstones of request r1"):
        ledger.add_tombstones({request: {"home 1": ["cc"]}})


def test_readers_beside_writers_see_one_state(ledger: Ledger, url: str) -> None:
    command = [sys.executable, "-c", WRITE, url, "150"]
    writers = [subprocess.Popen(command) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        ledger.check()
        ledger.pending()
    none_lost_none_doubled(ledger, 300)


def test_tombstones_that_were_taken_away_are_missed(ledger: Ledger, url: str) -> None:
    close(ledger, fill(ledger, 1)[0])
    alter(url, "DELETE FROM frmu_tombstone WHERE hash = 'aa'")
    with pytest.raises(LedgerError, match="tombstones of request r1 are not those of line 3"):
        ledger.check()


@pytest.mark.parametrize("days", [-1, 40_000])
def test_a_due_date_that_is_none_is_refused(ledger: Ledger, days: int) -> None:
    with pytest.raises(RequestError, match="due"):
        ledger.receive(SELECTION, "", days)


# -- receipts -------------------------------------------------------------------------------------------------


def test_a_receipt_stands_alone(ledger: Ledger) -> None:
    filed = close(ledger, fill(ledger, 1)[0])
    check_receipt(filed)
    check_receipt(filed, ledger.public_key.upper())
    assert filed == ledger.receipts()[0]
    assert ledger.lines()[filed["ledger"]["line"] - 1].digest == filed["ledger"]["digest"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"level": "L9"}, "changed after it was signed"),
        ({"removed": {"home 1": 3}}, "changed after it was signed"),
        ({"note": "more"}, "changed after it was signed"),
        ({"signature": "00"}, "changed after it was signed"),
        ({"public_key": Keys(b"x" * 32).public}, "changed after it was signed"),
        ({"format": "frmu-receipt/1"}, "not a receipt of this frmu"),
    ],
)
def test_a_changed_receipt_is_told(ledger: Ledger, change: dict, message: str) -> None:
    filed = close(ledger, fill(ledger, 1)[0])
    with pytest.raises(LedgerError, match=message):
        check_receipt(filed | change)


def test_a_receipt_of_somebody_else_is_told(ledger: Ledger) -> None:
    filed = close(ledger, fill(ledger, 1)[0])
    with pytest.raises(LedgerError, match="another federation, or forged"):
        check_receipt(filed, Keys(b"x" * 32).public)


def test_what_is_proven_later_is_signed_anew(ledger: Ledger) -> None:
    request = fill(ledger, 1)[0]
    first = close(ledger, request)
    second = ledger.prove(request, {"level": "L3", "passed": True, "seeds": [0], "numbers": {"a": 0.5}})
    check_receipt(second)
    assert second["proofs"][0]["level"] == "L3"
    assert second["ledger"]["line"] > first["ledger"]["line"]
    assert ledger.receipts() == [second]
    assert ledger.requests()[0].stage == "closed"
    with pytest.raises(RequestError, match='no receipt "r9"'):
        ledger.prove("r9", {})


def test_states_that_an_erasure_has_overtaken_are_not_clean(ledger: Ledger) -> None:
    ledger.note("trained", {"state": "a"})
    request = fill(ledger, 1)
    assert ledger.history.clean_states() == {"a"}
    ledger.advance(request, "purged", {"records": 0})
    assert ledger.history.clean_states() == {"a"}
    ledger.advance(request, "purged", {"records": 2})
    assert ledger.history.clean_states() == frozenset()
    ledger.advance(request, "verified", {"state": "b", "passed": False})
    assert ledger.history.clean_states() == frozenset()
    ledger.advance(request, "verified", {"state": "b", "passed": True})
    ledger.note("replayed", {"state": "c", "passed": True})
    assert ledger.history.clean_states() == {"b", "c"}


# -- on a disk ------------------------------------------------------------------------------------------------


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("not a database, but long enough to be looked at as one" * 40)
    with pytest.raises(LedgerError, match="cannot be opened"):
        Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)
    fill(ledger, 3)
    ledger.close()
    full = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)
    limit = lambda connection, _: connection.execute("PRAGMA max_page_count = 40")  # noqa: E731
    sql.event.listen(full._chain.engine, "connect", limit)
    full.close()  # what it opens from now on has the limit
    with pytest.raises(LedgerError, match=r"full; nothing was changed. Free or mount"):
        full.add_tombstones({"r1": {"home": [f"{number:032x}" for number in range(20_000)]}})
    none_lost_none_doubled(full, 3)
    full.close()
    again = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", KEY)
    none_lost_none_doubled(again, 3)
    fill(again, 1)
    assert again.check() == 4
    again.close()


def test_sealed_texts_open_with_their_key_alone() -> None:
    text = seal(KEY, {"reason": "ü"}, "r1")
    assert unseal(KEY, text, "r1") == {"reason": "ü"}
    for key, sealed, place in (
        (b"x" * 32, text, "r1"),
        (KEY, text[:-4] + "AAA=", "r1"),
        (KEY, "?", "r1"),
        (KEY, text, "r2"),
    ):
        with pytest.raises(LedgerError, match="changed, or sealed with another key"):
            unseal(key, sealed, place)
    assert canonical({"b": 1, "a": [1.5, None]}) == b'{"a":[1.5,null],"b":1}'
