"""A filter in the words of SQL, for an erase request: which rows of a shard a condition on declared columns means.

Whoever asks to erase often knows a condition, not ids: "what was measured above 30 degrees in January". SQL is what
most can already write, so sqlglot reads it and Arrow evaluates it. Nothing is guessed between the two: a text where a
number belongs, or a value that a column cannot have, is refused with the part at fault named.

It is checked against the config alone, never against records, so every client takes or refuses the same text.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.checks import text_of
from frmu.data.columns import CLIENT, RECORD, SLICE, SUBJECT, TIME, stored_targets
from frmu.data.condition import Names, cut, fault, number_in, parse_condition, sql_of, too_deep
from frmu.data.parquet import columns_of
from frmu.errors import RequestError

if TYPE_CHECKING:
    from sqlglot import exp

__all__ = ["Where", "parse_row_filter"]

LONGEST_PATTERN = 1_000  # characters of a like pattern

_COMPARE = {"eq": operator.eq, "neq": operator.ne, "lt": operator.lt, "gt": operator.gt}
_COMPARE |= {"lte": operator.le, "gte": operator.ge}
_MIRROR = {"lt": "gt", "lte": "gte", "gt": "lt", "gte": "lte"}
_VALUES = {"literal", "boolean", "null", "neg", "cast"}

Kind = Literal["text", "a number", "a time"]
Value: TypeAlias = str | float | dt.datetime


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by its name in the user's file, as Arrow finds it in a shard, and what lies in it."""

    name: str
    field: pc.Expression
    kind: Kind


@dataclass(frozen=True, slots=True)
class Where:
    """A filter on declared columns, checked against a config; `parse_row_filter` makes one."""

    text: str
    _condition: pc.Expression = field(repr=False, compare=False)

    def mask(self, table: pa.Table, client: str) -> NDArray[np.bool_]:
        """Return which rows of a client's shard the filter means, (rows,).

        >>> where = Where("home = 'a'", pc.field(CLIENT) == "a")
        >>> where.mask(pa.table({RECORD: ["1", "2"]}), "a").tolist()
        [True, True]
        """
        import pyarrow.dataset as ds  # takes 0.2 s to load, and few requests have a filter

        # A shard has no client column: it is all one client's.
        table = table.append_column(CLIENT, pa.repeat(client, table.num_rows))
        held = ds.dataset(table).to_table(columns={"held": self._condition})["held"].fill_null(False)
        return np.asarray(held.to_numpy(), dtype=bool)


def parse_row_filter(text: str, config: Config) -> Where:
    """Read a filter, or raise `RequestError` that names the part at fault.

    Columns are named as in the user's file: data.client, record, subject, time and target, the feature columns, what
    lags look at and slices.by. Comparisons (`=`, `<>`, `!=`, `<`, `<=`, `>`, `>=`), `in`, `between`, `like` and `is
    null`, each also with `not`, are joined by `and`, `or`, `not` and parentheses. Text stands in single quotes, a
    name with blanks in double quotes. Times are ISO 8601, without a zone UTC, and a date means its midnight. `like`
    knows `%` and `_`, and an escape character only where `escape '!'` names one. A category is text, whatever it is
    in the file. Where a record lacks a value, or all of a modality, its columns are null: as in SQL no comparison
    holds there, nor does its negation.

    >>> from pathlib import Path
    >>> from frmu.config import parse
    >>> data = {"path": "a.parquet", "client": "home", "record": "id", "target": "load", "task": "regression"}
    >>> config = parse({"data": data | {"modalities": {"weather": ["temperature"]}}}, Path("a.toml"))
    >>> where = parse_row_filter("temperature > 30 and id not in (7, 8)", config)
    >>> table = pa.table({RECORD: ["7", "9"], "#target": [0.0, 1.0], "temperature": [31.0, 32.0]})
    >>> where.mask(table, "home 1").tolist()
    [False, True]
    >>> parse_row_filter("temprature > 30", config)
    Traceback (most recent call last):
    frmu.errors.RequestError: where: no column "temprature" is declared in the config; did you mean "temperature"?
    """
    columns = _columns(config)
    names = Names(columns, {name: lag.column for name, lag in config.data.lags.items()})
    try:
        return Where(text, _Translation(columns, names).condition(parse_condition(text, names)))
    except RecursionError:
        raise too_deep() from None


