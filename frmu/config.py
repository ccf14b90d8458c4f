"""The config: one TOML file that says which records, which model, which slices.

It is the only thing besides the records and the policy file that may steer a state, so everything that a
training job elsewhere would compute from the data - ranges, dates of the split, class names - is declared
here instead. What computes is `fingerprint`: two configs that differ only in where things lie (paths, store,
addresses, placement) give the same state.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import math
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from frmu.errors import ConfigError, near_miss

__all__ = ["Config", "Lag", "checked_address", "load", "parse_duration"]

CALENDAR = ("day", "week", "month")

_HOST = r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)"
_UNITS = {"s": 1, "min": 60, "h": 3600, "d": 86400, "w": 604800}


def parse_duration(text: str) -> dt.timedelta:
    """A duration such as "30s", "30min", "12h", "1d" or "2w".

    >>> parse_duration("36h")
    datetime.timedelta(days=1, seconds=43200)
    """
    found = re.fullmatch(r"\s*(\d+)\s*(s|min|h|d|w)\s*", text)
    if not found or int(found[1]) == 0:
        raise ValueError(f'a duration must be a positive number and one of s, min, h, d, w (as "1d"), got "{text}"')
    if len(found[1]) > 6:
        raise ValueError(f'a duration must be of this world, got "{text}"')
    return dt.timedelta(seconds=int(found[1]) * _UNITS[found[2]])


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Lag(_Table):
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


class Data(_Table):
    """`[data]`: where the records lie and what their columns mean.

    `private` is a column of booleans: records where it is true must go, and are never learned from.
    """

    path: str
    client: str
    record: str
    target: str
    task: Literal["regression", "classification"]
    subject: str | None = None
    time: str | None = None
    private: str | None = None
    classes: list[str] | None = None
    modalities: dict[str, list[str]] = Field(min_length=1)
    lags: dict[str, Lag] = {}
    ranges: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = {}

    @property
    def features(self) -> tuple[str, ...]:
        """Every feature of every modality, in the order of the config."""
        return tuple(name for names in self.modalities.values() for name in names)

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
        numeric_target = {self.target} if self.task == "regression" else set()
        known = {*features, *numeric_target, *(lag.column for lag in self.lags.values())}
        for name in self.ranges:
            if name not in known:
                raise ValueError(f'range of "{name}" names no feature{near_miss(name, known)}')
        if self.target in features:
            raise ValueError(f'target "{self.target}" must not be a feature as well')
        uses = {"client": self.client, "record": self.record, "subject": self.subject, "time": self.time}
        uses |= {"target": self.target} | {f"feature {name}": name for name in (*features, *numeric_target)}
        uses |= {f"lag {name}": lag.column for name, lag in self.lags.items()}
        if taken := [use for use, column in uses.items() if column == self.private and column is not None]:
            raise ValueError(f'private "{self.private}" must be a column of its own, and it is the {taken[0]} as well')
        if self.classes is not None and self.task != "classification":
            raise ValueError('classes are for task = "classification"')
        return self


class Slices(_Table):
    """`[slices]`: which records stand or fall together.

    `buckets` are those of a hash of the subject or of a column. With 0 each value of a column is a slice of its own:
    the server then reads the values, and where there is a time takes them for its order, the first for the oldest.
    """

    by: str | None = None
    buckets: int = Field(default=16, ge=0, le=4096)


class Split(_Table):
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
        """Whether the borders move with the day of training, which is not settled yet."""
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


class Model(_Table):
    """`[model]`: a frozen encoder for each modality and a ridge head.

    `encoders` names the encoder of single modalities; "hash" is for columns of text.
    """

    encoder: Literal["relu", "fourier", "linear"] = "relu"
    encoders: dict[str, Literal["relu", "fourier", "linear", "hash"]] = {}
    features: int = Field(default=64, ge=1, le=8192)
    ridge: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0)


class Policy(_Table):
    """`[policy]`: how influences are chosen, and how the learned policy is trained.

    A policy looks `steps` times at most before a proposal stands; `budget` is the refits that one client may spend on
    a choice. Neither is in seconds: a state must not depend on how fast a machine is.
    `theta` is the attention score, of an average of 1, below which a slice is shown as one to attenuate.

    `rounds` lets slices arrive between the steps of a task. With `federated`, each client trains a copy of its own
    and the server averages the copies by attention; `beta` is what a client takes of the average (1: all of it).
    """

    selector: Literal["policy", "rules", "keep"] = "policy"
    file: str | None = None
    margin: float = Field(default=0.01, ge=0, lt=1)
    steps: int = Field(default=3, ge=1, le=16)
    budget: int = Field(default=16, ge=8)
    forget_penalty: float = Field(default=0.02, ge=0)
    theta: float = Field(default=0.5, ge=0, le=1)
    iterations: int = Field(default=20, ge=1)
    samples: int = Field(default=512, ge=64)
    env_runners: int | Literal["auto"] = "auto"
    rounds: int = Field(default=1, ge=1, le=16)
    federated: bool = False
    beta: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("env_runners", mode="before")
    @classmethod
    def _some(cls, number: Any) -> Any:
        if number != "auto" and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise ValueError(f'env_runners must be a number from 0 on, or "auto", got {number!r}')
        return number


class Attention(_Table):
    """`[attention]`: how the server weighs clients; `cut` and `temperature` are in fair shares, 1 / clients.

    "counterfactual" takes weight from a client without which the others gain, "trusted" searches for a majority that
    explains itself, which finds many bad clients that mask each other and takes longer, "size" is n_k / N.
    """

    rule: Literal["counterfactual", "trusted", "size"] = "counterfactual"
    cut: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=0.5, gt=0)


class Placement(_Table):
    """`[placement]`: how clients are put on Ray actors.

    `clients_per_actor` "auto" follows from the memory that a host was measured to take. `memory` is the share of a
    node's memory that hosts may fill. A process is given `start` seconds to start. A host that no node can take is
    waited for `patience` seconds: an autoscaler may bring one. With `elastic` the autoscaler is asked for all that the
    plan needs, and nothing is refused for want of memory.
    """

    clients_per_actor: int | Literal["auto"] = "auto"
    memory: float = Field(default=0.7, gt=0, le=1)
    start: float = Field(default=120.0, gt=0)
    patience: float = Field(default=30.0, ge=0)
    elastic: bool = False

    @field_validator("clients_per_actor")
    @classmethod
    def _positive(cls, number: int | str) -> int | str:
        if isinstance(number, int) and number < 1:
            raise ValueError(f'clients_per_actor must be at least 1 or "auto", got {number}')
        return number


class Rules(_Table):
    """`[rules]`: what is done about a client that does not answer.

    A work is waited for `deadline` seconds; a host that died meanwhile is asked again, `attempts` times in all. A
    training goes on without who is late ("drop") while a share `quorum` of the clients is there, or ends ("fail").
    An erasure never goes on without anybody: what is to be searched must be there.
    """

    deadline: float = Field(default=300.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    quorum: float = Field(default=0.75, gt=0, le=1)
    late: Literal["drop", "fail"] = "drop"


class Site(_Table):
    """`[sites.NAME]`: a place that keeps the records of some clients on its own disk.

    `path` says where they lie there (by default data.path), `folder` where frmu keeps its shards there (by default the
    working folder, which all nodes must then share), `clients` which clients are its own (by default all in `path`).
    Its hosts run on a node with the label site=NAME, or with the `label` given, and nowhere else.
    """

    path: str | None = Field(default=None, min_length=1)
    folder: str | None = Field(default=None, min_length=1)
    clients: list[str] | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)


class Erasure(_Table):
    """`[erasure]`: how requests are honoured.

    A drain waits until `min_batch` requests hold something, for the difference of two states shows what was erased
    between them; it does not wait where one is due within `urgent` days. `runs` says what becomes of MLflow runs that
    were computed with erased records: "strip" removes their artifacts and models, "delete" removes them whole.
    """

    due: int = Field(default=30, ge=0, le=36500)
    min_batch: int = Field(default=1, ge=1)
    urgent: int = Field(default=3, ge=0)
    runs: Literal["strip", "delete"] = "strip"


class Store(_Table):
    """`[store]`: where frmu keeps its own shards, checkpoints, ledger and runs."""

    folder: str | None = Field(default=None, min_length=1)
    key: str | None = Field(default=None, min_length=1)
    purge_source: bool = False
    ledger: str | None = Field(default=None, min_length=1)
    tracking: str | None = Field(default=None, min_length=1)
    experiment: str | None = Field(default=None, min_length=1)


def checked_address(text: str) -> str:
    """An address of Ray that names a place, and nothing to import: Ray would take NAME:// for a module.

    >>> checked_address("ray://head:10001")
    'ray://head:10001'
    >>> checked_address("os://head")
    Traceback (most recent call last):
    ValueError: an address of Ray must be local, auto, HOST:PORT or ray://HOST:PORT, got "os://head"
    """
    if re.fullmatch(rf"local|auto|{_HOST}:\d{{1,5}}|ray://{_HOST}(:\d{{1,5}})?", text):
        return text
    raise ValueError(f'an address of Ray must be local, auto, HOST:PORT or ray://HOST:PORT, got "{text[:80]}"')


class RayTable(_Table):
    """`[ray]`: which Ray the federation runs on."""

    address: str | None = None

    @field_validator("address")
    @classmethod
    def _a_place(cls, address: str | None) -> str | None:
        return None if address is None else checked_address(address)


class Config(_Table):
    """A whole config; `load` reads it from TOML."""

    data: Data
    slices: Slices = Slices()
    split: Split = Split()
    model: Model = Model()
    policy: Policy = Policy()
    attention: Attention = Attention()
    placement: Placement = Placement()
    rules: Rules = Rules()
    sites: dict[str, Site] = {}
    erasure: Erasure = Erasure()
    store: Store = Store()
    ray: RayTable = RayTable()
    file: Path = Field(default=Path("frmu.toml"), exclude=True)

    @property
    def slice_by(self) -> str:
        """What slices are cut by: as declared, else by month, subject or record, whichever exists first."""
        if self.slices.by is not None:
            return self.slices.by
        if self.data.time is not None:
            return "month"
        return "subject" if self.data.subject is not None else self.data.record

    @property
    def slice_rule(self) -> str:
        """What gives the keys of slices their meaning."""
        return f"{self.slice_by}/{self.slices.buckets}"

    @property
    def folder(self) -> Path:
        """The working folder; by default `<config name>.frmu` beside the config."""
        if self.store.folder is None:
            return self.file.parent / f"{self.file.stem}.frmu"
        return self.file.parent / self.store.folder

    @property
    def key_file(self) -> Path:
        """The store's secret; by default `key` in the working folder."""
        return self.folder / "key" if self.store.key is None else self.file.parent / self.store.key

    @property
    def policy_file(self) -> Path | None:
        """The policy that the config names, taken relative to the config."""
        return None if self.policy.file is None else self.file.parent / self.policy.file

    @property
    def experiment(self) -> str:
        """The name of the MLflow experiment; by default the config's."""
        return self.store.experiment or self.file.stem

    @property
    def source(self) -> str:
        """The data path or glob, taken relative to the config."""
        return str(self.file.parent / self.data.path)

    @property
    def optional(self) -> bool:
        """Whether a record may lack a modality: where there are others to learn from and predict by."""
        return len(self.data.modalities) > 1

    @property
    def texts(self) -> tuple[str, ...]:
        """The features that are text, in the order of the config."""
        modalities = self.data.modalities.items()
        return tuple(column for name, columns in modalities if self.encoder(name) == "hash" for column in columns)

    def encoder(self, modality: str) -> str:
        """The kind of encoder that a modality has."""
        return self.model.encoders.get(modality, self.model.encoder)

    def fingerprint(self) -> str:
        """SHA-256 of everything in the config that can change a state.

        Paths, the store, sites, the placement, the rules and the address cannot, nor can the column that says which
        records are private: like the path it says which records there are, not what is made of them. Nor can the
        settings of policy training, whose only trace is the policy file, which the state digests by itself.
        """
        model = self.model.model_dump(mode="json", exclude={"encoders"})
        own = {name: kind for name, kind in sorted(self.model.encoders.items()) if kind != self.model.encoder}
        model |= {"encoders": own} if own else {}
        # Several modalities are encoded with whether each is there, which states made before that were not.
        model |= {"present": True} if self.optional else {}
        parts = {
            "data": self.data.model_dump(mode="json", exclude={"path", "private"}),
            "slices": {"by": self.slice_by, "buckets": self.slices.buckets},
            "split": self.split.model_dump(mode="json", exclude={"until"} if self.split.until is None else None),
            "model": model,
            "policy": self.policy.model_dump(mode="json", include={"selector", "margin", "steps", "budget"}),
            "attention": self.attention.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        by = self.slices.by
        if by in CALENDAR and self.data.time is None:
            raise ValueError(f'slices.by = "{by}" needs data.time')
        if by is not None and by == self.data.private:
            raise ValueError(f'slices.by = "{by}" must not be data.private: those records are in no slice')
        if by == "subject" and self.data.subject is None:
            raise ValueError('slices.by = "subject" needs data.subject')
        if self.slices.buckets == 0 and by in (*CALENDAR, None, "subject", self.data.record):
            raise ValueError(
                f"slices.buckets = 0 makes a slice of each value, so slices.by must name a column that is not the "
                f"record id, got {by}"
            )
        if (self.split.rolling or self.split.dates) and self.data.time is None:
            raise ValueError("dates in [split] need data.time")
        self._sites_apart()
        for name in self.model.encoders:
            if name not in self.data.modalities:
                hint = near_miss(name, self.data.modalities)
                raise ValueError(f'model.encoders: "{name}" is none of data.modalities{hint}')
        self._no_numbers_of_text()
        return self

    def _sites_apart(self) -> None:
        """A client has one site, and a site is told from the others by what is its own."""
        owner: dict[str, str] = {}
        for name, site in self.sites.items():
            if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", name):
                raise ValueError(
                    f'site "{name}" must be 1 to 63 letters, digits, "-", "_" or ".": it is a node\'s label'
                )
            if site.path is None and site.clients is None:
                raise ValueError(f'site "{name}" must say its path, its clients, or both')
            for client in site.clients or ():
                if owner.setdefault(client, name) != name:
                    raise ValueError(f'client "{client}" must belong to one site, got "{owner[client]}" and "{name}"')

    def _no_numbers_of_text(self) -> None:
        """Text has no range, no lag, and is nobody's lag."""
        data = self.data
        for name in self.texts:
            if name in data.ranges:
                raise ValueError(f'range of "{name}": its encoder is "hash", so it is text, which has no range')
            if name in data.lags:
                raise ValueError(f'lag "{name}" is a number; its modality must not have the encoder "hash"')
        for name, lag in data.lags.items():
            if lag.column in self.texts:
                raise ValueError(f'lag "{name}" must look at a number, got "{lag.column}", whose encoder is "hash"')

    def bare(self) -> Config:
        """This config as it may leave the driver: of `[store]` the folder alone, for its URLs may hold a password."""
        return self.model_copy(update={"store": Store(folder=self.store.folder)})

    def at(self, day: dt.date) -> Config:
        """This config with split.until settled, where that is "today"; as it is otherwise."""
        if not self.split.rolling:
            return self
        return self.model_copy(update={"split": self.split.model_copy(update={"until": day})})


def load(path: str | Path) -> Config:
    """Read a config, or raise `ConfigError` with the key at fault and its near miss."""
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config; `frmu init PARQUET -o {path}` proposes one") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder, not a config file") from None
    except OSError as error:
        raise ConfigError(f"{str(path)[:200]}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    return parse(raw, path)


def parse(raw: dict[str, Any], path: Path) -> Config:
    """Validate the tables of a config that was read from `path`.

    >>> parse({"data": {"path": "a.parquet", "cleint": "home"}}, Path("a.toml"))
    Traceback (most recent call last):
    frmu.errors.ConfigError: a.toml: data.cleint: unknown key; did you mean "client"?
    """
    if "file" in raw:
        raise ConfigError(f"{path}: file: unknown key")
    try:
        return Config.model_validate(raw | {"file": path.absolute()})
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    # An unknown key comes first: the missing key beside it is most often the same slip.
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key{near_miss(where[-1], _keys(where[:-1]))}"
    if problem["type"] == "missing":
        return f"{key}: missing, and it has no default"
    message = problem["msg"].removeprefix("Value error, ")
    got = problem.get("input")
    shown = f", got {got!r}"[:80] if isinstance(got, str | int | float | bool | list) and "got" not in message else ""
    return f"{key}: {message}{shown}" if key else message


def _keys(where: list[str]) -> list[str]:
    """The keys that a table takes, for the near miss."""
    model: type[BaseModel] = Config
    for part in where:
        field = model.model_fields.get(part)
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return [name for name in model.model_fields if name != "file"]
