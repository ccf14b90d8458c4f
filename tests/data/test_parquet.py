"""Records are what the config says, or the error names file, client, column and row; nothing is written."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG

from frmu import api
from frmu.config import Config
from frmu.data.parquet import gather
from frmu.errors import DataError

Change = Callable[[pd.DataFrame], pd.DataFrame | None]


def at(row: int, column: str, value: object) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        copy = table.astype({column: object}) if value is None else table.copy()
        copy.loc[row, column] = value
        return copy

    return change


def twice(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[[5]]], ignore_index=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="humidity"), 'no column "humidity"'),
        (lambda t: t.rename(columns={"home": "hom"}), 'no column "home"; did you mean "hom"'),
        (lambda t: t.assign(humidity=t.humidity.astype(str)), 'column "humidity" must be a number, got'),
        (lambda t: t.assign(ts=t.ts.astype(str)), r'column "ts" \(time\) must be a timestamp'),
        (at(7, "humidity", None), 'column "humidity" is null at client "home 0", row 7'),
        (at(430, "load", np.inf), 'column "load" must be finite, got inf at client "home 1", row 430'),
        (at(4, "humidity", None), 'the modality "weather" where all its columns are null'),
        (at(9, "person", None), r'column "person" \(subject\) is null at client "home 0", row 9'),
        (at(9, "record", None), r'column "record" \(record id\) is null'),
        (at(9, "home", None), r'column "home" \(client\) is null at row 9'),
        (twice, 'duplicate record id "h0-5" of client "home 0" at row 1696; it stands first at row 5'),
        (lambda t: t.iloc[:0], "empty shard"),
    ],
)
def test_bad_records_are_named(broken: Callable[..., Config], change: Change, message: str) -> None:
    config = broken(change)
    with pytest.raises(DataError, match=message), api.Experiment(config, "local") as experiment:
        experiment.train()
    assert not list((config.folder / "shards").iterdir())
    assert not (config.folder / "state.safetensors").exists()


ALONE = CONFIG.replace('calendar = ["hour_sin", "hour_cos"]\n', "").replace(
    "hour_sin = [-1, 1]\nhour_cos = [-1, 1]\n", ""
)


def test_where_there_is_one_modality_no_record_may_lack_it(broken: Callable[..., Config]) -> None:
    config = broken(lambda t: t.assign(temperature=np.nan, humidity=np.nan), ALONE)
    with pytest.raises(DataError, match='"temperature" is null at client "home 0", row 0'):
        gather(config, ["home 0"])


def test_a_modality_without_any_value_is_missing(broken: Callable[..., Config]) -> None:
    config = broken(lambda t: t.assign(temperature=None, humidity=np.nan))
    assert gather(config, ["home 2"])["home 2"]["temperature"].null_count == 424


def test_text_must_be_given_where_it_is_the_only_modality(broken: Callable[..., Config]) -> None:
    text = ALONE.replace('["temperature", "humidity", "yesterday"]', '["band"]') + 'encoders = { weather = "hash" }\n'
    text = text.replace('yesterday = { column = "load", back = "1d" }', "")
    text = text.replace("temperature = [-20.0, 45.0]\nhumidity = [0, 100]\n", "")
    config = broken(at(3, "band", None), text)
    with pytest.raises(DataError, match='"band" is null at client "home 0", row 3'):
        gather(config, ["home 0"])


def test_a_truncated_file_is_named(config: Config) -> None:
    path = config.file.parent / "homes.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with (
        pytest.raises(DataError, match=r"homes\.parquet: not a whole Parquet file"),
        api.Experiment(config, "local") as experiment,
    ):
        experiment.train()


def test_a_bad_import_leaves_the_trained_state_alone(config: Config, table: pd.DataFrame) -> None:
    with api.Experiment(config, "local") as experiment:
        digest = experiment.train()["state_digest"]
    table.assign(humidity=999.0).to_parquet(config.file.parent / "homes.parquet")
    with pytest.raises(DataError), api.Experiment(config, "local") as experiment:
        experiment.train()
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify()["state_digest"] == digest
        assert experiment.verify()["verified"]


def test_only_the_columns_that_are_named_enter_a_shard(config: Config) -> None:
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    shard = next((config.folder / "shards").glob("*.parquet"))
    assert "band" not in pd.read_parquet(shard).columns


def test_an_undeclared_class_is_named(broken: Callable[..., Config]) -> None:
    text = CONFIG.replace('"load"\ntask = "regression"', '"band"\ntask = "classification"\nclasses = ["high", "mid"]')
    config = broken(lambda t: None, text)
    with pytest.raises(DataError, match='target "band" is "low" at client'), api.Experiment(config, "local") as e:
        e.train()


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([1.0, 2.5, 123456789012.0], ["1", "2.5", "123456789012"]),
        ([1.0, 2.0], ["1", "2"]),
        ([True, False], ["true", "false"]),
        ([7, 8], ["7", "8"]),
    ],
)
def test_what_a_record_is_called_depends_on_its_own_value(values: list[object], names: list[str]) -> None:
    import pyarrow as pa

    from frmu.data.checks import text_of

    assert text_of(pa.chunked_array([values]), "file", "column").to_pylist() == names


def test_an_id_that_is_not_finite_is_named(broken: Callable[..., Config]) -> None:
    config = broken(lambda t: t.assign(record=np.where(t.index == 3, np.inf, t.index.astype(float))))
    with (
        pytest.raises(DataError, match='"record" has a value that is not finite'),
        api.Experiment(config, "local") as e,
    ):
        e.train()
