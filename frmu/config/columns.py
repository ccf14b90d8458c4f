"""Columns of a real table, as `[data]` declares them: what may be missing, categories, and transforms.

Everything is declared and nothing is computed from records, so no column of one record depends on another, and an
erased record leaves nothing behind in those that remain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from frmu.errors import near_miss

if TYPE_CHECKING:
    from frmu.config.data import Data

__all__ = ["MOST_BUCKETS", "MOST_VALUES", "OTHER", "Categories", "check_columns", "dumped", "read_categories"]

MOST_VALUES, MOST_BUCKETS = 512, 4096
MOST_WEIGHT = 1000
OTHER = "other"  # the column of a value that is not declared
Categories = dict[str, tuple[str, ...] | int]


def read_categories(raw: object) -> object:
    """Return `[data.categories]` with every declared value as text; raises `ValueError` for what can be no category.

    >>> read_categories({"colour": ["red", 7, True], "city": 64})
    {'colour': ('red', '7', 'true'), 'city': 64}
    """
    if not isinstance(raw, Mapping):
        return raw
    return {name: _category(name, declared) for name, declared in raw.items()}


def _category(name: str, declared: Any) -> tuple[str, ...] | int:
    if isinstance(declared, int) and not isinstance(declared, bool):
        if not 2 <= declared <= MOST_BUCKETS:
            raise ValueError(
                f'category "{name}" must be a list of values, or from 2 to {MOST_BUCKETS:,} buckets, got {declared}'
            )
        return declared
    if not isinstance(declared, list | tuple):
        raise ValueError(f'category "{name}" must be a list of values, or a number of buckets, got {declared!r}')
    values = tuple(_value(name, value) for value in declared)
    if not 1 <= len(values) <= MOST_VALUES:
        raise ValueError(
            f'category "{name}" must list 1 to {MOST_VALUES} values, got {len(values):,}; hash it: a number of buckets '
            "needs no list"
        )
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f'category "{name}" must list each value once, got "{twice[0]}" twice')
    return values


def _value(category: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | str):
        return str(value)
    raise ValueError(
        f'category "{category}" must list texts, whole numbers or booleans, got {value!r}; put it in quotes'
    )


def check_columns(data: Data) -> None:
    """Raise `ValueError` where what may be missing, a category or a transform does not fit the rest of `[data]`."""
    _check_targets(data)
    _check_weights(data)
    _check_missing(data)
    _check_categories(data)
    _check_transforms(data)


def _check_targets(data: Data) -> None:
    if not data.targets or len(set(data.targets)) < len(data.targets):
        raise ValueError(f"target must name one column, or several, each once, got {list(data.targets)}")
    if len(data.targets) > 1 and data.task != "regression":
        raise ValueError(
            f'target must name one column where task = "classification", got {len(data.targets)}; several are for a '
            "regression"
        )


def _check_weights(data: Data) -> None:
    if data.weights and data.task != "classification":
        raise ValueError('weights are for task = "classification"')
    for name, weight in data.weights.items():
        if data.classes is not None and name not in data.classes:
            raise ValueError(f'weight of "{name}" must be that of one of data.classes{near_miss(name, data.classes)}')
        if not 1 <= weight <= MOST_WEIGHT:
            raise ValueError(
                f'weight of "{name}" must be a whole number from 1 to {MOST_WEIGHT:,}, got {weight}: so often a record '
                "of the class counts"
            )


def _check_missing(data: Data) -> None:
    known = _held(data)
    if twice := sorted({name for name in data.missing if data.missing.count(name) > 1}):
        raise ValueError(f'missing must name each column once, got "{twice[0]}" twice')
    for name in data.missing:
        if name in data.lags:
            raise ValueError(f'missing "{name}" is a lag, which says by itself where it has no value; leave it out')
        if name in data.targets:
            raise ValueError(f'missing "{name}" is the target: a record without one teaches nothing')
        if name not in known:
            raise ValueError(f'missing "{name}" must be a feature of data.modalities{near_miss(name, known)}')


def _check_categories(data: Data) -> None:
    for name in data.categories:
        if name in data.lags or name in {lag.column for lag in data.lags.values()}:
            raise ValueError(
                f'category "{name}" must not be a lag, nor the column that one looks at: a lag is a number'
            )
        if name not in data.features:
            hint = near_miss(name, data.features)
            raise ValueError(f'category "{name}" must be a feature of one of data.modalities{hint}')
        if name in data.ranges:
            raise ValueError(f'range of "{name}": it is a category, which has no range')


def _check_transforms(data: Data) -> None:
    known = _held(data) - set(data.categories) | (set(data.targets) if data.task == "regression" else set())
    for name in data.transforms:
        if name in data.lags:
            column = data.lags[name].column
            raise ValueError(f'transform of "{name}": a lag has that of its column; transform "{column}"')
        if name in data.categories:
            raise ValueError(f'transform of "{name}": it is a category, and a transform is of numbers')
        if name not in known:
            raise ValueError(f'transform of "{name}" names no number{near_miss(name, known)}')
        for ranged in (name, *(lag for lag, of in data.lags.items() if of.column == name)):
            low = data.ranges.get(ranged, [0.0])[0]
            if low <= -1.0:
                raise ValueError(
                    f'range of "{ranged}" must begin above -1 for the transform "log1p" of "{name}", got {low:g}: the '
                    "logarithm of 1 + x has no value there"
                )


def _held(data: Data) -> set[str]:
    """The columns that a shard keeps for features: those of the file, and what lags look at."""
    return {*(set(data.features) - set(data.lags)), *(lag.column for lag in data.lags.values())}


def dumped(dump: Mapping[str, Any], missing: Iterable[str]) -> dict[str, Any]:
    """Return a dump of `[data]` for the fingerprint: without what says nothing, the order of `missing` among it.

    >>> dumped({"path": "a", "missing": ["b", "a"], "categories": {}, "transforms": {}}, ["b", "a"])
    {'path': 'a', 'missing': ['a', 'b']}
    """
    silent = ("missing", "categories", "transforms", "weights")
    found = {name: value for name, value in dump.items() if name not in silent or value}
    return found | ({"missing": sorted(missing)} if "missing" in found else {})
