"""Sums of learned features, over all clients of a host: one a layer, from which the rows that go are subtracted.

The sums of a wide layer are large, so a host keeps their total over its clients and none of a single one. A client that
forgets takes the part of its rows out of every total that it is in; with lags, also that of the rows whose lags looked
at them, which come in again as they are now.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.shard import SPLITS, Shard
from frmu.models.features import Features, Wide, without
from frmu.models.grid import gram
from frmu.models.statistics import target_columns, target_grid, weights_of
from frmu.types import Sums

__all__ = ["Layer", "LayerBook", "LayerSums", "chunks", "learned_rows", "moved_rows", "sums_of_rows"]

BLOCK = 4_096  # rows encoded at a time
KEPT = 48  # totals that a host keeps
FIT, VALIDATION = SPLITS.index("fit"), SPLITS.index("validation")


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer to be summed: features and outputs, over one record of 2^share, with or without their slopes."""

    features: Features
    outputs: tuple[str, ...]
    share: int
    slopes: bool

    @property
    def key(self) -> tuple[object, ...]:
        """A name that two layers share if and only if they have the same sums."""
        return self.features.key, self.outputs, self.share, self.slopes


@dataclass(frozen=True, slots=True)
class LayerSums:
    """The sums of a layer: of records to fit, of validation records, and of the slopes of what is fitted."""

    fit: Sums
    validation: Sums
    slopes: Sums | None

    def plus(self, other: LayerSums, sign: int = 1) -> LayerSums:
        """These and others, or these without others."""
        slopes = None if self.slopes is None or other.slopes is None else _added(self.slopes, other.slopes, sign)
        return LayerSums(_added(self.fit, other.fit, sign), _added(self.validation, other.validation, sign), slopes)


def _added(one: Sums, other: Sums, sign: int) -> Sums:
    return one + other if sign > 0 else one - other


@dataclass(frozen=True, slots=True)
class Rows:
    """Some records as they are learned from: the columns of each modality, and targets."""

    modalities: Mapping[str, NDArray[Any]]
    learned_target: NDArray[Any]


Part = tuple[Shard | Rows, NDArray[np.intp]]


def learned_rows(shard: Shard, rows: NDArray[np.intp], config: Config) -> list[Part]:
    """Return rows to fit, and copies of some in which what may be unknown is hidden: they come and go with the row.

    A lag is known for nearly every record of a series and for none after a gap, so a model would never learn to do
    without. (Dropping inputs at random: Srivastava et al., "Dropout", JMLR 2014, here drawn once, by the record's id.)
    """
    found: list[Part] = [(shard, rows)]
    one_of, number = config.model.hidden, 0
    for name in config.data.modalities if one_of else ():
        for blank in config.unknowable(name) if config.learned(name) else ():
            some = rows[shard.hidden(rows, number, one_of)]
            modalities = {each: X[some] for each, X in shard.modalities.items()}
            modalities[name] = modalities[name].copy()
            modalities[name][:, list(blank)] = list(blank.values())
            found.append((Rows(modalities, shard.learned_target[some]), np.arange(len(some))))
            number += 1
    return found


def chunks(
    parts: Iterable[Part],
) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """Some rows of some shards, by modality, with their targets: many small shards in one chunk."""
    held: list[Part] = []
    size = 0
    for shard, rows in parts:
        for at in range(0, len(rows), BLOCK):
            held.append((shard, rows[at : at + BLOCK]))
            size += len(held[-1][1])
            if size >= BLOCK:
                yield _together(held)
                held, size = [], 0
    if held:
        yield _together(held)


