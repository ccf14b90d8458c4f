"""Checks of a user's columns: whole, of their type, finite, of a declared range; else told by file, column and row."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.columns import CLIENT, FILE, RECORD, ROW
from frmu.errors import DataError

__all__ = [
    "LONGEST", "Where", "client_names", "is_number", "is_text", "key_of", "moments", "no_duplicates", "no_value",
    "numbers", "plain", "proposed_range", "text_of",
]  # fmt: skip
LONGEST = 200  # characters of a client's name in a file's name


@dataclass(frozen=True, slots=True)
class Where:
    """Knows which row of which client an index is, so that an error can say it."""

    file: str
    clients: pa.ChunkedArray
    rows: np.ndarray

    def place(self, bad: np.ndarray) -> str:
        first = int(np.flatnonzero(bad)[0])
        more = f" (and {int(bad.sum()) - 1} more)" if bad.sum() > 1 else ""
        return f'client "{self.clients[first]}", row {int(self.rows[first])}{more}'

    def whole(self, column: pa.ChunkedArray, name: str, meaning: str) -> pa.ChunkedArray:
        if column.null_count:
            bad = column.is_null().to_numpy(zero_copy_only=False)
            raise DataError(f'{self.file}: column "{name}" ({meaning}) is null at {self.place(bad)}')
        return column

    def flags(self, column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
        """Booleans, or numbers that are 0 or 1."""
        if pa.types.is_boolean(column.type):
            return self.whole(column, name, "private")
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise DataError(f'{self.file}: column "{name}" (private) must be boolean, or 0 and 1, got {column.type}')
        values = self.whole(column, name, "private").cast(pa.float64()).to_numpy(zero_copy_only=False)
        bad = (values != 0.0) & (values != 1.0)
        if bad.any():
            raise DataError(
                f'{self.file}: column "{name}" (private) must be boolean, or 0 and 1, got {values[bad][0]:g} at '
                f"{self.place(bad)}"
            )
        return pa.chunked_array([values == 1.0], pa.bool_())

    def known(self, labels: pa.ChunkedArray, name: str, classes: list[str] | None) -> pa.ChunkedArray:
        if classes is None:
            return labels
        bad = ~pc.is_in(labels, pa.array(classes, pa.string())).to_numpy(zero_copy_only=False)
        if bad.any():
            label = labels[int(np.flatnonzero(bad)[0])]
            raise DataError(
                f'{self.file}: target "{name}" is "{label}" at {self.place(bad)}; data.classes declares only '
                f"{', '.join(classes)}"
            )
        return labels

    def given(
        self, column: pa.ChunkedArray, name: str, config: Config, missing: NDArray[np.bool_] | None = None,
        hint: str = "",
    ) -> pa.ChunkedArray:  # fmt: skip
        """A value in every row, but for those that may be without one; of others the error has the line to add."""
        bad = column.is_null().to_numpy(zero_copy_only=False)
        bad = bad if missing is None else bad & ~missing
        if bad.any():
            raise DataError(
                f'{self.file}: column "{name}" is null at {self.place(bad)}; frmu fills nothing in'
                f"{line_for_missing(name, config)}{hint}"
            )
        return column

    def finite(
        self, column: pa.ChunkedArray, name: str, config: Config, missing: NDArray[np.bool_] | None = None
    ) -> pa.Array:
        """Numbers that have a declared range; how many may lie beyond it is for `frmu.data.clipping` to say."""
        self.given(column, name, config, missing)
        values = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
        bad = ~np.isfinite(values) if missing is None else ~np.isfinite(values) & ~missing
        if bad.any():
            got = values[bad][0]
            line = line_for_missing(name, config) if np.isnan(got) else ""
            raise DataError(f'{self.file}: column "{name}" must be finite, got {got} at {self.place(bad)}{line}')
        self.declared(name, values, config)
        return pa.array(values, mask=missing)

    def declared(self, name: str, values: NDArray[Any], config: Config) -> None:
        """Raise `DataError` with the line to declare where a column has no range.

        That of a column that only lags look at may be declared by each of them.
        """
        data = config.data
        lagged = {lag for lag, of in data.lags.items() if of.column == name}
        alone = lagged and name not in data.features and name not in data.targets
        if name not in data.ranges and not (alone and lagged <= set(data.ranges)):
            raise DataError(
                f'{self.file}: column "{name}" has no declared range, and all sums are made on a grid of it. Add this '
                f"under [data.ranges]: {key_of(name)} = {proposed_range(values, data.transforms.get(name))}"
            )


def line_for_missing(name: str, config: Config) -> str:
    """The line that lets a column be null, as the end of an error; nothing for one that no line can let."""
    data = config.data
    if name in config.texts or name in data.missing or name in data.targets:
        return ""
    line = json.dumps([*data.missing, name], ensure_ascii=False)
    return f"; where it may be missing, add this under [data]: missing = {line}"


def no_value(column: pa.ChunkedArray, missing: bool) -> NDArray[np.bool_]:
    """Mark the rows of a column that are null, (rows,); of one that may be missing, NaN is null as well."""
    return np.asarray(column.is_null(nan_is_null=missing).to_numpy(zero_copy_only=False), dtype=bool)


def proposed_range(values: NDArray[Any], transform: str | None = None) -> str:
    """The range that is proposed for values: rounded outwards with a tenth of their distance to spare.

    One that will be transformed by "log1p" begins at 0 at least, or between the least value and -1.

    >>> proposed_range(np.array([0.5, 9.5])), proposed_range(np.array([0.5, 9.5]), "log1p")
    ('[-0.4, 10.4]', '[0.0, 10.4]')
    """
    there = values[np.isfinite(values)]
    if not len(there):
        return "[0.0, 1.0]"
    low, high = float(there.min()), float(there.max())
    spare = 0.1 * (high - low) or max(1.0, abs(high))
    step = 10.0 ** math.floor(math.log10(spare))
    ends = [math.floor((low - spare) / step) * step, math.ceil((high + spare) / step) * step]
    if transform == "log1p":
        ends = [max(ends[0], 0.0 if low >= 0.0 else (max(low, -0.98) - 1.0) / 2.0), max(ends[1], 1.0)]
    return "[" + ", ".join(repr(float(f"{end:.12g}")) for end in ends) + "]"


def key_of(name: str) -> str:
    """A name as a key of TOML."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def no_duplicates(table: pa.Table, files: list[str]) -> None:
    """Raise `DataError` where a client has two records of one id; the table is in the order of client and id."""
    ids, clients = (table[name].combine_chunks() for name in (RECORD, CLIENT))
    if len(ids) < 2:
        return
    same = pc.and_(pc.equal(ids[1:], ids[:-1]), pc.equal(clients[1:], clients[:-1])).to_numpy(zero_copy_only=False)
    if same.any():
        at = int(np.flatnonzero(same)[0])
        number = int(pc.and_(pc.equal(ids, ids[at]), pc.equal(clients, clients[at])).true_count)
        places = sorted((table[FILE][i].as_py(), table[ROW][i].as_py()) for i in range(at, at + number))
        mine = same & pc.equal(clients[1:], clients[at]).to_numpy(zero_copy_only=False)
        (first, above), (file, row) = places[0], places[1]
        raise DataError(
            f'{files[file]}: duplicate record id "{ids[at]}" of client "{clients[at]}" at row {row}; it stands first '
            f"at row {above} of {files[first]} ({int(mine.sum())} in all). A request by record id must mean one record"
        )


