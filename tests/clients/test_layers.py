"""A host's totals of learned features: rows that go are taken out, to the last bit, and no other is looked at."""

from __future__ import annotations

import time

import numpy as np
import pytest
from conftest import CONFIG, homes, put, train
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.clients import layers
from frmu.clients.client import Client
from frmu.clients.layers import Layer, LayerBook, LayerSums
from frmu.config import Config
from frmu.models.encoders import encoders
from frmu.models.features import Features

pytestmark = pytest.mark.usefixtures("memory_tracking")

OUTPUTS = ("load",)
LEARNED = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 3\nfeatures = 6")
NO_LAGS = LEARNED.replace(', "yesterday"', "").replace(
    '[data.lags]\nyesterday = { column = "load", back = "1d" }\n', ""
)
LAYERS = (
    Layer(Features("relu", 6), OUTPUTS, 0, slopes=True),
    Layer(Features("fourier", 5, bins=2), OUTPUTS, 1, slopes=True),
    Layer(Features("relu", 9), OUTPUTS, 0, slopes=False),
)


def of(config: Config, names: tuple[str, ...]) -> list[Client]:
    book, by = LayerBook(), encoders(config)
    return [Client(name, config, config.folder / "shards", by, time.time_ns(), book) for name in names]


def totals(clients: list[Client]) -> list[LayerSums]:
    shards = {client.name: client.shard for client in clients}
    return [clients[0].book.total(layer, shards, clients[0].config) for layer in LAYERS]


def same(found: list[LayerSums], wanted: list[LayerSums]) -> bool:
    pairs = list(zip(found, wanted, strict=True))
    return all(
        np.array_equal(one.fit.M, other.fit.M)
        and np.array_equal(one.validation.M, other.validation.M)
        and (one.slopes is None or (other.slopes is not None and np.array_equal(one.slopes.M, other.slopes.M)))
        for one, other in pairs
    )


@pytest.mark.parametrize("text", [NO_LAGS, LEARNED], ids=["plain", "lags"])
@settings(max_examples=6)
@given(chosen=st.lists(st.integers(0, 211), max_size=60), whole=st.booleans())
def test_rows_that_are_dropped_were_never_there(
    tmp_path_factory: pytest.TempPathFactory, text: str, chosen: list[int], whole: bool
) -> None:
    config = put(tmp_path_factory.mktemp("homes"), homes(3, 106), text)
    train(config)
    names = ("home 0", "home 1", "home 2")
    clients = of(config, names)
    totals(clients)
    rows = np.zeros(len(clients[1].shard), dtype=bool)
    rows[[row for row in chosen if row < len(rows)]] = True
    rows |= whole
    clients[1].drop(rows)
    if rows.all():
        del clients[1]
    assert same(totals(clients), totals(of(config, tuple(client.name for client in clients))))


def test_an_erasure_encodes_the_rows_that_go_and_no_other(
    tmp_path: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = put(tmp_path / "homes", homes(2), NO_LAGS)  # type: ignore[operator]
    train(config)
    clients = of(config, ("home 0", "home 1"))
    totals(clients)
    encoded: list[int] = []
    gram = layers.gram
    monkeypatch.setattr(layers, "gram", lambda Z, weights: (encoded.append(len(Z)), gram(Z, weights))[1])
    rows = np.zeros(len(clients[0].shard), dtype=bool)
    rows[[3, 40, 41]] = True
    clients[0].drop(rows)
    totals(clients)
    assert encoded
    assert max(encoded) <= 3


def test_a_shard_that_is_read_again_is_added_up_again(tmp_path: pytest.TempPathFactory) -> None:
    config = put(tmp_path / "homes", homes(2), NO_LAGS)  # type: ignore[operator]
    train(config)
    clients = of(config, ("home 0", "home 1"))
    before = totals(clients)[0]
    assert totals(clients)[0] is before
    clients[1].reload()
    assert totals(clients)[0] is not before
    assert same(totals(clients), totals(of(config, ("home 0", "home 1"))))
    assert totals(clients[:1])[0].fit.n < before.fit.n  # of other clients it is another total


def test_one_record_in_2_to_the_share_is_drawn_by_its_id(tmp_path: pytest.TempPathFactory) -> None:
    config = put(tmp_path / "homes", homes(1), NO_LAGS)  # type: ignore[operator]
    train(config)
    shard = of(config, ("home 0",))[0].shard
    half, quarter = shard.cohort(1), shard.cohort(2)
    assert 0.35 < half.mean() < 0.65
    assert 0.15 < quarter.mean() < 0.35
    assert (half | ~quarter).all()  # nested: who is in the quarter is in the half
    some = np.arange(len(shard)) % 3 == 0
    assert np.array_equal(layers.Shard(shard.without(~some), config).cohort(1), half[some])
