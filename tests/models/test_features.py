"""Learned features: a metric is the average outer product of gradients; fewer features are the first of more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.config import Config, parse
from frmu.models.encoders import Encoder, basis, encoders
from frmu.models.features import (
    Features,
    Wide,
    basis_of_features,
    bins_to_try,
    described,
    features_of,
    head_of,
    metric_of,
    most_features,
    nested,
    on_lattice,
    ridge_of,
    what_moved,
    without,
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


def gradients(wide: Wide, W: np.ndarray, X: np.ndarray, step: float) -> np.ndarray:
    """By differences, (n, columns, outputs)."""
    found = []
    for column in range(X.shape[1]):
        up, down = X.copy(), X.copy()
        up[:, column] += step
        down[:, column] -= step
        found.append((wide.encode({"first": up}) - wide.encode({"first": down})) @ W / (2 * step))
    return np.stack(found, axis=1)


@pytest.mark.parametrize("kind", ["relu", "fourier"])
@pytest.mark.parametrize("bins", [0, 4])
def test_a_metric_is_the_average_outer_product_of_gradients(kind: str, bins: int) -> None:
    rng = np.random.default_rng(0)
    metric = np.array([[6.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 2.0]])
    wide = Wide(config_of(), Features(kind, 64, bandwidth=0.7, bins=bins, metric=metric))
    X = rng.uniform(-0.7, 0.7, (400, 3))
    W = rng.normal(size=(len(wide.basis().scale), 2))
    W[64 : 64 + 3 * bins] = 0.0  # jumps have no slope: metrics are learned without ramps
    g = gradients(wide, W, X, 0.02)
    C = gram(wide.grid_and_slopes({"first": X})[1])
    found, wanted = metric_of(wide, W, C), np.einsum("nio,njo->ij", g, g)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


SEVERAL = {"first": ["a", "b", "c"], "said": ["text"], "other": ["d"]}


def several(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    """Records of two modalities that are learned, and one of text."""
    there = {name: rng.integers(0, 2, (n, 1)) for name in ("first", "other")}
    X = {name: np.concatenate([rng.uniform(-1, 1, (n, k)) * there[name], there[name]], axis=1) for name, k in
         (("first", 3), ("other", 1))}  # fmt: skip
    words = np.array(["red lamp", "blue", None], dtype=object)
    return {"first": X["first"], "said": words[rng.integers(0, 3, (n, 1))], "other": X["other"]}


@settings(max_examples=20)
@given(st.integers(1, 12), st.sampled_from([0, 3]), st.sampled_from(["relu", "fourier"]))
def test_fewer_features_are_the_first_of_more(width: int, bins: int, kind: str) -> None:
    config = config_of(SEVERAL, encoders={"said": "hash"}, judges=5)
    rng = np.random.default_rng(1)
    X, Y = several(rng, 30), target_grid(rng.uniform(-4, 4, 30), config, ("y",))
    metric = np.diag([4.0, 3.0, 2.0, 5.0])
    wide, narrow = Features(kind, 12, bins=3, metric=metric), Features(kind, width, bins=bins, metric=metric)

    def sums(features: Features) -> np.ndarray:
        return gram(np.concatenate([Wide(config, features).grid(X), Y], axis=1)).M

    places = nested(config, wide, narrow, ("y",))
    assert np.array_equal(sums(wide)[np.ix_(places, places)], sums(narrow))
    assert len(places) == basis_of_features(config, narrow, ("y",)).D


def test_of_three_features_one_sees_all_and_two_see_a_modality_each() -> None:
    config = config_of({"first": ["a", "b", "c"], "other": ["d", "e"]})
    seen = Wide(config, Features("relu", 9)).joint.R != 0.0
    assert seen[:, ::3].all()
    assert (seen[:, 1::3] == np.array([1, 1, 1, 0, 0])[:, None]).all()
    assert (seen[:, 2::3] == np.array([0, 0, 0, 1, 1])[:, None]).all()
    alone = Wide(config_of({"all": list("abcdefgh")}), Features("relu", 6)).joint.R != 0.0
    assert alone.sum(axis=0).tolist() == [8, 4, 2, 8, 4, 2]


def test_features_see_modalities_together() -> None:
    """What matters only together is learned: no sum of functions of single modalities gives a product."""
    config = config_of({"first": ["a"], "other": ["b"]})
    rng = np.random.default_rng(0)
    a, b, one = rng.uniform(-1, 1, (600, 1)), rng.uniform(-1, 1, (600, 1)), np.ones((600, 1))
    phi = Wide(config, Features("relu", 60)).encode({"first": np.hstack([a, one]), "other": np.hstack([b, one])})
    W, *_ = np.linalg.lstsq(phi, a * b, rcond=1e-6)
    assert np.mean((phi @ W - a * b) ** 2) < 0.01 * np.mean((a * b) ** 2)


def test_a_record_without_a_modality_is_one_that_lacks_it() -> None:
    config = config_of(SEVERAL, encoders={"said": "hash"}, judges=5)
    X = several(np.random.default_rng(3), 50)
    bare = without(X, ["other", "said"])
    assert all(np.array_equal(bare[name], X[name]) for name in ("first",))
    wide = Wide(config, Features("relu", 12, bins=2))
    lacking = {**X, "other": np.zeros_like(X["other"]), "said": np.full((50, 1), None, dtype=object)}
    assert np.array_equal(wide.grid(bare), wide.grid(lacking))


def test_a_metric_of_one_is_no_metric_and_another_turns_the_features() -> None:
    config, X = config_of(), {"first": np.random.default_rng(0).uniform(-1, 1, (50, 3))}
    plain, same, turned = (
        Wide(config, Features("relu", 16, lattice=0.25, metric=metric)).encode(X)
        for metric in (None, 4.0 * np.eye(3), np.diag([4.0, 4.0, 0.0]))
    )
    assert np.abs(plain - same).max() < 0.01  # offsets are rounded to other steps
    assert np.abs(plain - turned)[:, :16].max() > 0.1
    X["first"][:, 2] = 0.5
    blind = Wide(config, Features("relu", 16, lattice=0.25, metric=np.diag([4.0, 4.0, 0.0]))).encode(X)
    assert np.array_equal(blind[:, :16], turned[:, :16])


def test_keys_tell_features_apart() -> None:
    S = np.diag([4.0, 2.0, 1.0])
    keys = [
        Features("relu", 16).key, Features("relu", 17).key, Features("fourier", 16).key,
        Features("relu", 16, bins=2).key, Features("relu", 16, bandwidth=2.0).key,
        Features("relu", 16, lattice=0.5).key, Features("relu", 16, metric=S).key,
        Features("relu", 16, metric=S + 1).key, Features("relu", 16, metric=S[:2, :2]).key,
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert Features("relu", 16, metric=S.copy()).key == keys[6]


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


def state(*metrics: np.ndarray, **said: object) -> State:
    learned = Features("relu", 16).header | {"layer": len(metrics), "shape": "full", "share": 0}
    learned |= {"chosen": "validation", "ridge": (0.5).hex()}
    parameters = {HEAD: np.zeros((20, 1)), **{f"metric.{at}": one for at, one in enumerate(metrics, start=1)}}
    return State("c", "", ("y",), (), parameters, sums="s", learned=learned | said)


def test_a_state_says_what_its_features_are_and_what_moved() -> None:
    one = state(np.eye(3), 2 * np.eye(3))
    found = features_of(one)
    assert found is not None
    assert found.metric is not None
    assert (found.kind, found.width, found.metric.tolist()) == ("relu", 16, (2 * np.eye(3)).tolist())
    head = head_of(one)
    assert head.features is not None
    assert head.features.key == found.key
    assert ridge_of(one, config_of()) == 0.5
    assert described(one) == "16 relu features under a full metric learned in 2 layers; chosen on validation"
    assert what_moved(one, one) == "features unmoved: only the erased rows were subtracted"
    assert what_moved(one, state(np.eye(3), 3 * np.eye(3))) == (
        "features learned again from what remains: 1 of 2 layers"
    )
    assert what_moved(one, state(np.eye(3), width=8)) == (
        "features learned again from what remains: 1 of 2 layers; chosen anew: width"
    )
    again = State.from_header(one.header(), one.parameters)
    assert (again.digest, again.contents) == (one.digest, one.contents)
    assert one.digest != state(shape="diagonal").digest


def test_a_frozen_state_says_nothing_of_features() -> None:
    frozen = State("c", "", ("y",), (), {HEAD: np.zeros((3, 1))})
    assert features_of(frozen) is None
    assert (described(frozen), what_moved(frozen, frozen)) == ("", "")
    assert ridge_of(frozen, config_of(encoder="relu")) == 1e-3


def test_many_columns_get_no_ramps() -> None:
    few, many = ([f"c{at}" for at in range(columns)] for columns in (64, 65))
    assert bins_to_try(config_of({"first": few}), 16, 512) == (0, 16)
    assert bins_to_try(config_of({"first": many}), 16, 512) == (0,)


def test_the_most_features_follow_from_records_and_outputs() -> None:
    config = config_of()
    assert [most_features(config, n, 1) for n in (100, 5_000, 50_000)] == [256, 512, 1024]
    assert most_features(config, 50_000, 26) == 4096
    assert most_features(config_of(features=77), 50_000, 26) == 77


def test_what_judges_stays_narrow_and_frozen() -> None:
    config = config_of(judges=7)
    (one,) = encoders(config).values()
    assert isinstance(one, Encoder)
    assert (one.kind, one.R.shape, one.metric) == ("relu", (3, 7), None)
    frozen = config_of(encoder="relu", features=7)
    assert np.array_equal(one.R, encoders(frozen)["first"].R)  # type: ignore[union-attr]
    assert basis({"first": one.columns}, target_columns(config, ("y",))).D == 1 + 7 + 6 + 2
