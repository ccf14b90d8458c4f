"""Values beyond their declared range: each is clipped where it is learned from, few enough of them are let in.

A shard keeps the value as it was given, so that a condition such as "temperature > 60" still finds its record. The
arrays that learning sees are clipped value by value, which looks at nothing else: a record that is erased leaves
nothing behind in those that remain. The share that is let in is counted over the records of one client that an import
takes, without those that were erased or are private, so it too is what it would be had they never been there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.checks import key_of
from frmu.data.columns import RECORD, stored_targets
from frmu.data.parquet import place_of
from frmu.errors import DataError
from frmu.types import Float

__all__ = ["Beyond", "beyond", "clip", "let_in"]


@dataclass(frozen=True, slots=True)
class Beyond:
    """The values of one client beyond the range of `name`: how many of how many, and the worst with its row.

    `name` is that of the column, or of a lag with a narrower range of its own.
    """

    name: str
    values: int
    of: int
    worst: float
    row: int

    def refused(self, config: Config) -> bool:
        """Return whether they are more than `data.clip` lets in: see `frmu.config.data.Data`.

        A quotient of whole numbers is compared: 29 of 100 are within 0.29, while 0.29 * 100 is less than 29.
        """
        share = config.data.clip
        return self.values > (1 if share else 0) and self.values / self.of > share

    def error(self, config: Config, client: str, file: str, row: int) -> DataError:
        """Return the error that names them; `file` and `row` say where the worst stands."""
        low, high = config.data.ranges[self.name]
        lag = config.data.lags.get(self.name)
        column = f'column "{self.name}"' if lag is None else f'lag "{self.name}" of column "{lag.column}"'
        share = config.data.clip
        most = f" but for {100.0 * share:g} % of a client's values (data.clip)" if share else ""
        return DataError(
            f"{file}: {column} must be within its declared range [{low:g}, {high:g}]{most}, got {self.worst:.9g} at "
            f'client "{client}", row {row}, the worst one (beyond it: {self.values:,} of {self.of:,} values); widen '
            f"data.ranges.{key_of(self.name)}, raise data.clip or mend the records"
        )


def clip(values: Float, declared: tuple[float, float]) -> Float:
    """Return values with those beyond a declared range set to its bound; what is missing stays missing.

    >>> clip(np.array([-3.0, 0.5, np.nan, 7.0]), (0.0, 1.0)).tolist()
    [0.0, 0.5, nan, 1.0]
    """
    return np.clip(values, *declared)


def beyond(table: pa.Table, config: Config) -> list[Beyond]:
    """Look for values beyond their declared range in a client's records, in the columns of a shard."""
    found = []
    for name, (low, high) in config.data.ranges.items():
        column = _column(name, table, config)
        if column not in table.column_names:
            continue
        values = table[column].to_numpy()
        out: NDArray[np.bool_] = (values < low) | (values > high)  # never where there is no value
        if out.any():
            by = np.where(out, np.maximum(low - values, values - high), 0.0)
            row = int(np.argmax(by))
            found.append(
                Beyond(name, int(out.sum()), int(np.count_nonzero(~np.isnan(values))), float(values[row]), row)
            )
    return found


def let_in(table: pa.Table, client: str, config: Config) -> dict[str, int]:
    """Return how many values of the records that a client would take are clipped, by the name of their range.

    Raises `DataError`, with the file and the row of the worst, where they are more than `data.clip` lets in.
    """
    found = beyond(table, config)
    for one in found:
        if one.refused(config):
            raise one.error(config, client, *place_of(config, client, table[RECORD][one.row].as_py()))
    return {one.name: one.values for one in found}


def _column(name: str, table: pa.Table, config: Config) -> str:
    """The column whose values a range is of; rows to predict for have no target, but what lags saw of it."""
    data = config.data
    if name in data.lags:
        return data.lags[name].column
    stored = stored_targets(config).get(name, name) if data.task == "regression" else name
    return stored if stored in table.column_names else name
