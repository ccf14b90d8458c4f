"""Learned features: a metric is the average outer product of gradients; fewer features are the first of more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.config import Config, parse
from frmu.models.encoders import Encoder, basis, encode, encoders
from frmu.models.features import (
    Features,
    described,
    encoders_of,
    features_of,
    head_of,
    metric_of,
    most_features,
    nested,
    on_lattice,
    ridge_of,
    what_moved,
)  # fmt: skip
from frmu.models.grid import gram
from frmu.models.statistics import target_columns, target_grid
from frmu.types import HEAD, State

MODALITIES = {"first": ["a", "b", "c"]}


def config_of(modalities: dict[str, list[str]] = MODALITIES, **model: object) -> Config:
    data = {"path": "x.parquet", "client": "k", "record": "r", "target": "y", "task": "regression"}
    return parse(
        {"data": data | {"modalities": modalities, "ranges": {"y": [-4.0, 4.0]}}, "model": model}, Path("x.toml")
    )


def gradients(one: Encoder, W: np.ndarray, X: np.ndarray, step: float) -> np.ndarray:
    """By differences, (n, columns, outputs)."""
    found = []
    for column in range(X.shape[1]):
        up, down = X.copy(), X.copy()
        up[:, column] += step
        down[:, column] -= step
        found.append((encode({"first": up}, {"first": one}) - encode({"first": down}, {"first": one})) @ W / (2 * step))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("kind", ["relu", "fourier"])
@pytest.mark.parametrize("bins", [0, 4])
def test_a_metric_is_the_average_outer_product_of_gradients(kind: str, bins: int) -> None:
    rng = np.random.default_rng(0)
    config = config_of()
    metrics = {"first": np.array([[6.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 2.0]])}
    one = encoders_of(config, Features(kind, 64, bandwidth=0.7, bins=bins, metrics=metrics))["first"]
    assert isinstance(one, Encoder)
    X = rng.uniform(-0.7, 0.7, (400, 3))
    W = rng.normal(size=(len(one.columns.scale) + 1, 2))
    W[64 : 64 + 3 * bins] = 0.0  # jumps have no slope: metrics are learned without ramps
    g = gradients(one, W, X, 0.02)
    C = gram(one.grid_and_slopes(X)[1])
    found, wanted = metric_of(one, W[:-1], C), np.einsum("nio,njo->ij", g, g)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 12), st.sampled_from([0, 3]), st.sampled_from(["relu", "fourier"]))
def test_fewer_features_are_the_first_of_more(width: int, bins: int, kind: str) -> None:
    config = config_of(
        {"first": ["a", "b", "c"], "said": ["text"], "other": ["d"]}, encoders={"said": "hash"}, judges=5
    )
    rng = np.random.default_rng(1)
    X = {name: np.concatenate([rng.uniform(-1, 1, (30, n)), rng.integers(0, 2, (30, 1))], axis=1)
         for name, n in (("first", 3), ("other", 1))}  # fmt: skip
    X = {"first": X["first"], "said": np.array([["red lamp"], ["blue"]] * 15, dtype=object), "other": X["other"]}
    Y = target_grid(rng.uniform(-4, 4, 30), config, ("y",))
    wide, narrow = Features(kind, 12, bins=3), Features(kind, width, bins=bins)

    def sums(features: Features) -> np.ndarray:
        by = encoders_of(config, features)
        parts = [by[name].grid(each) for name, each in X.items()]
        return gram(np.concatenate([np.ones((30, 1), np.int8), *parts, Y], axis=1)).M

    places = nested(config, wide, narrow, ("y",))
    assert np.array_equal(sums(wide)[np.ix_(places, places)], sums(narrow))


def test_a_metric_of_one_is_the_frozen_view_and_another_is_not() -> None:
    config, X = config_of(), {"first": np.random.default_rng(0).uniform(-1, 1, (50, 3))}
    plain, same, turned = (
        encode(X, encoders_of(config, Features("relu", 16, metrics=metrics)))
        for metrics in ({}, {"first": 4.0 * np.eye(3)}, {"first": np.diag([4.0, 4.0, 0.0])})
    )
    assert np.abs(plain - same).max() < 0.01  # offsets are rounded to other steps
    assert np.abs(plain - turned)[:, :16].max() > 0.1
    blind = X["first"].copy()
    blind[:, 2] = 0.5
    assert np.array_equal(
        encode(
            {"first": blind}, encoders_of(config, Features("relu", 16, metrics={"first": np.diag([4.0, 4.0, 0.0])}))
        )[:, :16],
        turned[:, :16],
    )


def test_keys_tell_features_apart() -> None:
    S = np.diag([4.0, 2.0, 1.0])
    keys = [
        Features("relu", 16).key, Features("relu", 17).key, Features("fourier", 16).key,
        Features("relu", 16, bins=2).key, Features("relu", 16, bandwidth=2.0).key, Features("relu", 16, lattice=0.5).key,
        Features("relu", 16, metrics={"a": S}).key, Features("relu", 16, metrics={"b": S}).key,
        Features("relu", 16, metrics={"a": S + 1}).key,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert Features("relu", 16, metrics={"a": S.copy()}).key == keys[6]


@settings(deadline=None)
@given(st.integers(1, 5), st.floats(1e-6, 1e6), st.integers(0, 2**32 - 1), st.booleans())
def test_a_lattice_point_knows_no_scale(columns: int, scale: float, seed: int, diagonal: bool) -> None:
    A = np.random.default_rng(seed).normal(size=(columns, columns))
    M = A @ A.T
    found = on_lattice(M, 0.25, diagonal)
    again = on_lattice(M * 2.0 ** round(np.log2(scale)), 0.25, diagonal)
    assert found is not None
    assert again is not None
    assert np.array_equal(found, again)
    assert np.array_equal(found, np.rint(found))
    assert np.array_equal(found, found.T)


@pytest.mark.parametrize("M", [np.zeros((2, 2)), np.full((2, 2), np.nan)])
def test_a_metric_without_rank_is_none(M: np.ndarray) -> None:
    assert on_lattice(M, 0.25, diagonal=True) is None


def state(metrics: dict[str, np.ndarray], **said: object) -> State:
    learned = Features("relu", 16).header | {
        "layer": 2,
        "shape": "full",
        "share": 0,
        "chosen": "validation",
        "ridge": (0.5).hex(),
    }
    parameters = {HEAD: np.zeros((20, 1)), **{f"metric.{name}": one for name, one in metrics.items()}}
    return State("c", "", ("y",), (), parameters, sums="s", learned=learned | said)


def test_a_state_says_what_its_features_are_and_what_moved() -> None:
    one = state({"1.first": np.eye(3), "2.first": 2 * np.eye(3)})
    found = features_of(one)
    assert found is not None
    assert (found.kind, found.width, found.metrics["first"].tolist()) == ("relu", 16, (2 * np.eye(3)).tolist())
    assert head_of(one).features == found
    assert ridge_of(one, config_of()) == 0.5
    assert "16 relu features a modality under a full metric learned in 2 layers; chosen on validation" in described(one)
    assert what_moved(one, one) == "features unmoved: only the erased rows were subtracted"
    other = state({"1.first": np.eye(3), "2.first": 3 * np.eye(3)})
    assert what_moved(one, other) == "features learned again from what remains: 1 of 2 layers"
    assert what_moved(one, state({"1.first": np.eye(3)}, layer=1, width=8)) == (
        "features learned again from what remains: 1 of 2 layers; chosen anew: width"
    )
    again = State.from_header(one.header(), one.parameters)
    assert (again.digest, again.contents) == (one.digest, one.contents)
    assert one.digest != state({}, shape="diagonal").digest


def test_a_frozen_state_says_nothing_of_features() -> None:
    frozen = State("c", "", ("y",), (), {HEAD: np.zeros((3, 1))})
    assert features_of(frozen) is None
    assert (described(frozen), what_moved(frozen, frozen)) == ("", "")
    assert ridge_of(frozen, config_of(encoder="relu")) == 1e-3


def test_the_most_features_follow_from_records_outputs_and_modalities() -> None:
    config = config_of()
    assert [most_features(config, n, 1) for n in (100, 5_000, 50_000)] == [256, 512, 1024]
    assert most_features(config, 50_000, 26) == 4096
    assert most_features(config_of(features=77), 50_000, 26) == 77
    two = config_of({"first": ["a"], "second": ["b"]})
    assert most_features(two, 50_000, 1) == 512


def test_what_judges_stays_narrow_and_frozen() -> None:
    config = config_of(judges=7)
    (one,) = encoders(config).values()
    assert isinstance(one, Encoder)
    assert (one.kind, one.R.shape, one.metric) == ("relu", (3, 7), None)
    frozen = config_of(encoder="relu", features=7)
    assert np.array_equal(one.R, encoders(frozen)["first"].R)  # type: ignore[union-attr]
    assert basis({"first": one.columns}, target_columns(config, ("y",))).D == 1 + 7 + 6 + 2
