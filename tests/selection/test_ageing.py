"""Ageing knows the calendar and nothing else."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from frmu.selection.ageing import decay, window

AGES = st.integers(2, 60).map(lambda k: np.linspace(1.0, 0.0, k))


@given(AGES, st.data())
def test_a_window_of_m_slices_keeps_m(age: np.ndarray, data: st.DataObject) -> None:
    m = data.draw(st.integers(1, len(age)))
    kept = window(age, (m - 1) / (len(age) - 1))
    assert kept.sum() == m
    assert kept[-m:].all()


@given(AGES, st.floats(0.01, 3.0))
def test_decay_halves_with_every_half_life(age: np.ndarray, half_life: float) -> None:
    faded = decay(age, half_life)
    assert faded[-1] == 1.0
    assert (np.diff(faded) > 0).all()
    assert np.allclose(decay(age + half_life, half_life), faded / 2)


@given(st.integers(1, 9), st.floats(0.01, 1.0))
def test_what_has_no_age_does_not_age(k: int, share: float) -> None:
    assert window(np.zeros(k), share).all()
    assert (decay(np.zeros(k), share) == 1.0).all()
