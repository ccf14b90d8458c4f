"""Gains beside their noise: what is noise seldom stands, what is steady does."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.selection.significance import Paired, discoveries, stretches


def paired(differences: np.ndarray) -> Paired:
    parts = np.split(differences, np.cumsum([len(part) for part in stretches(np.arange(len(differences)))])[:-1])
    return Paired(np.array([float(len(part)) for part in parts]), np.array([part.sum() for part in parts]))


@pytest.mark.parametrize("carried", [0.0, 0.6])
def test_noise_stands_about_as_often_as_is_said(carried: float) -> None:
    """Records near in time are alike: a test that took each for a witness would be wrong far more often."""
    rng, found = np.random.default_rng(0), []
    for _ in range(400):
        noise = rng.normal(size=200)
        for at in range(1, len(noise)):
            noise[at] += carried * noise[at - 1]
        found.append(paired(noise).chance <= 0.05)
    assert np.mean(found) < (0.08 if carried == 0.0 else 0.12)


def test_a_steady_gain_is_told_from_noise() -> None:
    rng = np.random.default_rng(1)
    assert paired(0.5 + rng.normal(size=200)).chance < 0.01
    assert paired(-0.5 + rng.normal(size=200)).chance > 0.95
    assert paired(np.ones(200)).chance == 0.0
    assert paired(np.zeros(200)).chance == 1.0


def test_a_few_records_tell_nothing() -> None:
    assert paired(np.ones(20)).chance == 1.0
    assert paired(np.zeros(0)).mean == 0.0


@given(st.integers(0, 500))
def test_stretches_are_all_rows_in_their_order(n: int) -> None:
    parts = stretches(np.arange(n))
    assert np.array_equal(np.concatenate(parts), np.arange(n))
    assert len(parts) == 1 or min(map(len, parts)) >= 8


def test_sites_share_their_days() -> None:
    """Two sites with the same days are not twice as many witnesses."""
    one = {"n": [10.0] * 12, "gain": list(np.random.default_rng(2).normal(1.0, 2.0, 12))}
    assert Paired.of([one, one]).chance == pytest.approx(Paired.of([one]).chance)
    short = {"n": [10.0] * 3, "gain": [1.0] * 3}
    assert Paired.of([one, short]).n.tolist() == [20.0, 10, 10, 10, 20, 10, 10, 10, 20, 10, 10, 10]
    assert Paired.of([]).mean == 0.0


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=12), st.floats(0.001, 1))
def test_more_sureness_never_makes_fewer_stand(chances: dict[str, float], level: float) -> None:
    stand = discoveries(chances, level)
    assert all(chances[name] <= level for name in stand)
    assert set(stand) <= set(discoveries({name: chance / 2 for name, chance in chances.items()}, level))
    assert not stand or max(chances[name] for name in stand) <= min(
        (chance for name, chance in chances.items() if name not in stand), default=1.0
    )
