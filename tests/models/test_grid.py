"""Sums are whole numbers: in any order, any split, any grouping, and after rows went, the same bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.errors import FrmuError
from frmu.models import grid as grids
from frmu.models.encoders import Encoder, Words, basis, encode, grid, spans
from frmu.models.grid import ONE, QUARTERS, Columns, fixed, gram, limbs, on_grid, total
from frmu.models.modality import muted
from frmu.models.statistics import statistics_of
from frmu.types import Sums

seeds = st.integers(0, 2**32)


def rows(seed: int, n: int, D: int = 9) -> np.ndarray:
    Z = np.random.default_rng(seed).integers(-128, 128, (n, D), dtype=np.int8)
    Z[:, 0] = 1
    return Z


def exact(Z: np.ndarray) -> np.ndarray:
    """By Python's integers."""
    whole = Z.astype(object)
    return (whole.T @ whole).astype(np.int64)


@given(seeds, st.integers(1, 4), st.booleans())
def test_a_head_predicts_from_whole_numbers_what_it_does_from_features(seed: int, outputs: int, optional: bool) -> None:
    rng = np.random.default_rng(seed)
    relu = Encoder("relu", rng.normal(size=(3, 7)), rng.normal(size=7), optional, bins=2, binned=(0, 2))
    X = {"a": rng.uniform(-1, 1, (20, 3 + optional))}
    whole, Z = basis({"a": relu.columns}), grid(X, {"a": relu})
    W = rng.normal(size=(whole.d, outputs))
    assert np.allclose(whole.predictions(Z, W), encode(X, {"a": relu}) @ W, rtol=0, atol=1e-10)


@given(seeds, st.integers(0, 300), st.randoms(use_true_random=False))
def test_any_order_any_split_any_grouping_gives_the_same_bits(seed: int, n: int, random: object) -> None:
    Z = rows(seed, n)
    order = list(range(n))
    random.shuffle(order)  # type: ignore[attr-defined]
    cuts = sorted(random.randint(0, n) for _ in range(4))  # type: ignore[attr-defined]
    parts = [gram(block) for block in np.split(Z[order], cuts)]
    hosts = [total([(1, part) for part in parts[:2]], 9), total([(1, part) for part in parts[2:]], 9)]
    for found in (gram(Z), total([(1, part) for part in parts], 9), hosts[1] + hosts[0]):
        assert np.array_equal(found.M, exact(Z))
        assert found.n == n


@given(seeds, st.integers(1, 300), st.integers(0, 300))
def test_rows_that_are_subtracted_were_never_added(seed: int, kept: int, gone: int) -> None:
    Z = rows(seed, kept + gone)
    assert np.array_equal((gram(Z) - gram(Z[kept:])).M, gram(Z[:kept]).M)


@pytest.mark.parametrize("value", [-128, 127])
def test_the_greatest_rows_are_still_exact(value: int) -> None:
    """Of 1,024 rows of -128 the sums just fit in the 24 bits of float32."""
    Z = np.full((5000, 3), value, dtype=np.int8)
    assert (5000 * value * value == gram(Z).M).all()


def test_products_that_lose_bits_are_found_and_not_used(caplog: pytest.LogCaptureFixture) -> None:
    """As where a library makes float32 products of 16 bits."""
    assert grids._exact_in(lambda block: block.T @ block) is np.float32
    short = lambda block: (block.T @ block).astype(np.float32) * np.float32(1 + 2**-23)  # noqa: E731
    assert grids._exact_in(short) is np.float64
    assert "the same numbers, at twice the time" in caplog.text


def test_sums_in_float64_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    Z = rows(3, 2500)
    expected = gram(Z)
    monkeypatch.setattr(grids, "_product", lambda: np.float64)
    assert np.array_equal(gram(Z).packed, expected.packed)


@pytest.mark.parametrize(("n", "kind"), [(2**17 - 1, np.int32), (2**17, np.int64)])
def test_sums_are_kept_in_as_many_bits_as_they_need(n: int, kind: type) -> None:
    """To the greatest that so many records can give."""
    sums = Sums.of(n * np.array([[1, -128], [-128, 2**14]], dtype=np.int64))
    assert sums.packed.dtype == kind
    assert sums.M.tolist() == [[n, -128 * n], [-128 * n, n * 2**14]]
    assert (sums + sums - sums).packed.dtype == kind


def test_packed_sums_come_back_whole() -> None:
    sums = gram(rows(0, 40))
    assert np.array_equal(Sums(sums.packed).M, sums.M)


def test_what_could_overflow_is_refused_before_it_is_added() -> None:
    sums = gram(rows(0, 1000))
    near = (2**63 - 1) // (1000 * 2**14)
    assert total([(near, sums)], 9).n == near * 1000
    with pytest.raises(FrmuError, match="might overflow 64 bits; fit fewer records"):
        total([(near, sums), (1, sums)], 9)


@given(st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=20))
def test_limbs_are_the_steps(values: list[float]) -> None:
    steps = fixed(np.array([values]))
    high, low = np.split(limbs(steps).astype(np.int64), 2, axis=1)
    assert np.array_equal(256 * high + low, steps)
    assert np.abs(steps / ONE - np.clip(values, -1, 1)).max() <= 0.5 / ONE


