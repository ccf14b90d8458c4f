"""When a trained policy takes the place of the one in force: ahead by more than noise, seldom by noise alone."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.policy.compare import Comparison


def test_noise_alone_puts_a_policy_in_force_in_one_case_of_twenty() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    trials = [Comparison.of(*rng.normal(0.05, 0.1, (2, 120))) for _ in range(2000)]
    adopted = np.mean([one.better(0.05) for one in trials])
    assert adopted == pytest.approx(0.05, abs=0.015)


def test_a_lead_beyond_noise_is_taken_and_one_within_it_is_not() -> None:
    rng = np.random.Generator(np.random.PCG64(1))
    noise = rng.normal(0.0, 0.01, 120)
    noise -= noise.mean()
    error = noise.std(ddof=1) / np.sqrt(120)
    before = rng.normal(0.05, 0.1, 120)
    for lead, taken in ((3.0, True), (1.8, True), (1.5, False), (0.0, False), (-3.0, False)):
        found = Comparison.of(before, before + noise + lead * error)
        assert found.better(0.05) is taken
        assert found.difference == pytest.approx(lead * error, abs=1e-12)


def test_two_that_do_the_same_and_one_rehearsal_alone_change_nothing() -> None:
    same = np.array([0.1, 0.2, 0.3])
    assert not Comparison.of(same, same).better(1.0)
    assert not Comparison.of(same[:1], same[1:2]).better(0.05)
    assert Comparison.of(np.zeros(3), np.full(3, 0.1)).better(0.05)  # ahead by as much each time
