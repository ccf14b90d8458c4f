"""A training by rounds on real Ray: the same bits as in process, with one client an actor or many."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, put

from frmu import api
from frmu.config import Config
from frmu.types import Selection

TEXT = CONFIG.replace('encoder = "relu"\nfeatures = 8\n', 'kind = "rounds"\nrounds = 3\nwidths = [8]\n')


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def life(config: Config, address: str | None) -> list[str]:
    """Train, erase a person, drain: the digests on the way."""
    with api.Experiment(config, address) as experiment:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        drained = experiment.drain()
    assert drained["verified"]
    return [trained["state_digest"], drained["state_digest"]]


@pytest.mark.parametrize("rule", ["counterfactual", pytest.param("size", marks=pytest.mark.cluster)])
def test_the_same_bits_in_process_and_on_ray(tmp_path: Path, table: pd.DataFrame, rule: str) -> None:
    text = f'{TEXT}\n[attention]\nrule = "{rule}"\n[placement]\nclients_per_actor = '
    local = life(put(tmp_path / "local", table, f"{text}4\n"), "local")
    assert life(put(tmp_path / "each", table, f"{text}1\n"), None) == local
    if rule == "size":
        assert life(put(tmp_path / "three", table, f"{text}3\n"), None) == local
