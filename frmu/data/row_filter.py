"""A filter in the words of SQL, for an erase request: which rows of a shard a condition on declared columns means.

Whoever asks to erase often knows a condition, not ids: "what was measured above 30 degrees in January". SQL is what
most can already write, so sqlglot reads it. But a filter comes from outside and decides what is destroyed, so
nothing is guessed: its tokens and then its tree are held against a short list, and whatever is not on it - a function,
a second statement, a comment, a text where a number belongs - is refused with the part at fault named.

It is checked against the config alone, never against records, so every client takes or refuses the same text.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.checks import text_of
from frmu.data.columns import CLIENT, RECORD, SLICE, SUBJECT, TARGET, TIME
from frmu.data.parquet import columns_of
from frmu.errors import RequestError, near_miss

if TYPE_CHECKING:
    from sqlglot import Token, exp

__all__ = ["Where", "parse_row_filter"]

LONGEST = 10_000  # characters of a filter
DEEPEST = 16  # parentheses and nots inside each other; sqlglot takes some 20 frames of the stack for each
LONGEST_PATTERN = 1_000  # characters of a like pattern

_PREFIX = "where "
_TYPED = frozenset({"DATE", "TIMESTAMP", "TIMESTAMPTZ"})
_WORDS = frozenset({"AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE"})
_SIGNS = frozenset({"EQ", "NEQ", "LT", "LTE", "GT", "GTE", "L_PAREN", "R_PAREN", "COMMA", "DASH"})
_GRAMMAR = _WORDS | _SIGNS | {"STRING", "NUMBER"}
_NAMES = frozenset({"VAR", "IDENTIFIER"})
_COMPARE = {
    "EQ": "equal",
    "NEQ": "not_equal",
    "LT": "less",
    "LTE": "less_equal",
    "GT": "greater",
    "GTE": "greater_equal",
}
_MIRROR = {"less": "greater", "less_equal": "greater_equal", "greater": "less", "greater_equal": "less_equal"}
_TYPES = {"text": pa.string(), "number": pa.float64(), "time": pa.timestamp("us")}

Kind = Literal["text", "number", "time"]
Value = str | float | dt.datetime


@dataclass(frozen=True, slots=True)
class _Column:
    """A column by its name in the user's file, by its name in a shard, and what lies in it."""

    name: str
    stored: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class _Test:
    """One column held against values: `how` is a function of pyarrow.compute, or "is_in", "like", "is_null"."""

    column: _Column
    how: str
    values: tuple[Value, ...] = ()


@dataclass(frozen=True, slots=True)
class _Not:
    part: _Test | _Not | _Joined


@dataclass(frozen=True, slots=True)
class _Joined:
    word: Literal["And", "Or"]
    parts: tuple[_Test | _Not | _Joined, ...]


_Condition = _Test | _Not | _Joined


@dataclass(frozen=True, slots=True)
class Where:
    """A filter on declared columns, checked against a config; `parse_row_filter` makes one."""

    text: str
    _condition: _Condition = field(repr=False, compare=False)

    def mask(self, table: pa.Table, client: str) -> NDArray[np.bool_]:
        """Which rows of a client's shard the filter means, (rows,).

        >>> where = Where("home = 'a'", _Test(_Column("home", CLIENT, "text"), "equal", ("a",)))
        >>> where.mask(pa.table({RECORD: ["1", "2"]}), "a").tolist()
        [True, True]
        """
        held = _rows(self._condition, table, client).fill_null(False)
        return np.asarray(held.to_numpy(zero_copy_only=False), dtype=bool)


