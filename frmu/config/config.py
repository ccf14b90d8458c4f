"""A whole config, read from TOML, and its fingerprint."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import tomllib
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, Field, ValidationError, model_validator

from frmu.config.columns import dumped
from frmu.config.data import CALENDAR, Data, Slices, Split
from frmu.config.federation import Placement, RayTable, Rules, Site
from frmu.config.files import Net, content_of, is_file, net_of
from frmu.config.model import LEARNED, Attention, Model
from frmu.config.policy import Policy
from frmu.config.rounds import UNSEEN, Rounds
from frmu.config.storage import Erasure, Store
from frmu.config.table import Table
from frmu.errors import ConfigError, near_miss

__all__ = ["Config", "load", "parse"]
_OWN = ("file", "contents")  # no keys: where a config was read, and the encoders beside it

STEERING = {"selector", "margin", "significance", "steps", "budget"}  # of [policy]: the rest trains one


class Config(Table):
    """A whole config; `load` reads it from TOML."""

    data: Data
    slices: Slices = Slices()
    split: Split = Split()
    model: Model = Model()
    policy: Policy = Policy()
    attention: Attention = Attention()
    placement: Placement = Placement()
    rules: Rules = Rules()
    sites: dict[str, Site] = Field(default_factory=dict)
    erasure: Erasure = Erasure()
    store: Store = Store()
    ray: RayTable = RayTable()
    file: Path = Field(default=Path("frmu.toml"), exclude=True)
    contents: dict[str, bytes] = Field(default_factory=dict, exclude=True, repr=False)  # of encoders, by modality

    @property
    def slice_by(self) -> str:
        """Return what slices are cut by: as declared, else by month, subject or record, whichever exists first."""
        if self.slices.by is not None:
            return self.slices.by
        if self.data.time is not None:
            return "month"
        return "subject" if self.data.subject is not None else self.data.record

    @property
    def slice_rule(self) -> str:
        """Return what gives the keys of slices their meaning."""
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
    def witness(self) -> Path | str | None:
        """The witness that the config names: a path, taken relative to the config, "tracking", or a database's address.

        Raises `ConfigError` where it lies in the working folder: it would be put back with it.
        """
        named = self.store.witness
        if named is None:
            return None
        kind, place = self.store.witness_place
        if kind == "unknown":
            raise ConfigError(
                f'{self.file}: store.witness must be a path, "tracking", or an address postgresql://USER@HOST/DATABASE '
                f"or sqlite:///FILE, got {named.partition('://')[0]}://..."
            )
        path = self.file.parent / named if kind == "file" else place
        inside = path is not None and self.folder.resolve() in path.resolve().parents
        if kind == "tracking" and (inside or self.store.tracking is None):
            raise ConfigError(
                f'{self.file}: store.witness = "tracking", but the tracking store lies in the working folder, and '
                "would come back with it; set store.tracking to a server, or store.witness to a file or database"
            )
        if inside:
            raise ConfigError(
                f'{self.file}: store.witness = "{named}" lies in the working folder, and would come back with it; name '
                "a place outside, on another disk if you can"
            )
        return path if kind == "file" else named

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
        """Return whether a record may lack a modality: where there are others to learn from and predict by."""
        return len(self.data.modalities) > 1

    @property
    def texts(self) -> tuple[str, ...]:
        """The features that are text, in the order of the config."""
        modalities = self.data.modalities.items()
        return tuple(column for name, columns in modalities if self.encoder(name) == "hash" for column in columns)

    def encoder(self, modality: str) -> str:
        """The kind of frozen encoder that a modality has: the one that judges, where the model's own is learned."""
        kind = "relu" if self.model.encoder == "learned" else self.model.encoder
        found = self.model.encoders.get(modality, kind)
        return "file" if is_file(found) else found

    def encoder_path(self, modality: str) -> Path:
        """The path of a modality's frozen encoder that is a file, taken relative to the config."""
        return self.file.parent / self.model.encoders[modality]

    def net(self, modality: str) -> Net:
        """The frozen encoder of a modality that is a file; raises `ConfigError` where it is not what is declared."""
        path, raw = self.encoder_path(modality), self.contents.get(modality)
        return net_of(modality, path, self.model.files[modality], raw, self.columns(modality))

    def with_contents(self) -> Config:
        """This config with the content of its encoders' files, but for those that cannot be read: `net` says why."""
        read = {name: content_of(self.encoder_path(name)) for name in self.model.files}
        if self.model.code_file is not None:
            read[self.model.module] = content_of(self.file.parent / self.model.code_file)
        there = {name: raw for name, raw in read.items() if raw is not None}
        return self.model_copy(update={"contents": there}) if there else self

    @property
    def code_digest(self) -> str:
        """SHA-256 of the module that is code of the user's own, else empty; raises `ConfigError` where it is gone."""
        if self.model.code_file is None:
            return ""
        if self.model.module not in self.contents:
            path = self.file.parent / self.model.code_file
            raise ConfigError(f"{path}: cannot be read; put it back, or mend model.module")
        return hashlib.sha256(self.contents[self.model.module]).hexdigest()

    def places(self, modality: str) -> dict[str, range]:
        """The places of each feature's scaled columns, of a modality of numbers and categories, in their order."""
        found, at = {}, 0
        for name in self.data.modalities[modality]:
            found[name] = range(at, at + self.data.scaled(name))
            at = found[name].stop
        return found

    def columns(self, modality: str) -> int:
        """The scaled columns that a modality of numbers and categories has: see `frmu.config.data.Data.scaled`."""
        return sum(map(len, self.places(modality).values()))

    def continuous(self, modality: str) -> tuple[int, ...]:
        """The places of a modality's scaled columns that hold a quantity, and not whether there is one, or which."""
        return tuple(at[0] for name, at in self.places(modality).items() if name not in self.data.categories)

    def unknowable(self, modality: str) -> tuple[dict[int, float], ...]:
        """The values that a modality's scaled columns have where something is not known, by place.

        One a lag, and one a column that may be missing: its last place says that it is.
        """
        found = []
        for name, at in self.places(modality).items():
            if name in self.data.lags or name in self.data.missing:
                found.append(dict.fromkeys(at, 0.0) | {at[-1]: float(name in self.data.missing)})
        return tuple(found)

    @property
    def learns(self) -> bool:
        """Return whether features are learned: then what judges is not what is fitted."""
        return any(map(self.learned, self.data.modalities))

    def column_names(self, modality: str) -> tuple[str, ...]:
        """The names of a modality's scaled columns, in their order: see `frmu.config.data.Data.scaled`."""
        return tuple(name for feature in self.data.modalities[modality] for name in self.data.scaled_names(feature))

    def learned(self, modality: str) -> bool:
        """Return whether the features of a modality are learned."""
        return not self.model.by_rounds and self.model.encoder == "learned" and modality not in self.model.encoders

    def fingerprint(self) -> str:
        """SHA-256 of everything in the config that can change a state.

        Of an encoder that is a file it is the file's own digest. Paths, the store, sites, the placement, the rules and
        the address cannot, nor can the column that says which records are private: like the path it says which records
        there are, not what is made of them. The same holds for `data.clip`: it says which values are let in, and a
        value that is in is clipped alike under any. Nor can the settings of policy training, whose only trace is the
        policy file, which the state digests by itself.
        """
        model = self._of_the_model()
        encoders = sorted(self.model.encoders.items())
        own: dict[str, Any] = {name: kind for name, kind in encoders if kind != self.model.encoder}
        own |= {name: self.net(name).header() for name in self.model.files}
        model |= {"encoders": own} if own else {}
        policy = self.policy.model_dump(mode="json", include=STEERING)
        policy |= {"passes": self.policy.passes} if self.policy.passes > 1 else {}  # one is what was
        # Several modalities are encoded with whether each is there, which states made before that were not.
        model |= {"present": True} if self.optional else {}
        parts = {
            "data": dumped(self.data.model_dump(mode="json", exclude={"path", "private", "clip"}), self.data.missing),
            "slices": {"by": self.slice_by, "buckets": self.slices.buckets},
            "split": self.split.model_dump(mode="json", exclude={"until"} if self.split.until is None else None),
            "model": model,
            "policy": policy,
            "attention": self.attention.model_dump(mode="json"),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _of_the_model(self) -> dict[str, Any]:
        """The fingerprint's part of [model], without encoders: what another kind of model has is left out."""
        trained = set(Rounds.model_fields)
        if self.model.by_rounds:
            model = self.model.model_dump(mode="json", include=(trained - UNSEEN) | {"kind", "seed"})
            model |= (
                {"module": f"{self.code_digest}:{self.model.module.rpartition(':')[2]}"} if self.code_digest else {}
            )
            return model | ({"method": "finetune"} if self.model.method == "finetune" else {})
        left_out = {"encoders", "files", "method"} | trained | (set() if self.learns else set(LEARNED))
        model = self.model.model_dump(mode="json", exclude=left_out)
        model |= {} if self.learns else {"features": self.model.frozen_features, "ridge": self.model.frozen_ridge}
        return model | ({"method": self.model.method} if self.model.method != "analytic" else {})

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
            if name in data.categories:
                raise ValueError(
                    f'category "{name}" must be in a modality whose encoder is not "hash": that is for text'
                )
            if name in data.missing:
                raise ValueError(f'missing "{name}": its encoder is "hash", and text is missing only with its modality')
            if name in data.transforms:
                raise ValueError(f'transform of "{name}": its encoder is "hash", so it is text')
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
    if own := [key for key in _OWN if key in raw]:
        raise ConfigError(f"{path}: {own[0]}: unknown key")
    try:
        return Config.model_validate(raw | {"file": path.absolute()}).with_contents()
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
        if (field := model.model_fields.get(part)) is None:
            continue  # a name of the user's own, as that of a site
        kinds = (field.annotation, *get_args(field.annotation))
        tables = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not tables:
            return []
        model = tables[0]
    return [name for name in model.model_fields if name not in _OWN]