def _columns(config: Config) -> dict[str, _Column]:
    """Return the declared columns; one that has several roles is a name first, then a number, then a label.

    A record id that is a feature as well must not be compared as float64, in which big neighbours are equal.
    """
    data = config.data
    held = columns_of(config)
    targets = stored_targets(config)
    labels, named = {RECORD, SUBJECT, TIME, *targets.values(), SLICE}, {*config.texts, *data.categories}
    roles: list[tuple[str | None, str, Kind]] = [
        (data.client, CLIENT, "text"),
        (data.record, RECORD, "text"),
        (data.subject, SUBJECT, "text"),
        (data.time, TIME, "a time"),
        *((name, name, "text" if name in named else "a number") for name in held if name not in labels),
        *((name, stored, "a number" if data.task == "regression" else "text") for name, stored in targets.items()),
        (config.slice_by if SLICE in held else None, SLICE, "text"),
    ]
    columns: dict[str, _Column] = {}
    for name, stored, kind in roles:
        if name is not None:
            columns.setdefault(name, _Column(name, pc.field(stored), kind))
    return columns


@dataclass(frozen=True, slots=True)
class _Translation:
    """Translates a tree of known nodes; kinds go by name, so that sqlglot is loaded only when a filter is read."""

    columns: dict[str, _Column]
    names: Names

    def condition(self, node: exp.Expr) -> pc.Expression:
        """Return what the node means in each row: true, false, or null where it is not known (Kleene's logic)."""
        known: dict[str, Callable[[exp.Expr], pc.Expression]] = {
            # A long chain is a deep tree that leans to the left: flattened, for the stack is short.
            "and": lambda node: reduce(operator.and_, map(self.condition, node.flatten())),
            "or": lambda node: reduce(operator.or_, map(self.condition, node.flatten())),
            "not": lambda node: ~self.condition(node.this),
            "paren": lambda node: self.condition(node.this),
            "in": self._in,
            "between": self._between,
            "like": self._like,
            "escape": self._like,
            "is": self._is,
            "column": self._bare,
        }
        if node.key in _VALUES:
            raise _no_column(node)
        return known.get(node.key, self._comparison)(node)

    def _comparison(self, node: exp.Expr) -> pc.Expression:
        left, right, how = node.this.unnest(), node.expression.unnest(), node.key
        if left.key in _VALUES:
            left, right, how = right, left, _MIRROR.get(how, how)
        column = self._column(left, node)
        return _COMPARE[how](column.field, self._value(right, column, node, ordered=how in _MIRROR))

    def _in(self, node: exp.Expr) -> pc.Expression:
        column = self._column(node.this, node)
        if not node.expressions:
            raise fault(f'"{sql_of(node)}" names no value; write {column.name} in (one, two)')
        field, values = column.field, pa.array([self._value(one, column, node) for one in node.expressions])
        if column.kind == "a number":  # isin tells -0.0 from 0.0, = does not; the sum makes both 0.0
            field, values = pc.add(field, 0.0), pc.add(values, 0.0)
        return pc.if_else(field.is_valid(), field.isin(values), pa.scalar(None, pa.bool_()))  # isin says false of null

    def _between(self, node: exp.Expr) -> pc.Expression:
        column = self._column(node.this, node)
        low, high = (self._value(node.args[side], column, node, ordered=True) for side in ("low", "high"))
        if low > high:  # type: ignore[operator]  # both are of the column's kind
            raise fault(f'"{sql_of(node)}" holds for nothing: the lower bound stands first')
        return (column.field >= low) & (column.field <= high)

    def _like(self, node: exp.Expr) -> pc.Expression:
        like, escape = (node, None) if node.key == "like" else (node.this, node.expression)
        if like.key != "like" or (escape is not None and not (escape.is_string and len(escape.name) == 1)):
            raise fault(f"\"{sql_of(node)}\": escape takes one character after like, as escape '!'")
        column, pattern = self._column(like.this, node), like.expression.unnest()
        if column.kind != "text":
            raise fault(f'"{column.name}" is {column.kind}; like is for text, compare it by < and >')
        if not pattern.is_string:
            raise fault(f"\"{sql_of(node)}\": like takes a pattern in single quotes, as like 'a%'")
        held = pc.match_substring_regex(column.field, _regex(pattern.name, None if escape is None else escape.name))
        return ~held if like.args.get("negate") else held

    def _is(self, node: exp.Expr) -> pc.Expression:
        column, value = self._column(node.this, node), node.expression
        if value.key not in ("null", "boolean"):
            raise fault(f'"{sql_of(node)}": is takes null, true or false; write = for a value')
        null = value.key == "null"
        held = column.field.is_null() if null else column.field == self._value(value, column, node)
        return ~held if node.args.get("negate") else held

    def _bare(self, node: exp.Expr) -> pc.Expression:
        column = self._column(node, node)
        held = {"a number": "= true", "text": "= 'ada'", "a time": "< '2025-02-01'"}[column.kind]
        raise fault(f'"{column.name}" alone is no condition; compare it, as {column.name} {held}')

    def _column(self, node: exp.Expr, within: exp.Expr, hint: str = "") -> _Column:
        node = node.unnest()
        if node.key == "column":
            self.names.check(node.name, hint)
            return self.columns[node.name]
        raise _no_column(within) if node.key in _VALUES else _chained(within)

    def _value(self, node: exp.Expr, column: _Column, within: exp.Expr, ordered: bool = False) -> Value:
        node = node.unnest()
        if node.key == "column":
            other = self._column(node, node, f"; text goes in single quotes: '{cut(node.name)}'")
            raise fault(f'compares two columns, "{column.name}" and "{other.name}"; give a value')
        if node.key not in _VALUES:
            raise _chained(within)
        if node.key == "null":
            raise fault(f'nothing equals null; write "{column.name} is null"')
        if column.kind == "a number":
            return _number_of(node, column)
        return _moment_of(node, column) if column.kind == "a time" else _text_of(node, column, ordered)