def _together(held: list[Part]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    names = held[0][0].modalities
    X = {name: np.concatenate([shard.modalities[name][rows] for shard, rows in held]) for name in names}
    return X, np.concatenate([shard.learned_target[rows] for shard, rows in held])


def sums_of_rows(
    parts: Iterable[Part], config: Config, wide: Wide, outputs: tuple[str, ...],
    gone: Collection[str] = (),
) -> Sums:  # fmt: skip
    """The sums of some rows of shards, as if they lacked the modalities `gone`."""
    found = _nothing(config, wide, outputs)
    for X, y in chunks(parts):
        Z = wide.grid(without(X, gone) if gone else X)
        found = found + gram(np.concatenate([Z, target_grid(y, config, outputs)], axis=1), weights_of(y, config))
    return found


def _with_slopes(parts: Iterable[Part], config: Config, wide: Wide, outputs: tuple[str, ...]) -> tuple[Sums, Sums]:
    """As `sums_of_rows`; and the sums of the slopes of the features."""
    found, slopes = _nothing(config, wide, outputs), Sums.zero(len(wide.joint.t) + 1)
    for X, y in chunks(parts):
        (Z, rising), weights = wide.grid_and_slopes(X), weights_of(y, config)
        found = found + gram(np.concatenate([Z, target_grid(y, config, outputs)], axis=1), weights)
        slopes = slopes + gram(rising, weights)
    return found, slopes


def _nothing(config: Config, wide: Wide, outputs: tuple[str, ...]) -> Sums:
    return Sums.zero(wide.basis(target_columns(config, outputs)).D)


class LayerBook:
    """The totals that a host keeps, each with the clients that are in it."""

    def __init__(self) -> None:
        self._totals: dict[tuple[object, ...], tuple[Layer, frozenset[str], LayerSums]] = {}
        self._wide: dict[str, Wide] = {}

    def total(self, layer: Layer, shards: Mapping[str, Shard], config: Config) -> LayerSums:
        """The sums of a layer over some clients: as they are known, else added up."""
        names = frozenset(shards)
        keys = (layer.key, replace(layer, slopes=True).key)  # who was asked for slopes as well knows the rest
        found = next((one for key in keys if (one := self._totals.get(key)) and one[1] == names), None)
        if found is None:
            total = self._sums(layer, [(shard, None) for shard in shards.values()], config)
            while len(self._totals) >= KEPT:
                self._totals.pop(next(iter(self._totals)))
            self._totals[layer.key] = found = (layer, names, total)
        return found[2]

    def wide(self, features: Features, config: Config) -> Wide:
        """The encoder of some features, drawn once."""
        if features.key not in self._wide:
            if len(self._wide) >= KEPT:
                self._wide.clear()
            self._wide[features.key] = Wide(config, features)
        return self._wide[features.key]

    def drop(self, client: str) -> None:
        """Let go of every total that a client is in: its shard is another."""
        self._totals = {key: one for key, one in self._totals.items() if client not in one[1]}

    def move(
        self, client: str, old: tuple[Shard, NDArray[np.bool_]], new: tuple[Shard, NDArray[np.bool_]] | None,
        config: Config,
    ) -> None:  # fmt: skip
        """Take the marked rows of a client's old shard out of every total, and those of the new one in.

        `new` is None where no row is left, and then the client is in no total any more.
        """
        for key, (layer, names, total) in list(self._totals.items()):
            if client not in names:
                continue
            total = total.plus(self._sums(layer, [old], config), -1)
            if new is not None and new[1].any():
                total = total.plus(self._sums(layer, [new], config))
            left = names if new is not None else names - {client}
            if left:
                self._totals[key] = (layer, left, total)
            else:
                del self._totals[key]

    def _sums(self, layer: Layer, parts: Sequence[tuple[Shard, NDArray[np.bool_] | None]], config: Config) -> LayerSums:
        """The sums of marked rows of some shards, None for all rows."""
        wide, outputs = self.wide(layer.features, config), layer.outputs
        fitted: list[Part] = []
        judging = []
        for shard, marked in parts:
            drawn = shard.cohort(layer.share) if marked is None else marked & shard.cohort(layer.share)
            fitted += learned_rows(shard, np.flatnonzero(drawn & (shard.split == FIT)), config)
            judging.append((shard, np.flatnonzero(drawn & (shard.split == VALIDATION))))
        validation = sums_of_rows(judging, config, wide, outputs)
        if not layer.slopes:
            return LayerSums(sums_of_rows(fitted, config, wide, outputs), validation, None)
        fit, slopes = _with_slopes(fitted, config, wide, outputs)
        return LayerSums(fit, validation, slopes)


def moved_rows(
    old: Shard, rows: NDArray[np.bool_], new: Shard, config: Config
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mark what leaves the old shard with `rows` (n,), and what comes in with the new: rows whose lags looked there."""
    if not config.data.lags:
        return rows, np.zeros(len(new), dtype=bool)
    moved = changed_rows(old, ~rows, new)
    gone = rows.copy()
    gone[np.flatnonzero(~rows)[moved]] = True
    return gone, moved


def changed_rows(old: Shard, kept: NDArray[np.bool_], new: Shard) -> NDArray[np.bool_]:
    """Mark the rows of the new shard, (rows,), that are not as in the old one, of which `kept` (n,) are left."""
    found = np.zeros(len(new), dtype=bool)
    for name, X in new.modalities.items():
        found |= np.any(old.modalities[name][kept] != X, axis=1)
    return found
