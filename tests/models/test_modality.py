"""Muting is exact: it gives the sums of records that lack the modality."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.config import Config, parse
from frmu.errors import ConfigError
from frmu.models.encoders import blocks, encode, encoders, width
from frmu.models.modality import attenuated, muted
from frmu.models.statistics import statistics_of
from frmu.types import Statistics

MODALITIES = {"calendar": ["a"], "weather": ["b", "c"], "notes": ["said"]}


def config_of(kinds: dict[str, str], features: int = 5, modalities: dict[str, list[str]] = MODALITIES) -> Config:
    data = {"path": "x.parquet", "client": "k", "record": "r", "target": "y", "task": "regression"}
    model = {"encoder": "relu", "features": features, "encoders": kinds}
    return parse({"data": data | {"modalities": modalities}, "model": model}, Path("x.toml"))


def records(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    words = np.array(["a red lamp", "Lamp!", "", "blue, blue red"], dtype=object)
    there = np.ones((n, 1))
    return {
        "calendar": np.concatenate([rng.normal(size=(n, 1)), there], axis=1),
        "weather": np.concatenate([rng.normal(size=(n, 2)), there], axis=1),
        "notes": words[rng.integers(0, 4, (n, 1))],
    }


def without(modalities: dict[str, np.ndarray], lost: str, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The records, some of which lack a modality."""
    X = modalities[lost].copy()
    X[rows] = None if X.dtype == object else 0.0
    return modalities | {lost: X}


def of(modalities: dict[str, np.ndarray], config: Config, Y: np.ndarray) -> Statistics:
    return statistics_of(encode(modalities, encoders(config)), Y)


numeric = st.sampled_from(["relu", "fourier", "linear"])


@given(st.integers(0, 2**32), st.integers(1, 30), numeric, numeric, st.sampled_from(sorted(MODALITIES)))
def test_muting_gives_the_sums_of_records_that_lack_the_modality(
    seed: int, n: int, calendar: str, weather: str, lost: str
) -> None:
    config = config_of({"calendar": calendar, "weather": weather, "notes": "hash"})
    rng = np.random.default_rng(seed)
    modalities, Y = records(rng, n), rng.normal(size=(n, 2))
    whole = muted(of(modalities, config, Y), blocks(config)[lost])
    lacking = of(without(modalities, lost, np.arange(n)), config, Y)
    assert (whole.n, whole.c) == (lacking.n, lacking.c)
    assert np.array_equal(whole.G, lacking.G)
    assert np.array_equal(whole.b, lacking.b)


@given(st.integers(0, 2**32), st.integers(1, 20), st.floats(0, 1))
def test_an_influence_mixes_records_with_and_without(seed: int, n: int, q: float) -> None:
    config = config_of({"notes": "hash"})
    rng = np.random.default_rng(seed)
    modalities, Y = records(rng, n), rng.normal(size=(n, 1))
    with_it = of(modalities, config, Y)
    lacking = of(without(modalities, "weather", np.arange(n)), config, Y)
    mixed = muted(with_it, blocks(config)["weather"], q)
    assert np.allclose(mixed.G, q * with_it.G + (1 - q) * lacking.G, atol=1e-12)
    assert np.allclose(mixed.b, q * with_it.b + (1 - q) * lacking.b, atol=1e-12)
    assert np.linalg.eigvalsh(mixed.G).min() > -1e-9


def test_several_modalities_are_muted_in_any_order() -> None:
    config = config_of({"notes": "hash"})
    rng = np.random.default_rng(0)
    s, by = of(records(rng, 20), config, rng.normal(size=(20, 1))), blocks(config)
    both = attenuated(s, by, {"weather": 0.3, "calendar": 0.5})
    other = muted(muted(s, by["weather"], 0.3), by["calendar"], 0.5)
    assert np.allclose(both.G, other.G, atol=1e-14)
    assert attenuated(s, by, {}) is s


def test_blocks_are_all_of_phi_but_the_bias() -> None:
    config = config_of({"notes": "hash", "weather": "linear"})
    found = blocks(config)
    assert [block.stop - block.start for block in found.values()] == [5 + 1 + 1, 2 + 1, 5 + 1]
    assert [block.start for block in found.values()] == [0, 7, 10]
    assert width(config) == 17 == encode(records(np.random.default_rng(0), 3), encoders(config)).shape[1]


def test_one_modality_is_encoded_as_it_always_was() -> None:
    config = config_of({}, modalities={"all": ["a", "b"]})
    X = np.array([[0.5, -0.25], [0.0, 1.0]])
    phi = encode({"all": X}, encoders(config))
    assert phi.shape == (2, 5 + 2 + 1)
    assert np.array_equal(phi[:, 5:], [[0.5, -0.25, 1.0], [0.0, 1.0, 1.0]])
    assert config.fingerprint() == config_of({"all": "relu"}, modalities={"all": ["a", "b"]}).fingerprint()
    assert config.fingerprint() == "da064877df459517981a61e9ea3a0bf5b200689e50637a5404798855788b7564"


def test_zero_is_not_missing() -> None:
    config = config_of({"notes": "hash"})
    modalities = records(np.random.default_rng(0), 1)
    modalities["notes"] = np.array([[""]], dtype=object)
    lacking = encode(without(modalities, "notes", np.array([0])), encoders(config))
    assert np.flatnonzero(encode(modalities, encoders(config)) - lacking).tolist() == [blocks(config)["notes"].stop - 1]


def test_words_are_hashed_by_seed_and_column() -> None:
    def phi(seed: int, *texts: str | None) -> np.ndarray:
        config = config_of({"all": "hash"}, 64, {"all": [f"c{i}" for i in range(len(texts))]})
        config = config.model_copy(update={"model": config.model.model_copy(update={"seed": seed})})
        return encode({"all": np.array([texts], dtype=object)}, encoders(config))[0]

    assert np.array_equal(phi(0, "Red lamp"), phi(0, "lamp: RED"))
    assert phi(0, "Red lamp")[:-1] @ phi(0, "lamp")[:-1] == pytest.approx(np.sqrt(0.5), abs=1 / 127)
    assert not np.array_equal(phi(0, "lamp"), phi(1, "lamp"))
    assert not np.array_equal(phi(0, "lamp", ""), phi(0, "", "lamp"))
    assert phi(0, "lamp")[:-1] @ phi(0, "lamp", "Lamp")[:-1] == pytest.approx(np.sqrt(0.5), abs=1 / 127)


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"encoders": {"wether": "relu"}}, {}, 'model.encoders: "wether" is none of data.modalities.*"weather"'),
        ({"encoders": {"weather": "words"}}, {}, 'model.encoders: weather must be one of "relu"'),
        ({"encoders": {"weather": "hash"}}, {"ranges": {"b": [0.0, 1.0]}}, 'range of "b": its encoder is "hash"'),
        (
            {"encoders": {"weather": "hash"}},
            {"time": "t", "lags": {"b": {"column": "y", "back": "1d"}}},
            'lag "b" is a number',
        ),
        (
            {"encoders": {"weather": "hash"}},
            {"time": "t", "lags": {"a": {"column": "b", "back": "1d"}}},
            'lag "a" must look at a number, got "b"',
        ),
    ],
)
def test_encoders_that_cannot_be_are_refused(model: dict, data: dict, message: str) -> None:
    base = {"path": "x", "client": "k", "record": "r", "target": "y", "task": "regression"}
    base["modalities"] = {"calendar": ["a"], "weather": ["b", "c"]}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=message):
        parse({"data": base | data, "model": model}, Path("x.toml"))
