"""The works of an audit: what a client does over a copy of its shard in which erased records are back.

The copy lies in a folder of its own for as long as the audit takes. As everywhere, sums and counts leave a client and
no row does; a membership test leaves it as one count of pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from frmu.clients.client import Client
from frmu.clients.tasks.statistics import errors_of
from frmu.clients.tasks.task import EachClient
from frmu.data import shard as shards
from frmu.data.columns import PRIVATE, RECORD, stored_targets
from frmu.data.parquet import gather
from frmu.data.shard import SPLITS
from frmu.data.tombstones import tombstones
from frmu.data.transform import learned_units, raw_units
from frmu.federation import Answer
from frmu.models.features import Features, Head
from frmu.models.statistics import pack, targets
from frmu.types import Float

__all__ = ["Gauge", "Pairs", "Part", "Plant", "Recall", "Restore", "Shadow", "Size", "Strike"]

Tombstoned = Mapping[str, frozenset[str]]
FIT, TEST = SPLITS.index("fit"), SPLITS.index("test")


@dataclass(frozen=True, slots=True)
class Restore:
    """Write a copy of the shard, with those erased records back that are found in files, for an audit.

    `copy` names the copy; `path` says where the files are that the client sees, None for those of its config.
    """

    tombstones: Tombstoned
    key: bytes = field(repr=False)
    copy: str
    path: str | None = None

    def prepare(self, clients: Sequence[Client]) -> None:
        """One reading of the files for all clients of this host."""
        named = [client for client in clients if self.tombstones.get(client.name)]
        config = clients[0].config
        if self.path is not None:
            config = config.model_copy(update={"data": config.data.model_copy(update={"path": self.path})})
        tables = gather(config, [client.name for client in named]) if named else {}
        for client in clients:
            client.prepared = tables.get(client.name)

    def perform(self, client: Client) -> Answer:
        """Return the number of records that came back."""
        table, client.prepared = client.prepared, None
        parts = [client.shard.table] if client.has_shard else []
        if table is not None:
            tombstoned = self.tombstones[client.name]
            names = tombstones(self.key, client.name, table[RECORD].to_pylist())
            table = table.filter(pa.array([name in tombstoned for name in names], pa.bool_()))
            table = table.drop_columns([name for name in [PRIVATE] if name in table.column_names])
            parts.append(table)
        if whole := [part for part in parts if part.num_rows]:
            shards.write(pa.concat_tables(whole).sort_by(RECORD), client.copy(self.copy))
        rows = sum(part.num_rows for part in parts)
        return Answer(client.name, {"restored": 0 if table is None else table.num_rows, "rows": rows})


def _forget(client: Client, tombstoned: Tombstoned, key: bytes) -> NDArray[np.bool_]:
    """Mark the rows that were erased, (n,) bool."""
    names = tombstoned.get(client.name, frozenset())
    return np.array([name in names for name in client.tombstones(key)] if names else np.zeros(len(client.shard)), bool)


@dataclass(frozen=True, slots=True)
class Part(EachClient):
    """Send the sums of the fitted records that were erased, or of the others."""

    part: Literal["forget", "retain"]
    outputs: tuple[str, ...]
    tombstones: Tombstoned
    key: bytes = field(repr=False)
    features: Features | None = None

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload."""
        wanted = _forget(client, self.tombstones, self.key) == (self.part == "forget")
        rows = np.flatnonzero(wanted & (client.shard.split == FIT))
        sums = client.statistics_of_rows(rows, self.outputs, self.features)
        return Answer(client.name, {"rows": len(rows)}, {"H": pack(sums.G), "b": sums.b, "c": np.array([sums.c])})


