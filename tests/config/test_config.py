"""A config is right, or the error names the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import CONFIG

from frmu.config import load
from frmu.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "homes.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("client =", "cleint ="), 'data.cleint: unknown key; did you mean "client"'),
        (("[model]", "[modle]"), 'modle: unknown key; did you mean "model"'),
        (("features = 8", 'features = "8"'), "model.features: .*integer.*got '8'"),
        (("features = 8", "ridge = 0"), "model.ridge: .*a number from 1e-12"),
        (('"regression"', '"regresion"'), "data.task: .*'regression' or 'classification'"),
        (('target = "load"', ""), "data.target: missing"),
        (("[0, 100]", "[100, 0]"), r'range of "humidity" must be \[low, high\]'),
        (("[0, 100]", "[0]"), "data.ranges.humidity"),
        (("humidity = [0", "humidty = [0"), 'range of "humidty" names no feature; did you mean "humidity"'),
        (('back = "1d"', 'back = "1 fortnight"'), "a duration must be"),
        (("later_from = 2025-06-01", "later_from = 2025-04-01"), "validation_from < later_from < test_from"),
        (("test_from = 2025-07-01", ""), "must be given together"),
        (('time = "ts"', ""), "needs data.time"),
        (('by = "month"', 'by = "subject"\nbuckets = 0'), "slices.buckets = 0 makes a slice of each value"),
        (('by = "month"', "buckets = 0"), "slices.by must name a column"),
        (('by = "month"', 'by = "subject"\nbuckets = -1'), "slices.buckets"),
        (('"yesterday"]', '"yesterday", "load"]'), 'target "load" must not be a feature'),
        (("[data]", "[data"), "not valid TOML"),
        (("test_from = 2025", "validation = 0.2\ntest_from = 2025"), "dates or shares"),
        (("features = 8", "ridge = inf"), "model.ridge"),
        (("[model]", '[policy]\nenv_runners = "atuo"\n[model]'), "a number from 0 on, or \"auto\", got 'atuo'"),
        (("[model]", "[policy]\nenv_runners = -1\n[model]"), 'a number from 0 on, or "auto", got -1'),
        (("[model]", '[policy]\nalgorithm = "pop"\n[model]'), 'algorithm must be "slope" or "ppo", got \'pop\''),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in CONFIG
    with pytest.raises(ConfigError, match=message):
        load(write(tmp_path, CONFIG.replace(*change)))


def test_a_missing_config_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="frmu init"):
        load(tmp_path / "nowhere.toml")


def test_the_fingerprint_covers_what_computes_and_nothing_else(tmp_path: Path) -> None:
    base = load(write(tmp_path, CONFIG)).fingerprint()
    elsewhere = CONFIG.replace("homes.parquet", "other.parquet") + '\n[store]\nfolder = "x"\n[ray]\naddress = "auto"\n'
    assert load(write(tmp_path, elsewhere)).fingerprint() == base
    for change in (("features = 8", "features = 9"), ("[0, 100]", "[0, 101]"), ('"month"', '"week"')):
        assert load(write(tmp_path, CONFIG.replace(*change))).fingerprint() != base


def test_a_client_belongs_to_one_site(tmp_path: Path) -> None:
    sites = '\n[sites.a]\nclients = ["home 0", "home 1"]\n[sites.b]\nclients = ["home {}"]\n'
    apart = load(write(tmp_path, CONFIG + sites.format(2))).sites
    assert {name: site.clients for name, site in apart.items()} == {"a": ["home 0", "home 1"], "b": ["home 2"]}
    with pytest.raises(ConfigError, match='client "home 1" must belong to one site, got "a" and "b"'):
        load(write(tmp_path, CONFIG + sites.format(1)))
