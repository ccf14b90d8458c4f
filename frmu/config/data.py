"""[data], [slices] and [split]: which records, cut how, judged on what."""

from __future__ import annotations

import datetime as dt
import math
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from frmu.config.columns import Categories, check_columns, read_categories
from frmu.config.table import Table, parse_duration
from frmu.errors import ConfigError, near_miss

__all__ = ["CALENDAR", "Data", "Lag", "Slices", "Split"]
CALENDAR = ("day", "week", "month")


class Lag(Table):
    """A feature that a client computes: the value of `column` one duration `back`, at the same client.

    It is computed from the rows that remain, so an erased value leaves the lags of its neighbours too.
    """

    column: str
    back: str

    @field_validator("back")
    @classmethod
    def _duration(cls, text: str) -> str:
        parse_duration(text)
        return text


class Data(Table):
    """`[data]`: where the records lie and what their columns mean.

    `private` is a column of booleans: records where it is true must go, and are never learned from.

    `clip` is the share of a client's values of a column that may lie beyond the declared range. They are clipped to it
    where they are learned from; more are refused on import, and 0 refuses any. Otherwise one value is always let in:
    a share of a few records allows none, and one reading of one client would stop a whole federation, or come to stop
    it when an erasure makes the client smaller.

    `missing` are the columns that may be null: one more column says where each is. `categories` are one column a
    declared value and one for any other, or one a hash bucket. `transforms` are made before anything is scaled.
    A regression may have several targets, as a list. `weights` are whole numbers by class: how often a record of it
    counts, one where nothing is said.
    """

    path: str
    client: str
    record: str
    target: str | list[str]
    task: Literal["regression", "classification"]
    subject: str | None = None
    time: str | None = None
    private: str | None = None
    classes: list[str] | None = None
    modalities: dict[str, list[str]] = Field(min_length=1)
    lags: dict[str, Lag] = Field(default_factory=dict)
    ranges: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(default_factory=dict)
    clip: float = Field(default=0.01, ge=0, lt=1)
    missing: list[str] = Field(default_factory=list)
    categories: Categories = Field(default_factory=dict)
    transforms: dict[str, Literal["log1p"]] = Field(default_factory=dict)
    weights: dict[str, int] = Field(default_factory=dict)

    @property
    def targets(self) -> tuple[str, ...]:
        """The columns that are predicted, in the order of the config: most often one."""
        return (self.target,) if isinstance(self.target, str) else tuple(self.target)

    @property
    def features(self) -> tuple[str, ...]:
        """Every feature of every modality, in the order of the config."""
        return tuple(name for names in self.modalities.values() for name in names)

    def scaled(self, feature: str) -> int:
        """Return how many scaled columns a feature has that is no text.

        A number has one, a category one a declared value and one for any other, or one a bucket; a lag has one more,
        whether there is a value, and what may be missing one more, whether it is.
        """
        declared = self.categories.get(feature)
        values = 1 if declared is None else declared if isinstance(declared, int) else len(declared) + 1
        return values + (feature in self.lags) + (feature in self.missing)

    def scaled_names(self, feature: str) -> list[str]:
        """Return the names of a feature's scaled columns, in their order."""
        declared = self.categories.get(feature)
        if isinstance(declared, int):
            found = [f"{feature} #{number}" for number in range(declared)]
        else:
            found = [feature] if declared is None else [f"{feature} = {value}" for value in (*declared, "any other")]
        found += [f"{feature}: known"] if feature in self.lags else []
        return [*found, f"{feature}: missing"] if feature in self.missing else found

    def range_of(self, *names: str) -> tuple[float, float]:
        """Return the declared range of the first of some names that has one; raises `ConfigError` where none has."""
        for name in names:
            if name in self.ranges:
                low, high = self.ranges[name]
                return low, high
        raise ConfigError(
            f'data.ranges has no "{names[0]}": declare the least and the greatest value that it may have, as `frmu '
            "init` does; everything is computed on a grid of that range"
        )

    @field_validator("categories", mode="before")
    @classmethod
    def _as_text(cls, categories: object) -> object:
        return read_categories(categories)

    @field_validator("modalities")
    @classmethod
    def _some_features(cls, modalities: dict[str, list[str]]) -> dict[str, list[str]]:
        for name, columns in modalities.items():
            if not columns:
                raise ValueError(f'modality "{name}" must name at least one feature column')
        names = [name for columns in modalities.values() for name in columns]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"a feature must belong to one modality, got it twice: {', '.join(twice)}")
        return modalities

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and (len(classes) < 2 or len(set(classes)) < len(classes)):
            raise ValueError(f"classes must be two or more, each once, got {classes}")
        return classes

    @field_validator("ranges")
    @classmethod
    def _ordered(cls, ranges: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, (low, high) in ranges.items():
            if not low < high or not math.isfinite(high - low):
                raise ValueError(
                    f'range of "{name}" must be [low, high] with low < high and a finite width, got [{low}, {high}]'
                )
        return ranges

    @model_validator(mode="after")
    def _consistent(self) -> Data:
        features = self.features
        for name, lag in self.lags.items():
            if self.time is None:
                raise ValueError(f'lag "{name}" needs data.time: a lag goes back in time')
            if name not in features:
                hint = near_miss(name, features)
                raise ValueError(f'lag "{name}" must be a feature of one of data.modalities{hint}')
            if lag.column in self.lags:
                raise ValueError(f'lag "{name}" must look at a column of the file, got the lag "{lag.column}"')
        numeric_target = set(self.targets) if self.task == "regression" else set()
        known = {*features, *numeric_target, *(lag.column for lag in self.lags.values())}
        for name in self.ranges:
            if name not in known:
                raise ValueError(f'range of "{name}" names no feature{near_miss(name, known)}')
        check_columns(self)
        if twice := sorted(set(self.targets) & set(features)):
            raise ValueError(f'target "{twice[0]}" must not be a feature as well')
        uses = {"client": self.client, "record": self.record, "subject": self.subject, "time": self.time}
        uses |= {f"target {name}": name for name in self.targets}
        uses |= {f"feature {name}": name for name in (*features, *numeric_target)}
        uses |= {f"lag {name}": lag.column for name, lag in self.lags.items()}
        if taken := [use for use, column in uses.items() if column == self.private and column is not None]:
            raise ValueError(f'private "{self.private}" must be a column of its own, and it is the {taken[0]} as well')
        if self.classes is not None and self.task != "classification":
            raise ValueError('classes are for task = "classification"')
        return self


class Slices(Table):
    """`[slices]`: which records stand or fall together.

    `buckets` are those of a hash of the subject or of a column. With 0 each value of a column is a slice of its own:
    the server then reads the values, and where there is a time takes them for its order, the first for the oldest.
    """

    by: str | None = None
    buckets: int = Field(default=16, ge=0, le=4096)


class Split(Table):
    """`[split]`: declared dates, durations back from one, or shares of a hash of the record id.

    Never a rule over other rows: a border that the newest record sets would move when that record is erased. So
    durations are counted back from `until`, a date, or "today", the UTC day of a training or the one that
    `frmu train --until` names; the state keeps it, and drains, proofs and predictions go by it.
    """

    validation_from: dt.datetime | dt.date | None = None
    later_from: dt.datetime | dt.date | None = None
    test_from: dt.datetime | dt.date | None = None
    until: dt.datetime | dt.date | Literal["today"] | None = None
    validation: float | str = 0.15
    later: float | str = 0.15
    test: float | str = 0.2

    @property
    def rolling(self) -> bool:
        """Return whether the borders move with the day of training, which is not settled yet."""
        return self.until == "today"

    @property
    def shares(self) -> tuple[float, float, float]:
        """The shares of the records to validate with, later and to test with, where the split is by hash."""
        first, second, third = (share for share in self._parts if isinstance(share, float))
        return first, second, third

    @property
    def _parts(self) -> tuple[float | str, float | str, float | str]:
        return self.validation, self.later, self.test

    @property
    def dates(self) -> tuple[dt.datetime, dt.datetime, dt.datetime] | None:
        """The three borders as naive UTC times, or None where the split is by hash.

        Raises `ConfigError` where `until` is not settled: see `Config.at`.
        """
        if self.rolling:
            raise ConfigError('split.until = "today" has to be settled by Config.at before anything is split by it')
        if isinstance(self.until, dt.date):
            spans = [parse_duration(part) for part in self._parts if isinstance(part, str)]
            moment, back = _naive(self.until), []
            for span in reversed(spans):
                moment -= span
                back.append(moment)
            return back[2], back[1], back[0]
        borders = (self.validation_from, self.later_from, self.test_from)
        if any(border is None for border in borders):
            return None
        first, second, third = (_naive(border) for border in borders if border is not None)
        return first, second, third

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        borders = (self.validation_from, self.later_from, self.test_from)
        given = [border for border in borders if border is not None]
        if given and len(given) < 3:
            raise ValueError("validation_from, later_from and test_from must be given together")
        durations = [part for part in self._parts if isinstance(part, str)]
        if given and self.model_fields_set & {"validation", "later", "test", "until"}:
            raise ValueError("give dates or shares (validation, later, test) or durations back from until")
        if durations or self.until is not None:
            return self._timed(durations)
        dates = self.dates
        if dates and not dates[0] < dates[1] < dates[2]:
            raise ValueError("validation_from < later_from < test_from must hold")
        if not all(0.0 < share < 1.0 for share in self.shares):
            raise ValueError("validation, later and test must be shares between 0 and 1")
        if not dates and sum(self.shares) >= 1:
            raise ValueError("validation + later + test must be below 1: the rest is what is fitted")
        return self

    def _timed(self, durations: list[str]) -> Split:
        if len(durations) < 3:
            raise ValueError('with until, validation, later and test must all be durations such as "2w"')
        if self.until is None:
            raise ValueError('durations are counted back from split.until: give it a date, or "today"')
        for text in durations:
            parse_duration(text)
        try:
            _ = None if self.rolling else self.dates
        except OverflowError:
            raise ValueError("until and the durations before it must be of this world") from None
        return self


def _naive(moment: dt.datetime | dt.date) -> dt.datetime:
    if not isinstance(moment, dt.datetime):
        return dt.datetime(moment.year, moment.month, moment.day)
    try:
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except OverflowError:
        raise ValueError(f"{moment} is no time in UTC") from None
