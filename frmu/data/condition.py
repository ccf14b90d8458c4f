"""A condition in SQL as a tree of the few kinds of nodes that a row filter is made of.

The text comes from outside and decides what is destroyed, so it is held against short lists twice: its tokens before
sqlglot gives them a meaning, bounded in depth before anything recurses, and then the nodes of the tree with their
arguments. What is on no list is refused with the part at fault named.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from frmu.errors import RequestError, near_miss

if TYPE_CHECKING:
    from sqlglot import Token, exp

__all__ = ["Names", "cut", "fault", "number_in", "parse_condition", "sql_of", "too_deep"]

LONGEST = 10_000  # characters of a filter
DEEPEST = 16  # parentheses and nots inside each other; sqlglot takes some 20 frames of the stack for each

_PREFIX = "where "
_EXAMPLE = "a filter is comparisons joined by and, or, not, such as: temperature > 30 and person in ('ada', 'bo')"
_WORDS = {"AND", "OR", "NOT", "IN", "BETWEEN", "LIKE", "ESCAPE", "IS", "NULL", "TRUE", "FALSE"}
_TYPED = {"DATE", "TIMESTAMP", "TIMESTAMPTZ"}
_SIGNS = {"EQ", "NEQ", "LT", "LTE", "GT", "GTE", "L_PAREN", "R_PAREN", "COMMA", "DASH", "STRING", "NUMBER"}
_NODES = {  # by kind, the arguments that a node may have
    **{kind: {"this", "expression"} for kind in ("and", "or", "eq", "neq", "lt", "lte", "gt", "gte", "escape")},
    **{kind: {"this", "expression", "negate"} for kind in ("like", "is")},
    **{kind: {"this"} for kind in ("paren", "not", "neg", "column", "boolean", "null", "datatype")},
    **{"in": {"this", "expressions"}, "between": {"this", "low", "high"}, "cast": {"this", "to"}},
    **{"literal": {"this", "is_string"}, "identifier": {"this", "quoted"}},
}


@dataclass(frozen=True, slots=True)
class Names:
    """The columns that a condition may name, and the lags, which are none, with the column that each looks at."""

    columns: Collection[str]
    lags: Mapping[str, str]

    def check(self, name: str, hint: str = "") -> None:
        """Raise `RequestError` with a hint where no column has the name.

        >>> Names(["load"], {}).check("laod")
        Traceback (most recent call last):
        frmu.errors.RequestError: where: no column "laod" is declared in the config; did you mean "load"?
        """
        if name in self.columns:
            return
        if name in self.lags:
            seen = self.lags[name]
            raise fault(f'"{name}" is a lag, computed from "{seen}"; filter on "{seen}"')
        raise fault(f'no column "{cut(name)}" is declared in the config{hint or self._nearest(name)}')

    def _nearest(self, name: str) -> str:
        for known in self.columns:
            if known.casefold() == name.casefold():
                return f'; did you mean "{known}"? Upper and lower case are told apart'
        every = f"; it declares {cut(', '.join(self.columns), 300)}. A shard keeps no other column"
        return near_miss(name, self.columns) or every


def parse_condition(text: str, names: Names) -> exp.Expr:
    """Return the tree of a condition; raises `RequestError` that names the part at fault.

    >>> parse_condition("load > 3", Names(["load"], {})).key
    'gt'
    >>> parse_condition("load > 3;", Names(["load"], {}))
    Traceback (most recent call last):
    frmu.errors.RequestError: where: ";" after character 8: a filter is one condition
    """
    from sqlglot import exp
    from sqlglot.dialects.dialect import Dialect
    from sqlglot.errors import SqlglotError

    _readable(text)
    dialect = Dialect.get_or_raise(None)
    try:
        # At the start of a text sqlglot takes words such as "load" for commands; after "where" for columns.
        where, *tokens = dialect.tokenize(_PREFIX + text)
    except SqlglotError:
        raise fault("cannot be read: a quote or a comment is opened and not closed") from None
    if comments := [comment for token in (where, *tokens) for comment in token.comments]:
        raise fault(f"holds a comment, {cut(comments[0].strip())!r}; a filter takes none")
    _known_tokens(tokens, text, names)
    _bounded(tokens)
    try:
        trees = dialect.parser().parse_into(exp.Condition, tokens, _PREFIX + text)
    except SqlglotError as error:
        raise fault(f"cannot be read{_place(error)}; {_EXAMPLE}") from None
    if len(trees) != 1 or trees[0] is None:
        raise fault(f"is not one condition; {_EXAMPLE}")
    _known_nodes(trees[0])
    return trees[0]


def _readable(text: str) -> None:
    """Refuse what no library should see."""
    if len(text) > LONGEST:
        raise fault(f"{len(text):,} characters; at most {LONGEST:,}. For many ids, give a file of ids")
    if not text.strip():
        raise fault("says nothing; write a condition such as: temperature > 30")
    if "\0" in text:
        raise fault(f"NUL character after {text.partition(chr(0))[0][-20:]!r}; no name or text has one")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise fault(f"character {error.start + 1} is not valid Unicode; is the terminal UTF-8?") from None


def _known_tokens(tokens: list[Token], text: str, names: Names) -> None:
    """Refuse what no filter has, by its own text and before the parser gives it a meaning.

    A word that means something in SQL at large, such as "load" or "end", is the column of that name.
    """
    from sqlglot import TokenType

    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        kind, start = token.token_type.name, token.start - len(_PREFIX)
        said = text[start : token.end + 1 - len(_PREFIX)]
        if kind == "SEMICOLON":
            raise fault(f'";" after character {start}: a filter is one condition')
        if kind in _WORDS | _SIGNS:
            continue
        if following is not None and following.token_type.name == "L_PAREN":
            raise fault(f'calls a function, "{cut(said)}(...)"; a filter compares columns only')
        if kind in _TYPED | {"VAR", "IDENTIFIER"}:
            continue
        if not re.fullmatch(r"\w+", said):
            raise fault(
                f'"{cut(said)}" is none of the signs of a filter, which are = <> != < <= > >= ( ) , and -; '
                "a column with other characters than letters, digits and _ goes in double quotes"
            )
        words = f", nor is it a word that a filter knows: {', '.join(sorted(_WORDS | _TYPED)).lower()}"
        names.check(said, near_miss(said, names.columns) or words)
        token.token_type = TokenType.VAR


def _bounded(tokens: Iterable[Token]) -> None:
    """Refuse what is too deep before it is parsed: parentheses, nots and minus signs inside each other."""
    opened: list[int] = []
    run = 0
    for token in tokens:
        kind = token.token_type.name
        if kind == "L_PAREN":
            opened.append(run + 1)
        elif kind == "R_PAREN" and opened:
            opened.pop()
        run = run + 1 if kind in ("NOT", "DASH") else 0
        if sum(opened) + run > DEEPEST:
            raise too_deep()


def _place(error: Exception) -> str:
    """Return where sqlglot stumbled, without its colours and our prefix."""
    problem = (getattr(error, "errors", None) or [{}])[0]
    before, at = str(problem.get("start_context") or ""), str(problem.get("highlight") or "")
    read = (before + at).removeprefix(_PREFIX)
    return f' at the end of "{read[-40:]}"' if read else ""


def _known_nodes(tree: exp.Expr) -> None:
    """Refuse a kind of node that no filter has, or an argument: `between symmetric`, `in` with a subquery."""
    for node in tree.walk():
        given = {name for name, value in node.args.items() if value not in (None, False, [])}
        if node.key not in _NODES or given - _NODES[node.key] or (node.key == "neg" and number_in(node) is None):
            raise _refused(node)


def _refused(node: exp.Expr) -> RequestError:
    what = {
        "sub": "is arithmetic, which a filter does not do; a column with - in its name goes in double quotes",
        "neg": "is arithmetic, which a filter does not do; - stands before a number only",
        "tuple": "is a list, which only in takes",
        "concat": "are two texts beside each other; a quote within a text is doubled, as 'O''Hara'",
    }
    return fault(f'"{sql_of(node)}" {what.get(node.key, f"({node.key}) is not part of a filter; {_EXAMPLE}")}')


# --- for whoever reads the tree ------------------------------------------------------------------------------------


def number_in(node: exp.Expr) -> str | None:
    """Return a number as it is written, with its sign; None where the node is none.

    >>> number_in(parse_condition("load > - - 3", Names(["load"], {})).expression)
    '3'
    """
    sign = ""
    while node.key == "neg":
        sign, node = ("" if sign else "-"), node.this.unnest()
    return sign + node.name if node.is_number else None


def sql_of(node: exp.Expr) -> str:
    """Return a node in the words of SQL, short enough for a message.

    >>> sql_of(parse_condition("ts > date '2025-02-01'", Names(["ts"], {})).expression)
    "date '2025-02-01'"
    """
    if node.key == "cast" and node.this.is_string:  # as it is written
        return cut(f"{node.args['to'].sql().lower()} {node.this.sql()}")
    return cut(node.sql())


def cut(text: str, longest: int = 60) -> str:
    """Return at most so many characters of a text.

    >>> cut("temperature", 4)
    'temp...'
    """
    return text if len(text) <= longest else text[:longest] + "..."


def fault(said: str) -> RequestError:
    """Return the error that says what is wrong with a condition.

    >>> fault("says nothing")
    RequestError('where: says nothing')
    """
    return RequestError(f"where: {said}")


def too_deep() -> RequestError:
    """Return the error of a condition that is nested too deep.

    >>> print(too_deep())
    where: more than 16 parentheses and nots inside each other; write it flatter
    """
    return fault(f"more than {DEEPEST} parentheses and nots inside each other; write it flatter")
