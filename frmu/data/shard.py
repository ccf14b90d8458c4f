"""A client's shard: its records on its own disk, and the arrays that learning sees.

Rows are kept in the order of their record ids, whatever the order of the source, and every derived thing -
slice, split, scaled feature, lag - follows from the row, the config and the rows of the same client that
remain. So a shard that lost records is the shard that never had them.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from frmu.config import CALENDAR, Config, parse_duration
from frmu.data.categories import one_hot
from frmu.data.clipping import clip
from frmu.data.columns import RECORD, SLICE, SUBJECT, TARGET, TIME, stored_targets
from frmu.data.parquet import columns_of, read_parquet
from frmu.data.row_filter import parse_row_filter
from frmu.data.transform import forward, learned_range, learned_target
from frmu.errors import RequestError, StoreError
from frmu.storage.atomic import write_file
from frmu.types import Float, Selection

__all__ = [
    "SPLITS",
    "Shard",
    "ages",
    "clients_in",
    "digest_of_file",
    "features",
    "path_of",
    "span",
    "sweep",
    "unexpected_files",
    "write",
]  # fmt: skip

SPLITS = ("fit", "validation", "later", "test")


def path_of(folder: Path, client: str) -> Path:
    """Return the path of a client's shard under the folder of shards.

    >>> path_of(Path("shards"), "NIA / South").name
    'NIA%20%2F%20South.parquet'
    """
    return folder / f"{quote(client, safe='')}.parquet"


def clients_in(folder: Path) -> tuple[str, ...]:
    """The clients that have a shard in a folder, in the order of their names."""
    return tuple(sorted(unquote(file.stem) for file in folder.glob("*.parquet")))


def sweep(folder: Path) -> None:
    """Remove what a job that was killed left half-written; it may hold records. For the holder of the lock."""
    for pattern in ("*.partial", "*.incoming"):
        for file in folder.glob(pattern):
            file.unlink()


def unexpected_files(folder: Path) -> list[str]:
    """Files among the shards that are none, or not under their own name: nobody looks after what is in them."""
    return sorted(file.name for file in folder.iterdir() if file != path_of(folder, unquote(file.stem)))


def write(table: pa.Table, path: Path) -> None:
    """Replace a shard atomically: after a crash the old file or the new one is there, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    repeated = [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != RECORD]

    def put(file: BinaryIO) -> None:
        pq.write_table(table, file, use_dictionary=repeated)  # of numbers it would take longer, and as much room

    write_file(path, put, aside=path.with_suffix(f".{os.getpid()}.partial"))