def _finite(written: str) -> float:
    with contextlib.suppress(ValueError):
        if np.isfinite(value := float(written)):
            return value
    raise fault(f'"{cut(written)}" is no number, or beyond float64; nothing in a shard is that large')


def _number_of(node: exp.Expr, column: _Column) -> float:
    if node.key == "boolean":
        return float(node.this)
    if (written := number_in(node)) is not None:
        return _finite(written)
    looks = node.is_string and re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", node.name)
    hint = f"; write {cut(node.name)} without quotes" if looks else ""
    raise fault(f'"{column.name}" is a number, got {sql_of(node)}{hint}')


def _text_of(node: exp.Expr, column: _Column, ordered: bool) -> str:
    if node.is_string:
        return node.name
    if node.key == "cast":
        raise fault(f'"{column.name}" is text, got {sql_of(node)}; write it in single quotes alone')
    if ordered:  # as text "9" comes after "10", which whoever writes < 10 does not expect
        raise fault(
            f'"{column.name}" is text, got {sql_of(node)}, and text is ordered by its characters: "9" comes '
            "after \"10\". Name the values by in (...), or compare with a text, as < '10'"
        )
    if node.key == "boolean":
        return "true" if node.this else "false"
    return _canonical(number_in(node) or "")


def _canonical(written: str) -> str:
    """Return a number as `frmu.data.parquet` writes it where it names something: 7 and 7.0 are "7"."""
    if re.fullmatch("-?[0-9]{1,400}", written):
        return str(int(written))
    return str(text_of(pa.chunked_array([[_finite(written)]]), "where", "value")[0].as_py())


def _moment_of(node: exp.Expr, column: _Column) -> dt.datetime:
    """Return a time as naive UTC."""
    literal, as_date = node, False
    if node.key == "cast":
        literal, as_date = node.this, node.args["to"].this.name == "DATE"
    if not literal.is_string:
        raise fault(f"\"{column.name}\" is a time, got {sql_of(node)}; write '2025-02-01' in single quotes")
    try:
        if as_date:
            return dt.datetime.combine(dt.date.fromisoformat(literal.name), dt.time())
        moment = dt.datetime.fromisoformat(literal.name)
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        forms = "2025-02-01" if as_date else "2025-02-01 or 2025-02-01T08:30+01:00"
        raise fault(f'"{column.name}" is a time, and {sql_of(node)} is none; write {forms}') from None


def _regex(pattern: str, escape: str | None) -> str:
    r"""Return a like pattern as a regular expression of RE2, whose time is linear whatever the pattern.

    Arrow's own `match_like` is not used: it finds no "a\b" by '%\\b', and has no other escape character.
    """
    if len(pattern) > LONGEST_PATTERN:
        raise fault(f"a like pattern of {len(pattern):,} characters; at most {LONGEST_PATTERN:,}")
    if escape is None and "\\" in pattern:  # databases differ in what it means
        raise fault(
            f"the like pattern '{cut(pattern)}' has a backslash; say escape '\\' to make it the escape "
            "character, or escape '!' to take it as itself"
        )
    return r"(?s)\A" + "".join(_pieces(pattern, escape)) + r"\z"


def _pieces(pattern: str, escape: str | None) -> Iterator[str]:
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            literal = next(characters, None)
            if literal not in ("%", "_", escape):
                raise fault(
                    f"in the like pattern '{cut(pattern)}' the escape character \"{escape}\" must stand before "
                    f"%, _ or itself, got {'the end' if literal is None else repr(literal)}"
                )
            yield re.escape(literal)
        else:
            yield {"%": ".*", "_": "."}.get(character) or re.escape(character)


def _no_column(node: exp.Expr) -> RequestError:
    return fault(f'"{sql_of(node)}" compares no column; to erase everything of a client, compare the client column')


def _chained(node: exp.Expr) -> RequestError:
    return fault(f'"{sql_of(node)}" chains comparisons; write "1 < a and a < 3"')
