"""A state says what steers it, and nothing else."""

from __future__ import annotations

import numpy as np

from frmu.types import HEAD, ClientState, State

W = np.arange(4.0).reshape(2, 2)


def state(modalities: dict[str, dict[str, float]]) -> State:
    client = ClientState("home", 3, 1.0, {"s0": 1.0, "s1": 0.3}, "policy", modalities)
    return State("config", "policy", ("a", "b"), (client,), {HEAD: W})


def test_a_state_that_mutes_nothing_says_nothing_of_modalities() -> None:
    header = state({}).header()
    assert list(header["clients"][0]) == ["name", "records", "attention", "influence", "chosen_by"]
    # the digest that states had before there were modalities
    assert state({}).digest == "2ba798d911ee78d64acb95d7c754fd07f8ea3f71773ad35446004b82c6935bd3"


def test_influences_of_modalities_steer_a_state_and_come_back() -> None:
    one, other = state({"s0": {"weather": 0.1}}), state({"s0": {"weather": 0.1 + 2**-56}})
    assert len({one.digest, other.digest, state({}).digest}) == 3
    again = State.from_header(one.header(), {HEAD: W})
    assert again.clients == one.clients
    assert again.digest == one.digest


def test_a_state_of_several_arrays_is_covered_by_its_digest_in_the_order_of_their_names() -> None:
    one = State("config", "policy", ("a",), (), {"b": np.ones(2), "a": np.zeros(2)})
    same = State("config", "policy", ("a",), (), {"a": np.zeros(2), "b": np.ones(2)})
    swapped = State("config", "policy", ("a",), (), {"a": np.ones(2), "b": np.zeros(2)})
    assert one.digest == same.digest != swapped.digest
    assert State.from_header(one.header(), one.parameters).digest == one.digest
