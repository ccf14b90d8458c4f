"""Propose a config from a file: which column is which, ranges with room to spare, dates of the split.

It looks at the data once, so that training never has to: what it finds is written down, and from then on it is
declared. What becomes of each column, and why, is told in a line (`frmu.data.proposals`). A range that came from
records which are erased later is a constant of the config like any other; a reader who minds declares the ranges by
hand.
"""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from frmu.config import load
from frmu.config.columns import MOST_WEIGHT
from frmu.data.checks import is_number, is_text, key_of, numbers, plain, proposed_range, text_of
from frmu.data.parquet import read_parquet
from frmu.data.proposals import Proposal, propose, skewed, taken_as_log1p, within
from frmu.errors import ConfigError, DataError, near_miss

__all__ = ["infer_config"]

UNBALANCED = 5  # times as many rows as the rarest class

_NAMES = {
    "client": (
        "client",
        "site",
        "home",
        "hospital",
        "station",
        "store",
        "shop",
        "factory",
        "device",
        "sensor",
        "country",
    ),
    "record": ("record", "record_id", "id", "row", "row_id", "uid", "uuid"),
    "subject": ("subject", "person", "patient", "customer", "user", "user_id", "patient_id", "customer_id"),
    "time": ("time", "ts", "timestamp", "datetime", "date"),
    "target": ("target", "label", "y", "class"),
    "private": ("private", "is_private"),
}