def digest_of_file(path: Path) -> str:
    """SHA-256 of a shard as it lies on disk: what is remembered of its records holds while this does."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Shard:
    """The records of one client as arrays, one row a record, in the order of the record ids.

    Each array is made when it is first asked for: a search needs no features, and a sum no record ids.
    """

    def __init__(self, table: pa.Table, config: Config) -> None:
        self.table, self._config = table, config
        self._hashed: dict[str, tuple[NDArray[np.uint64], NDArray[np.bool_]]] = {}

    @staticmethod
    def read(path: Path, config: Config) -> Shard:
        """Read a shard that `write` wrote."""
        table = read_parquet(path)
        if missing := [name for name in columns_of(config) if name not in table.column_names]:
            raise StoreError(
                f'{path}: holds no column "{missing[0]}": it is not a shard, or one of another config; run `frmu train`'
            )
        return Shard(table, config)

    @cached_property
    def ids(self) -> NDArray[Any]:
        """Record ids, (n,) str."""
        return _texts(self.table, RECORD)

    @cached_property
    def modalities(self) -> dict[str, NDArray[Any]]:
        """The columns of each modality, (n, columns), as `features` gives them."""
        return features(self.table, self._config)

    @cached_property
    def target(self) -> NDArray[Any]:
        """Targets, (n,) float64 for a regression - (n, targets) for several - and (n,) str otherwise."""
        if self._config.data.task != "regression":
            return _texts(self.table, TARGET)
        columns = [self.table[name].to_numpy() for name in stored_targets(self._config).values()]
        return columns[0] if len(columns) == 1 else np.stack(columns, axis=1)

    @cached_property
    def learned_target(self) -> NDArray[Any]:
        """Targets as `target`, those of a regression within their declared range, and transformed."""
        return learned_target(self.target, self._config) if self._config.data.task == "regression" else self.target

    @cached_property
    def split(self) -> NDArray[np.int8]:
        """The part of each record, (n,) int8 into `SPLITS`."""
        return _split(self.table, self._config)

    @cached_property
    def slices(self) -> NDArray[Any]:
        """The key of each record's slice, (n,) str."""
        return _slices(self.table, self._config)

    def cohort(self, share: int) -> NDArray[np.bool_]:
        """Mark the records, one in 2^share, that a hash of their ids draws, (n,)."""
        return self.drawn(np.arange(len(self)), share)

    def drawn(self, rows: NDArray[np.intp], share: int) -> NDArray[np.bool_]:
        """Mark those of some rows, (rows,), that are in a cohort: see `cohort`."""
        if share == 0:
            return np.ones(len(rows), dtype=bool)
        return np.asarray(self._hashes("cohort", rows) % 2**share == 0)

    def hidden(self, rows: NDArray[np.intp], number: int, one_of: int) -> NDArray[np.bool_]:
        """Mark, of some rows, (rows,), those in which a hash of the record id hides the unknowable of a number."""
        return np.asarray(self._hashes(f"hidden {number}", rows) % one_of == 0)

    def _hashes(self, purpose: str, rows: NDArray[np.intp]) -> NDArray[np.uint64]:
        """Hash the ids of some rows, (rows,), each once for a purpose: every layer asks for them again."""
        nothing = (np.zeros(len(self), dtype=np.uint64), np.zeros(len(self), dtype=bool))
        hashes, known = self._hashed.setdefault(purpose, nothing)
        new = rows[~known[rows]]
        names = self.table[RECORD].take(pa.array(new)).to_pylist()
        hashes[new] = np.array([_hash(name, purpose) for name in names], dtype=np.uint64)
        known[new] = True
        return hashes[rows]

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def in_time(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """Some rows in the order of their times, and of record ids within one time or where there is none."""
        if TIME not in self.table.column_names:
            return rows
        return rows[np.argsort(_times(self.table)[rows], kind="stable")]

    def find(self, requests: Mapping[str, Selection], client: str, config: Config) -> dict[str, NDArray[np.intp]]:
        """The rows that each selection means, by request, in their order; requests that mean none are left out.

        Subjects and record ids are looked up together: a thousand requests cost one pass over the column.
        """
        mine = {name: one for name, one in requests.items() if one.client in (None, client)}
        persons = [(name, one.subject) for name, one in mine.items() if one.kind == "subject"]
        records = [(name, record) for name, one in mine.items() if one.kind == "records" for record in one.records]
        found = _look_up(self.table[RECORD], records)
        if persons and SUBJECT in self.table.column_names:
            found |= _look_up(self.table[SUBJECT], persons)
        for name, one in mine.items():
            if one.kind not in ("subject", "records"):
                try:
                    found[name] = np.flatnonzero(self._mask(one, client, config))
                except RequestError as error:
                    raise RequestError(
                        f"request {name} means nothing under this config any more: {error}. Change the config back, or "
                        "withdraw the request"
                    ) from None
        return {name: found[name] for name in requests if name in found and len(found[name])}

    def _mask(self, selection: Selection, client: str, config: Config) -> NDArray[np.bool_]:
        if selection.kind == "between" and selection.between is not None:
            first, last = (np.datetime64(moment, "us") for moment in selection.between)
            times = _times(self.table)
            return (times >= first) & (times < last)
        if selection.kind == "slice" and selection.rule not in (None, config.slice_rule):
            raise RequestError(f"slices were cut by {selection.rule} then, and are cut by {config.slice_rule} now")
        if selection.kind == "slice":
            return np.asarray(self.slices == selection.slice, dtype=bool)
        if selection.kind == "where" and selection.where is not None:
            return parse_row_filter(selection.where, config).mask(self.table, client)
        return np.ones(len(self), dtype=bool)

    def without(self, rows: NDArray[np.bool_]) -> pa.Table:
        """The table with some rows dropped."""
        return self.table.filter(pa.array(~rows))


def features(table: pa.Table, config: Config) -> dict[str, NDArray[Any]]:
    """The columns of every modality of one client's rows, each (n, columns), lags among them.

    Numbers are scaled, float64; where a record may lack a modality, its columns are 0 there, and one more column
    says 1 where it is there and 0 where it is not. Text stays as it is, (n, columns) of str, None where it is missing.
    """
    by = config.data.modalities.items()
    return {
        name: _words(table, columns) if config.encoder(name) == "hash" else _modality(table, columns, config)
        for name, columns in by
    }


def ages(keys: list[str], config: Config) -> Float:
    """Return the age of each slice, from 1 (the oldest) to 0, (K,); all 0 where slices are not of time.

    Values of a column that are slices (`buckets = 0`) are taken for steps of time where records have one.
    """
    steps = config.slices.buckets == 0 and config.data.time is not None
    if not (steps or config.slice_by in CALENDAR) or len(keys) < 2:
        return np.zeros(len(keys))
    return np.linspace(1.0, 0.0, len(keys))


def _look_up(values: pa.ChunkedArray, wanted: Sequence[tuple[str, str | None]]) -> dict[str, NDArray[np.intp]]:
    """The rows whose value is one that a name wants, by name, in their order."""
    if not wanted or not len(values):
        return {}
    names: dict[str, list[str]] = {}
    for name, value in wanted:
        names.setdefault(value or "", []).append(name)
    which = pc.fill_null(pc.index_in(values, pa.array(names, pa.string())), -1).to_numpy()
    rows = np.flatnonzero(which >= 0)
    rows = rows[np.argsort(which[rows], kind="stable")]
    borders = np.flatnonzero(np.diff(which[rows])) + 1
    known = list(names)
    found: dict[str, list[NDArray[np.intp]]] = {}
    for part in np.split(rows, borders) if len(rows) else ():
        for name in names[known[which[part[0]]]]:
            found.setdefault(name, []).append(part)
    return {name: np.unique(np.concatenate(parts)) for name, parts in found.items()}


def _texts(table: pa.Table, column: str) -> NDArray[Any]:
    return table[column].to_numpy(zero_copy_only=False).astype(str)


def _times(table: pa.Table) -> NDArray[Any]:
    return table[TIME].to_numpy().astype("datetime64[us]")


def _modality(table: pa.Table, columns: list[str], config: Config) -> Float:
    parts = [part for name in columns for part in _parts(table, name, config)]
    if not config.optional:
        return np.ascontiguousarray(np.stack(parts, axis=1))  # (n, columns)
    own = [name for name in columns if name not in config.data.lags]
    there = np.full(table.num_rows, not own)
    for name in own:
        there |= ~_null(table, name)
    parts = [np.where(there, part, 0.0) for part in parts]
    return np.ascontiguousarray(np.stack([*parts, there.astype(np.float64)], axis=1))


def _parts(table: pa.Table, name: str, config: Config) -> list[Float]:
    """The scaled columns of a feature, as many as `frmu.config.data.Data.scaled` says; the last is if it is missing."""
    data = config.data
    if name in data.lags:
        return _lag(table, name, config)
    found = one_hot(table[name], name, config) if name in data.categories else [_number(table, name, config)]
    if name not in data.missing:
        return found
    null = _null(table, name)
    return [*(np.where(null, 0.0, part) for part in found), null.astype(np.float64)]


def _null(table: pa.Table, name: str) -> NDArray[np.bool_]:
    """Mark the rows without a value, (n,); rows to predict for have NaN where they lack a number."""
    return np.asarray(table[name].is_null(nan_is_null=True).to_numpy(zero_copy_only=False), dtype=bool)


def _words(table: pa.Table, columns: list[str]) -> NDArray[Any]:
    return np.stack([np.array(table[name].to_pylist(), dtype=object) for name in columns], axis=1)


def _number(table: pa.Table, name: str, config: Config) -> Float:
    declared = config.data.range_of(name)
    values = forward(clip(table[name].to_numpy(), declared), config.data.transforms.get(name))
    return _scale(values, learned_range(config, name))


def _scale(values: Float, within: tuple[float, float]) -> Float:
    """To [-1, 1] by a range that values lie in."""
    low, high = within
    return 2.0 * (values - low) / (high - low) - 1.0


def _lag(table: pa.Table, name: str, config: Config) -> list[Float]:
    """The lagged value, 0 where there is none, and whether there is one; transformed as the column it looks at."""
    lag = config.data.lags[name]
    seen = table[lag.column].to_numpy()
    if own := config.data.ranges.get(lag.column):  # as its own record shows it, whatever range the lag has
        seen = clip(seen, (own[0], own[1]))
    declared = config.data.range_of(name, lag.column)
    values = forward(clip(seen, declared), config.data.transforms.get(lag.column))
    values = _scale(values, learned_range(config, name, lag.column))
    times = _times(table)
    if len(times) == 0:
        return [np.zeros(0), np.zeros(0)]
    order = np.argsort(times, kind="stable")  # rows stand by record id: of two at one time the later id counts
    order = order[~np.isnan(values[order])]  # what has not happened yet is nobody's past
    if len(order) == 0:
        return [np.zeros(len(times)), np.zeros(len(times))]
    wanted = times - np.timedelta64(parse_duration(lag.back))
    at = np.searchsorted(times[order], wanted, side="right") - 1
    found = (at >= 0) & (times[order][at] == wanted)
    return [np.where(found, values[order][at], 0.0), found.astype(np.float64)]


def _split(table: pa.Table, config: Config) -> NDArray[np.int8]:
    """0 fit, 1 validation, 2 later, 3 test: by declared dates, else by a hash of the record id."""
    dates = config.split.dates
    if dates is not None:
        borders = np.array([np.datetime64(moment, "us") for moment in dates])
        return np.searchsorted(borders, _times(table), side="right").astype(np.int8)
    validation, later, test = config.split.shares
    fit = 1.0 - validation - later - test
    borders = np.cumsum([fit, validation, later])
    shares = np.array([_hash(name, "split") / 2.0**64 for name in table[RECORD].to_pylist()])
    return np.searchsorted(borders, shares, side="right").astype(np.int8)


def _slices(table: pa.Table, config: Config) -> NDArray[Any]:
    by = config.slice_by
    if by in CALENDAR:
        return _calendar(_times(table), by)
    column = RECORD if by == config.data.record else SUBJECT if by == "subject" else SLICE
    labels = table[column].to_pylist()
    buckets = config.slices.buckets
    if buckets == 0:
        return np.array([f"{by}-{label}" for label in labels], dtype=str)
    width = len(str(buckets - 1))
    return np.array([f"{by}-{_hash(label, by) % buckets:0{width}d}" for label in labels], dtype=str)


def _calendar(times: NDArray[Any], by: str) -> NDArray[Any]:
    units, at = np.unique(times.astype("datetime64[M]" if by == "month" else "datetime64[D]"), return_inverse=True)
    if by == "week":
        return np.array([_iso_week(day) for day in units.astype(object)], dtype=str)[at]
    return units.astype(str)[at]


def span(key: str, by: str) -> tuple[dt.date, dt.date]:
    """The first day of a slice of the calendar, and the first after it.

    >>> span("2025-12", "month")
    (datetime.date(2025, 12, 1), datetime.date(2026, 1, 1))
    >>> span("2025-W01", "week")[0]
    datetime.date(2024, 12, 30)
    """
    if by == "month":
        year, month = map(int, key.split("-"))
        return dt.date(year, month, 1), dt.date(year + month // 12, month % 12 + 1, 1)
    first = dt.date.fromisocalendar(int(key[:4]), int(key[6:]), 1) if by == "week" else dt.date.fromisoformat(key)
    return first, first + dt.timedelta(days=7 if by == "week" else 1)


def _iso_week(day: Any) -> str:
    year, week, _ = day.isocalendar()
    return f"{year}-W{week:02d}"


def _hash(label: str, purpose: str) -> int:
    """64 bits of the label alone: no other row can move it."""
    raw = hashlib.blake2b(str(label).encode(), digest_size=8, person=purpose.encode()[:16]).digest()
    return int.from_bytes(raw, "big")