def parse_row_filter(text: str, config: Config) -> Where:
    """Read a filter, or raise `RequestError` that names the part at fault.

    Columns are named as in the user's file: data.client, record, subject, time and target, the feature columns, what
    lags look at and slices.by. Comparisons (`=`, `<>`, `!=`, `<`, `<=`, `>`, `>=`), `in`, `between`, `like` and `is
    null`, each also with `not`, are joined by `and`, `or`, `not` and parentheses. Text stands in single quotes, a
    name with blanks in double quotes. Times are ISO 8601, without a zone UTC, and a date means its midnight. `like`
    knows `%` and `_`, and an escape character only where `escape '!'` names one. Where a record lacks a modality, its
    columns are null: as in SQL no comparison holds there, nor does its negation.

    >>> from pathlib import Path
    >>> from frmu.config import parse
    >>> data = {"path": "a.parquet", "client": "home", "record": "id", "target": "load", "task": "regression"}
    >>> config = parse({"data": data | {"modalities": {"weather": ["temperature"]}}}, Path("a.toml"))
    >>> where = parse_row_filter("temperature > 30 and id not in (7, 8)", config)
    >>> table = pa.table({RECORD: ["7", "9"], TARGET: [0.0, 1.0], "temperature": [31.0, 32.0]})
    >>> where.mask(table, "home 1").tolist()
    [False, True]
    >>> parse_row_filter("temprature > 30", config)
    Traceback (most recent call last):
    frmu.errors.RequestError: where: no column "temprature" is declared in the config; did you mean "temperature"?
    """
    _readable(text)
    names = _Names(_columns(config), {name: lag.column for name, lag in config.data.lags.items()})
    try:
        return Where(text, _Translation(names).condition(_tree(text, names)))
    except RecursionError:
        raise _too_deep() from None


def _columns(config: Config) -> dict[str, _Column]:
    """The declared columns; one that has several roles is a name first, then a number, then a label.

    A record id that is a feature as well must not be compared as float64, in which big neighbours are equal.
    """
    data = config.data
    held = columns_of(config)
    labels = {RECORD, SUBJECT, TIME, TARGET, SLICE}
    target: Kind = "number" if data.task == "regression" else "text"
    roles: list[tuple[str | None, str, Kind]] = [
        (data.client, CLIENT, "text"),
        (data.record, RECORD, "text"),
        (data.subject, SUBJECT, "text"),
        (data.time, TIME, "time"),
        *((name, name, "text" if name in config.texts else "number") for name in held if name not in labels),
        (data.target, TARGET, target),
        (config.slice_by if SLICE in held else None, SLICE, "text"),
    ]
    columns: dict[str, _Column] = {}
    for name, stored, kind in roles:
        if name is not None:
            columns.setdefault(name, _Column(name, stored, kind))
    return columns


@dataclass(frozen=True, slots=True)
class _Names:
    """The declared columns by name, and the lags, which are none, with the column that each looks at."""

    columns: dict[str, _Column]
    lags: dict[str, str]

    def column(self, name: str, hint: str = "") -> _Column:
        if name in self.columns:
            return self.columns[name]
        if name in self.lags:
            seen = self.lags[name]
            raise RequestError(f'where: "{name}" is a lag, computed from "{seen}"; filter on "{seen}"')
        raise RequestError(f'where: no column "{_cut(name)}" is declared in the config{hint or self._nearest(name)}')

    def _nearest(self, name: str) -> str:
        for known in self.columns:
            if known.casefold() == name.casefold():
                return f'; did you mean "{known}"? Upper and lower case are told apart'
        if hint := near_miss(name, self.columns):
            return hint
        return f"; it declares {_cut(', '.join(self.columns), 300)}. A shard keeps no other column"


# --- from text to sqlglot's tree -----------------------------------------------------------------------------------


def _readable(text: str) -> None:
    """What must hold before any library sees the text."""
    if len(text) > LONGEST:
        raise RequestError(f"where: {len(text):,} characters; at most {LONGEST:,}. For many ids, give a file of ids")
    if not text.strip():
        raise RequestError("where: says nothing; write a condition such as: temperature > 30")
    if "\0" in text:
        raise RequestError(f"where: NUL character after {text.partition(chr(0))[0][-20:]!r}; no name or text has one")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(f"where: character {error.start + 1} is not valid Unicode; is the terminal UTF-8?") from None


def _tree(text: str, names: _Names) -> exp.Expr:
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import SqlglotError

    dialect = Dialect.get_or_raise(None)
    try:
        # At the start of a text sqlglot takes words such as "load" for commands; after "where" for columns.
        where, *tokens = dialect.tokenize(_PREFIX + text)
    except SqlglotError:
        raise RequestError("where: cannot be read: a quote or a comment is opened and not closed") from None
    _no_comments([where, *tokens])
    _known_tokens(tokens, text, names)
    if _depth(tokens) > DEEPEST:
        raise _too_deep()
    try:
        trees = dialect.parser().parse_into(exp.Condition, tokens, _PREFIX + text)
    except SqlglotError as error:
        raise RequestError(f"where: cannot be read{_place(error)}; {_EXAMPLE}") from None
    if len(trees) != 1 or trees[0] is None:
        raise RequestError(f"where: is not one condition; {_EXAMPLE}")
    return trees[0]


