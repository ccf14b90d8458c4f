"""The user's Parquet: which files, which clients, and whether the records are what the config says.

Only the columns that the config names are read, so nothing else of a person enters a shard. Every check runs
before anything is written, over a whole file at once, and names the file, the client, the column and the row.

A record lacks a modality where all its columns are null, which is allowed where there are other modalities. A
record with some of them null is refused, but where `data.missing` names those: frmu fills nothing in.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from frmu.config import CALENDAR, Config
from frmu.data.checks import (
    Where,
    client_names,
    is_number,
    is_text,
    key_of,
    moments,
    no_duplicates,
    no_value,
    numbers,
    plain,
    text_of,
)
from frmu.data.columns import CLIENT, FILE, PRIVATE, RECORD, ROW, SLICE, SUBJECT, TARGET, TIME, stored_targets
from frmu.errors import DataError, near_miss

__all__ = [
    "FILE", "ROW", "Source", "columns_of", "files_of", "gather", "inputs", "names_in", "place_of", "read_parquet",
    "survey", "without_flags",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Source:
    """The user's files as a look at them tells: their paths, and the number of rows of each client in them."""

    files: tuple[str, ...]
    rows_by_client: Mapping[str, int]

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients, in the order of their names."""
        return tuple(sorted(self.rows_by_client))


def survey(config: Config) -> Source:
    """List the files and the clients; raises `DataError` for a file that is missing, empty or truncated."""
    files = files_of(config)
    rows: Counter[str] = Counter()
    for file in files:
        table = read_parquet(file, [config.data.client])
        if table.num_rows == 0:
            raise DataError(f"{file}: empty shard: the file has no row; remove it or fill it")
        names = text_of(table[config.data.client], file, config.data.client)
        client_names(names, file, config.data.client)
        _slice_column_there(config, file)
        rows.update({found["values"]: found["counts"] for found in pc.value_counts(names).to_pylist()})
    return Source(tuple(files), rows)


def gather(config: Config, clients: Iterable[str]) -> dict[str, pa.Table]:
    """The checked records of some clients, one table a client, in the columns of a shard.

    Values beyond their declared range are left as they are: see `frmu.data.clipping`.
    Where the config declares a private column there is one more, `PRIVATE`, of booleans; it belongs in no shard.
    Raises `DataError` naming file, client, column and row for whatever does not fit the config.
    """
    wanted = pa.array(sorted(clients), pa.string())
    files = files_of(config)
    parts = [_canonical(config, file, index, wanted) for index, file in enumerate(files)]
    whole = pa.concat_tables(parts)
    whole = whole.take(pc.sort_indices(whole, [(CLIENT, "ascending"), (RECORD, "ascending")]))
    no_duplicates(whole, files)
    counts = _counts(whole[CLIENT], wanted)
    begins = (np.cumsum(counts) - counts).tolist()
    kept = whole.drop_columns([CLIENT, ROW, FILE])
    return {name: kept.slice(at, count) for name, at, count in zip(wanted.to_pylist(), begins, counts, strict=True)}


def _counts(column: pa.ChunkedArray, wanted: pa.Array) -> list[int]:
    """Count each wanted value in a column."""
    counts = {found["values"]: found["counts"] for found in pc.value_counts(column).to_pylist()}
    return [counts.get(value, 0) for value in wanted.to_pylist()]


def names_in(file: str | Path, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """The client and the record id of every row of a file, each (rows,) str."""
    client, record = config.data.client, config.data.record
    table = read_parquet(file, list(dict.fromkeys([client, record])))
    clients, records = (text_of(table[name], str(file), name) for name in (client, record))
    return clients.to_numpy(zero_copy_only=False), records.to_numpy(zero_copy_only=False)


def place_of(config: Config, client: str, record: str) -> tuple[str, int]:
    """The file and the row in it where a record of a client stands; for an error, since it reads the files again."""
    for file in files_of(config):
        clients, records = names_in(file, config)
        if len(at := np.flatnonzero((clients == client) & (records == record))):
            return file, int(at[0])
    raise DataError(f'{config.source}: holds no record "{record}" of client "{client}" any more')


def without_flags(table: pa.Table) -> tuple[pa.Table, NDArray[np.bool_]]:
    """A table of `gather` in the columns of a shard, and which rows are private, (n,)."""
    if PRIVATE not in table.column_names:
        return table, np.zeros(table.num_rows, dtype=bool)
    private = table[PRIVATE].to_numpy(zero_copy_only=False).astype(bool)
    return table.drop_columns([PRIVATE]), private


def read_parquet(file: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a memory-mapped Parquet file; a missing column or a broken file is a `DataError`."""
    try:
        parquet = pq.ParquetFile(file, memory_map=True, pre_buffer=False)
        with parquet:
            known = parquet.schema_arrow.names
            for column in columns or ():
                if column not in known:
                    raise DataError(
                        f'{file}: no column "{column}"{near_miss(column, known)} (the file has {", ".join(known)})'
                    )
                if known.count(column) > 1:
                    raise DataError(f'{file}: has {known.count(column)} columns named "{column}"; rename all but one')
            return parquet.read(columns=None if columns is None else list(columns))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise DataError(f"{file}: not a whole Parquet file: {reason}") from None


