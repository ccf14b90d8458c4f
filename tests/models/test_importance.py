"""The importances of columns are shares of a metric's square, by the columns' own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, homes, put

from frmu.models.importance import Column, importances, learned_columns, shares, strongest_pairs
from frmu.types import HEAD, State

LEARNED = CONFIG.replace('encoder = "relu"\nfeatures = 8', "features = 24")
HEADER = {
    "kind": "relu", "width": 4, "bandwidth": 1.0.hex(), "bins": 0, "lattice": 0.25.hex(), "layer": 2,
}  # fmt: skip


def state_with(*metrics: np.ndarray) -> State:
    parameters = {HEAD: np.zeros((1, 1)), **{f"metric.{at}": one for at, one in enumerate(metrics, start=1)}}
    return State("", "", (), (), parameters, learned=HEADER | {"layer": len(metrics)})


def test_shares_are_those_of_the_diagonal_of_the_square() -> None:
    S = np.array([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    assert shares(S) == pytest.approx(np.diag(S @ S) / np.trace(S @ S))
    assert shares(0.25 * S) == pytest.approx(shares(S))


def test_every_layer_is_told_and_pairs_of_the_last() -> None:
    columns = [Column("a", "x"), Column("a", "y"), Column("b", "z")]
    last = np.array([[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 2.0]])
    state = state_with(np.diag([1.0, 0.0, 1.0]), last)
    assert importances(state)[0].tolist() == [0.5, 0.0, 0.5]
    (pair,) = strongest_pairs(state, columns)
    assert (pair.one, pair.other) == (columns[0], columns[2])
    assert pair.share == pytest.approx((last @ last)[0, 2] / np.trace(last @ last))
    assert strongest_pairs(state_with(np.diag([1.0, 2.0, 3.0])), columns) == []


def test_frozen_features_and_no_layer_have_none() -> None:
    assert importances(State("", "", (), (), {HEAD: np.zeros((1, 1))})) == []
    assert importances(state_with()) == []
    assert strongest_pairs(state_with(), []) == []


def test_columns_have_their_names_and_a_lag_two(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(1, 3), LEARNED)
    for modality in config.data.modalities:
        assert len(config.column_names(modality)) == config.columns(modality)
    names = [f"{one.modality}/{one.name}" for one in learned_columns(config)]
    assert names == [
        "calendar/hour_sin", "calendar/hour_cos", "weather/temperature", "weather/humidity", "weather/yesterday",
        "weather/yesterday: known",
    ]  # fmt: skip
    one = put(tmp_path / "one", homes(1, 3), LEARNED + 'encoders = { calendar = "linear" }\n')
    assert {column.modality for column in learned_columns(one)} == {"weather"}