_EXAMPLE = "a filter is comparisons joined by and, or, not, such as: temperature > 30 and person in ('ada', 'bo')"


def _place(error: Exception) -> str:
    """Where sqlglot stumbled, without its colours and our prefix."""
    problem = (getattr(error, "errors", None) or [{}])[0]
    before, at = str(problem.get("start_context") or ""), str(problem.get("highlight") or "")
    read = (before + at).removeprefix(_PREFIX)
    return f' at the end of "{read[-40:]}"' if read else ""


def _no_comments(tokens: Iterable[Token]) -> None:
    for token in tokens:
        if token.comments:
            raise RequestError(f"where: holds a comment, {_cut(token.comments[0].strip())!r}; a filter takes none")


def _known_tokens(tokens: list[Token], text: str, names: _Names) -> None:
    """Refuse what no filter has, by its own text and before the parser gives it a meaning."""
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        kind, start = token.token_type.name, token.start - len(_PREFIX)
        said = text[start : token.end + 1 - len(_PREFIX)]
        if kind == "SEMICOLON":
            raise RequestError(f'where: ";" after character {start}: a filter is one condition')
        if kind not in _GRAMMAR and following is not None and following.token_type.name == "L_PAREN":
            raise RequestError(f'where: calls a function, "{_cut(said)}(...)"; a filter compares columns only')
        if kind not in _GRAMMAR | _NAMES | _TYPED:
            _as_name(token, said, names)


def _as_name(token: Token, said: str, names: _Names) -> None:
    """Take a word that means something in SQL at large, such as "load" or "end", for the column of that name."""
    from sqlglot import TokenType

    if not re.fullmatch(r"\w+", said):
        raise RequestError(
            f'where: "{_cut(said)}" is none of the signs of a filter, which are = <> != < <= > >= ( ) , and -; '
            "a column with other characters than letters, digits and _ goes in double quotes"
        )
    names.column(said, _no_word(said, names))
    token.token_type = TokenType.VAR


def _no_word(said: str, names: _Names) -> str:
    near = near_miss(said, names.columns)
    return near or f", nor is it a word that a filter knows: {', '.join(sorted(_WORDS | _TYPED)).lower()}"


def _depth(tokens: Iterable[Token]) -> int:
    """How many parentheses, nots and minus signs stand inside each other at most."""
    levels, run, deepest = [0], 0, 0
    for token in tokens:
        kind = token.token_type.name
        if kind in ("NOT", "DASH"):
            run += 1
        else:
            if kind == "L_PAREN":
                levels.append(levels[-1] + run + 1)
            elif kind == "R_PAREN" and len(levels) > 1:
                levels.pop()
            run = 0
        deepest = max(deepest, levels[-1] + run)
    return deepest


def _too_deep() -> RequestError:
    return RequestError(f"where: more than {DEEPEST} parentheses and nots inside each other; write it flatter")


