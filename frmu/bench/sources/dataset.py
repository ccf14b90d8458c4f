"""A data set: how its table is made, and the config that describes it.

A set with a time may carry a column `slot` as well: the stretch that is fitted, cut into equally many records in the
order of time. Every client then has the same number of slices whatever its gaps, which is what a table of
selectors at one number of slices needs.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["SLOTS", "DataSet", "calendar", "slots_of"]

SLOTS = 24


@dataclass(frozen=True, slots=True)
class DataSet:
    """A table maker and the tables of the config that fit it; `slots` says that it gets a column `slot`."""

    make: Callable[[], pd.DataFrame]
    config: str
    slots: bool = False

    def table(self) -> pd.DataFrame:
        """The records, one row each, in the columns that the config names."""
        table = self.make()
        return table.assign(slot=slots_of(table, self.config)) if self.slots else table

    def configs(self) -> dict[str, str]:
        """The text of each config by the name of its file."""
        texts = {"config.toml": self.config.lstrip()}
        if self.slots:
            texts["slots.toml"] = re.sub(r'(?m)^by = ".*"$', 'by = "slot"\nbuckets = 0', texts["config.toml"])
        return texts


def slots_of(table: pd.DataFrame, config: str) -> pd.Series:
    """The slot of each record: "00" to "23" in the order of time within its client's fitted stretch, later "24".

    Slots of a client differ by at most one record.
    """
    raw = tomllib.loads(config)
    client, time, record = (raw["data"][name] for name in ("client", "time", "record"))
    fitted = table[time] < pd.Timestamp(raw["split"]["validation_from"])
    ordered = table[fitted].sort_values([client, time, record]).groupby(client)[time]
    number = ordered.cumcount() * SLOTS // ordered.transform("size")
    return number.reindex(table.index).fillna(SLOTS).map(lambda slot: f"{int(slot):02d}")


def calendar(table: pd.DataFrame, time: pd.Series) -> pd.DataFrame:
    """Hour of day and day of week as points on a circle, and whether it is a weekend."""
    hour = 2 * np.pi * (time.dt.hour + time.dt.minute / 60) / 24
    day = 2 * np.pi * time.dt.day_of_week / 7
    return table.assign(
        hour_sin=np.sin(hour), hour_cos=np.cos(hour), day_sin=np.sin(day), day_cos=np.cos(day),
        weekend=(time.dt.day_of_week >= 5).astype(float),
    )  # fmt: skip
