"""Proposals for single columns, a line each: a number, a category, or left out, and what may be missing.

Each is a rule of thumb over the values that are there now, made once, by `frmu init`; what it finds is declared in the
config, where a person can read and change it, and no training looks again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from frmu.data.checks import is_number, is_text, no_value, numbers, proposed_range, text_of
from frmu.errors import DataError

__all__ = ["Proposal", "propose", "skewed", "taken_as_log1p", "within"]

LISTED, HASHED, BUCKETS, FEWER = 32, 4096, 64, 16  # values in a list; values at most; buckets for those in between
ROOM = 512  # columns of all categories together: sums grow with their square
SKEWED = 2.0  # skewness of an exponential distribution


@dataclass(frozen=True, slots=True)
class Proposal:
    """The use that is proposed for a column, and a line that says why; a number that needs no word has none.

    `declared` are the values of a category, or its buckets; `range` is that of a number as TOML, which may have a
    `transform`.
    """

    name: str
    kind: Literal["number", "category", "nothing"]
    note: str = ""
    missing: bool = False
    range: str = ""
    declared: tuple[str, ...] | int = ()
    transform: str = ""

    @property
    def width(self) -> int:
        """The columns of a category."""
        return self.declared if isinstance(self.declared, int) else len(self.declared) + 1


def propose(name: str, column: pa.ChunkedArray) -> Proposal:
    """Return what a column could be, from all its values; dictionaries must be decoded before."""
    gone = no_value(column, True)
    if gone.all():
        return _nothing(name, "it has no value in any row")
    if is_number(column.type):
        return _number(name, numbers(column, "", name).to_numpy(zero_copy_only=False), gone, column.type)
    if is_text(column.type):
        return _text(name, column, gone)
    return _nothing(name, f"{column.type} is neither a number nor text")


def _nothing(name: str, why: str) -> Proposal:
    return Proposal(name, "nothing", f'"{name}": left out, for {why}')


def _number(name: str, values: NDArray[np.float64], gone: NDArray[np.bool_], kind: pa.DataType) -> Proposal:
    there = values[~gone]
    if not gone.any() and np.all(there == there[0]):
        return _nothing(name, f"every row has the same value, {there[0]:g}")
    boolean = bool(pa.types.is_boolean(kind))
    said = ["a boolean, so a number from 0 to 1"] if boolean else []
    said += [_gaps(gone)] if gone.any() else []
    if np.isinf(there).any():
        said.append("it has values that are not finite, which `frmu train` will refuse")
    skew = None if boolean else skewed(there)
    transform = "" if skew is None else "log1p"
    said += [] if skew is None else [taken_as_log1p(skew)]
    declared = "[0.0, 1.0]" if boolean else proposed_range(there, transform)
    note = f'"{name}": {"; ".join(said)}' if said else ""
    return Proposal(name, "number", note, bool(gone.any()), declared, transform=transform)


def _gaps(gone: NDArray[np.bool_]) -> str:
    return f"it may be missing, for it is in {gone.sum():,} of {len(gone):,} rows"


def _text(name: str, column: pa.ChunkedArray, gone: NDArray[np.bool_]) -> Proposal:
    try:
        values = text_of(column, "", name).drop_null()
    except DataError:
        return _nothing(name, "it holds a NUL character, which no value may")
    known = sorted(pc.unique(values).to_pylist())
    rows, found = len(values), len(known)
    if found == 1 and not gone.any():
        return _nothing(name, f'every row has the same value, "{known[0][:40]}"')
    own = found > rows / 2
    if own and float(pc.mean(pc.match_substring_regex(values, r"\S\s+\S").cast(pa.float64())).as_py()) > 0.5:
        return _nothing(
            name, 'it is free text; make it a modality of its own with the encoder "hash" (model.encoders) to use it'
        )
    if found > LISTED and (own or found > HASHED):
        why = "most rows have one of their own" if own else f"more than {HASHED:,} are rather names"
        return _nothing(name, f"it has {found:,} different values in {rows:,} rows, and {why}")
    listed = found <= LISTED
    said = f"a category of {found:,} values" + (
        "" if listed else f", hashed to {BUCKETS} buckets, for a list is too long"
    )
    note = f'"{name}": ' + "; ".join([said, *([_gaps(gone)] if gone.any() else [])])
    return Proposal(name, "category", note, bool(gone.any()), declared=tuple(known) if listed else BUCKETS)


def within(proposals: Sequence[Proposal]) -> list[Proposal]:
    """Hash categories to fewer buckets where they would have more than `ROOM` columns together."""
    whole = sum(one.width for one in proposals if one.kind == "category")
    return [_fewer(one) if whole > ROOM and one.kind == "category" and one.width > FEWER else one for one in proposals]


def _fewer(one: Proposal) -> Proposal:
    note = f"{one.note}; hashed to {FEWER} buckets, for all categories together would have more than {ROOM} columns"
    return replace(one, declared=FEWER, note=note)


def skewed(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The skewness of values that are never negative and of their log1p, where the latter is much less; else None.

    >>> skewed(np.array([0.0, 1.0, 2.0])) is None
    True
    """
    there = values[np.isfinite(values)]
    if len(there) < 3 or there.min() < 0.0 or there.max() == there.min():
        return None
    before, after = _skewness(there), _skewness(np.log1p(there))
    return (before, after) if before > SKEWED and abs(after) < before / 2.0 else None


def taken_as_log1p(skew: tuple[float, float]) -> str:
    """Say why, by what `skewed` found."""
    return (
        f"learned as log1p, for it is never negative and skewed to the right (skewness {skew[0]:.1f}, and "
        f"{skew[1]:.1f} after it)"
    )


def _skewness(values: NDArray[np.float64]) -> float:
    scaled = (values - values.mean()) / (values.std() or 1.0)
    return float(np.mean(scaled**3))
