"""A transform goes there and back, is the same on every processor, and looks at one value alone."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from conftest import put
from hypothesis import given
from hypothesis import strategies as st
from tables import TABLES, real

from frmu.data.parquet import gather
from frmu.data.shard import Shard
from frmu.data.transform import backward, forward, learned_range, learned_target, learned_units, raw_units
from frmu.models.grid import ONE, limbs
from frmu.models.statistics import target_grid

above = st.floats(-0.999, 1e300)


@given(above)
def test_forward_is_the_logarithm_of_one_more(x: float) -> None:
    found = float(forward(np.array([x]), "log1p")[0])
    assert math.isclose(found, math.log1p(x), rel_tol=1e-14, abs_tol=1e-300)


@given(st.lists(st.floats(-0.9, 1e6), min_size=1, max_size=20))
def test_there_and_back(values: list[float]) -> None:
    there = forward(np.array(values), "log1p")
    assert np.allclose(backward(there, "log1p"), values, rtol=1e-9, atol=1e-12)
    assert [forward(np.array([x]), "log1p")[0] for x in values] == there.tolist()


def test_nothing_is_made_of_values_without_a_transform() -> None:
    values = np.array([1.0, np.nan])
    assert forward(values, None) is values
    assert backward(values, None) is values


def test_columns_lags_and_targets_are_scaled_by_the_transformed_range(tmp_path: Path) -> None:
    table = real(1)
    config = put(tmp_path, table, TABLES)
    shard = Shard(gather(config, ["home 0"])["home 0"], config)
    own = table.sort_values("record").reset_index(drop=True)
    visits, gone = shard.modalities["weather"][:, 5], own.visits.isna().to_numpy()
    expected = 2.0 * np.log1p(own.visits.to_numpy()) / np.log1p(5000.0) - 1.0
    assert np.allclose(visits[~gone], expected[~gone])
    assert not visits[gone].any()
    assert np.array_equal(shard.modalities["weather"][:, 6], gone)
    low, high = np.log1p(-0.95), np.log1p(20.0)
    assert np.allclose(learned_range(config, "load"), (low, high))
    loads = dict(zip(own.ts, own.load, strict=True))
    yesterday = [loads.get(ts - np.timedelta64(1, "D")) for ts in own.ts]
    said, there = shard.modalities["weather"][:, 3:5].T
    for value, x, one in zip(yesterday, said, there, strict=True):
        assert (x, one) == (0.0, 0.0) if value is None else one == 1.0
        assert value is None or np.isclose(x, 2.0 * (np.log1p(value) - low) / (high - low) - 1.0)
    assert np.allclose(shard.learned_target, np.log1p(own.load))
    assert np.allclose(raw_units(learned_units(shard.target, config), config), shard.target)
    ends = target_grid(learned_target(np.array([-9.0, -0.95, 20.0, 99.0]), config), config, ("load",))
    assert np.array_equal(ends, limbs(np.array([[-ONE], [-ONE], [ONE], [ONE]], dtype=np.float64)))


def test_what_a_head_says_beyond_the_range_is_clipped(tmp_path: Path) -> None:
    config = put(tmp_path, real(1), TABLES)
    assert raw_units(np.array([-1e9, 0.0, 1e9]), config).tolist() == [-0.95, 0.0, 20.0]
