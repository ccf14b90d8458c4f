"""A request that could not be met everywhere stands until the last client was searched."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest

from frmu.errors import RequestError
from frmu.ledger.ledger import Ledger
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.types import Selection

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DAY = 24 * 60 * 60
PERSON = Selection("subject", subject="ada lovelace")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", b"k" * 32, lambda: NOW)
    yield book
    book.close()


def codes(ledger: Ledger, *clients: str) -> frozenset[str]:
    return frozenset(ledger.owner(client)[:8] for client in clients)


def close(ledger: Ledger, request: str, *missed: str) -> None:
    filed = Receipt(
        experiment="homes", store="s", request=request, kind="subject", outcome="erased", requester="", reason="",
        received="", due="", closed="", searched={}, removed={}, level="L5", verified=True, before_digest="",
        state_digest="", seconds=0.0, bytes=0, requests_in_batch=1, evidence={}, purge={}, not_covered=(),
    )  # fmt: skip
    ledger.plan([request])
    ledger.close_requests([filed], codes(ledger, *missed))


def ask(ledger: Ledger) -> str:
    return ledger.receive(PERSON).id


def test_a_request_means_something_until_the_last_client_was_searched(ledger: Ledger) -> None:
    request = ask(ledger)
    close(ledger, request, "home 1", "home 2")
    assert [each.selection for each in ledger.standing()] == [PERSON]
    assert ledger.unsearched() == {request: codes(ledger, "home 1", "home 2")}
    assert [receipt["request"] for receipt in ledger.receipts()] == [request]
    ledger.searched(["home 1", "home 3"])
    assert ledger.unsearched() == {request: codes(ledger, "home 2")}
    assert [each.id for each in ledger.standing()] == [request]
    ledger.searched(["home 2"])
    assert ledger.standing() == []
    assert ledger.unsearched() == {}
    assert ledger.requests()[0].selection is None
    assert [receipt["request"] for receipt in ledger.receipts()] == [request]


def test_a_search_writes_down_only_what_it_was_needed_for(ledger: Ledger) -> None:
    one, other = ask(ledger), ask(ledger)
    close(ledger, one, "home 1")
    close(ledger, other, "home 2")
    ledger.searched(["home 1", "home 3"])
    written = [(line.request, line.body["clients"]) for line in ledger.lines(["searched"])]
    assert written == [(one, [*codes(ledger, "home 1")])]
    assert [each.id for each in ledger.standing()] == [other]
    before = ledger.head()
    ledger.searched(["home 3"])
    assert ledger.head() == before


def test_a_request_that_was_met_everywhere_does_not_stand(ledger: Ledger) -> None:
    request = ask(ledger)
    close(ledger, request)
    assert ledger.standing() == []
    assert ledger.unsearched() == {}
    assert ledger.lines(["standing"]) == []
    before = ledger.head()
    ledger.searched(["home 1"])
    assert ledger.head() == before


def test_shredding_leaves_what_a_standing_request_means(ledger: Ledger) -> None:
    """Its file goes, so nobody is named; its meaning goes with the last client that is searched for it."""
    one, other = ask(ledger), ask(ledger)
    close(ledger, one, "home 1")
    close(ledger, other)
    assert ledger.shred(subject="ada lovelace") == [one, other]
    assert ledger.receipts() == []
    assert [each.id for each in ledger.standing()] == [one]
    ledger.searched(["home 1"])
    assert ledger.standing() == []


def test_a_late_find_of_a_standing_request_is_written_down(ledger: Ledger) -> None:
    one, other = ask(ledger), ask(ledger)
    close(ledger, one, "home 1")
    close(ledger, other)
    ledger.add_tombstones({one: {"home 1": ["aa"]}, other: {"home 1": ["bb"]}})
    assert ledger.tombstones(["home 1"]) == {"home 1": frozenset({"aa"})}
    assert [(line.kind, line.request) for line in ledger.lines(["buried"])] == [("buried", one)]
    assert ledger.check() > 0


# -- what is asked of a ledger --------------------------------------------------------------------------------


def test_the_head_is_the_last_line(ledger: Ledger) -> None:
    assert ledger.head() == (0, "0" * 64)
    ask(ledger)
    ask(ledger)
    last = ledger.lines()[-1]
    assert ledger.head() == (2, last.digest) == (last.number, last.digest)


def test_a_ledger_follows_its_own_lines_and_no_others(ledger: Ledger) -> None:
    """What stood at a place once must stand there still; from nothing, every ledger follows."""
    ask(ledger)
    ask(ledger)
    first, second = ledger.lines()
    assert ledger.follows(0, "")
    assert ledger.follows(1, first.digest)
    assert ledger.follows(2, second.digest)
    assert not ledger.follows(1, second.digest)
    assert not ledger.follows(3, second.digest)
    assert not ledger.follows(1, "0" * 64)


def test_records_that_are_meant_are_counted_by_request(ledger: Ledger) -> None:
    one, other, none = ask(ledger), ask(ledger), ask(ledger)
    assert not ledger.has_tombstones()
    ledger.add_tombstones({one: {"home 1": ["aa"], "home 2": ["bb"]}, other: {"home 1": ["aa"]}})
    assert ledger.has_tombstones()
    assert ledger.meant([one, none]) == {one: 2}
    assert ledger.meant([one, other]) == {one: 2, other: 1}


def test_tombstones_of_a_request_that_no_drain_began_with_can_be_left_out(ledger: Ledger) -> None:
    one, other = ask(ledger), ask(ledger)
    ledger.add_tombstones({one: {"home 1": ["aa"]}, other: {"home 1": ["bb"]}})
    ledger.plan([one])
    assert ledger.tombstones(["home 1"]) == {"home 1": frozenset({"aa", "bb"})}
    assert ledger.tombstones(["home 1"], begun=True) == {"home 1": frozenset({"aa"})}


@pytest.mark.parametrize("days", [0, 36500])
def test_the_first_and_the_last_due_day_are_taken(ledger: Ledger, days: int) -> None:
    assert ledger.receive(PERSON, due_days=days).due - NOW == dt.timedelta(days=days)
    assert ledger.requests()[0].due - NOW == dt.timedelta(days=days)


@pytest.mark.parametrize("days", [-1, 36501])
def test_the_days_beside_them_are_not(ledger: Ledger, days: int) -> None:
    with pytest.raises(RequestError, match="due must be"):
        ledger.receive(PERSON, due_days=days)


@pytest.mark.parametrize(
    ("seconds", "left"),
    [(0, 0), (1, 1), (DAY, 1), (DAY + 1, 2), (-1, -1), (-DAY, -1), (-DAY - 1, -2), (30 * DAY, 30), (30 * DAY + 1, 31)],
)
def test_a_day_that_has_begun_is_counted(seconds: int, left: int) -> None:
    request = EraseRequest("r1", "subject", PERSON, "", "", NOW, NOW + dt.timedelta(seconds=seconds), "received")
    assert request.days_left(NOW) == left
