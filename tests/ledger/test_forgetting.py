"""What a ledger forgets is gone from its tables and its files; what it keeps, and says of itself, is exact."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from frmu.errors import LedgerError, RequestError
from frmu.ledger import chain
from frmu.ledger.keys import Keys, seal, unseal
from frmu.ledger.ledger import Ledger
from frmu.ledger.receipt import Receipt, check_receipt, issue, read_receipt
from frmu.ledger.rows import Rows
from frmu.types import Selection

KEY = b"k" * 32
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
PERSON = Selection("subject", subject="ada lovelace")
OTHER = Selection("subject", subject="bo")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(file: Path) -> Iterator[Ledger]:
    book = Ledger(f"sqlite:///{file}", KEY, lambda: NOW)
    yield book
    book.close()


@pytest.fixture
def table(file: Path) -> Callable[[str], list[tuple]]:
    """Rows of a query, as another program would read them."""

    def rows(query: str) -> list[tuple]:
        connection = sqlite3.connect(file, isolation_level=None)
        found = connection.execute(query).fetchall()
        connection.close()
        return found

    return rows


def whole(request: str) -> Receipt:
    return Receipt(
        experiment="homes", store="s", request=request, kind="subject", outcome="erased", requester="", reason="",
        received="", due="", closed="", searched={}, removed={}, level="L5", verified=True, before_digest="",
        state_digest="", seconds=0.0, bytes=0, requests_in_batch=1, evidence={}, purge={}, not_covered=(),
    )  # fmt: skip


def ask(ledger: Ledger, who: Selection = PERSON, client: str = "home 1") -> str:
    return ledger.receive(who, "asked", 30, "a clerk", {client: ["aa"]}).id


def close(ledger: Ledger, request: str) -> None:
    ledger.plan([request])
    ledger.close_requests([whole(request)])


ENDS: dict[str, tuple[str, Callable[[Ledger, str], object]]] = {
    "withdrawn": ("meaning", Ledger.withdraw),
    "closed": ("meaning", close),
    "searched": ("meaning", lambda ledger, request: _stand(ledger, request) or ledger.searched(["home 2"])),
    "shredded": ("file", lambda ledger, request: close(ledger, request) or ledger.shred(request)),
}


def _stand(ledger: Ledger, request: str) -> None:
    ledger.plan([request])
    ledger.close_requests([whole(request)], {ledger.owner("home 2")[:8]})


@pytest.mark.parametrize("end", sorted(ENDS))
def test_a_key_that_is_deleted_is_gone_from_the_files(
    end: str, ledger: Ledger, file: Path, table: Callable[[str], list[tuple]]
) -> None:
    """From the write-ahead log too, where what was deleted stands until a checkpoint."""
    purpose, act = ENDS[end]
    request = ask(ledger)
    [(wrapped,)] = table(f"SELECT wrapped FROM frmu_key WHERE purpose = '{purpose}'")
    files = [file, file.with_name("ledger.db-wal")]
    assert any(wrapped.encode() in each.read_bytes() for each in files if each.exists())
    act(ledger, request)
    assert not any(wrapped.encode() in each.read_bytes() for each in files if each.exists())
    assert ledger.lines([end])


def test_who_withdrew_and_why_can_still_be_read(ledger: Ledger) -> None:
    request = ask(ledger)
    ledger.withdraw(request)
    [found] = ledger.requests()
    assert (found.stage, found.selection, found.requester, found.reason) == ("withdrawn", None, "a clerk", "asked")
    assert [line.body for line in ledger.lines(["withdrawn"])] == [{}]


def test_a_closed_request_keeps_its_file_and_no_meaning(ledger: Ledger, table: Callable[[str], list[tuple]]) -> None:
    close(ledger, ask(ledger))
    assert table("SELECT purpose FROM frmu_key") == [("file",)]
    assert ledger.requests()[0].requester == "a clerk"


def test_shredding_forgets_which_client_was_meant_unless_another_request_needs_it(
    ledger: Ledger, table: Callable[[str], list[tuple]]
) -> None:
    one, other = ask(ledger), ask(ledger, OTHER, "home 2")
    close(ledger, one)
    close(ledger, other)
    assert ledger.shred(one) == [one]
    assert table("SELECT owner FROM frmu_owner") == [(ledger.owner("home 2"),)]
    assert [(line.kind, line.request, line.body) for line in ledger.lines(["shredded"])] == [("shredded", one, {})]
    assert ledger.shred(subject="bo") == [other]
    assert table("SELECT owner FROM frmu_owner") == []
    assert [(found.requester, found.reason) for found in ledger.requests()] == [("", "")] * 2


def test_a_request_about_nobody_is_not_found_under_a_name(ledger: Ledger) -> None:
    close(ledger, ask(ledger, Selection("client", client="home 1")))
    for name in ("None", "home 1", ""):
        with pytest.raises(RequestError, match="nothing is left to shred"):
            ledger.shred(subject=name)


@pytest.mark.parametrize("text", ["{}\n{}", "{}?{}", " {}{}"])
def test_a_sealed_text_is_opened_as_it_was_written_and_not_otherwise(text: str) -> None:
    sealed = seal(KEY, {"reason": "x"}, "r1")
    with pytest.raises(LedgerError, match="changed"):
        unseal(KEY, text.format(sealed[:8], sealed[8:]), "r1")


@pytest.mark.parametrize("request_", ["r9", "r2"])
def test_tombstones_of_a_request_that_has_none_are_told(
    request_: str, ledger: Ledger, table: Callable[[str], list[tuple]]
) -> None:
    """Nobody asked for them: of a request that is not there, or that was withdrawn."""
    ask(ledger)
    ledger.withdraw(ask(ledger))
    assert ledger.check() == 3
    table(f"INSERT INTO frmu_tombstone VALUES ('{ledger.owner('home 1')}', 'zz', '{request_}')")
    with pytest.raises(LedgerError, match=f"there are tombstones of {request_}, which has none"):
        ledger.check()


def test_requests_and_receipts_are_told_in_the_order_of_their_numbers(ledger: Ledger) -> None:
    requests = [ask(ledger) for _ in range(11)]
    for request in requests:
        close(ledger, request)
    assert [receipt["request"] for receipt in ledger.receipts()] == requests
    assert ledger.shred(subject="ada lovelace") == requests


def test_a_receipt_whose_key_is_gone_is_filed_and_cannot_be_read(
    ledger: Ledger, table: Callable[[str], list[tuple]]
) -> None:
    request = ask(ledger)
    table("DELETE FROM frmu_key WHERE purpose = 'file'")
    close(ledger, request)
    assert ledger.receipts() == []
    assert "sealed" not in ledger.lines(["closed"])[0].body
    assert ledger.check() == 3


def test_more_keys_than_one_statement_takes_are_forgotten(ledger: Ledger, table: Callable[[str], list[tuple]]) -> None:
    requests = [ledger.receive(PERSON).id for _ in range(503)]
    ledger.plan(requests)
    ledger.close_requests([whole(request) for request in requests])
    assert table("SELECT count(*) FROM frmu_key WHERE purpose = 'meaning'") == [(0,)]


# -- lines ----------------------------------------------------------------------------------------------------


def test_a_find_before_the_plan_is_noted_and_one_after_it_is_planned_anew(ledger: Ledger) -> None:
    request = ask(ledger)
    ledger.add_tombstones({request: {"home 1": ["bb"]}})
    ledger.plan([request])
    ledger.add_tombstones({request: {"home 1": ["cc"]}})
    ledger.add_tombstones({request: {"home 1": ["cc"]}})  # nothing new: no line
    kinds = [line.kind for line in ledger.lines()]
    assert kinds == ["received", "buried", "planned", "planned"]
    assert ledger.plan([request]) == {request: {"home 1": 3}}


def test_a_request_whose_tombstones_were_changed_is_named_with_its_line(
    ledger: Ledger, table: Callable[[str], list[tuple]]
) -> None:
    ask(ledger, OTHER, "home 2")
    request = ask(ledger)
    table(f"DELETE FROM frmu_tombstone WHERE request = '{request}'")
    with pytest.raises(LedgerError, match="tombstones of request r2 are not those of line 2"):
        ledger.plan([request])


@pytest.mark.parametrize(("seconds", "told"), [(0.0, None), (1.0, None), (1.6, 2), (90.0, 90)])
def test_a_clock_that_goes_back_by_over_a_second_is_told(file: Path, seconds: float, told: int | None) -> None:
    at = [NOW]
    book = Ledger(f"sqlite:///{file}", KEY, lambda: at[0])
    book.note("trained", {"state": "s"})
    at[0] = NOW - dt.timedelta(seconds=seconds)
    book.note("trained", {"state": "s"})
    assert book.lines()[1].body == {"state": "s"} | ({} if told is None else {"clock_went_back_seconds": told})
    book.close()


def test_a_line_takes_a_set_as_a_list(ledger: Ledger) -> None:
    ledger.note("trained", {"clients": {"a"}})
    line = ledger.lines()[0]
    assert (line.kind, line.request, line.body) == ("trained", "", {"clients": ["a"]})


@pytest.mark.parametrize("body", ["[]", "null", '"text"', "{", ""])
def test_a_line_whose_body_is_no_object_is_not_read(
    body: str, ledger: Ledger, table: Callable[[str], list[tuple]]
) -> None:
    ask(ledger)
    table(f"UPDATE frmu_line SET body = '{body}'")
    with pytest.raises(LedgerError, match="line 1 of the ledger was changed: its body is not what frmu writes"):
        ledger.lines()


def test_a_secret_gives_the_keys_that_it_always_gave() -> None:
    """Ledgers and receipts of before must be read and checked; and no key of one use opens what is of another."""
    keys = Keys(KEY)
    assert keys.keyed("a text") == "c99adf1484612bc14091d367928cbf20d4863db2a1f07e371705f825355d77a2"
    assert keys.public == "8b4b9f700d9b87aa9aee4e3bf569331a808af139b5f2ad54737905bf5462e590"
    assert keys.unwrap("mLfY7FVM3pFgWrxpkD451wIyPvt2nfhyGMSNloWNyyrC0i0=", "r1") == {"a": 1}


def test_a_url_means_the_driver_that_comes_with_the_extra() -> None:
    pytest.importorskip("psycopg")
    engine = chain.engine_of("postgresql://ada@there:5433/frmu")
    assert engine.url.render_as_string() == "postgresql+psycopg://ada@there:5433/frmu"
    assert chain.engine_of("sqlite:///a.db").url.render_as_string() == "sqlite:///a.db"


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////nowhere/at/all/ledger.db"])
def test_a_database_that_cannot_be_opened_is_named(url: str) -> None:
    with pytest.raises(LedgerError, match=f"^{url}: the ledger cannot be opened"):
        Ledger(url, KEY)


def test_a_ledger_is_made_only_where_that_is_wanted(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with pytest.raises(LedgerError, match="there is no ledger in this database"):
        Ledger(url, KEY, make=False)
    Ledger(url, KEY).close()
    Ledger(url, KEY, make=False).close()


def test_tombstones_are_hashed_as_stored_ledgers_have_them() -> None:
    keys = Keys(KEY)
    assert Rows(keys).digest({"b": ["y"], "a": ["z", "x"]}) == keys.keyed("a x\na z\nb y")


def test_a_request_is_due_in_thirty_days_unless_it_says_otherwise(ledger: Ledger) -> None:
    assert ledger.receive(PERSON).due - NOW == dt.timedelta(days=30)


def test_a_reason_is_the_first_line_of_what_went_wrong() -> None:
    class WrappedError(Exception):
        orig = ValueError("the driver's word")

    assert chain.reason_of(ValueError("  first\nsecond")) == "first"
    assert chain.reason_of(WrappedError("sqlalchemy's word")) == "the driver's word"
    assert chain.reason_of(ValueError()) == "ValueError()"


# -- receipts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["", "ab", "g" * 64, "a" * 65])
def test_what_is_no_public_key_is_told(key: str) -> None:
    keys = Keys(KEY)
    with pytest.raises(LedgerError, match=f"64 hex digits, got '{key}'"):
        check_receipt(issue(whole("r1").to_json(), keys, 1, "0" * 64), key)


def test_a_receipt_is_checked_though_it_is_older_than_one_field_and_no_other() -> None:
    keys = Keys(KEY)
    before = whole("r1").to_json()
    del before["not_searched"]
    check_receipt(issue(before, keys, 1, "0" * 64), f" {keys.public.upper()}\n")
    del before["level"]
    with pytest.raises(LedgerError, match="it has no level"):
        check_receipt(issue(before, keys, 1, "0" * 64))


@pytest.mark.parametrize(
    ("text", "message"),
    [("[]", "not a JSON object"), ('{"a": 1, "b": 2, "a": 3}', '"a" stands in it twice'), ('{"a": NaN}', "NaN is no")],
)
def test_a_text_that_two_readers_could_read_as_two_receipts_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_receipt(text)


def test_a_receipt_is_read_from_its_text() -> None:
    assert read_receipt('{"a": {"b": 1.5}, "c": [null]}') == {"a": {"b": 1.5}, "c": [None]}