def made(seed: int, n: int) -> tuple[dict[str, np.ndarray], dict[str, Encoder | Words], np.ndarray]:
    rng = np.random.default_rng(seed)
    there = rng.random((2, n, 1)) > 0.3
    words = np.array(["a red lamp", "Lamp!", "", None], dtype=object)
    modalities = {
        "a": np.concatenate([rng.uniform(-1, 1, (n, 3)), np.ones((n, 1))], axis=1) * there[0],
        "b": np.concatenate([rng.uniform(-1, 1, (n, 2)), np.ones((n, 1))], axis=1) * there[1],
        "said": words[rng.integers(0, 4, (n, 1))],
    }
    by = {
        "a": Encoder("relu", rng.normal(size=(3, 20)), rng.uniform(-1, 1, 20), True),
        "b": Encoder("fourier", rng.normal(size=(2, 10)), rng.uniform(0, 6, 10), True),
        "said": Words(("said",), 8, 0, True),
    }
    return modalities, by, rng.uniform(-3.0, 5.0, n)


def columns_of(by: dict[str, Encoder | Words]) -> dict[str, Columns]:
    return {name: encoder.columns for name, encoder in by.items()}


@given(seeds, st.integers(1, 60))
def test_statistics_are_those_of_the_features(seed: int, n: int) -> None:
    modalities, by, y = made(seed, n)
    steps = fixed((y[:, None] - 1.0) / 4.0)
    Z = np.concatenate([grid(modalities, by), limbs(steps)], axis=1)
    found = basis(columns_of(by), Columns.of_limbs(1, 4.0 / ONE, ONE / 4.0)).statistics(gram(Z))
    phi = encode(modalities, by)
    direct = statistics_of(phi, 4.0 * steps / ONE + 1.0)
    assert np.allclose(found.G, direct.G, atol=1e-9)
    assert np.allclose(found.b, direct.b, atol=1e-9)
    assert found.c == pytest.approx(direct.c, abs=1e-9)
    assert found.n == n == found.G[-1, -1]


@given(seeds, st.integers(1, 40), st.integers(0, QUARTERS), st.sampled_from(["a", "b", "said"]))
def test_muting_whole_numbers_is_muting(seed: int, n: int, quarters: int, name: str) -> None:
    modalities, by, _ = made(seed, n)
    of, at = basis(columns_of(by)), 0
    blocks = {}
    for each, encoder in by.items():
        blocks[each] = slice(at, at + len(encoder.columns.scale))
        at += len(encoder.columns.scale)
    sums = gram(grid(modalities, by))
    found = of.statistics(of.muted(sums, spans(columns_of(by))[name], quarters), QUARTERS, n)
    wanted = muted(of.statistics(sums), blocks[name], quarters / QUARTERS)
    assert np.allclose(found.G, wanted.G, atol=1e-9)
    assert total([(1, of.muted(sums, spans(columns_of(by))[name], quarters))], of.D).n == QUARTERS * n


def test_of_many_columns_what_fires_far_out_is_clipped() -> None:
    rng = np.random.default_rng(0)
    X, R, t = np.full((3, 256), 0.9), np.abs(rng.normal(size=(256, 20))) * 0.1, np.zeros(20)
    encoder = Encoder("relu", R, t)
    assert (encoder.top == 8.0).all()
    assert (encoder.grid(X)[:, :20] == 127).all()
    assert Encoder("relu", -R, t - 30.0).top.tolist() == [1 / 4096 if reach < 0 else 8.0 for reach in R.sum(0) - 30.0]


def test_features_keep_to_the_grid_of_what_they_were() -> None:
    """Eight bits of what fires, up to the most that a direction can reach or 8; sixteen of a column."""
    rng = np.random.default_rng(0)
    X, R, t = rng.uniform(-1, 1, (500, 4)), rng.normal(size=(4, 50)) * np.sqrt(0.5), rng.uniform(-1, 1, 50)
    encoder = Encoder("relu", R, t)
    phi, fires = encode({"a": X}, {"a": encoder}), np.clip(X @ R + t, 0, encoder.top) * np.sqrt(2 / 50)
    assert (np.abs(phi[:, :50] - fires).max(axis=0) < 0.8 * encoder.top / 255 * np.sqrt(2 / 50)).all()
    assert (X @ R + t <= encoder.top + 1e-3).all()  # of so few columns nothing is clipped
    assert np.abs(phi[:, 50:54] - X).max() <= 0.5 / ONE
    waves = encode({"a": X}, {"a": Encoder("fourier", R, t)})
    assert np.abs(waves[:, :50] - np.cos(X @ R + t) * np.sqrt(2 / 50)).max() < 0.02 * np.sqrt(2 / 50)


def test_weights_are_multiples_of_a_64th() -> None:
    found = on_grid(np.linspace(0.0, 3.0, 100))
    assert np.array_equal(found * 64, np.rint(found * 64))
