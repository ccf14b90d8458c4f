"""What may be missing, categories and transforms: right, or the error names the key and what to write."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CONFIG
from tables import TABLES

from frmu.config import Config, load
from frmu.config.data import Data
from frmu.errors import ConfigError
from frmu.models.encoders import encoders

TEXT = TABLES.replace('house = ["colour", "city"]', 'house = ["colour", "city"]\nsaid = ["said"]')
TEXT += 'encoders = { said = "hash" }\n'


def read(folder: Path, text: str) -> Config:
    (folder / "homes.toml").write_text(text)
    return load(folder / "homes.toml")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('["humidity", ', '["humidty", '), 'missing "humidty" must be a feature .*did you mean "humidity"'),
        (('["humidity", ', '["yesterday", '), 'missing "yesterday" is a lag'),
        (('["humidity", ', '["load", '), 'missing "load" is the target'),
        (('["humidity", ', '["visits", '), 'missing must name each column once, got "visits" twice'),
        (('["humidity", ', '["said", '), 'missing "said": its encoder is "hash"'),
        (("city = 8", "city = 1"), 'category "city" must be .* from 2 to 4,096 buckets, got 1'),
        (("city = 8", "city = 5000"), 'category "city" must be .* from 2 to 4,096 buckets, got 5000'),
        (("city = 8", "city = true"), 'category "city" must be a list of values, or a number of buckets, got True'),
        (("city = 8", 'city = "many"'), 'category "city" must be a list'),
        (
            ("city = 8", "city = [1.5]"),
            'category "city" must list texts, whole numbers or booleans, got 1.5; put it in',
        ),
        (("city = 8", f"city = {list(range(513))}"), 'category "city" must list 1 to 512 values, got 513; hash it'),
        (("city = 8", "city = []"), 'category "city" must list 1 to 512 values, got 0'),
        (("city = 8", 'city = ["7", 7]'), 'category "city" must list each value once, got "7" twice'),
        (("city = 8", "ctiy = 8"), 'category "ctiy" must be a feature .*did you mean "city"'),
        (("city = 8", "yesterday = 8"), 'category "yesterday" must not be a lag'),
        (("city = 8", "said = 8"), 'category "said" must be in a modality whose encoder is not "hash"'),
        (("visits = [0, 5000]", "visits = [0, 5000]\ncity = [0, 9]"), 'range of "city": it is a category'),
        (('column = "load"', 'column = "city"'), 'category "city" must not be .* the column that one looks at'),
        (('visits = "log1p"', 'visist = "log1p"'), 'transform of "visist" names no number; did you mean "visits"'),
        (('visits = "log1p"', 'yesterday = "log1p"'), 'a lag has that of its column; transform "load"'),
        (('visits = "log1p"', 'city = "log1p"'), 'transform of "city": it is a category'),
        (('visits = "log1p"', 'said = "log1p"'), 'transform of "said": its encoder is "hash"'),
        (('visits = "log1p"', 'visits = "log"'), "data.transforms.visits: .*'log1p', got 'log'"),
        (('visits = "log1p"', 'temperature = "log1p"'), r'range of "temperature" must begin above -1 .* got -20'),
        (("load = [-0.95", "yesterday = [-1, 9]\nload = [-0.95"), r'range of "yesterday" must begin above -1 .*"load"'),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in TEXT
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, TEXT.replace(*change))


def test_a_target_of_classes_has_no_transform(tmp_path: Path) -> None:
    text = TABLES.replace('"regression"', '"classification"')
    for gone in ("load = [-0.95, 20.0]\n", 'yesterday = { column = "load", back = "1d" }', ', "yesterday"'):
        text = text.replace(gone, "")
    with pytest.raises(ConfigError, match='transform of "load" names no number'):
        read(tmp_path, text)


def test_columns_are_counted_at_one_place(tmp_path: Path) -> None:
    config = read(tmp_path, TABLES)
    assert [config.columns(name) for name in config.data.modalities] == [2, 1 + 2 + 2 + 2, 2 + 1 + 1 + 8]
    assert config.continuous("weather") == (0, 1, 3, 5)
    assert config.continuous("house") == ()
    assert config.unknowable("weather") == ({1: 0.0, 2: 1.0}, {3: 0.0, 4: 0.0}, {5: 0.0, 6: 1.0})
    assert [len(one.R) for one in encoders(config).values()] == [2, 7, 12]


def test_labels_of_any_type_are_text(tmp_path: Path) -> None:
    config = read(tmp_path, TABLES.replace("city = 8", 'city = ["a", 7, false]'))
    assert config.data.categories["city"] == ("a", "7", "false")
    assert Data.model_validate_json(config.data.model_dump_json()) == config.data


def test_what_is_not_used_is_in_no_fingerprint(tmp_path: Path) -> None:
    base = read(tmp_path, CONFIG).fingerprint()
    plain = CONFIG.replace("[data.modalities]", "missing = []\n[data.categories]\n[data.transforms]\n[data.modalities]")
    assert read(tmp_path, plain).fingerprint() == base


def test_what_is_used_is_in_it(tmp_path: Path) -> None:
    base = read(tmp_path, TABLES).fingerprint()
    assert (
        read(tmp_path, TABLES.replace('"humidity", "colour", "visits"', '"visits", "colour", "humidity"')).fingerprint()
        == base
    )
    changes = [
        (', "colour", "visits"]', ', "colour"]'),
        ("city = 8", "city = 9"),
        ('["red", "green"]', '["green", "red"]'),
        ('["red", "green"]', '["red"]'),
        ('visits = "log1p"', ""),
    ]
    prints = {read(tmp_path, TABLES.replace(*change)).fingerprint() for change in changes}
    assert len(prints | {base}) == len(changes) + 1
