"""What is done to records on purpose is what it is called, at as many slices as it may be."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.selection.disturbance import KINDS, disturb, draw

KEYS = [f"2025-{month:02d}" for month in range(1, 13)]
DRAWS = [draw(KEYS, np.random.default_rng(seed)) for seed in range(600)]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- where ----------------------------------------------------------------------------------------------------


def test_every_kind_is_drawn_about_as_often() -> None:
    counts = {kind: sum(found == kind for found, _ in DRAWS) for kind in KINDS}
    assert all(80 <= number <= 160 for number in counts.values())


def test_up_to_two_fifths_of_the_slices_are_hit_and_at_least_one() -> None:
    hit = [keys for kind, keys in DRAWS if kind != "none"]
    assert {len(keys) for keys in hit} == {1, 2, 3, 4}
    assert all(keys == sorted(set(keys)) and set(keys) <= set(KEYS) for keys in hit)
    assert {len(draw(KEYS[:2], rng(seed), "labels")[1]) for seed in range(40)} == {1}
    assert {len(draw(KEYS[:5], rng(seed), "labels")[1]) for seed in range(40)} == {1, 2}


def test_what_is_stale_is_old() -> None:
    assert all(keys == KEYS[: len(keys)] for kind, keys in DRAWS if kind == "stale")


def test_other_slices_are_a_run_or_a_scatter() -> None:
    """About half are runs, and of those that are scattered a few happen to be one; every slice is hit at times."""
    hit = [keys for kind, keys in DRAWS if kind in ("labels", "gain", "features") and len(keys) > 1]
    runs = [keys for keys in hit if KEYS.index(keys[-1]) - KEYS.index(keys[0]) == len(keys) - 1]
    assert 0.45 * len(hit) < len(runs) < 0.75 * len(hit)
    assert {keys[0] for keys in runs} >= set(KEYS[:9])
    assert any(keys[-1] == KEYS[-1] for keys in runs)
    assert {key for keys in hit for key in keys} == set(KEYS)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_a_kind_can_be_asked_for_and_one_slice_alone_is_left(kind: str) -> None:
    assert draw(KEYS, rng(), kind)[0] == kind
    assert draw(KEYS[:1], rng(), kind) == ("none", [])
    assert draw(KEYS[:2], rng(), kind)[0] == kind
    assert draw(KEYS, rng(), "none") == ("none", [])


# -- what -----------------------------------------------------------------------------------------------------

Y = np.array([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
X = {"a": np.arange(12.0).reshape(6, 2), "b": np.array([[word] for word in "uvwxyz"])}


def test_scrambled_features_leave_every_column_its_values_and_no_row() -> None:
    found, y = disturb("features", X, Y, rng(1))
    assert y is Y
    for name, block in X.items():
        assert not np.array_equal(found[name], block)
        assert np.array_equal(np.sort(found[name], axis=0), np.sort(block, axis=0))
    a = found["a"]
    assert not np.array_equal(a[:, 1] - a[:, 0], np.ones(6))  # each column on its own


def test_shuffled_labels_are_the_same_labels() -> None:
    found, y = disturb("labels", X, Y, rng(1))
    assert not np.array_equal(y, Y)
    assert sorted(y) == sorted(Y)
    assert all(np.array_equal(found[name], block) for name, block in X.items())


@pytest.mark.parametrize("kind", ["gain", "stale"])
def test_classes_are_shifted_by_one(kind: str) -> None:
    found, y = disturb(kind, X, np.array(["b", "a", "c", "c"]), rng())
    assert y.tolist() == ["c", "b", "a", "a"]
    assert all(np.array_equal(found[name], block) for name, block in X.items())


def test_a_stale_relation_is_turned_round_its_mean_and_is_no_stronger() -> None:
    factors = []
    for seed in range(200):
        found, y = disturb("stale", X, Y, rng(seed))
        assert y.mean() == pytest.approx(Y.mean())
        [factor] = set(np.round((y - Y.mean()) / (Y - Y.mean()), 9))
        factors.append(-factor)
        assert all(np.array_equal(found[name], block) for name, block in X.items())
    assert 0.5 <= min(factors) < 0.52
    assert 0.98 < max(factors) <= 1.0


def test_a_sensor_at_fault_reads_too_much_or_too_little() -> None:
    factors, offsets = [], []
    for seed in range(800):
        y = disturb("gain", X, Y, rng(seed))[1]
        assert y.dtype == np.float64
        if np.allclose(y / Y, y[0] / Y[0]):
            factors.append(y[0] / Y[0])
        else:
            assert np.allclose(y - Y, y[0] - Y[0])
            offsets.append((y[0] - Y[0]) / Y.std())
    assert 300 < len(factors) < 500
    low, high = ([f for f in factors if f < 1], [f for f in factors if f > 1])
    assert 0.2 <= min(low) < 0.22
    assert 0.58 < max(low) <= 0.6
    assert 1.6 <= min(high) < 1.65
    assert 2.95 < max(high) <= 3.0
    assert min(len(low), len(high)) > 0.4 * len(factors)
    up, down = ([o for o in offsets if o > 0], [-o for o in offsets if o < 0])
    for side in (up, down):
        assert len(side) > 0.4 * len(offsets)
        assert 1.0 <= min(side) < 1.05
        assert 2.95 < max(side) <= 3.0 + 1e-6
    assert disturb("gain", X, np.full(4, 2.0), rng(2))[1].tolist() != [2.0] * 4  # a constant target is moved too
