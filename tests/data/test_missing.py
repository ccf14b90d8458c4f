"""What is declared to be missing may be: zero, and said so in a column of its own; anything else is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, put
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.config import Config, parse
from frmu.data.clipping import beyond
from frmu.data.columns import RECORD, TIME
from frmu.data.parquet import gather, inputs
from frmu.data.shard import Shard, features
from frmu.errors import DataError

MAY = CONFIG.replace("[data.modalities]", 'missing = ["humidity"]\n\n[data.modalities]')
ALONE = MAY.replace('calendar = ["hour_sin", "hour_cos"]\n', "").replace("hour_sin = [-1, 1]\nhour_cos = [-1, 1]\n", "")


def weather(config: Config) -> np.ndarray:
    return Shard(gather(config, ["home 0"])["home 0"], config).modalities["weather"]


def test_what_is_missing_is_zero_and_marked_beside_its_column(tmp_path: Path, table: pd.DataFrame) -> None:
    lacks = table.index % 5 == 2
    whole = weather(put(tmp_path / "whole", table, MAY))
    gaps = weather(put(tmp_path / "gaps", table.assign(humidity=table.humidity.mask(lacks)), MAY))
    gone = np.isin(sorted(table.record[table.home == "home 0"]), table.record[lacks])
    assert not whole[:, 2].any()
    assert np.array_equal(gaps[:, 2], gone)
    assert not gaps[gone, 1].any()
    assert np.array_equal(gaps[~gone], whole[~gone])
    assert gaps[:, -1].all()  # the modality is there
    assert np.array_equal(np.delete(gaps, [1, 2], axis=1), np.delete(whole, [1, 2], axis=1))


def test_all_columns_missing_is_the_modality_missing(tmp_path: Path, table: pd.DataFrame) -> None:
    lacks = table.index % 5 == 2
    changed = table.assign(humidity=table.humidity.mask(lacks), temperature=table.temperature.mask(lacks))
    X = weather(put(tmp_path, changed, MAY))
    gone = np.isin(sorted(table.record[table.home == "home 0"]), table.record[lacks])
    assert np.array_equal(X[:, -1], ~gone)
    assert not X[gone].any()


def test_where_there_is_one_modality_all_columns_may_be_missing(tmp_path: Path, table: pd.DataFrame) -> None:
    text = ALONE.replace('["humidity"]', '["humidity", "temperature"]')
    X = weather(put(tmp_path, table.assign(humidity=np.nan, temperature=np.nan), text))
    assert np.array_equal(X[:, :4], np.tile([0.0, 1.0, 0.0, 1.0], (len(X), 1)))


@pytest.mark.parametrize("kind", [np.float64, np.float32, object])
def test_nan_is_missing_where_it_is_declared(tmp_path: Path, table: pd.DataFrame, kind: type) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = put(tmp_path, table, MAY)
    values = table.humidity.mask(table.index == 3).to_numpy()
    array = pa.array(values.astype(kind)) if kind is not object else pa.array(values, from_pandas=True)
    whole = pq.read_table(tmp_path / "homes.parquet")
    pq.write_table(
        whole.set_column(whole.column_names.index("humidity"), "humidity", array), tmp_path / "homes.parquet"
    )
    assert weather(config)[:, 2].sum() == 1
    assert gather(config, ["home 0"])["home 0"]["humidity"].null_count == 1


def test_what_is_not_declared_is_refused_with_the_line_to_add(tmp_path: Path, table: pd.DataFrame) -> None:
    changed = table.astype({"temperature": object})
    changed.loc[7, "temperature"] = None
    told = (
        r'"temperature" is null at client "home 0", row 7; .* under \[data\]: missing = \["humidity", "temperature"\]'
    )
    with pytest.raises(DataError, match=told):
        gather(put(tmp_path / "null", changed, MAY), ["home 0"])
    with pytest.raises(DataError, match=told.replace(r", row 7; ", r", row 7; ")):
        gather(put(tmp_path / "alone", changed, ALONE), ["home 0"])


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_infinities_are_refused_whatever_is_declared(tmp_path: Path, table: pd.DataFrame, value: float) -> None:
    table.loc[7, "humidity"] = value
    with pytest.raises(DataError, match=f'"humidity" must be finite, got {value} at client "home 0", row 7$'):
        gather(put(tmp_path, table, MAY), ["home 0"])


def test_nan_that_is_not_declared_is_refused_with_the_line_to_add(tmp_path: Path, table: pd.DataFrame) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    config = put(tmp_path, table, MAY)
    whole = pq.read_table(tmp_path / "homes.parquet")
    values = pa.array(table.temperature.mask(table.index == 3).to_numpy())
    pq.write_table(
        whole.set_column(whole.column_names.index("temperature"), "temperature", values), tmp_path / "homes.parquet"
    )
    with pytest.raises(
        DataError, match=r'must be finite, got nan at client "home 0", row 3.*missing = \["humidity", "t'
    ):
        gather(config, ["home 0"])


def test_a_lag_finds_no_value_where_it_is_missing(tmp_path: Path, table: pd.DataFrame) -> None:
    text = MAY.replace('column = "load"', 'column = "humidity"')
    lacks = table.index % 5 == 2
    config = put(tmp_path, table.assign(humidity=table.humidity.mask(lacks)), text)
    shard = Shard(gather(config, ["home 0"])["home 0"], config)
    by = {
        ts: value
        for ts, value, home in zip(table.ts, table.humidity.mask(lacks), table.home, strict=True)
        if home == "home 0"
    }
    moments = table.set_index("record").ts
    for name, (value, there) in zip(shard.ids, shard.modalities["weather"][:, 3:5], strict=True):
        before = by.get(moments[name] - pd.Timedelta(days=1), np.nan)
        assert (value, there) == ((0.0, 0.0) if np.isnan(before) else (2 * before / 100 - 1, 1.0))


def test_a_column_that_a_lag_alone_looks_at_may_be_missing(tmp_path: Path, table: pd.DataFrame) -> None:
    text = CONFIG.replace('column = "load"', 'column = "spare"').replace("load = [-5", "spare = [-5, 20]\nload = [-5")
    changed = table.assign(spare=table.load.mask(table.index % 2 == 0))
    with pytest.raises(DataError, match=r'"spare" is null .* missing = \["spare"\]'):
        gather(put(tmp_path, changed, text), ["home 0"])
    config = put(tmp_path, changed, text.replace("[data.modalities]", 'missing = ["spare"]\n\n[data.modalities]'))
    there = weather(config)[:, 3]
    assert weather(config).shape[1] == 5
    assert 0 < there.sum() < len(there)


def test_missing_values_are_beyond_no_range(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(
        tmp_path, table.assign(humidity=table.humidity.mask(table.index > 3, 101.0).mask(table.index > 9)), MAY
    )
    (found,) = [one for one in beyond(gather(config, ["home 0"])["home 0"], config) if one.name == "humidity"]
    assert (found.values, found.of) == (6, 10)


def test_rows_to_predict_for_may_lack_what_is_declared(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path, table.assign(humidity=table.humidity.mask(table.index % 2 == 0)), MAY)
    rows = inputs(config, str(tmp_path / "homes.parquet"))
    X = features(rows, config)["weather"]
    assert np.array_equal(X[:, 2], table.index % 2 == 0)
    assert np.isfinite(X).all()
    changed = put(tmp_path, table.assign(temperature=table.temperature.mask(table.index == 5)), MAY)
    with pytest.raises(DataError, match='"temperature" is null at client "home 0", row 5'):
        inputs(changed, str(tmp_path / "homes.parquet"))


@settings(max_examples=40)
@given(
    st.lists(st.one_of(st.none(), st.floats(-50, 150)), min_size=2, max_size=12),
    st.data(),
)
def test_what_remains_is_encoded_as_if_nothing_else_had_been(values: list[float | None], data: st.DataObject) -> None:
    import pyarrow as pa

    raw = {"path": "a", "client": "c", "record": "r", "target": "y", "task": "regression", "missing": ["x"]}
    raw |= {"modalities": {"m": ["x"]}, "ranges": {"x": [0.0, 100.0], "y": [0.0, 1.0]}}
    config = parse({"data": raw}, Path("a.toml"))
    table = pa.table({RECORD: [str(i) for i in range(len(values))], "x": pa.array(values, pa.float64())})
    kept = data.draw(st.lists(st.integers(0, len(values) - 1), unique=True, min_size=1))
    assert np.array_equal(features(table, config)["m"][kept], features(table.take(kept), config)["m"])
    assert TIME not in table.column_names
