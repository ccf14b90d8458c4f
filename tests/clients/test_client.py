"""A client that forgot is, to the last bit, one that never knew; and it looks at no record that stays."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, homes, put, train
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.clients import client as clients
from frmu.clients.client import Client
from frmu.config import Config
from frmu.models.encoders import encoders

pytestmark = pytest.mark.usefixtures("memory_tracking")

OUTPUTS = ("load",)
NO_LAGS = CONFIG.replace(', "yesterday"', "").replace('[data.lags]\nyesterday = { column = "load", back = "1d" }\n', "")


@pytest.fixture
def plain(tmp_path: Path, table: object) -> Config:
    config = put(tmp_path / "plain", table, NO_LAGS)  # type: ignore[arg-type]
    train(config)
    return config


def of(config: Config) -> Client:
    return Client("home 1", config, config.folder / "shards", encoders(config), time.time_ns())


@settings(max_examples=10)
@given(chosen=st.lists(st.integers(0, 423), max_size=60))
def test_rows_that_are_dropped_were_never_there(tmp_path_factory: pytest.TempPathFactory, chosen: list[int]) -> None:
    config = put(tmp_path_factory.mktemp("homes"), homes(2), NO_LAGS)
    train(config)
    knows = of(config)
    for split in ("fit", "validation"):
        knows.sums(split, OUTPUTS)
    rows = np.zeros(len(knows.shard), dtype=bool)
    rows[chosen] = True
    knows.drop(rows)
    never = of(config)
    for split in ("fit", "validation", "later"):
        found, wanted = knows.sums(split, OUTPUTS), never.sums(split, OUTPUTS)
        assert sorted(found) == sorted(wanted)
        assert all(np.array_equal(found[key].M, wanted[key].M) for key in found)


def test_an_erasure_encodes_the_rows_that_go_and_no_other(plain: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    client = of(plain)
    client.sums("fit", OUTPUTS)
    encoded: list[int] = []
    gram = clients.gram
    monkeypatch.setattr(clients, "gram", lambda Z, weights: (encoded.append(len(Z)), gram(Z, weights))[1])
    rows = np.zeros(len(client.shard), dtype=bool)
    rows[client.groups(0)["2025-02"][:7]] = True
    client.drop(rows)
    client.sums("fit", OUTPUTS)
    assert sum(encoded) == 7


def test_with_lags_nothing_that_was_known_is_kept(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value of a row that goes is in the lag of another."""
    train(config)
    client = of(config)
    client.sums("fit", OUTPUTS)
    rows = np.zeros(len(client.shard), dtype=bool)
    rows[client.groups(0)["2025-02"][:7]] = True
    client.drop(rows)
    never = of(config)
    found, wanted = client.sums("fit", OUTPUTS), never.sums("fit", OUTPUTS)
    assert all(np.array_equal(found[key].M, wanted[key].M) for key in wanted)