def files_of(config: Config) -> list[str]:
    """The user's Parquet files, in the order of their names."""
    source = Path(config.source)
    try:
        if source.is_dir():
            own = config.folder.resolve()  # frmu's own shards may lie below the data
            files = sorted(str(file) for file in source.rglob("*.parquet") if own not in file.resolve().parents)
        elif source.is_file():
            files = [str(source)]
        else:
            files = sorted(glob.glob(config.source, recursive=True))  # noqa: PTH207 - absolute patterns too
    except OSError as error:
        raise DataError(f"{config.source[:200]}: cannot be looked at: {error.strerror}") from None
    if not files:
        raise DataError(f"{config.source}: no Parquet file there; data.path is a file, a folder or a glob")
    return files


def _canonical(config: Config, file: str, index: int, wanted: pa.Array) -> pa.Table:
    """The rows of some clients in one file, as the columns of a shard; everything is checked."""
    data = config.data
    table = plain(read_parquet(file, _columns(config)))
    clients = text_of(table[data.client], file, data.client)
    keep = pc.is_in(clients, wanted)
    rows = np.flatnonzero(keep.to_numpy(zero_copy_only=False))
    table, clients = table.filter(keep), clients.filter(keep)
    out = {CLIENT: clients, ROW: pa.array(rows), FILE: pa.array(np.full(len(rows), index))}
    where = Where(file, clients, rows)
    out[RECORD] = where.whole(text_of(table[data.record], file, data.record), data.record, "record id")
    if data.subject is not None:
        out[SUBJECT] = where.whole(text_of(table[data.subject], file, data.subject), data.subject, "subject")
    if data.time is not None:
        out[TIME] = where.whole(moments(table[data.time], file, data.time), data.time, "time")
    if data.private is not None:
        out[PRIVATE] = where.flags(table[data.private], data.private)
    if _slice_column(config):
        out[SLICE] = where.whole(text_of(table[config.slice_by], file, config.slice_by), config.slice_by, "slice")
    if data.task == "regression":
        for name, stored in stored_targets(config).items():
            out[stored] = where.finite(numbers(table[name], file, name), name, config)
    else:
        (name,) = data.targets
        labels = where.whole(text_of(table[name], file, name), name, "target")
        out[TARGET] = where.known(labels, name, data.classes)
    missing = _missing(config, table, where)
    for name in _numeric(config):
        values = _numbers(config, table[name], file, name)
        out[name] = where.finite(values, name, config, missing.get(name))
    return pa.table(out | _labels(config, table, where, missing))


def inputs(config: Config, file: str) -> pa.Table:
    """Rows to predict for, in their order, in the columns of a shard as far as the features need them.

    A value that nothing but a lag looks at may be missing: it has not happened yet. A modality may be missing in a
    row as in `gather`, and in the whole file where all its columns are missing and another modality is there. Raises
    `DataError` as `gather`.
    """
    data = config.data
    named = [data.client, *([data.time] if data.lags and data.time else []), *_numeric(config), *_named(config)]
    table = plain(_with_nulls(config, file, list(dict.fromkeys(named))))
    clients = text_of(table[data.client], file, data.client)
    client_names(clients, file, data.client)
    where = Where(file, clients, np.arange(table.num_rows))
    out: dict[str, Any] = {CLIENT: clients, ROW: pa.array(np.arange(table.num_rows))}
    if data.lags and data.time:
        out[TIME] = where.whole(moments(table[data.time], file, data.time), data.time, "time")
    missing = _missing(config, table, where)
    for name in _numeric(config):
        column = _numbers(config, table[name], file, name)
        spare = missing.get(name) if name in data.features else no_value(column, name in data.missing)
        where.finite(column, name, config, spare)
        out[name] = column.fill_null(np.nan)
    return pa.table(out | _labels(config, table, where, missing))


def _numbers(config: Config, column: pa.ChunkedArray, file: str, name: str) -> pa.ChunkedArray:
    """A feature as float64; raises `DataError` where it holds no numbers, which says so where another file does."""
    if is_number(column.type):
        return numbers(column, file, name)
    others = (other for other in files_of(config) if other != file)
    other = next((other for other in others if _holds_numbers(other, name)), None)
    what = "must be a number, got" if other is None else f"is a number in {other}, and here it is"
    seen = {lag.column for lag in config.data.lags.values()}
    line = f"; as a category it may be either: add {key_of(name)} = 64 under [data.categories]"
    hint = line if is_text(column.type) and name not in seen else ""
    raise DataError(f'{file}: column "{name}" {what} {column.type}{hint}')