def infer_config(parquet: Sequence[str], out: Path, named: Mapping[str, str], force: bool = False) -> dict[str, Any]:
    """Write a config for Parquet files and read it back; `named` fixes the columns that the user knows.

    Raises `ConfigError` where the config is there already and `DataError` where a needed column is neither named
    nor to be guessed.
    """
    if out.exists() and not force:
        raise ConfigError(f"{out}: is there already; --force overwrites it")
    path = _path(parquet, out)
    table, notes = _whole(_files(parquet))
    for role, column in named.items():
        if column not in table.column_names:
            raise DataError(f'{parquet[0]}: no column "{column}" for {role}{near_miss(column, table.column_names)}')
    roles, guessed = _roles(table, named)
    used = set(roles.values())
    proposals = within([propose(name, table[name]) for name in table.column_names if name not in used])
    features = [one.name for one in proposals if one.kind != "nothing"]
    if not features:
        raise DataError(
            f"{parquet[0]}: no column is left to be a feature: {'; '.join(one.note for one in proposals) or 'none'}"
        )
    notes += guessed + _told(proposals)
    notes += [
        f'"{name}" has nulls or values that are not finite; `frmu train` will refuse them'
        for name in roles.values()
        if _gaps(table[name])
    ]
    try:
        text = _render(path, table, roles, proposals, notes)
    except (pa.ArrowException, OverflowError) as error:
        raise DataError(f"{parquet[0]}: cannot propose a config: {str(error).splitlines()[0]}") from None
    partial = out.with_name(out.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    try:
        load(partial)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return {"config": str(out), "text": text, "roles": roles, "features": features, "notes": notes}


def _told(proposals: Sequence[Proposal]) -> list[str]:
    """A line for each column that something is done with, and one for all that are numbers as they are."""
    silent = [one.name for one in proposals if not one.note]
    said = [one.note for one in proposals if one.note]
    return [*([f"numbers as they are: {', '.join(silent)}"] if silent else []), *said]


def _gaps(column: pa.ChunkedArray) -> bool:
    return bool(column.null_count or (pa.types.is_floating(column.type) and not pc.all(pc.is_finite(column)).as_py()))


def _whole(files: Sequence[Path]) -> tuple[pa.Table, list[str]]:
    """All files as one table without dictionaries; what is text in one and a number in another is text, and said so."""
    tables = [plain(read_parquet(file)) for file in files]
    notes = []
    for name in dict.fromkeys(name for table in tables for name in table.column_names):
        kinds = {at: table.schema.field(name).type for at, table in enumerate(tables) if name in table.column_names}
        texts = [at for at, kind in kinds.items() if is_text(kind)]
        others = [at for at, kind in kinds.items() if is_number(kind) and not pa.types.is_null(kind)]
        if texts and others:
            notes.append(
                f'"{name}": taken as text, for it is text in {files[texts[0]]} and a number in {files[others[0]]}'
            )
            tables = [_as_text(table, name, files[at]) for at, table in enumerate(tables)]
    try:
        return pa.concat_tables(tables, promote_options="permissive"), notes
    except pa.ArrowException as error:
        raise DataError(f"{files[0]}: does not go with the other files: {str(error).splitlines()[0]}") from None


def _as_text(table: pa.Table, name: str, file: Path) -> pa.Table:
    if name not in table.column_names:
        return table
    column = table[name]
    if pa.types.is_floating(column.type):
        column = pc.if_else(column.is_null(nan_is_null=True), None, column.cast(pa.float64()))
    return table.set_column(table.column_names.index(name), name, text_of(column, str(file), name))


def _files(parquet: Sequence[str]) -> list[Path]:
    files = [
        found
        for name in parquet
        for found in (sorted(Path(name).rglob("*.parquet")) if Path(name).is_dir() else [Path(name)])
    ]
    if not files:
        raise DataError(f"{parquet[0]}: no Parquet file there")
    return files


def _path(parquet: Sequence[str], out: Path) -> str:
    """Return what data.path should say, relative to the config."""
    if len(parquet) == 1:
        return os.path.relpath(parquet[0], out.parent or ".")
    folders = {str(Path(name).parent) for name in parquet}
    if len(folders) > 1:
        raise DataError(
            f"the files lie in several folders ({', '.join(sorted(folders))}); give their common folder instead"
        )
    return os.path.relpath(Path(folders.pop()) / "*.parquet", out.parent or ".")


def _roles(table: pa.Table, named: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    roles, notes = dict(named), []
    for role, names in _NAMES.items():
        free = {column.lower(): column for column in table.column_names if column not in roles.values()}
        guess = next((free[name] for name in names if name in free and _fits(role, table, free[name])), None)
        if role == "time" and guess is None:
            guess = next((column for column in free.values() if _is_time(table[column].type)), None)
        if role == "record" and guess is None:
            guess = next((column for column in free.values() if _unique_text(table[column])), None)
        if role not in roles and guess is not None:
            roles[role] = guess
            notes.append(f'{role}: taken to be "{guess}"; --{role} COLUMN says otherwise')
    if missing := [role for role in ("client", "record", "target") if role not in roles]:
        options = ", ".join(f"--{role} COLUMN" for role in missing)
        raise DataError(
            f"cannot tell which column is the {missing[0]} of {', '.join(table.column_names)}; give {options}"
        )
    return roles, notes


def _fits(role: str, table: pa.Table, column: str) -> bool:
    if role == "private":
        return bool(pa.types.is_boolean(table[column].type))
    return _is_time(table[column].type) if role == "time" else True


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def _unique_text(column: pa.ChunkedArray) -> bool:
    return bool(is_text(column.type) and pc.count_distinct(column).as_py() == len(column))


def _render(
    path: str, table: pa.Table, roles: Mapping[str, str], proposals: Sequence[Proposal], notes: list[str]
) -> str:
    regression = _regression(table[roles["target"]])
    features = [one for one in proposals if one.kind != "nothing"]
    lines = ["[data]", f"path = {_quote(path)}"]
    lines += [
        f"{role} = {_quote(roles[role])}"
        for role in ("client", "record", "subject", "time", "private", "target")
        if role in roles
    ]
    lines.append(f'task = "{"regression" if regression else "classification"}"')
    if not regression:
        lines.append(f"classes = {_list(_classes(table[roles['target']], roles['target']))}")
        notes += _unbalanced(table[roles["target"]])
    if missing := [one.name for one in features if one.missing]:
        lines.append(f"missing = {_list(missing)}")
    lines += ["", "[data.modalities]", f"all = {_list([one.name for one in features])}"]
    lines += _categories(features)
    ranges = [f"{key_of(one.name)} = {one.range}" for one in features if one.kind == "number"]
    transforms = [f"{key_of(one.name)} = {_quote(one.transform)}" for one in features if one.transform]
    if regression:
        ranged, transformed = _target(table, roles["target"], notes)
        ranges, transforms = [*ranges, *ranged], [*transforms, *transformed]
    lines += ["", "[data.ranges]", *ranges]
    lines += ["", "[data.transforms]", *transforms] if transforms else []
    lines += ["", "[slices]", *_slices(table, roles, notes)]
    lines += ["", "[split]", *_split(table, roles, notes)]
    return "\n".join(lines) + "\n"


def _regression(target: pa.ChunkedArray) -> bool:
    """Numbers with fractions, or whole ones of which there are many."""
    kind = target.type
    if not is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return False
    return not pa.types.is_integer(kind) or pc.count_distinct(target).as_py() > 20


def _classes(target: pa.ChunkedArray, name: str) -> list[str]:
    return sorted(pc.unique(text_of(target.drop_null(), "", name)).to_pylist())


def _unbalanced(target: pa.ChunkedArray) -> list[str]:
    """Say where a class is much rarer than another: that a model may then never name it is for the user to weigh."""
    counts = pc.value_counts(text_of(target.drop_null(), "", "")).to_pylist()
    if len(counts) < 2:
        return []
    few, many = (end(counts, key=lambda one: (one["counts"], one["values"])) for end in (min, max))
    times = many["counts"] // few["counts"]
    if times < UNBALANCED:
        return []
    return [
        f'class "{few["values"]}" has {few["counts"]:,} rows, "{many["values"]}" {many["counts"]:,}; to count it more, '
        f"add under [data.weights]: {key_of(few['values'])} = {min(times, MOST_WEIGHT)}"
    ]


def _categories(features: Sequence[Proposal]) -> list[str]:
    found = [one for one in features if one.kind == "category"]
    lines = [
        f"{key_of(one.name)} = {one.declared if isinstance(one.declared, int) else _list(one.declared)}"
        for one in found
    ]
    return ["", "[data.categories]", *lines] if found else []


def _target(table: pa.Table, name: str, notes: list[str]) -> tuple[list[str], list[str]]:
    """The lines for the range of a target that is a number, and for its transform."""
    values = numbers(table[name], "", name).to_numpy(zero_copy_only=False)
    skew = skewed(values)
    if skew is None:
        return [f"{key_of(name)} = {proposed_range(values)}"], []
    notes.append(f'"{name}": {taken_as_log1p(skew)}')
    return [f"{key_of(name)} = {proposed_range(values, 'log1p')}"], [f'{key_of(name)} = "log1p"']


def _slices(table: pa.Table, roles: Mapping[str, str], notes: list[str]) -> list[str]:
    if "time" in roles:
        first, last = _ends(table, roles)
        days = (last - first).days
        return [f'by = "{"day" if days < 28 else "week" if days < 270 else "month"}"']
    if "subject" in roles:
        return ['by = "subject"', "buckets = 16"]
    notes.append("slices: hash buckets of the record id; name a column in slices.by if records belong together")
    return [f"by = {_quote(roles['record'])}", "buckets = 16"]


def _split(table: pa.Table, roles: Mapping[str, str], notes: list[str]) -> list[str]:
    first, last = _ends(table, roles) if "time" in roles else (None, None)
    if first is None or last is None or last - first < dt.timedelta(hours=1):
        notes.append("split: shares of a hash of the record id, for want of times to cut at")
        return ["validation = 0.15", "later = 0.15", "test = 0.2"]
    borders = [first + (last - first) * share for share in (0.6, 0.72, 0.84)]
    days = [dt.datetime(b.year, b.month, b.day) for b in borders]
    exact = borders if len(set(days)) < 3 else days
    names = ("validation_from", "later_from", "test_from")
    return [f"{name} = {border.isoformat(timespec='seconds')}" for name, border in zip(names, exact, strict=True)]


def _ends(table: pa.Table, roles: Mapping[str, str]) -> tuple[dt.datetime, dt.datetime]:
    column = table[roles["time"]]
    if not _is_time(column.type):
        raise DataError(f'column "{roles["time"]}" (time) must be a timestamp or a date, got {column.type}')
    moments = (
        column.cast(pa.timestamp("us"), safe=False)
        if not getattr(column.type, "tz", None)
        else column.cast(pa.timestamp("us", "UTC")).cast(pa.timestamp("us"))
    )
    ends = pc.min_max(moments).as_py()
    if ends["min"] is None:
        raise DataError(f'column "{roles["time"]}" (time) has no value')
    return ends["min"], ends["max"]


def _quote(text: str) -> str:
    """Text in TOML, which has DEL escaped and JSON has not."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _list(texts: Sequence[str]) -> str:
    return "[" + ", ".join(map(_quote, texts)) + "]"
