"""A category is a column a value, a bucket a hash, or "other"; a number comes in any Arrow type."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import CONFIG, put, train
from hypothesis import given
from hypothesis import strategies as st
from tables import TABLES, real

from frmu.config import Config
from frmu.data.categories import bucket
from frmu.data.parquet import gather, inputs
from frmu.data.row_filter import parse_row_filter
from frmu.data.shard import Shard, features, write
from frmu.errors import DataError

ONE = CONFIG.replace('calendar = ["hour_sin", "hour_cos"]\n', "").replace(
    "hour_sin = [-1, 1]\nhour_cos = [-1, 1]\n", ""
)


def shard_of(config: Config, name: str = "home 0") -> Shard:
    return Shard(gather(config, [name])[name], config)


def rewritten(config: Config, column: str, values: pa.Array) -> Config:
    """The records with a column of Arrow's own making."""
    file = config.file.parent / "homes.parquet"
    table = pq.read_table(file)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), file)
    return config


def test_a_value_has_its_column_and_any_other_the_last(tmp_path: Path) -> None:
    table = real(2)
    config = put(tmp_path, table, TABLES)
    for home in ("home 0", "home 1"):  # one home alone has black
        own = table[table.home == home].sort_values("record").colour.to_numpy()
        red, green, other, missing = shard_of(config, home).modalities["house"][:, :4].T
        assert np.array_equal(red, own == "red")
        assert np.array_equal(green, own == "green")
        assert np.array_equal(other, [one in ("blue", "black") for one in own])
        assert np.array_equal(missing, pd.isna(own))


def test_buckets_are_of_column_value_and_seed(tmp_path: Path) -> None:
    table = real(1)
    config = put(tmp_path, table, TABLES)
    block = shard_of(config).modalities["house"][:, 4:12]
    own = table.sort_values("record").city
    assert np.array_equal(np.argmax(block, axis=1), [bucket("city", one, 8, 0) for one in own])
    assert np.array_equal(block.sum(axis=1), np.ones(len(own)))
    assert np.array_equal(shard_of(config).modalities["house"][:, -1], np.ones(len(own)))


@given(st.text(), st.integers(2, 4096), st.integers(0, 9))
def test_a_bucket_is_one_of_those_there_are(value: str, buckets: int, seed: int) -> None:
    assert 0 <= bucket("a", value, buckets, seed) < buckets


def test_a_row_is_encoded_alike_whoever_stands_beside_it(tmp_path: Path) -> None:
    config = put(tmp_path, real(1), TABLES.replace(', "yesterday"', "").replace("yesterday = {", "#"))
    whole = gather(config, ["home 0"])["home 0"]
    some = np.arange(0, len(whole), 7)
    apart, together = features(whole.take(some), config), features(whole, config)
    for name, X in together.items():
        assert np.array_equal(X[some], apart[name])


def test_a_hundred_thousand_values_fit_into_buckets(tmp_path: Path) -> None:
    n = 100_000
    table = pd.DataFrame(
        {"home": "a", "record": np.arange(n), "code": [f"c{i}" for i in range(n)], "load": np.linspace(0, 1, n)}
    )
    text = """
[data]
path = "homes.parquet"
client = "home"
record = "record"
target = "load"
task = "regression"
[data.modalities]
all = ["code"]
[data.categories]
code = 64
[data.ranges]
load = [0, 1]
"""
    block = shard_of(put(tmp_path, table, text), "a").modalities["all"]
    assert block.shape == (n, 64)
    assert block.sum() == n
    assert block.sum(axis=0).min() > 1000


@pytest.mark.parametrize(
    "values",
    [
        lambda x: pa.array(x.astype(np.float16)),
        lambda x: pa.array(x.astype(np.uint8)),
        lambda x: pa.array([Decimal(int(one)) for one in x], pa.decimal128(9, 3)),
        lambda x: pa.array([Decimal(int(one)) for one in x], pa.decimal256(40, 3)),
        lambda x: pa.array(x).dictionary_encode(),
        lambda x: pa.array(x.astype(np.float32)).dictionary_encode(),
    ],
    ids=["float16", "unsigned", "decimal", "decimal256", "dictionary", "dictionary of float32"],
)
def test_a_number_is_the_same_in_any_type(tmp_path: Path, table: pd.DataFrame, values: Callable[..., Any]) -> None:
    whole = np.arange(len(table)) % 100
    plain = shard_of(put(tmp_path / "plain", table.assign(humidity=whole.astype(float))))
    other = shard_of(rewritten(put(tmp_path / "other", table), "humidity", values(whole)))
    assert np.array_equal(plain.modalities["weather"], other.modalities["weather"])


def test_a_boolean_is_zero_or_one(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path, table.assign(humidity=table.index % 2 == 0), CONFIG.replace("[0, 100]", "[0, 1]"))
    assert set(shard_of(config).modalities["weather"][:, 1]) == {-1.0, 1.0}