@dataclass(frozen=True, slots=True)
class Gauge(EachClient):
    """Measure heads on erased, retained and test records, and their outputs' distance from one of them.

    Erased and retained are the records that were fitted.
    """

    heads: Mapping[str, Head]
    reference: str
    outputs: tuple[str, ...]
    tombstones: Tombstoned
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Sums by set and head."""
        forget, split = _forget(client, self.tombstones, self.key), client.shard.split
        sets = {
            "forget": forget & (split == FIT),
            "retain": ~forget & (split == FIT),
            "test": ~forget & (split == TEST),
        }
        record: dict[str, Any] = {}
        for name, mask in sets.items():
            rows = np.flatnonzero(mask)
            y, said = client.shard.target[rows], client.predictions(self.heads, client.shard.modalities, rows)
            about = said[self.reference]
            record[name] = {}
            for head, out in said.items():
                gap = {"gap": float(np.sum((out - about) ** 2)), "scale": float(np.sum(about * about))}
                record[name][head] = errors_of(raw_units(out, client.config), y, client.config, self.outputs) | gap
        return Answer(client.name, record)


# -- membership -----------------------------------------------------------------------------------------------


def _inside(client: Client, erased: NDArray[np.bool_], seeds: Sequence[int]) -> NDArray[np.bool_]:
    """Draw the fitted rows that each shadow model has, (seeds, rows): half of them, by client and seed.

    A model of an odd seed comes from a world that never had the erased records, as the retrained one does.
    """
    name = int.from_bytes(client.name.encode(), "big") % 2**63
    draws = [np.random.Generator(np.random.PCG64([seed, name])).random(len(erased)) < 0.5 for seed in seeds]
    inside = np.array(draws).reshape(len(seeds), len(erased))
    return inside & ~(_never(seeds)[:, None] & erased)


def _never(seeds: Sequence[int]) -> NDArray[np.bool_]:
    return np.array(seeds, dtype=np.int64) % 2 == 1


@dataclass(frozen=True, slots=True)
class Shadow(EachClient):
    """Send the sums of a random half of the fitted records, for each of some seeds; odd ones without the erased."""

    seeds: tuple[int, ...]
    outputs: tuple[str, ...]
    tombstones: Tombstoned
    key: bytes = field(repr=False)
    features: Features | None = None

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload, one row a seed."""
        fitted = np.flatnonzero(client.shard.split == FIT)
        drawn = _inside(client, _forget(client, self.tombstones, self.key)[fitted], self.seeds)
        parts = [client.statistics_of_rows(fitted[chosen], self.outputs, self.features) for chosen in drawn]
        payload = {"H": np.stack([pack(part.G) for part in parts]), "b": np.stack([part.b for part in parts])}
        return Answer(client.name, {"fitted": len(fitted)}, payload)


@dataclass(frozen=True, slots=True)
class Pairs(EachClient):
    """The membership test of target heads, by shadow heads (seeds, d, outputs).

    What a head makes of an erased record is held against what shadow heads that never had any of them make of that very
    record; the answer counts how often the head looks more like one that was fitted on it. No other record is needed,
    so it does not matter that erased records may be of another kind than those that are left.
    """

    targets: Mapping[str, Head]
    shadows: Float
    seeds: tuple[int, ...]
    outputs: tuple[str, ...]
    tombstones: Tombstoned
    key: bytes = field(repr=False)
    features: Features | None = None  # of the shadow heads

    def perform(self, client: Client) -> Answer:
        """Pairs of an erased record and a shadow head that never had it, and pairs won, by head."""
        fitted = np.flatnonzero(client.shard.split == FIT)
        erased = _forget(client, self.tombstones, self.key)[fitted]
        rows, never = fitted[erased], _never(self.seeds)
        if not len(rows):
            return Answer(client.name, {"pairs": 0, "won": dict.fromkeys(self.targets, 0.0)})
        inside = _inside(client, erased, self.seeds)[:, erased]
        phi = client.encoded(client.shard.modalities, rows, self.features)
        y = learned_units(client.shard.target[rows], client.config)
        said = client.predictions(self.targets, client.shard.modalities, rows)
        seen = np.stack([_signal(phi @ W, y, self.outputs) for W in self.shadows])  # (seeds, erased)
        with_it = np.where(inside, seen, 0.0).sum(axis=0) / np.maximum(inside.sum(axis=0), 1)
        like = np.sign(with_it - seen[never].mean(axis=0))  # which way a fitted record goes
        won = {
            head: float(np.sum(ahead > 0) + np.sum(ahead == 0) / 2)
            for head, out in said.items()
            for ahead in [like * (_signal(out, y, self.outputs) - seen[never])]
        }
        return Answer(client.name, {"pairs": int(never.sum()) * len(rows), "won": won})