# --- from sqlglot's tree to a condition ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Translation:
    """Translates the few kinds of nodes that a filter may have; kinds go by name, so that none is imported."""

    names: _Names

    def condition(self, node: exp.Expr) -> _Condition:
        kind = _kind(node)
        if kind in ("And", "Or"):
            return self._joined(node)
        if kind in _COMPARE:
            return self._comparison(node)
        known: dict[str, Callable[[exp.Expr], _Condition]] = {
            "Paren": self._inner,
            "Not": self._not,
            "In": self._in,
            "Between": self._between,
            "Like": self._like,
            "Escape": self._escaped,
            "Is": self._is,
            "Column": self._bare,
        }
        if kind in known:
            return known[kind](node)
        if kind in ("Boolean", "Literal", "Null", "Neg", "Cast"):
            raise _no_column(node)
        raise _refused(node)

    def _joined(self, node: exp.Expr) -> _Joined:
        # A long chain is a deep tree that leans to the left: a loop, for the stack is short.
        word: Literal["And", "Or"] = "And" if _kind(node) == "And" else "Or"
        parts, waiting = [], [node]
        while waiting:
            one = waiting.pop()
            if _kind(one) == word:
                _only(one, "this", "expression")
                waiting += [one.expression, one.this]
            else:
                parts.append(self.condition(one))
        return _Joined(word, tuple(parts))

    def _inner(self, node: exp.Expr) -> _Condition:
        _only(node, "this")
        return self.condition(node.this)

    def _not(self, node: exp.Expr) -> _Not:
        _only(node, "this")
        return _Not(self.condition(node.this))

    def _comparison(self, node: exp.Expr) -> _Test:
        _only(node, "this", "expression")
        how = _COMPARE[_kind(node)]
        left, right = _bared(node.this), _bared(node.expression)
        for side in (left, right):
            if _kind(side) in _COMPARE:
                raise RequestError(f'where: "{_sql(node)}" chains comparisons; write "1 < a and a < 3"')
        if _kind(left) != "Column":
            if _kind(right) != "Column":
                raise _no_column(node) if _is_value(left) and _is_value(right) else _refused(_strange(left, right))
            left, right, how = right, left, _MIRROR.get(how, how)
        column = self._column(left)
        return _Test(column, how, (self._value(right, column, ordered=how in _MIRROR),))

    def _in(self, node: exp.Expr) -> _Test:
        _only(node, "this", "expressions")
        column = self._column(node.this)
        if not node.expressions:
            raise RequestError(f'where: "{_sql(node)}" names no value; write {column.name} in (one, two)')
        return _Test(column, "is_in", tuple(self._value(one, column) for one in node.expressions))

    def _between(self, node: exp.Expr) -> _Joined:
        _only(node, "this", "low", "high")
        column = self._column(node.this)
        low, high = (self._value(node.args[side], column, ordered=True) for side in ("low", "high"))
        if low > high:  # type: ignore[operator]  # both are of the column's kind
            raise RequestError(f'where: "{_sql(node)}" holds for nothing: the lower bound stands first')
        return _Joined("And", (_Test(column, "greater_equal", (low,)), _Test(column, "less_equal", (high,))))

    def _escaped(self, node: exp.Expr) -> _Condition:
        _only(node, "this", "expression")
        if _kind(node.this) != "Like" or not _is_text(node.expression) or len(node.expression.this) != 1:
            raise RequestError(f"where: \"{_sql(node)}\": escape takes one character after like, as escape '!'")
        return self._like(node.this, node.expression.this)

    def _like(self, node: exp.Expr, escape: str | None = None) -> _Condition:
        _only(node, "this", "expression", "negate")
        column, pattern = self._column(node.this), _bared(node.expression)
        if column.kind != "text":
            raise RequestError(f'where: "{column.name}" is {_A[column.kind]}; like is for text, compare it by < and >')
        if not _is_text(pattern):
            raise RequestError(f"where: \"{_sql(node)}\": like takes a pattern in single quotes, as like 'a%'")
        test = _Test(column, "like", (_regex(pattern.this, escape),))
        return _Not(test) if node.args.get("negate") else test

    def _is(self, node: exp.Expr) -> _Condition:
        _only(node, "this", "expression", "negate")
        column, value = self._column(node.this), node.expression
        if _kind(value) == "Null":
            test = _Test(column, "is_null")
        elif _kind(value) == "Boolean":
            test = _Test(column, "equal", (self._value(value, column),))
        else:
            raise RequestError(f'where: "{_sql(node)}": is takes null, true or false; write = for a value')
        return _Not(test) if node.args.get("negate") else test

    def _bare(self, node: exp.Expr) -> _Condition:
        column = self._column(node)
        told = {
            "number": f"{column.name} = true",
            "text": f"{column.name} = 'ada'",
            "time": f"{column.name} < '2025-02-01'",
        }
        raise RequestError(f'where: "{column.name}" alone is no condition; compare it, as {told[column.kind]}')

    def _column(self, node: exp.Expr, hint: str = "") -> _Column:
        node = _bared(node)
        if _kind(node) != "Column":
            raise _no_column(node) if _is_value(node) else _refused(node)
        _only(node, "this")
        if _kind(node.this) != "Identifier":
            raise _refused(node)
        return self.names.column(node.this.this, hint)

    def _value(self, node: exp.Expr, column: _Column, ordered: bool = False) -> Value:
        node = _bared(node)
        kind = _kind(node)
        if kind == "Column":
            name = node.name
            other = self._column(node, f"; text goes in single quotes: '{_cut(name)}'")
            raise RequestError(f'where: compares two columns, "{column.name}" and "{other.name}"; give a value')
        if kind == "Null":
            raise RequestError(f'where: nothing equals null; write "{column.name} is null"')
        if not _is_value(node):
            raise _refused(node)
        if column.kind == "number":
            return _number_of(node, column)
        return _moment_of(node, column) if column.kind == "time" else _text_of(node, column, ordered)


