"""The cost of a drain on a live federation: one request, and many in one batch.

The federation is made up: homes whose load follows the hour, the season and the temperature, and persons who are met
in a few homes each. What is timed is the drain as the product runs it, from the look into the ledger to the new
state; the proof, which rebuilds the whole federation, is timed beside it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

from frmu import api
from frmu.config import Config, load
from frmu.ledger.ledger import Ledger
from frmu.types import Selection

__all__ = ["bench_drain", "federation_of_homes"]

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
weather = ["temperature", "yesterday"]

[data.lags]
yesterday = { column = "load", back = "1d" }

[data.ranges]
hour_sin = [-1.0, 1.0]
hour_cos = [-1.0, 1.0]
temperature = [-30.0, 50.0]
load = [-10.0, 20.0]

[slices]
by = "month"

[split]
validation_from = 2025-05-01
later_from = 2025-06-01
test_from = 2025-07-01

[model]
encoder = "relu"

[placement]
clients_per_actor = PACK
"""


def bench_drain(
    clients: int, requests: int, repeats: int, address: str | None, insecure: bool = False
) -> dict[str, Any]:
    """Drain single requests, then one batch of many; every receipt must be L5."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        config, persons = federation_of_homes(Path(folder), clients, repeats + requests + 1)
        with api.Experiment(config, address, insecure) as experiment:
            trained = experiment.train()
            asked = iter(persons)
            _ask(experiment.session.ledger, [next(asked)])
            experiment.drain()  # the first starts what later ones find running
            single = []
            for _ in range(repeats):
                _ask(experiment.session.ledger, [next(asked)])
                single.append(experiment.drain())
            _ask(experiment.session.ledger, [next(asked) for _ in range(requests)])
            batch = experiment.drain()
    one = median(run["seconds"] for run in single)
    return {
        "clients": clients,
        "records": trained["records"],
        "train_seconds": trained["seconds"],
        "one": {
            "seconds": one,
            "worst": max(run["seconds"] for run in single),
            "proof_seconds": median(run["verify_seconds"] for run in single),
            "records": median(sum(run["receipts"][0]["removed"].values()) for run in single),
            "training_samples": 0,
        },
        "batch": {
            "requests": requests,
            "seconds": batch["seconds"],
            "proof_seconds": batch["verify_seconds"],
            "records": sum(sum(receipt["removed"].values()) for receipt in batch["receipts"]),
        },
        "ratio": batch["seconds"] / one,
        "proven": all(run["verified"] for run in [*single, batch]),
    }


def _ask(ledger: Ledger, persons: list[str]) -> None:
    for person in persons:
        ledger.receive(Selection("subject", subject=person), "bench")


def federation_of_homes(folder: Path, clients: int, least: int) -> tuple[Config, list[str]]:
    """Homes with two records a day from January to July; a person has ten records in a few homes."""
    rng = np.random.default_rng(0)
    ts = pd.date_range("2025-01-01", "2025-07-31", freq="12h").astype("datetime64[us]")
    rows = clients * len(ts)
    everybody = max(rows // 10, least)
    angle = 2 * np.pi * np.tile(ts.hour, clients) / 24
    season = np.sin(2 * np.pi * np.tile(ts.day_of_year, clients) / 365)
    temperature = np.clip(10 + 10 * season + rng.normal(0, 2, rows), -30, 50)
    person = (np.arange(rows) // 3 + rng.integers(0, 3, rows) * (everybody // 3)) % everybody
    table = pd.DataFrame(
        {
            "record": [f"r{number}" for number in range(rows)],
            "home": np.repeat([f"home {number:03d}" for number in range(clients)], len(ts)),
            "person": [f"p{number}" for number in person],
            "ts": np.tile(ts, clients),
            "hour_sin": np.sin(angle),
            "hour_cos": np.cos(angle),
            "temperature": temperature,
            "load": 3 + np.sin(angle) - 0.1 * temperature + rng.normal(0, 0.3, rows),
        }
    )
    table.to_parquet(folder / "homes.parquet", index=False)
    (folder / "homes.toml").write_text(CONFIG.replace("PACK", str(-(-clients // 2))), encoding="utf-8")
    persons = sorted(set(table["person"]))
    rng.shuffle(persons)
    return load(folder / "homes.toml"), persons
