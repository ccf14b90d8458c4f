"""Two federations unlike anything that the shipped policy learned on, made anew for each seed.

It learned on hourly readings, one number a record, of three public series. These are of other kinds:

- `desks`: five desks sort tickets into four levels. At two of them the bar crept: a year ago they called urgent what is
  normal today.
- `huts`: four huts on a mountain count their guests by the quarter of a day. In winter they are closed and count
  nothing, whatever the weather; no column says when. Two years end in spring, so the records that judge are of a
  summer, later and test records of the winter after it: whoever fits what judges fits the season.

A user would have `frmu init` declare them, so that is what is done here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from frmu.config import Config, load
from frmu.data.inference import infer_config
from frmu.types import Float

__all__ = ["FEDERATIONS", "declared"]

Table = Callable[[np.random.Generator], pd.DataFrame]
Roles = Mapping[str, str]
LEVELS = np.array(["low", "normal", "high", "urgent"])


def declared(name: str, seed: int, folder: Path) -> Config:
    """Write the records of a federation, have `frmu init` declare them, and read the config.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = declared("huts", 0, Path(folder))
    >>> config.data.task, config.data.transforms, config.slices.by
    ('regression', {'guests': 'log1p'}, 'month')
    """
    table = FEDERATIONS[name](np.random.Generator(np.random.PCG64([seed, *name.encode()])))
    table.to_parquet(folder / "data.parquet", index=False)
    infer_config([str(folder / "data.parquet")], folder / "config.toml", ROLES[name])
    return load(folder / "config.toml")


def _desks(rng: np.random.Generator) -> pd.DataFrame:
    """Four levels by a score of five numbers, eight tickets a day and desk, for 13 months."""
    weigh, bend = rng.normal(0.0, 1.0, 5), rng.normal(0.0, 0.7, 5)
    crept = set(rng.choice(5, 2, replace=False).tolist())
    days = pd.date_range("2024-01-01", "2025-02-01", freq="3h", inclusive="left")
    past = np.clip(1.0 - np.arange(len(days)) / (0.7 * len(days)), 0.0, 1.0)  # gone before judging ends
    return pd.concat([_desk(number, days, 2.5 * past * (number in crept), weigh, bend, rng) for number in range(5)])


def _desk(
    number: int, days: pd.DatetimeIndex, crept: Float, weigh: Float, bend: Float, rng: np.random.Generator
) -> pd.DataFrame:
    X = rng.normal(rng.normal(0.0, 0.3, 5), 1.0, (len(days), 5)).clip(-3.0, 3.0)
    score = X @ weigh + np.abs(X) @ bend + rng.normal(0.0, 0.4, len(days))
    scale = np.sqrt(np.sum(weigh**2) + 0.4 * np.sum(bend**2))
    level = np.digitize((score - np.sum(bend) * 0.8) / scale + crept, [-0.7, 0.0, 0.7])
    columns = {name: X[:, at] for at, name in enumerate(("wait", "amount", "age", "calls", "stock"))}
    return pd.DataFrame({**_named("desk", number, days), **columns, "level": LEVELS[level]})


def _huts(rng: np.random.Generator) -> pd.DataFrame:
    """Guests by the quarter of a day, for two years; each hut is closed in winter for a time of its own."""
    quarters = pd.date_range("2023-05-01", "2025-05-01", freq="6h", inclusive="left")
    effects = np.array([1.2, -1.0, 0.5]) * rng.uniform(0.6, 1.4, 3)
    return pd.concat([_hut(number, quarters, effects, rng) for number in range(4)])


def _hut(number: int, quarters: pd.DatetimeIndex, effects: Float, rng: np.random.Generator) -> pd.DataFrame:
    sun, rain = rng.beta(2.0, 2.0, len(quarters)), rng.exponential(0.4, len(quarters)).clip(0.0, 3.0)
    free = (quarters.day_of_week.to_numpy() >= 5).astype(np.float64)
    hour = 2.0 * np.pi * quarters.hour.to_numpy() / 24.0
    rate = np.exp(rng.normal(2.5, 0.3) + effects @ np.stack([sun, rain, free]) + 0.8 * np.sin(hour - 1.5))
    first, last = rng.integers(270, 310), rng.integers(90, 125)  # days of the year between which it is closed
    day = quarters.day_of_year.to_numpy()
    guests = rng.poisson(np.where((day >= first) | (day <= last), 0.0, rate)).astype(np.float64)
    columns = {"sun": sun, "rain": rain, "free": free, "hour_sin": np.sin(hour), "hour_cos": np.cos(hour)}
    return pd.DataFrame({**_named("hut", number, quarters), **columns, "guests": guests})


def _named(what: str, number: int, times: pd.DatetimeIndex) -> Mapping[str, object]:
    records = [f"{number}-{at}" for at in range(len(times))]
    return {what: f"{what} {number}", "record": records, "ts": times.astype("datetime64[us]")}


FEDERATIONS: Mapping[str, Table] = {"desks": _desks, "huts": _huts}
ROLES: Mapping[str, Roles] = {
    "desks": {"client": "desk", "target": "level", "time": "ts", "record": "record"},
    "huts": {"client": "hut", "target": "guests", "time": "ts", "record": "record"},
}
