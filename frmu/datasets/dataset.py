"""A data set: how its table is made, and the config that describes it.

A set with a time may carry a column `slot` as well: the stretch that is fitted, cut into equally many records in the
order of time. Every client then has the same number of slices whatever its gaps, which is what a table of
selectors at one number of slices needs.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

__all__ = ["SLOTS", "DataSet", "calendar", "dealt", "slots_of"]

SLOTS = {"slot": 24}


@dataclass(frozen=True, slots=True)
class DataSet:
    """A table maker and the tables of the config that fit it; `slots` names columns of slots and says how many each."""

    make: Callable[[], pd.DataFrame]
    config: str
    slots: Mapping[str, int] = field(default_factory=dict)

    def table(self) -> pd.DataFrame:
        """The records, one row each, in the columns that the config names."""
        table = self.make()
        return table.assign(**{name: slots_of(table, self.config, number) for name, number in self.slots.items()})

    def configs(self) -> dict[str, str]:
        """The text of each config by the name of its file: `config.toml`, and one for each column of slots."""
        text = self.config.lstrip()
        files = {name: "slots.toml" if name == "slot" else f"{name}.toml" for name in self.slots}
        return {"config.toml": text} | {file: _sliced(text, name) for name, file in files.items()}


def _sliced(text: str, column: str) -> str:
    """A config with every value of a column as a slice of its own."""
    return re.sub(r'(?m)^by = ".*"$', f'by = "{column}"\nbuckets = 0', text)


def slots_of(table: pd.DataFrame, config: str, number: int = 24) -> pd.Series:
    """The slot of each record: "00" to "23" in the order of time within its client's fitted stretch, later "24".

    Slots of a client differ by at most one record.
    """
    raw = tomllib.loads(config)
    client, time, record = (raw["data"][name] for name in ("client", "time", "record"))
    fitted = table[time] < pd.Timestamp(raw["split"]["validation_from"])
    ordered = table[fitted].sort_values([client, time, record]).groupby(client)[time]
    slot = ordered.cumcount() * number // ordered.transform("size")
    width = len(str(number))
    return slot.reindex(table.index).fillna(number).map(lambda at: f"{int(at):0{width}d}")


def calendar(table: pd.DataFrame, time: pd.Series) -> pd.DataFrame:
    """Hour of day and day of week as points on a circle, and whether it is a weekend."""
    hour = 2 * np.pi * (time.dt.hour + time.dt.minute / 60) / 24
    day = 2 * np.pi * time.dt.day_of_week / 7
    return table.assign(
        hour_sin=np.sin(hour), hour_cos=np.cos(hour), day_sin=np.sin(day), day_cos=np.cos(day),
        weekend=(time.dt.day_of_week >= 5).astype(float),
    )  # fmt: skip


def dealt(names: pd.Series, sites: int, prefix: str) -> list[str]:
    """A site for each name, by a hash of it alone."""
    digests = [hashlib.blake2b(str(name).encode(), digest_size=8, person=b"site").digest() for name in names]
    return [f"{prefix}-{int.from_bytes(digest, 'big') % sites:02d}" for digest in digests]