def client_names(column: pa.ChunkedArray, file: str, name: str) -> None:
    """A client has a name, and one that a file can have."""
    if column.null_count:
        bad = column.is_null().to_numpy(zero_copy_only=False)
        raise DataError(f'{file}: column "{name}" (client) is null at row {int(np.flatnonzero(bad)[0])}')
    for client in pc.unique(column).to_pylist():
        if not 0 < len(quote(client, safe="")) <= LONGEST:
            shown = f"{len(client)} characters" if client else "an empty name"
            raise DataError(
                f'{file}: column "{name}" (client) must be 1 to {LONGEST} characters as in a URL, got {shown}'
            )


def text_of(column: pa.ChunkedArray, file: str, name: str) -> pa.ChunkedArray:
    """Any kind of label as text, the same however it was stored.

    7.0, which is how many tools save an integer with gaps, is "7"; a time is in UTC and microseconds.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if pa.types.is_floating(kind):
        values = column.cast(pa.float64())
        if pc.any(pc.invert(pc.is_finite(values))).as_py():
            raise DataError(f'{file}: column "{name}" has a value that is not finite; it is to name something')
        # Value by value: what a record is called must not depend on the other records.
        whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), 2.0**53))
        as_whole = pc.if_else(whole, values, 0.0).cast(pa.int64()).cast(pa.string())
        return pc.if_else(whole, as_whole, values.cast(pa.string()))
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        column = moments(column, file, name)
    try:
        text = column.cast(pa.string())
        if pa.types.is_decimal(kind) and kind.scale > 0:
            text = pc.utf8_rtrim(pc.utf8_rtrim(text, "0"), ".")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        raise DataError(f'{file}: column "{name}" must be text or a number, got {kind}') from None
    if pc.any(pc.match_substring(text, "\0")).as_py():
        raise DataError(f'{file}: column "{name}" holds a NUL character, which no name may')
    return text


def is_number(kind: pa.DataType) -> bool:
    """Return whether values of an Arrow type are numbers; a column without any value may be of any type."""
    return bool(
        pa.types.is_null(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    )


def plain(table: pa.Table) -> pa.Table:
    """A table whose dictionary-encoded columns are values again."""
    for at, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            table = table.set_column(at, field.name, table.column(at).cast(field.type.value_type))
    return table


def numbers(column: pa.ChunkedArray, file: str, name: str) -> pa.ChunkedArray:
    """Return a column as float64; raises `DataError` where it holds no numbers."""
    kind = column.type
    if not is_number(kind):
        raise DataError(f'{file}: column "{name}" must be a number, got {kind}')
    if pa.types.is_boolean(kind):
        column = column.cast(pa.int8())
    return column.cast(pa.float64(), safe=False)


def is_text(kind: pa.DataType) -> bool:
    """Return whether an Arrow type is text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def moments(column: pa.ChunkedArray, file: str, name: str) -> pa.ChunkedArray:
    """Timestamps as naive UTC microseconds."""
    if not (pa.types.is_timestamp(column.type) or pa.types.is_date(column.type)):
        raise DataError(f'{file}: column "{name}" (time) must be a timestamp or a date, got {column.type}')
    try:
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        elif column.type.tz is not None:
            column = column.cast(pa.timestamp(column.type.unit, "UTC")).cast(pa.timestamp(column.type.unit))
        # Nanoseconds are cut; a time that does not fit into microseconds is refused, not wrapped.
        return column.cast(pa.timestamp("us"), safe=column.type.unit != "ns")
    except pa.ArrowInvalid as error:
        raise DataError(f'{file}: column "{name}" (time) is out of range: {error}') from None
