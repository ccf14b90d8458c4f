"""A small federation of homes that every test can afford."""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import settings
from memory_tracking import MemoryBackend
from postgres import postgres_database, postgres_url

from frmu import api
from frmu.clients.client import Host
from frmu.config import Config, load
from frmu.data.shard import clients_in
from frmu.runtime.dispatch import ActorHandle
from frmu.runtime.local import LocalFederation

__all__ = ["postgres_database", "postgres_url"]  # fixtures of every test

# A machine that does other things as well is slow at times, which is no fault of what is tested.
settings.register_profile("frmu", deadline=None)
settings.load_profile("frmu")

# Every Ray of the tests listens on loopback only. Ray reads this once in a process, when it is first imported.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Ray's workers import what tests hand them from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))

CONFIG = """
[data]
path = "homes.parquet"
client = "home"
record = "record"
subject = "person"
time = "ts"
target = "load"
task = "regression"

[data.modalities]
calendar = ["hour_sin", "hour_cos"]
weather = ["temperature", "humidity", "yesterday"]

[data.lags]
yesterday = { column = "load", back = "1d" }

[data.ranges]
hour_sin = [-1, 1]
hour_cos = [-1, 1]
temperature = [-20.0, 45.0]
humidity = [0, 100]
load = [-5.0, 20.0]

[slices]
by = "month"

[split]
validation_from = 2025-05-01
later_from = 2025-06-01
test_from = 2025-07-01

[model]
encoder = "relu"
features = 8
"""


TRACKING = f"sqlite:///{tempfile.mkdtemp(prefix='frmu-tests-')}/mlflow.db"


def homes(clients: int = 4, days: int = 212, seed: int = 0) -> pd.DataFrame:
    """Two records a day and home, from January to July; five persons live in several homes."""
    rng = np.random.default_rng(seed)
    frames = []
    for number in range(clients):
        ts = pd.date_range("2025-01-01", periods=days * 2, freq="12h")
        angle = 2 * np.pi * ts.hour / 24
        temperature = 10 + 10 * np.sin(2 * np.pi * ts.day_of_year / 365) + rng.normal(0, 2, len(ts))
        humidity = rng.uniform(20, 90, len(ts))
        load_ = 3 + np.sin(angle) - 0.1 * temperature + 0.01 * humidity + rng.normal(0, 0.3, len(ts))
        frames.append(
            pd.DataFrame(
                {
                    "record": [f"h{number}-{i}" for i in range(len(ts))],
                    "home": f"home {number}",
                    "person": [f"p{i}" for i in rng.integers(0, 5, len(ts))],
                    "ts": ts.astype("datetime64[us]"),
                    "hour_sin": np.sin(angle),
                    "hour_cos": np.cos(angle),
                    "temperature": temperature,
                    "humidity": humidity,
                    "load": load_,
                    "band": np.where(load_ > 3, "high", "low"),
                }
            )
        )
    return pd.concat(frames, ignore_index=True)


def put(folder: Path, table: pd.DataFrame, text: str = CONFIG) -> Config:
    """Write a data set and its config, and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    table.to_parquet(folder / "homes.parquet", index=False)
    # One tracking database for all tests: MLflow takes over a second to lay the tables of a new one.
    (folder / "homes.toml").write_text(f'{text}\n[store]\ntracking = "{TRACKING}"\nexperiment = "{folder}"\n')
    return load(folder / "homes.toml")


def hosted(config: Config, size: int) -> LocalFederation:
    """All clients, so many a host."""
    names, shards = clients_in(config.folder / "shards"), config.folder / "shards"
    federation = LocalFederation(config, (), config.folder)
    groups: list[Sequence[str]] = [names[at : at + size] for at in range(0, len(names), size)]
    federation._dispatcher.handles = [ActorHandle(tuple(some), Host(config, some, shards)) for some in groups]
    return federation


def train(config: Config) -> dict:
    """One job in process."""
    with api.Experiment(config, "local") as experiment:
        return experiment.train()


def drain(config: Config) -> dict:
    """One job in process."""
    with api.Experiment(config, "local") as experiment:
        return experiment.drain()


@pytest.fixture
def table() -> pd.DataFrame:
    return homes()


@pytest.fixture
def config(tmp_path: Path, table: pd.DataFrame) -> Config:
    return put(tmp_path / "homes", table)


@pytest.fixture
def broken(tmp_path: Path, table: pd.DataFrame) -> Callable[..., Config]:
    """A config over records that something was done to."""

    def make(change: Callable[[pd.DataFrame], pd.DataFrame | None], text: str = CONFIG) -> Config:
        changed = change(table)
        return put(tmp_path / "broken", table if changed is None else changed, text)

    return make


@pytest.fixture
def memory_tracking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs and models in memory, and no pictures: for tests of what is learned and forgotten, not of what is logged."""
    monkeypatch.setattr("frmu.tracking.tracker.MlflowBackend", MemoryBackend.connect)
    monkeypatch.setattr("frmu.services.session.plot_influence", lambda state, by, path: path.write_bytes(b"PNG"))


WINDOW = (dt.datetime(2025, 2, 10), dt.datetime(2025, 2, 20))
