"""Five homes at three sites, and a local cluster with a node for each."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG

from frmu.config import Config, load

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from machine import Cluster

__all__ = ["SITES", "Cluster", "driver", "environment", "put"]

SITES = {"a": ["home 0", "home 1"], "b": ["home 2", "home 3"], "c": ["home 4"]}


def put(folder: Path, table: pd.DataFrame, patience: int = 2, text: str = CONFIG) -> Config:
    """A config of three sites, each with files of its own; who is gone for longer than `patience` seconds is away."""
    text = f"{text}\n[rules]\nquorum = 0.6\ndeadline = {max(60, 2 * patience)}\n"
    text += f"[placement]\npatience = {patience}\nclients_per_actor = 2\n"
    for site, clients in SITES.items():
        disk = folder / f"disk-{site}"
        disk.mkdir(parents=True)
        table[table.home.isin(clients)].to_parquet(disk / "homes.parquet", index=False)
        text += f'[sites.{site}]\npath = "disk-{site}/homes.parquet"\nfolder = "disk-{site}/frmu"\n'
    (folder / "homes.toml").write_text(text)
    return load(folder / "homes.toml")


def environment(cluster: Cluster) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | cluster.environment


@contextmanager
def driver(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a driver on the cluster."""
    from frmu.runtime.connect import cluster as connected

    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    with connected(None):
        yield
