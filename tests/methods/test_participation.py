"""Participation: a client's turns are its own, and a key says all that a state after some rounds follows from."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from conftest import CONFIG, homes, put
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.config import Config
from frmu.methods.participation import Schedule

ROUNDS = 'kind = "rounds"\nrounds = 12\nparticipation = {share}\nschedule = "{schedule}"\n'


def config(share: float, schedule: str) -> Config:
    text = CONFIG.replace('encoder = "relu"\nfeatures = 8\n', ROUNDS.format(share=share, schedule=schedule))
    with tempfile.TemporaryDirectory() as folder:
        return put(Path(folder), homes(1, 2), text)


CONFIGS = [config(share, schedule) for share in (0.1, 0.5, 1.0) for schedule in ("random", "cohorts")]


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(CONFIGS), st.integers(2, 30), st.integers(0, 29), st.booleans())
def test_the_rounds_before_a_client_came_in_do_not_know_it(
    config: Config, size: int, which: int, changed: bool
) -> None:
    digests = {f"c{n}": f"d{n}" for n in range(size)}
    whole = Schedule(config, digests, "load")
    gone = f"c{which % size}"
    left = {name: digest for name, digest in digests.items() if name != gone}
    rest = Schedule(config, digests | {gone: "another"} if changed else left, "load")
    first = next((t for t in range(12) if gone in whole.participants(t)), 12)
    for number in range(13):
        assert (whole.key(number) == rest.key(number)) == (number <= first)
        if number < first:
            assert whole.participants(number) == rest.participants(number)


@pytest.mark.parametrize("at", range(len(CONFIGS)))
def test_who_takes_part_is_about_the_share_and_somebody_always_does(at: int) -> None:
    plan = Schedule(CONFIGS[at], {f"c{n}": "" for n in range(400)}, "")
    took_part = [len(plan.participants(number)) for number in range(12)]
    share = CONFIGS[at].model.participation
    assert sum(took_part) / (12 * 400) == pytest.approx(share, abs=0.05)
    turns = plan.turns(12)
    assert [sum(bits >> t & 1 for bits in turns.values()) for t in range(12)] == took_part
    alone = Schedule(CONFIGS[at], {"c0": ""}, "")
    assert all(alone.participants(number) == ("c0",) for number in range(12))
    if CONFIGS[at].model.schedule == "cohorts":  # on end
        assert all("01" not in f"{bits:b}".rstrip("0") for bits in turns.values())


def test_whatever_counts_is_in_the_key() -> None:
    one, other = (Schedule(CONFIGS[0], {"a": "1"}, about) for about in ("load", "band"))
    assert one.key(0) != other.key(0)
    assert one.key(0) != Schedule(CONFIGS[2], {"a": "1"}, "load").key(0)
