"""The attention scores of our method: signed, on one scale, thresholded; and they steer nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, put, train
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frmu.errors import ConfigError
from frmu.selection.scores import below, change, normalise, update

raws = arrays(np.float64, st.sampled_from([(1,), (7,), (4, 3)]), elements=st.floats(-200, 200))


@given(raws)
def test_scores_are_on_one_scale(raw: np.ndarray) -> None:
    scores = normalise(raw)
    assert scores.shape == raw.shape
    assert scores.mean() == pytest.approx(1.0)
    assert (scores >= 0).all()
    assert np.allclose(normalise(raw + 17.0), scores)


@given(st.floats(-3, 3), st.integers(0, 4))
def test_the_sign_of_the_error_counts(error: float, dropped: int) -> None:
    sign = np.ones((1, 5))
    sign[0, dropped] = -1.0
    raw = update(np.zeros(5), change(np.array([error]), np.full((1, 5), 0.2), sign))
    kept = np.delete(raw, dropped)
    assert np.allclose(kept, 0.1 * 0.2 * error)
    assert raw[dropped] == pytest.approx(-kept[0])


def test_a_score_can_fall_again() -> None:
    raw = update(update(np.zeros(2), np.array([1.0, 0.0])), np.array([-3.0, 0.0]))
    assert normalise(raw)[0] < 1.0


@given(raws, st.floats(0, 1))
def test_theta_never_takes_every_slice_of_a_client(raw: np.ndarray, theta: float) -> None:
    scores = {"a": {str(key): float(score) for key, score in enumerate(normalise(raw).ravel())}}
    found = below(scores, theta)
    assert len(found.get("a", {})) < len(scores["a"])
    assert all(score < theta for score in found.get("a", {}).values())


def test_theta_steers_no_state(tmp_path: Path, table: pd.DataFrame) -> None:
    one = put(tmp_path / "one", table)
    other = put(tmp_path / "other", table, f"{CONFIG}\n[policy]\ntheta = 0.9\n")
    assert one.fingerprint() == other.fingerprint()
    assert train(one)["state_digest"] == train(other)["state_digest"]


def test_theta_is_a_share_of_the_average(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"policy\.theta"):
        put(tmp_path / "bad", table, f"{CONFIG}\n[policy]\ntheta = 1.5\n")
