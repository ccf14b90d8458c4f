"""What a receipt may claim, and whom it names: every client that took part once, and what it does not speak of."""

from __future__ import annotations

import datetime as dt
import hashlib
from types import SimpleNamespace
from typing import Any

import pytest

from frmu.ledger.request import EraseRequest
from frmu.services.receipts import new_receipt, not_covered, not_searched, open_part, scoped, unsearched
from frmu.types import Selection


def owner(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def code(name: str) -> str:
    return owner(name)[:8]


def session(
    known: tuple[str, ...] = (), gone: tuple[str, ...] = (), at: tuple[str, ...] = (), files: tuple[str, ...] = (),
    left: tuple[str, ...] = (), orphan: str = "", witness: bool = True,
) -> Any:  # fmt: skip
    """A session of whose ledger, folder and sites only this is asked; a look at the sources is counted."""
    looks: list[bool] = []

    def look(source: bool = False) -> Any:
        looks.append(source)
        return SimpleNamespace(rows=dict.fromkeys(files, 1))

    history = SimpleNamespace(known=lambda: {code(name) for name in known}, gone=lambda: {owner(name) for name in gone})
    return SimpleNamespace(
        config=SimpleNamespace(model=SimpleNamespace(encoder_files={})),
        watch=SimpleNamespace(watching=witness),
        workspace=SimpleNamespace(client_sites=lambda: dict.fromkeys(at, "site")),
        ledger=SimpleNamespace(history=history, owner=owner),
        sites=SimpleNamespace(
            look=look, looks=looks, orphaned_server=orphan, left=lambda names: {name for name in names if name in left}
        ),
    )


def inventory(held: tuple[str, ...] = (), away: tuple[str, ...] = ()) -> Any:
    return SimpleNamespace(held=dict.fromkeys(held, 1), away=dict.fromkeys(away, "no answer"))


def state(*names: str) -> Any:
    return SimpleNamespace(clients=[SimpleNamespace(name=name) for name in names])


def missed(asked: Any, searched: tuple[str, ...], there: Any = None, of: Any = None) -> dict[str, str]:
    return not_searched(asked, there or inventory(), of or state(), searched)


# -- who was not searched -------------------------------------------------------------------------------------


def test_where_all_were_searched_nobody_is_named_and_no_file_is_looked_at() -> None:
    asked = session(known=("a", "b"))
    assert missed(asked, ("a", "b", "c")) == {}
    assert asked.sites.looks == []


def test_who_is_known_and_was_not_searched_is_named_by_code_where_nobody_knows_the_name() -> None:
    asked = session(known=("a", "b"))
    assert missed(asked, ("a",)) == {code("b"): f"client {code('b')}"}
    assert asked.sites.looks == [True]


@pytest.mark.parametrize("place", ["sites", "held", "away", "state", "files"])
def test_a_name_is_found_wherever_this_folder_still_has_it(place: str) -> None:
    asked = session(known=("a", "b"), at=("b",) if place == "sites" else (), files=("b",) if place == "files" else ())
    there = inventory(held=("b",) if place == "held" else (), away=("b",) if place == "away" else ())
    found = missed(asked, ("a",), there, state("b") if place == "state" else state())
    assert found == {code("b"): "b"}


@pytest.mark.parametrize("place", ["sites", "away"])
def test_who_is_away_is_not_searched_though_it_never_took_part(place: str) -> None:
    asked = session(at=("b",) if place == "sites" else ())
    assert missed(asked, ("a",), inventory(away=("b",) if place == "away" else ())) == {code("b"): "b"}


def test_who_left_for_good_is_not_waited_for() -> None:
    assert missed(session(known=("a", "b", "c"), gone=("b",)), ("a",)) == {code("c"): f"client {code('c')}"}


def test_those_not_searched_are_told_in_the_order_of_their_codes() -> None:
    names = ("a", "b", "c", "d", "e")
    assert list(missed(session(known=names), ())) == sorted(code(name) for name in names)


# -- what may be claimed --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "clients", "told"),
    [("L5", [], "L5"), ("L5", ["b"], "L5 of those searched"), ("L1", ["b"], "L1"), ("L0", [], "L0")],
)
def test_a_level_is_of_those_searched_where_some_were_not(level: str, clients: list[str], told: str) -> None:
    assert scoped(level, clients) == told


def test_those_not_searched_are_named_and_nothing_is_said_where_all_were() -> None:
    assert unsearched([]) == ()
    [line] = unsearched(["b", "client c"])
    assert line.startswith("the records of b, client c: not searched")


def told(asked: Any, there: Any, rewritten: bool) -> list[str]:
    words = {"data.path": "source", "server": "orphan", "left, at sites": "left", "as a whole": "whole"}
    return [
        next((name for word, name in words.items() if word in line), "always")
        for line in not_covered(asked, there, rewritten)
    ]


def test_what_lies_outside_is_said_a_line_each() -> None:
    assert told(session(), inventory(), True) == ["always", "always"]
    assert told(session(), inventory(), False) == ["source", "always", "always"]
    assert told(session(witness=False), inventory(), True) == ["whole", "always", "always"]
    assert told(session(orphan="10.0.0.1"), inventory(), True) == ["orphan", "always", "always"]
    assert "10.0.0.1" in not_covered(session(orphan="10.0.0.1"), inventory(), True)[0]


@pytest.mark.parametrize(
    ("at", "left", "away", "said"),
    [("b", "b", "b", True), ("b", "b", "", False), ("b", "", "b", False), ("", "b", "b", False)],
)
def test_shards_of_who_left_are_said_where_their_site_is_away(at: str, left: str, away: str, said: bool) -> None:
    asked = session(at=tuple(at), left=tuple(left))
    assert told(asked, inventory(away=tuple(away)), True) == ["left"] * said + ["always", "always"]


# -- receipts -------------------------------------------------------------------------------------------------

SHARED: dict[str, Any] = {
    "experiment": "homes", "store": "s", "searched": {"a": 5, "b": 7}, "level": "L5", "verified": True,
    "before_digest": "0", "state_digest": "1", "seconds": 0.1, "bytes": 9, "requests_in_batch": 1, "evidence": {},
    "not_covered": (), "closed": "now",
}  # fmt: skip


@pytest.mark.parametrize(("removed", "outcome"), [({"a": 2, "b": 1}, "erased"), ({}, "nothing held")])
def test_a_receipt_says_what_was_asked_and_what_became_of_it(removed: dict[str, int], outcome: str) -> None:
    at = dt.datetime(2026, 1, 1, 12, 0, 0, 7, tzinfo=dt.UTC)
    selection = Selection("subject", subject="p3")
    request = EraseRequest("r1", "subject", selection, "asked", "a clerk", at, at + dt.timedelta(1), "planned")
    receipt = new_receipt(request, removed, SHARED, {"source": "rewritten"})
    assert (receipt.request, receipt.kind, receipt.reason, receipt.requester) == ("r1", "subject", "asked", "a clerk")
    assert (receipt.received, receipt.due) == ("2026-01-01T12:00:00+00:00", "2026-01-02T12:00:00+00:00")
    assert (receipt.outcome, receipt.removed, receipt.purge) == (outcome, removed, {"source": "rewritten"})
    shown = open_part(receipt.to_json() | {"signature": "x"})
    assert (shown["removed"], shown["searched"], shown["level"], shown["request"]) == (
        sum(removed.values()), 12, "L5", "r1",
    )  # fmt: skip
    hidden = {"reason", "requester", "signature", "purge", "not_searched", "not_covered"}
    assert set(shown) == set(receipt.to_json()) - hidden
