"""Sums of learned features, over all clients of a host: one a layer, from which the rows that go are subtracted.

The sums of a wide layer are large, so a host keeps their total over its clients and none of a single one. A client that
forgets takes the part of its rows out of every total that it is in; with lags, also that of the rows whose lags looked
at them, which come in again as they are now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.shard import SPLITS, Shard
from frmu.models.encoders import Encoder, Words, grid
from frmu.models.features import Features, encoders_of
from frmu.models.grid import gram
from frmu.models.statistics import target_columns, target_grid
from frmu.types import Sums

__all__ = ["Layer", "LayerBook", "LayerSums", "changed_rows", "sums_of_rows"]

BLOCK = 4_096  # rows encoded at a time
KEPT = 48  # totals that a host keeps
Encoders = Mapping[str, Encoder | Words]
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
    """The sums of a layer: of records to fit, of validation records, and of slopes by modality."""

    fit: Sums
    validation: Sums
    slopes: Mapping[str, Sums]

    def plus(self, other: LayerSums, sign: int = 1) -> LayerSums:
        """These and others, or these without others."""

        def add(one: Sums, two: Sums) -> Sums:
            return one + two if sign > 0 else one - two

        slopes = {name: add(sums, other.slopes[name]) for name, sums in self.slopes.items()}
        return LayerSums(add(self.fit, other.fit), add(self.validation, other.validation), slopes)


def _chunks(parts: Iterable[tuple[Shard, NDArray[np.intp]]]) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any]]]:
    """Some rows of some shards, by modality, with their targets: many small shards in one chunk."""
    held: list[tuple[Shard, NDArray[np.intp]]] = []
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


def _together(held: list[tuple[Shard, NDArray[np.intp]]]) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
    names = held[0][0].modalities
    X = {name: np.concatenate([shard.modalities[name][rows] for shard, rows in held]) for name in names}
    return X, np.concatenate([shard.learned_target[rows] for shard, rows in held])


def sums_of_rows(
    parts: Iterable[tuple[Shard, NDArray[np.intp]]], config: Config, by: Encoders, outputs: tuple[str, ...]
) -> Sums:
    """The sums of some rows of shards under encoders."""
    found = _nothing(config, by, outputs)
    for X, y in _chunks(parts):
        found = found + gram(np.concatenate([grid(X, by), target_grid(y, config, outputs)], axis=1))
    return found


def _with_slopes(
    parts: Iterable[tuple[Shard, NDArray[np.intp]]], config: Config, by: Encoders, outputs: tuple[str, ...]
) -> tuple[Sums, dict[str, Sums]]:
    """As `sums_of_rows`; and the sums of the slopes of each modality whose features are learned."""
    learned = {name: one for name, one in by.items() if isinstance(one, Encoder) and config.learned(name)}
    slopes = {name: Sums.zero(one.R.shape[1] + 1) for name, one in learned.items()}
    found = _nothing(config, by, outputs)
    for X, y in _chunks(parts):
        made = [np.ones((len(y), 1), dtype=np.int8)]
        for name, one in by.items():
            if name in learned:
                Z, rising = learned[name].grid_and_slopes(X[name])
                slopes[name] = slopes[name] + gram(rising)
            else:
                Z = one.grid(X[name])
            made.append(Z)
        found = found + gram(np.concatenate([*made, target_grid(y, config, outputs)], axis=1))
    return found, slopes


def _nothing(config: Config, by: Encoders, outputs: tuple[str, ...]) -> Sums:
    own = sum(len(one.columns.idle) for one in by.values())
    return Sums.zero(1 + own + len(target_columns(config, outputs).idle))


class LayerBook:
    """The totals that a host keeps, each with the clients that are in it."""

    def __init__(self) -> None:
        self._totals: dict[tuple[object, ...], tuple[Layer, frozenset[str], LayerSums]] = {}
        self._encoders: dict[str, Encoders] = {}

    def total(self, layer: Layer, shards: Mapping[str, Shard], config: Config) -> LayerSums:
        """The sums of a layer over some clients: as they are known, else added up."""
        found = self._totals.get(layer.key)
        names = frozenset(shards)
        if found is None or found[1] != names:
            total = self._sums(layer, [(shard, None) for shard in shards.values()], config)
            while len(self._totals) >= KEPT:
                self._totals.pop(next(iter(self._totals)))
            self._totals[layer.key] = found = (layer, names, total)
        return found[2]

    def encoders(self, features: Features, config: Config) -> Encoders:
        """The encoders of some features, drawn once."""
        if features.key not in self._encoders:
            if len(self._encoders) >= KEPT:
                self._encoders.clear()
            self._encoders[features.key] = encoders_of(config, features)
        return self._encoders[features.key]

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
        by, outputs = self.encoders(layer.features, config), layer.outputs
        fitted, judging = [], []
        for shard, marked in parts:
            drawn = shard.cohort(layer.share) if marked is None else marked & shard.cohort(layer.share)
            fitted.append((shard, np.flatnonzero(drawn & (shard.split == FIT))))
            judging.append((shard, np.flatnonzero(drawn & (shard.split == VALIDATION))))
        validation = sums_of_rows(judging, config, by, outputs)
        if not layer.slopes:
            return LayerSums(sums_of_rows(fitted, config, by, outputs), validation, {})
        fit, slopes = _with_slopes(fitted, config, by, outputs)
        return LayerSums(fit, validation, slopes)


def changed_rows(old: Shard, kept: NDArray[np.bool_], new: Shard) -> NDArray[np.bool_]:
    """Mark the rows of the new shard, (rows,), that are not as in the old one, of which `kept` (n,) are left."""
    found = np.zeros(len(new), dtype=bool)
    for name, X in new.modalities.items():
        found |= np.any(old.modalities[name][kept] != X, axis=1)
    return found