_A = {"text": "text", "number": "a number", "time": "a time"}


def _kind(node: Any) -> str:
    return type(node).__name__


def _bared(node: exp.Expr) -> exp.Expr:
    """The node without parentheses around it."""
    while _kind(node) == "Paren":
        _only(node, "this")
        node = node.this
    return node


def _only(node: exp.Expr, *known: str) -> None:
    """Refuse a node with an argument that a filter does not have: `between symmetric`, `in` with a subquery."""
    for name, value in node.args.items():
        if name not in known and value is not None and value is not False and value != []:
            raise _refused(node)


def _is_text(node: Any) -> bool:
    return _kind(node) == "Literal" and bool(node.is_string)


def _is_value(node: exp.Expr) -> bool:
    if _kind(node) == "Neg":
        return _number(node) is not None
    return _kind(node) in ("Literal", "Boolean", "Null") or (_kind(node) == "Cast" and _is_text(node.this))


def _strange(left: exp.Expr, right: exp.Expr) -> exp.Expr:
    """The side of a comparison that is at fault."""
    return right if _is_value(left) else left


def _number(node: exp.Expr) -> str | None:
    """A number as it is written, with its sign; None where the node is none."""
    sign = ""
    while _kind(node) == "Neg":
        sign, node = ("" if sign else "-"), _bared(node.this)
    return sign + str(node.this) if _kind(node) == "Literal" and not node.is_string else None


def _finite(written: str) -> float:
    try:
        value = float(written)
    except ValueError:
        raise RequestError(f'where: "{_cut(written)}" is not a number') from None
    if not np.isfinite(value):
        raise RequestError(f'where: "{_cut(written)}" is beyond float64; nothing in a shard is that large')
    return value


def _number_of(node: exp.Expr, column: _Column) -> float:
    if _kind(node) == "Boolean":
        return float(bool(node.this))
    written = _number(node)
    if written is None:
        hint = f"; write {_cut(node.this)} without quotes" if _is_text(node) and _looks_like_number(node.this) else ""
        raise RequestError(f'where: "{column.name}" is a number, got {_sql(node)}{hint}')
    return _finite(written)


def _looks_like_number(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text) is not None


def _text_of(node: exp.Expr, column: _Column, ordered: bool) -> str:
    if _is_text(node):
        return str(node.this)
    if _kind(node) == "Cast":
        raise RequestError(f'where: "{column.name}" is text, got {_sql(node)}; write it in single quotes alone')
    if ordered:  # as text "9" comes after "10", which whoever writes < 10 does not expect
        raise RequestError(
            f'where: "{column.name}" is text, got {_sql(node)}, and text is ordered by its characters: "9" comes '
            "after \"10\". Name the values by in (...), or compare with a text, as < '10'"
        )
    if _kind(node) == "Boolean":
        return "true" if node.this else "false"
    return _canonical(_number(node) or "")


def _canonical(written: str) -> str:
    """A number as `frmu.data.parquet` writes it where it names something: 7 and 7.0 are "7"."""
    whole = re.fullmatch(r"(-?)0*([0-9]+)", written)
    if whole is not None:
        return "0" if whole[2] == "0" else whole[1] + whole[2]
    return str(text_of(pa.chunked_array([[_finite(written)]]), "where", "value")[0].as_py())


def _moment_of(node: exp.Expr, column: _Column) -> dt.datetime:
    """A time as naive UTC."""
    literal, as_date = node, False
    if _kind(node) == "Cast":
        _only(node, "this", "to")
        literal, as_date = node.this, node.args["to"].this.name == "DATE"
    if not _is_text(literal):
        raise RequestError(f"where: \"{column.name}\" is a time, got {_sql(node)}; write '2025-02-01' in single quotes")
    try:
        if as_date:
            return dt.datetime.combine(dt.date.fromisoformat(literal.this), dt.time())
        moment = dt.datetime.fromisoformat(literal.this)
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise RequestError(
            f'where: "{column.name}" is a time, and {_sql(node)} is none; write 2025-02-01'
            + ("" if as_date else " or 2025-02-01T08:30+01:00")
        ) from None


