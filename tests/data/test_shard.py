"""A shard is the same whatever the order of its source, and each derived value follows from its own rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, put

from frmu.config import Config
from frmu.data.parquet import gather
from frmu.data.shard import SPLITS, Shard, ages, clients_in, path_of, write
from frmu.models.encoders import blocks, encode, encoders


@pytest.fixture
def shard(config: Config) -> Shard:
    return Shard(gather(config, ["home 0"])["home 0"], config)


def test_rows_stand_by_record_id(shard: Shard) -> None:
    assert list(shard.ids) == sorted(shard.ids)


def test_scaling_rests_on_declared_ranges(shard: Shard, table: pd.DataFrame) -> None:
    own = table[table.home == "home 0"].sort_values("record")
    expected = 2 * (own.humidity.to_numpy() - 0) / 100 - 1
    assert np.array_equal(shard.modalities["weather"][:, 1], expected)


def test_a_lag_is_the_value_one_day_back_or_marked_missing(shard: Shard, table: pd.DataFrame) -> None:
    own = table[table.home == "home 0"].set_index("ts")
    by_record = {row.record: moment for moment, row in own.iterrows()}
    for name, lagged, there in zip(shard.ids, *shard.modalities["weather"][:, 2:4].T, strict=True):
        before = by_record[name] - pd.Timedelta(days=1)
        if before in own.index:
            assert there == 1.0
            assert lagged == 2 * (own.load[before] + 5.0) / 25.0 - 1
        else:
            assert (lagged, there) == (0.0, 0.0)


def test_a_modality_that_is_missing_is_zero_and_said_to_be(tmp_path: Path, table: pd.DataFrame) -> None:
    lacks = table.index % 7 == 3
    changed = table.assign(temperature=table.temperature.mask(lacks), humidity=table.humidity.mask(lacks))
    config = put(tmp_path / "gaps", changed)
    shard = Shard(gather(config, ["home 0"])["home 0"], config)
    missing = np.isin(shard.ids, table.record[lacks])
    assert missing.any()
    assert np.array_equal(shard.modalities["weather"][:, -1], ~missing)
    assert not shard.modalities["weather"][missing].any()
    assert shard.modalities["calendar"][:, -1].all()
    phi, block = encode(shard.modalities, encoders(config)), blocks(config)["weather"]
    assert not phi[missing, block].any()
    assert phi[~missing, block].any(axis=1).all()


def test_text_stays_text_until_it_is_encoded(tmp_path: Path, table: pd.DataFrame) -> None:
    said = np.where(table.index % 5 == 0, None, table.band + " of " + table.person)
    text = CONFIG.replace("[data.lags]", 'said = ["said"]\n[data.lags]') + 'encoders = { said = "hash" }\n'
    config = put(tmp_path / "text", table.assign(said=said), text)
    shard = Shard(gather(config, ["home 1"])["home 1"], config)
    words = shard.modalities["said"]
    assert set(words[:, 0]) <= {None, *said}
    phi = encode(shard.modalities, encoders(config))[:, blocks(config)["said"]]
    missing = np.array([text is None for text in words[:, 0]])
    assert missing.any()
    assert not phi[missing].any()
    assert np.allclose(np.sum(phi[~missing, :-1] ** 2, axis=1), 1.0)
    write(shard.table, tmp_path / "again.parquet")
    assert np.array_equal(Shard.read(tmp_path / "again.parquet", config).modalities["said"], words)


def test_splits_follow_the_declared_dates(shard: Shard, table: pd.DataFrame) -> None:
    moments = table.set_index("record").ts
    for name, code in zip(shard.ids, shard.split, strict=True):
        borders = [pd.Timestamp(day) for day in ("2025-05-01", "2025-06-01", "2025-07-01")]
        assert SPLITS[code] == SPLITS[sum(moments[name] >= border for border in borders)]


def test_a_split_by_hash_does_not_depend_on_other_rows(tmp_path: Path, table: pd.DataFrame) -> None:
    text = CONFIG.split("[split]")[0]
    whole, half = (
        Shard(gather(put(tmp_path / name, t, text), ["home 0"])["home 0"], put(tmp_path / name, t, text))
        for name, t in {"whole": table, "half": table.iloc[::2]}.items()
    )
    split = dict(zip(whole.ids, whole.split, strict=True))
    assert all(split[name] == code for name, code in zip(half.ids, half.split, strict=True))
    shares = np.bincount(whole.split, minlength=4) / len(whole)
    assert np.allclose(shares, [0.5, 0.15, 0.15, 0.2], atol=0.07)


def test_each_value_of_a_column_is_a_slice_where_there_are_no_buckets(tmp_path: Path, table: pd.DataFrame) -> None:
    phase = (table.ts.dt.day_of_year // 40).map("{:02d}".format)
    text = CONFIG.replace('by = "month"', 'by = "phase"\nbuckets = 0')
    config = put(tmp_path, table.assign(phase=phase), text)
    shard = Shard(gather(config, ["home 0"])["home 0"], config)
    by_record = dict(zip(table.record, phase, strict=True))
    assert list(shard.slices) == [f"phase-{by_record[name]}" for name in shard.ids]
    keys = sorted(set(shard.slices))
    assert list(ages(keys, config)) == list(np.linspace(1, 0, len(keys)))


def test_times_with_a_zone_are_taken_as_utc(tmp_path: Path, table: pd.DataFrame) -> None:
    zoned = table.assign(ts=table.ts.dt.tz_localize("UTC").dt.tz_convert("America/New_York"))
    one, other = (
        Shard(gather(put(tmp_path / name, t), ["home 0"])["home 0"], put(tmp_path / name, t))
        for name, t in {"naive": table, "zoned": zoned}.items()
    )
    assert list(one.slices) == list(other.slices)


@pytest.mark.parametrize("client", ["a/b", "..", "ü %", "x" * 60])
def test_any_name_is_a_file_in_the_folder(tmp_path: Path, shard: Shard, client: str) -> None:
    folder = tmp_path / "shards"
    write(shard.table, path_of(folder, client))
    assert [file.parent for file in folder.iterdir()] == [folder]
    assert clients_in(folder) == (client,)