def _holds_numbers(file: str, name: str) -> bool:
    schema = pq.read_schema(file)
    kind = schema.field(name).type if name in schema.names else pa.string()
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return is_number(kind) and not pa.types.is_null(kind)


def _labels(
    config: Config, table: pa.Table, where: Where, missing: Mapping[str, NDArray[np.bool_]]
) -> dict[str, pa.ChunkedArray]:
    """Texts and categories as text, null where they are missing; a NaN names nothing, so it is null."""
    found = {}
    for name in _named(config):
        column = table[name]
        if name in config.data.categories and pa.types.is_floating(column.type):
            column = pc.if_else(pa.chunked_array([no_value(column, True)]), None, column.cast(pa.float64()))
        found[name] = where.given(text_of(column, where.file, name), name, config, missing.get(name))
    return found


def _with_nulls(config: Config, file: str, columns: list[str]) -> pa.Table:
    """Columns of a file, where those of a modality that the file does not have at all are null.

    A column that is there under a similar name was not left out, but misspelt.
    """
    clients = read_parquet(file, [config.data.client])
    known = pq.read_schema(file).names
    own = {name: _own(config, name) for name in config.data.modalities}
    absent = {column for names in own.values() if not set(names) & set(known) for column in names}
    spare = [name for name in known if name not in columns]
    if not any(set(names) & set(known) for names in own.values()) or any(near_miss(name, spare) for name in absent):
        absent = set()
    table = read_parquet(file, [name for name in columns if name not in absent])
    for name in sorted(absent):
        table = table.append_column(name, pa.nulls(len(clients), pa.float64()))
    return table


def _own(config: Config, modality: str) -> list[str]:
    """The columns of the file that a modality has: its features without the lags."""
    return [name for name in config.data.modalities[modality] if name not in config.data.lags]


def _missing(config: Config, table: pa.Table, where: Where) -> dict[str, NDArray[np.bool_]]:
    """The rows that may be without a value of a column, (rows,), by column.

    Those are the rows where it is missing, if `data.missing` names it, and where a record may lack a modality, those
    in which all its columns are null.
    """
    declared = config.data.missing
    found = {name: no_value(table[name], True) for name in declared}
    for modality in config.data.modalities if config.optional else ():
        names = _own(config, modality)
        if not names:
            continue
        null = np.stack([no_value(table[name], name in declared) for name in names])  # (columns, rows)
        lacks: NDArray[np.bool_] = np.all(null, axis=0)
        for name in names:
            if name not in declared:
                hint = f'. A record lacks the modality "{modality}" where all its columns are null'
                where.given(table[name], name, config, lacks, hint)
                found[name] = lacks
    return found


def _numeric(config: Config) -> list[str]:
    """The numeric columns that a shard keeps: features of the file, and what lags look at."""
    data = config.data
    others = {*data.lags, *data.categories, *config.texts}
    wanted = [name for name in data.features if name not in others]
    wanted += [lag.column for lag in data.lags.values()]
    return list(dict.fromkeys(wanted))


def _named(config: Config) -> list[str]:
    """The features that a shard keeps as text: categories, and text itself."""
    return [name for name in config.data.features if name in config.data.categories or name in config.texts]


def _columns(config: Config) -> list[str]:
    data = config.data
    named = [data.client, data.record, data.subject, data.time, data.private, *data.targets]
    named += [*_numeric(config), *_named(config)]
    if _slice_column(config):
        named.append(config.slice_by)
    return list(dict.fromkeys(name for name in named if name is not None))


def columns_of(config: Config) -> list[str]:
    """The columns of a shard."""
    labels = [RECORD, *stored_targets(config).values()]
    labels += [SUBJECT] if config.data.subject is not None else []
    labels += [TIME] if config.data.time is not None else []
    labels += [SLICE] if _slice_column(config) else []
    return [*labels, *_numeric(config), *_named(config)]


def _slice_column(config: Config) -> bool:
    return config.slice_by not in (*CALENDAR, "subject", config.data.record)


def _slice_column_there(config: Config, file: str) -> None:
    if not _slice_column(config):
        return
    known = pq.read_schema(file).names
    if config.slice_by not in known:
        hint = near_miss(config.slice_by, [*CALENDAR, "subject", *known])
        raise DataError(
            f'{file}: slices.by = "{config.slice_by}" is none of day, week, month, subject or a column{hint}'
        )