def _regex(pattern: str, escape: str | None) -> str:
    """A like pattern as a regular expression of RE2, whose time is linear whatever the pattern."""
    if len(pattern) > LONGEST_PATTERN:
        raise RequestError(f"where: a like pattern of {len(pattern):,} characters; at most {LONGEST_PATTERN:,}")
    if escape is None and "\\" in pattern:  # databases differ in what it means
        raise RequestError(
            f"where: the like pattern '{_cut(pattern)}' has a backslash; say escape '\\' to make it the escape "
            "character, or escape '!' to take it as itself"
        )
    regex = r"(?s)\A" + "".join(_pieces(pattern, escape)) + r"\z"
    try:
        pc.match_substring_regex(pa.array([], pa.string()), regex)
    except pa.ArrowInvalid:
        raise RequestError(f"where: the like pattern '{_cut(pattern)}' is too large; shorten it") from None
    return regex


def _pieces(pattern: str, escape: str | None) -> Iterator[str]:
    characters = iter(pattern)
    for character in characters:
        if character == escape:
            literal = next(characters, None)
            if literal not in ("%", "_", escape):
                raise RequestError(
                    f"where: in the like pattern '{_cut(pattern)}' the escape character \"{escape}\" must stand before "
                    f"%, _ or itself, got {'the end' if literal is None else repr(literal)}"
                )
            yield re.escape(literal)
        else:
            yield {"%": ".*", "_": "."}.get(character) or re.escape(character)


def _no_column(node: exp.Expr) -> RequestError:
    return RequestError(
        f'where: "{_sql(node)}" compares no column; to erase everything of a client, compare the client column'
    )


def _refused(node: exp.Expr) -> RequestError:
    what = {
        "Sub": "is arithmetic, which a filter does not do; a column with - in its name goes in double quotes",
        "Neg": "is arithmetic, which a filter does not do; - stands before a number only",
        "Tuple": "is a list, which only in takes",
        "Concat": "are two texts beside each other; a quote within a text is doubled, as 'O''Hara'",
    }
    said = what.get(_kind(node), f"({_kind(node).lower()}) is not part of a filter; {_EXAMPLE}")
    return RequestError(f'where: "{_sql(node)}" {said}')


def _sql(node: exp.Expr) -> str:
    if _kind(node) == "Cast" and _is_text(node.this):  # as it is written: date '2025-02-01'
        return _cut(f"{node.args['to'].sql().lower()} {node.this.sql()}")
    return _cut(node.sql())


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[:longest] + "..."


# --- from a condition to rows --------------------------------------------------------------------------------------


def _rows(condition: _Condition, table: pa.Table, client: str) -> Any:
    """What a condition is in each row, (rows,): true, false, or null where it is not known (Kleene's logic)."""
    if isinstance(condition, _Not):
        return pc.invert(_rows(condition.part, table, client))
    if isinstance(condition, _Test):
        return _holds(condition, table, client)
    join = pc.and_kleene if condition.word == "And" else pc.or_kleene
    rows = _rows(condition.parts[0], table, client)
    for part in condition.parts[1:]:
        rows = join(rows, _rows(part, table, client))
    return rows


def _holds(test: _Test, table: pa.Table, client: str) -> Any:
    if test.column.stored == CLIENT:  # a shard has no client column: it is all one client's
        return pa.repeat(_compared(test, pa.array([client]))[0], table.num_rows)
    return _compared(test, table[test.column.stored])


def _compared(test: _Test, column: Any) -> Any:
    kind = _TYPES[test.column.kind]
    if test.how == "is_null":
        return pc.is_null(column)
    if test.how == "like":
        return pc.match_substring_regex(column, test.values[0])
    if test.how == "is_in":
        values = pa.array(test.values, kind)
        if test.column.kind == "number":  # is_in tells -0.0 from 0.0, = does not; the sum makes both 0.0
            column, values = pc.add(column, 0.0), pc.add(values, 0.0)
        # is_in says false of null.
        return pc.if_else(pc.is_valid(column), pc.is_in(column, value_set=values), pa.scalar(None, pa.bool_()))
    return getattr(pc, test.how)(column, pa.scalar(test.values[0], kind))
