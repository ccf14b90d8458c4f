"""Rules decide, and nothing else: what is done about who fails, and when a training may go on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.config import Rules
from frmu.errors import ClientsUnavailableError
from frmu.runtime.rules import after_failure, go_on_without

counts = st.integers(1, 40)


@given(counts, st.integers(1, 10))
def test_a_work_is_given_up_after_so_many_attempts(clients: int, attempts: int) -> None:
    rules = Rules(attempts=attempts)
    kinds = [after_failure(n, 1, False, "its host died", rules).kind for n in range(1, attempts + 1)]
    assert kinds == ["again"] * (attempts - 1) + ["away"]
    assert after_failure(1, clients, True, "its host died", rules).kind == "away"


@given(st.integers(2, 40))
def test_clients_of_one_host_are_asked_apart_before_any_is_given_up(clients: int) -> None:
    assert after_failure(2, clients, False, "its host died", Rules()).kind == "apart"


@given(st.integers(1, 60), st.integers(0, 60), st.floats(0.01, 1.0))
def test_a_training_goes_on_while_the_quorum_is_there(clients: int, away: int, quorum: float) -> None:
    names = [f"c{n:02d}" for n in range(clients)]
    gone = dict.fromkeys(names[:away], "no reply in 30 s")
    there = max(0, clients - away)
    if there and there >= quorum * clients:
        assert f"({there} of {clients})" in go_on_without(gone, names, Rules(quorum=quorum))
    else:
        with pytest.raises(ClientsUnavailableError, match=r"rules.quorum = .* is not met"):
            go_on_without(gone, names, Rules(quorum=quorum))


def test_late_fail_lets_nobody_be_left_out() -> None:
    with pytest.raises(ClientsUnavailableError, match=r'rules\.late = "fail"') as caught:
        go_on_without({"b": "no reply in 30 s"}, list("abcd"), Rules(late="fail"))
    assert caught.value.reasons == {"b": "no reply in 30 s"}
