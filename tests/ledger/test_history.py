"""What the lines of a ledger say of clients, states and runs: who left, who is known, who was not searched."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import pytest

from frmu.ledger.chain import Line
from frmu.ledger.history import History, unsearched

Told = tuple[str, str, dict[str, Any]]
ADA, BO, CY = (letter * 32 for letter in "abc")  # owner codes
A, B, C = ADA[:8], BO[:8], CY[:8]


def lines_of(*told: Told) -> list[Line]:
    return [Line(number, "", kind, request, body, "", "") for number, (kind, request, body) in enumerate(told, start=1)]


def history(*told: Told) -> History:
    """A history that is given only the lines of the kinds it asks for, as a ledger gives them."""
    lines = lines_of(*told)

    def some(kinds: Collection[str]) -> list[Line]:
        return [line for line in lines if line.kind in kinds]

    return History(some)


def left(client: str, for_good: bool = False) -> Told:
    return ("left", "", {"client": client} | ({"for_good": True} if for_good else {}))


def joined(client: str) -> Told:
    return ("joined", "", {"client": client})


def trained(state: str = "s", clients: Collection[str] = (), **more: Any) -> Told:
    return ("trained", "", {"state": state, "clients": list(clients), "run": f"run of {state}", **more})


def received(request: str, kind: str) -> Told:
    return ("received", request, {"kind": kind})


def planned(request: str, *owners: str) -> Told:
    return ("planned", request, {"records": dict.fromkeys(owners, 1)})


# -- who is there ---------------------------------------------------------------------------------------------


def test_who_joins_again_has_not_left() -> None:
    assert history(left(ADA), left(BO), joined(ADA)).left() == {BO}
    assert history(joined(ADA), left(ADA)).left() == {ADA}


def test_only_who_left_for_good_is_gone() -> None:
    assert history(left(ADA), left(BO, for_good=True), left(CY)).gone() == {BO}


def test_a_joining_is_no_leaving_whatever_it_says() -> None:
    assert history(left(BO, for_good=True), ("joined", "", {"client": ADA, "for_good": True})).gone() == {BO}


def test_who_was_away_is_told_by_the_last_training_of_a_state() -> None:
    told = history(
        trained("s", away=[ADA]), trained("s", away=[BO]), trained("t", away=[CY]), ("verified", "", {"state": "s"})
    )
    assert told.away("s") == {BO}
    assert told.away("t") == {CY}
    assert told.away("u") == frozenset()
    assert history(trained("s")).away("s") == frozenset()


# -- who may come back ----------------------------------------------------------------------------------------


def test_who_took_part_or_was_away_is_known_by_eight_digits() -> None:
    assert history(trained(clients=[ADA], away=[BO]), trained(clients=[CY])).known() == {A, B, C}
    assert history(trained(clients=[ADA])).known() == {A}


def test_who_left_is_known_and_who_left_for_good_is_not() -> None:
    before = trained(clients=[ADA, BO])
    assert history(before, left(ADA), left(BO, for_good=True)).known() == {A}
    assert history(left(ADA), joined(BO)).known() == {A, B}
    assert history(before, left(BO, for_good=True), joined(BO)).known() == {A, B}


def test_a_client_whose_files_hold_nothing_any_more_is_not_known() -> None:
    told = (trained(clients=[ADA, BO]), ("empty", "", {"clients": [A]}))
    assert history(*told).known() == {B}
    assert history(*told, trained(clients=[ADA])).known() == {A, B}


def test_a_client_that_was_erased_whole_is_not_known() -> None:
    """A request for a whole client takes it off the list; one for a person leaves the clients that held something."""
    took = trained(clients=[ADA, BO, CY])
    assert history(took, received("r1", "client"), planned("r1", ADA)).known() == {B, C}
    assert history(took, received("r1", "subject"), planned("r1", ADA)).known() == {A, B, C}
    two = (received("r1", "client"), received("r2", "subject"), planned("r2", BO), planned("r1", ADA, CY))
    assert history(took, *two).known() == {B}
    both = (received("r1", "client"), received("r2", "client"), planned("r1", ADA), planned("r2", BO))
    assert history(took, *both).known() == {C}


# -- who was not searched -------------------------------------------------------------------------------------


def standing(request: str, *codes: str) -> Told:
    return ("standing", request, {"clients": list(codes)})


def searched(request: str, *codes: str) -> Told:
    return ("searched", request, {"clients": list(codes)})


def test_a_search_takes_a_client_off_one_request() -> None:
    told = lines_of(standing("r1", A, B), standing("r2", A), searched("r1", A))
    assert unsearched(told) == {"r1": {B}, "r2": {A}}


def test_a_search_for_a_request_that_does_not_stand_is_passed_over() -> None:
    assert unsearched(lines_of(searched("r9", A), standing("r1", A))) == {"r1": {A}}


def test_who_left_for_good_needs_no_search() -> None:
    told = (standing("r1", A, B), standing("r2", A))
    assert unsearched(lines_of(*told, left(ADA))) == {"r1": {A, B}, "r2": {A}}
    assert unsearched(lines_of(*told, left(ADA, for_good=True))) == {"r1": {B}, "r2": frozenset()}


def test_a_line_of_another_kind_says_nothing_of_searches() -> None:
    assert unsearched(lines_of(standing("r1", A), ("planned", "r1", {"clients": [A]}))) == {"r1": {A}}


# -- states, runs, policies -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("records", "clean"), [(0, {"s", "t"}), (1, {"t"})])
def test_a_purge_that_took_records_leaves_no_state_before_it_clean(records: int, clean: set[str]) -> None:
    told = history(
        trained("s"), ("purged", "r1", {"records": records}), ("replayed", "", {"state": "t", "passed": True})
    )
    assert told.clean_states() == clean


def test_a_state_that_did_not_pass_is_not_clean() -> None:
    assert history(trained("s"), ("verified", "r1", {"state": "t", "passed": False})).clean_states() == {"s"}


def test_runs_that_learned_from_a_client_are_named_once_in_order() -> None:
    told = history(
        trained("s", [A, B]), trained("t", [C]), trained("u", [B]), trained("s", [A, B]),
        ("learned", "", {"run": "policy", "clients": [A]}),
        ("retired", "", {"policy": "p", "clients": [A], "run": "x"}),
    )  # fmt: skip
    assert told.runs([A]) == ["run of s", "policy"]
    assert told.runs([B, C]) == ["run of s", "run of t", "run of u"]
    assert told.runs([]) == []


@pytest.mark.parametrize("kind", ["trained", "refitted", "replayed", "learned", "delivered"])
def test_every_kind_of_line_that_names_a_run_is_asked(kind: str) -> None:
    assert history((kind, "", {"run": "r", "clients": [A]})).runs([A]) == ["r"]


def test_policies_that_were_retired_are_told() -> None:
    assert history(("retired", "", {"policy": "p"}), ("retired", "", {"policy": "q"}), left(ADA)).retired() == {
        "p",
        "q",
    }