@pytest.mark.parametrize(
    "values",
    [
        lambda x: pa.array([str(one) for one in x]),
        lambda x: pa.array([str(one) for one in x]).dictionary_encode(),
        lambda x: pa.array([str(one) for one in x], pa.large_string()),
        lambda x: pa.array(x, pa.int8()),
        lambda x: pa.array(x, pa.float64()),
        lambda x: pa.array(x, pa.float32()).dictionary_encode(),
        lambda x: pa.array([Decimal(int(one)) for one in x], pa.decimal128(9, 2)),
    ],
)
def test_a_label_is_the_same_in_any_type(tmp_path: Path, values: Callable[..., Any]) -> None:
    table = real(1)
    codes = np.arange(len(table)) % 3
    text = TABLES.replace('["red", "green"]', "[0, 1]")
    config = rewritten(put(tmp_path, table, text), "colour", values(codes))
    by = dict(zip(table.record, codes, strict=True))
    shard = shard_of(config)
    assert [int(np.argmax(row)) for row in shard.modalities["house"][:, :3]] == [by[name] for name in shard.ids]


def test_a_category_without_a_value_must_be_declared(tmp_path: Path) -> None:
    table = real(1)
    text = TABLES.replace('"humidity", "colour", "visits"', '"humidity", "visits"')
    with pytest.raises(
        DataError, match=r'"colour" is null at client "home 0", row \d+ .*missing = \["humidity", "visit'
    ):
        gather(put(tmp_path / "null", table, text), ["home 0"])
    codes = pa.array(np.where(table.index == 3, np.nan, 1.0))
    with pytest.raises(DataError, match=r'"colour" is null at client "home 0", row 3; '):
        gather(rewritten(put(tmp_path / "nan", table, text), "colour", codes), ["home 0"])
    shard = shard_of(rewritten(put(tmp_path / "may", table, TABLES), "colour", codes))
    assert shard.modalities["house"][:, 3].sum() == 1


def test_text_here_and_a_number_there_says_what_to_do(tmp_path: Path, table: pd.DataFrame) -> None:
    text = CONFIG.replace('"homes.parquet"', '"*.parquet"')
    config = put(tmp_path, table[table.home != "home 1"], text)
    other = table[table.home == "home 1"].assign(humidity=lambda t: t.humidity.round(0).astype(str))
    other.to_parquet(tmp_path / "other.parquet", index=False)
    told = (
        r'other\.parquet: column "humidity" is a number in .*homes\.parquet, and here it is (large_)?string; as a '
        r"category it may be either: add humidity = 64 under \[data\.categories\]"
    )
    with pytest.raises(DataError, match=told):
        gather(config, ["home 0", "home 1"])
    both = text.replace("humidity = [0, 100]\n", "").replace("[slices]", "[data.categories]\nhumidity = 64\n\n[slices]")
    config = put(tmp_path, table[table.home != "home 1"], both)
    assert shard_of(config, "home 1").modalities["weather"].shape[1] == 1 + 64 + 2 + 1
    assert shard_of(config, "home 0").modalities["weather"][:, 1:65].sum() == 424


def test_a_filter_names_a_category_as_text(tmp_path: Path) -> None:
    table = real(1)
    config = put(tmp_path, table, TABLES)
    shard = shard_of(config)
    by = table.set_index("record").loc[shard.ids]
    for text, expected in {
        "colour = 'red'": by.colour == "red",
        "colour is null": by.colour.isna(),
        "colour in ('blue', 'green') and humidity > 50": by.colour.isin(["blue", "green"]) & (by.humidity > 50),
        "not visits > 10": by.visits <= 10,
        "humidity is null": by.humidity.isna(),
        "city like 'city 1%'": by.city.str.startswith("city 1"),
    }.items():
        assert np.array_equal(parse_row_filter(text, config).mask(shard.table, "home 0"), expected.to_numpy()), text


def test_a_shard_that_was_written_gives_the_same(tmp_path: Path) -> None:
    config = put(tmp_path, real(1), TABLES)
    shard = shard_of(config)
    write(shard.table, tmp_path / "again.parquet")
    again = Shard.read(tmp_path / "again.parquet", config)
    for name, X in shard.modalities.items():
        assert np.array_equal(again.modalities[name], X)
        assert np.isfinite(X).all()


def test_rows_to_predict_for_are_encoded_as_those_that_were_learned(tmp_path: Path) -> None:
    config = put(tmp_path, real(1), TABLES)
    table = inputs(config, str(config.file.parent / "homes.parquet"))
    order = np.argsort(real(1).record.to_numpy(), kind="stable")
    for name, X in features(table, config).items():
        assert np.array_equal(X[order], shard_of(config).modalities[name])


@pytest.mark.usefixtures("memory_tracking")
def test_a_constant_column_and_one_that_is_always_missing_are_learned_from(tmp_path: Path) -> None:
    table = real(2).assign(humidity=np.nan, temperature=10.0, colour=None)
    assert train(put(tmp_path, table, TABLES))["clients"] == 2