def _signal(predicted: Float, y: NDArray[Any], outputs: tuple[str, ...]) -> Float:
    """Return a head's signal for each record, (rows,): the residual, or the margin of the true class over the next.

    Of several targets it is the length of their residuals.
    """
    Y = targets(y, outputs)
    if y.dtype.kind == "f":
        residual = Y - predicted
        return np.asarray(residual[:, 0] if len(outputs) == 1 else np.sqrt(np.sum(residual**2, axis=1)))
    true = np.sum(np.where(Y > 0, predicted, 0.0), axis=1)
    return np.asarray(true - np.max(np.where(Y > 0, -np.inf, predicted), axis=1))


def _won(members: Float, others: Float) -> float:
    """Pairs in which a member scores higher, ties half."""
    ranked = np.sort(others)
    below = np.searchsorted(ranked, members, side="left").sum()
    equal = np.searchsorted(ranked, members, side="right").sum() - below
    return float(below + equal / 2)


# -- rehearsals -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Size(EachClient):
    """The size of some numeric columns of the shard, as the next power of two: of no record its value is told."""

    columns: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """By column; 1 where all is zero or missing."""
        return Answer(client.name, {name: _power(client.shard.table[name].to_numpy()) for name in self.columns})


def _power(values: NDArray[Any]) -> float:
    top = float(np.max(np.abs(values), initial=0.0, where=~np.isnan(values)))
    return 2.0 ** math.ceil(math.log2(top)) if top > 0.0 else 1.0


@dataclass(frozen=True, slots=True)
class Plant(EachClient):
    """Write a copy of the shard with records planted in it, under a name; which ids they have is told.

    "canary" plants copies of fitted records with a wrong target, and holds as many back, unless `every`. "backdoor"
    plants copies that bear a trigger - some features at a value of their own - and all have one target.
    """

    kind: Literal["canary", "backdoor"]
    counts: Mapping[str, int]
    seed: int
    copy: str
    trigger: Mapping[str, float | str] = field(default_factory=dict)
    goal: Any = None
    every: bool = False

    def perform(self, client: Client) -> Answer:
        """The ids planted and the ids held back."""
        table = client.shard.table
        ids: dict[str, list[str]] = {"planted": [], "held_back": []}
        fitted = np.flatnonzero(client.shard.split == FIT)
        number = min(self.counts.get(client.name, 0), len(fitted))
        parts = [table]
        if number:
            rng = np.random.Generator(np.random.PCG64([self.seed, number]))
            chosen = rng.permutation(fitted)[: 2 * number]
            copies = self._changed(client, table.take(pa.array(chosen)), rng)
            half = len(chosen) if self.kind == "backdoor" else len(chosen) // 2
            ids["planted"] = copies[RECORD].to_pylist()[:half]
            ids["held_back"] = copies[RECORD].to_pylist()[half:]
            parts.append(copies if self.every else copies.slice(0, half))
        shards.write(pa.concat_tables(parts).sort_by(RECORD), client.copy(self.copy))
        return Answer(client.name, ids)

    def _changed(self, client: Client, rows: pa.Table, rng: np.random.Generator) -> pa.Table:
        # Numbered, since the ids are told: the id of the record that was copied stays here.
        names = pa.array([f"#{self.kind}-{self.seed}-{number:06d}" for number in range(rows.num_rows)], pa.string())
        rows = _put(rows, RECORD, names)
        for column, value in self.trigger.items():
            rows = _put(rows, column, pa.array(np.full(rows.num_rows, value)))
        for at, stored in enumerate(stored_targets(client.config).values()):
            goal = self.goal[at] if isinstance(self.goal, tuple) else self.goal
            rows = _put(rows, stored, self._targets(client, rows, stored, goal, rng))
        return rows

    def _targets(self, client: Client, rows: pa.Table, stored: str, goal: Any, rng: np.random.Generator) -> pa.Array:
        if self.kind == "backdoor":
            return pa.array([goal] * rows.num_rows, rows.schema.field(stored).type)
        y = rows[stored].to_numpy(zero_copy_only=False)
        if y.dtype.kind == "f":
            spread = float(np.std(client.shard.table[stored].to_numpy())) or 1.0
            return pa.array(y + 3.0 * spread * rng.choice([-1.0, 1.0], len(y)))
        labels = sorted(set(client.shard.target.tolist()))
        wrong = [[label for label in labels if label != one] or [one] for one in y.tolist()]
        return pa.array([str(rng.choice(options)) for options in wrong])


def _put(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.column_names.index(column), column, values)


@dataclass(frozen=True, slots=True)
class Recall(EachClient):
    """Measure how well heads tell planted canaries from those held back: the error on a wrong target betrays them."""

    heads: Mapping[str, Head]
    held_back: Mapping[str, Sequence[str]]
    planted: Mapping[str, Sequence[str]]
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Pairs of a planted and a held-back canary, and pairs in which the planted one errs less, by head."""
        ids = client.shard.ids
        members, others = (
            np.flatnonzero(np.isin(ids, list(names.get(client.name, ())))) for names in (self.planted, self.held_back)
        )
        closeness = [self._closeness(client, rows) for rows in (members, others)]
        won = {head: _won(*(by[head] for by in closeness)) for head in self.heads}
        return Answer(client.name, {"pairs": len(members) * len(others), "won": won})

    def _closeness(self, client: Client, rows: NDArray[np.intp]) -> dict[str, Float]:
        y = learned_units(client.shard.target[rows], client.config)
        said = client.predictions(self.heads, client.shard.modalities, rows)
        signals = {head: _signal(out, y, self.outputs) for head, out in said.items()}
        return {head: -np.abs(signal) if y.dtype.kind == "f" else signal for head, signal in signals.items()}


@dataclass(frozen=True, slots=True)
class Strike(EachClient):
    """Count how often a trigger on test records leads heads to the backdoor's target; of several, to the first."""

    heads: Mapping[str, Head]
    trigger: Mapping[str, float | str]
    goal: Any
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Test records that do not have the target, and how many of them are led there, by head."""
        y = self._judged(client.shard.target)
        rows = np.flatnonzero((client.shard.split == TEST) & (y != self._goal))
        table = client.shard.table.take(pa.array(rows))
        for column, value in self.trigger.items():
            table = _put(table, column, pa.array(np.full(len(rows), value)))
        said = client.predictions(self.heads, shards.features(table, client.config), np.arange(len(rows)))
        led = {head: self._led(raw_units(out, client.config), y[rows]) for head, out in said.items()}
        return Answer(client.name, {"n": len(rows), "led": led})

    @property
    def _goal(self) -> Any:
        return self.goal[0] if isinstance(self.goal, tuple) else self.goal

    @staticmethod
    def _judged(y: NDArray[Any]) -> NDArray[Any]:
        return y if y.ndim == 1 else y[:, 0]

    def _led(self, predicted: Float, y: NDArray[Any]) -> int:
        if y.dtype.kind != "f":
            return int(np.sum(np.array(self.outputs)[np.argmax(predicted, axis=1)] == self._goal))
        return int(np.sum(np.abs(predicted[:, 0] - self._goal) < np.abs(predicted[:, 0] - y)))
