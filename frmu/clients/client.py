"""A client and its host: the shard, the sums of its slices, and nothing that outlives them.

Sums are whole numbers, so those of rows that go are subtracted, and a client that forgot is, to the last bit, a client
that never knew (`frmu.models.grid`). What policies and losses look at, float64, follows from them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.clients.layers import LayerBook, moved_rows, sums_of_rows
from frmu.config import Config
from frmu.data import shard as shards
from frmu.data.columns import RECORD
from frmu.data.shard import SPLITS, Shard
from frmu.data.sites import copy_of
from frmu.data.tombstones import tombstones
from frmu.errors import StoreError
from frmu.federation import Answer, ClientTask
from frmu.models.encoders import Frozen, basis, blocks, encode, encoders, grid, layout, spans
from frmu.models.features import Features, Head, basis_of_features
from frmu.models.grid import Basis, gram, total
from frmu.models.statistics import basis_of, one_thread, target_grid, weights_of
from frmu.models.weights import Weights, predictions
from frmu.selection.network import Network
from frmu.selection.observation import Fit
from frmu.selection.problem import PARTS, SelectionProblem, problem_of
from frmu.storage.fence import fenced
from frmu.types import Float, Statistics, Sums
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["Client", "Host", "Rehearsal"]

Rehearsal = tuple[
    str, frozenset[str], SelectionProblem, Fit, float
]  # disturbance, slices hit, task; keeping all: fit, later loss
BLOCK = 4_096  # rows encoded at a time, so that they stay in the cache


class Client:
    """One holder of a shard."""

    def __init__(
        self, name: str, config: Config, folder: Path, by: Mapping[str, Frozen], fencing_token: int = 0,
        book: LayerBook | None = None, bases: dict[tuple[str, ...], Basis] | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.book = book or LayerBook()  # what the clients of a host know of learned features together
        self.config = config
        self.path = shards.path_of(folder, name)
        self._fencing_token = fencing_token
        self.prepared: Any = None  # what a task made for all clients of a host at once, until this one's turn
        self.blocks = blocks(config)
        self._encoders = dict(by)
        self.spans = spans(layout(config))
        self._shard: Shard | None = None
        self._sums: dict[tuple[str, ...], dict[tuple[int, str], Sums]] = {}
        self._statistics: dict[tuple[str, ...], dict[tuple[int, str], Statistics]] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], Sums] = {}
        self._bases = {} if bases is None else bases  # shared by the clients of a host
        self._parts: dict[tuple[str, ...], list[Sums]] = {}
        self._problems: dict[tuple[str, ...], SelectionProblem] = {}
        self._tombstones: tuple[bytes, list[str]] | None = None
        self.located: dict[str, int] = {}  # rows of the present shard that a search found, by tombstone
        self._digest: str | None = None
        self._groups: dict[int, dict[str, NDArray[np.intp]]] = {}
        self.network: Network | None = None
        self.rehearsals: dict[tuple[int, int, int], tuple[Rehearsal, ...]] = {}  # by seed, most, rounds
        self.decided: dict[tuple[Any, ...], Answer] = {}  # what was chosen of these records, by what it was chosen by
        self.records: dict[tuple[object, ...], Any] = {}  # as a module is given them

    @property
    def shard(self) -> Shard:
        """The records, memory-mapped on first use."""
        if self._shard is None:
            self._shard = Shard.read(self.path, self.config)
        return self._shard

    @property
    def has_shard(self) -> bool:
        """Tell if there is a shard at all."""
        return self._shard is not None or self.path.exists()

    @property
    def digest(self) -> str:
        """SHA-256 of the shard's file."""
        if self._digest is None:
            try:
                self._digest = shards.digest_of_file(self.path)
            except OSError as error:
                raise StoreError(f"{self.path}: the shard cannot be read: {error.strerror}; run `frmu train`") from None
        return self._digest

    def writing(self) -> AbstractContextManager[None]:
        """Hold the shard's folder for one change of it; see `frmu.storage.fence`."""
        return fenced(self.path.parent, self._fencing_token)

    def copy(self, name: str) -> Path:
        """Return the path of the shard's copy that an audit works on; see `frmu.data.sites.SiteLocation.copy`."""
        return copy_of(self.path.parent.parent, name) / "shards" / self.path.name

    def reload(self) -> None:
        """Forget everything that was derived from the shard: it was replaced."""
        self.book.drop(self.name)
        self._forget()

    def _forget(self) -> None:
        self._shard = None
        self._sums.clear()
        self._totals.clear()
        self._statistics.clear()
        self._parts.clear()
        self._problems.clear()
        self._tombstones = None
        self.located.clear()
        self._digest = None
        self._groups.clear()
        self.rehearsals.clear()
        self.decided.clear()
        self.records.clear()

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Purge rows, (n,) bool: the shard is rewritten, and their sums are subtracted from those of their slices."""
        shard, kept, parts = self.shard, self._without(rows), dict(self._parts)
        if self.config.data.lags or rows[shard.split == SPLITS.index("validation")].any():
            parts = {}
        rest = shard.without(rows)
        with self.writing():
            if rest.num_rows:
                shards.write(rest, self.path)
            else:
                self.path.unlink()
        self._forget()
        if rest.num_rows:
            self._shard = Shard(rest, self.config)
        self._move(shard, rows)
        self._sums |= kept
        self._parts |= parts

    def _move(self, old: Shard, rows: NDArray[np.bool_]) -> None:
        """Take what went, and rows whose lags looked at it, out of the host's totals; those come in as they are now."""
        if not self.config.learns:
            return
        if rows.all():
            self.book.move(self.name, (old, rows), None, self.config)
            return
        gone, moved = moved_rows(old, rows, self.shard, self.config)
        self.book.move(self.name, (old, gone), (self.shard, moved), self.config)

    def _without(self, rows: NDArray[np.bool_]) -> dict[tuple[str, ...], dict[tuple[int, str], Sums]]:
        """The sums that are known, less those of some rows; none with lags, which carry values into other slices."""
        if self.config.data.lags:
            return {}
        kept = {outputs: dict(known) for outputs, known in self._sums.items()}
        for outputs, known in kept.items():
            for split, key in list(known):
                gone = self.groups(split)[key][rows[self.groups(split)[key]]]
                if len(gone) == len(self.groups(split)[key]):
                    del known[split, key]
                elif len(gone):
                    known[split, key] -= self.sums_of_rows(gone, outputs)
        return kept

    def tombstones(self, key: bytes) -> list[str]:
        """The keyed hash of each record, in the order of the rows."""
        if self._tombstones is None or self._tombstones[0] != key:
            names = self.shard.table[RECORD].to_pylist()
            self._tombstones = (key, list(tombstones(key, self.name, names)))
        return self._tombstones[1]

    def groups(self, split: int) -> dict[str, NDArray[np.intp]]:
        """The rows of each slice in one split, by key, in the order of the record ids."""
        if split not in self._groups:
            rows = np.flatnonzero(self.shard.split == split)
            keys, inverse = np.unique(self.shard.slices[rows], return_inverse=True)
            self._groups[split] = {str(key): rows[inverse == number] for number, key in enumerate(keys)}
        return self._groups[split]

    def basis(self, outputs: tuple[str, ...]) -> Basis:
        """The way from the integers of a record to features and targets."""
        if outputs not in self._bases:
            self._bases[outputs] = basis_of(self.config, outputs)
        return self._bases[outputs]

    def sums(self, split: str, outputs: tuple[str, ...]) -> dict[str, Sums]:
        """The sums of every slice in one split, by key."""
        code = SPLITS.index(split)
        known, groups = self._sums.setdefault(outputs, {}), self.groups(code)
        wanted = {key: rows for key, rows in groups.items() if (code, key) not in known}
        known |= {(code, key): sums for key, sums in self._summed_by_slice(wanted, outputs).items()}
        return {key: known[code, key] for key in sorted(groups)}

    def _summed_by_slice(self, groups: Mapping[str, NDArray[np.intp]], outputs: tuple[str, ...]) -> dict[str, Sums]:
        """Rows of many slices are encoded together: a slice may have a few."""
        found: dict[str, Sums] = {}
        rows = np.concatenate(list(groups.values())) if groups else np.zeros(0, dtype=np.intp)
        ends = np.cumsum([len(each) for each in groups.values()])
        for at in range(0, len(rows), BLOCK):
            some = rows[at : at + BLOCK]
            Z, weights = self._integers(some, outputs), weights_of(self.shard.learned_target[some], self.config)
            for key, end, size in zip(groups, ends.tolist(), map(len, groups.values()), strict=True):
                first, last = max(end - size, at), min(end, at + len(Z))
                if first < last:
                    own = slice(first - at, last - at)
                    part = gram(Z[own], None if weights is None else weights[own])
                    found[key] = found[key] + part if key in found else part
        return found

    def slices(self, split: str, outputs: tuple[str, ...]) -> dict[str, Statistics]:
        """The statistics of every slice in one split, by key."""
        code, basis = SPLITS.index(split), self.basis(outputs)
        cache = self._statistics.setdefault(outputs, {})
        new = {key: sums for key, sums in self.sums(split, outputs).items() if (code, key) not in cache}
        cache |= {(code, key): one for key, one in zip(new, basis.each(list(new.values())), strict=True)}
        return {key: part for (at, key), part in sorted(cache.items()) if at == code}

    def statistics(
        self, modalities: Mapping[str, NDArray[Any]], y: NDArray[Any], outputs: tuple[str, ...]
    ) -> Statistics:
        """The statistics of some rows, on the grid."""
        found = Sums.zero(self.basis(outputs).D)
        for at in range(0, len(y), BLOCK):
            some = slice(at, at + BLOCK)
            Z = self._encoded({name: X[some] for name, X in modalities.items()}, y[some], outputs)
            found = found + gram(Z, weights_of(y[some], self.config))
        return self.basis(outputs).statistics(found)

    def _encoded(
        self, modalities: Mapping[str, NDArray[Any]], y: NDArray[Any], outputs: tuple[str, ...]
    ) -> NDArray[np.int8]:
        return np.concatenate([grid(modalities, self._encoders), target_grid(y, self.config, outputs)], axis=1)

    def _integers(self, rows: NDArray[np.intp], outputs: tuple[str, ...]) -> NDArray[np.int8]:
        modalities = {name: X[rows] for name, X in self.shard.modalities.items()}
        return self._encoded(modalities, self.shard.learned_target[rows], outputs)

    def sums_of_rows(self, rows: NDArray[np.intp], outputs: tuple[str, ...]) -> Sums:
        """The sums of some rows of the shard."""
        return self._summed_by_slice({"": rows}, outputs).get("", Sums.zero(self.basis(outputs).D))

    def statistics_of_rows(
        self, rows: NDArray[np.intp], outputs: tuple[str, ...], features: Features | None = None
    ) -> Statistics:
        """The statistics of some rows of the shard, of learned features, or of the frozen ones that judge."""
        if features is not None:
            wide = self.book.wide(features, self.config)
            sums = sums_of_rows([(self.shard, rows)], self.config, wide, outputs)
            return basis_of_features(self.config, features, outputs).statistics(sums)
        return self.basis(outputs).statistics(self.sums_of_rows(rows, outputs))

    def encoded(
        self, modalities: Mapping[str, NDArray[Any]], rows: slice | NDArray[np.intp], features: Features | None = None
    ) -> Float:
        """phi of some rows, (rows, d), of learned features, or of the frozen ones that judge."""
        some = {name: X[rows] for name, X in modalities.items()}
        return encode(some, self._encoders) if features is None else self.book.wide(features, self.config).encode(some)

    def predictions(
        self, heads: Mapping[str, Head | Weights], modalities: Mapping[str, NDArray[Any]], rows: NDArray[np.intp]
    ) -> dict[str, Float]:
        """Let heads predict for some rows, (rows, outputs) each; those on the same features share the encoding."""
        alike: dict[str, list[tuple[str, Head]]] = {}
        found = {name: np.zeros((len(rows), head.width)) for name, head in heads.items()}
        blocks = [slice(at, at + BLOCK) for at in range(0, len(rows), BLOCK)]
        for name, head in heads.items():
            if isinstance(head, Head):
                alike.setdefault(head.features.key if head.features else "", []).append((name, head))
                continue
            for block in blocks:
                found[name][block] = self.predict(head, {key: X[rows[block]] for key, X in modalities.items()})
        for together in alike.values():
            W = np.concatenate([head.W for _, head in together], axis=1)
            joint, ends = Head(W, together[0][1].features), np.cumsum([head.width for _, head in together])
            for block in blocks:
                said = self.predict(joint, {key: X[rows[block]] for key, X in modalities.items()})
                for (name, _), part in zip(together, np.split(said, ends[:-1], axis=1), strict=True):
                    found[name][block] = part
        return found

    def predict(self, head: Head | Weights, modalities: Mapping[str, NDArray[Any]]) -> Float:
        """Let a head, or a module, predict for some rows, given as the columns of each modality, (rows, outputs)."""
        if isinstance(head, Weights):
            return predictions(self.config, head, modalities)
        if head.features is not None:
            return self.book.wide(head.features, self.config).predictions(modalities, head.W)
        if () not in self._bases:
            self._bases[()] = basis(layout(self.config))
        return self._bases[()].predictions(grid(modalities, self._encoders), head.W)

    def split_sums(self, split: str, outputs: tuple[str, ...]) -> Sums:
        """The sums of a whole split."""
        if (split, outputs) not in self._totals:
            parts = [(1, sums) for sums in self.sums(split, outputs).values()]
            self._totals[split, outputs] = total(parts, self.basis(outputs).D)
        return self._totals[split, outputs]

    def split_total(self, split: str, outputs: tuple[str, ...]) -> Statistics:
        """The statistics of a whole split."""
        return self.basis(outputs).statistics(self.split_sums(split, outputs))

    def parts(self, outputs: tuple[str, ...]) -> tuple[Statistics, ...]:
        """The statistics of the validation records in equal stretches, in the order of time, else of ids."""
        return tuple(self.basis(outputs).each(self._stretches(outputs)))

    def _stretches(self, outputs: tuple[str, ...]) -> list[Sums]:
        if outputs not in self._parts:
            rows = np.flatnonzero(self.shard.split == SPLITS.index("validation"))
            stretches = np.array_split(self.shard.in_time(rows), PARTS)
            found = self._summed_by_slice({str(at): rows for at, rows in enumerate(stretches)}, outputs)
            nothing = Sums.zero(self.basis(outputs).D)
            self._parts[outputs] = [found.get(str(at), nothing) for at in range(PARTS)]
        return self._parts[outputs]

    def cohort_sums(self, share: int, outputs: tuple[str, ...]) -> Sums:
        """The sums of the records to fit that are in a cohort of one in 2^share, see `Shard.cohort`."""
        if share == 0:
            return self.split_sums("fit", outputs)
        name = f"fit {share}"
        if (name, outputs) not in self._totals:
            rows = np.flatnonzero(self.shard.split == SPLITS.index("fit"))
            self._totals[name, outputs] = self.sums_of_rows(rows[self.shard.drawn(rows, share)], outputs)
        return self._totals[name, outputs]

    def _others(self, drawn: Sums, outputs: tuple[str, ...], share: int) -> Sums:
        """The sums of the other clients, as those of one record in 2^share tell them."""
        others = drawn - self.cohort_sums(share, outputs)
        return others if share == 0 else total([(2**share, others)], others.D)

    def task(
        self, slices: Mapping[str, Statistics], total: Sums, outputs: tuple[str, ...], share: int = 0
    ) -> SelectionProblem:
        """The task of choosing influences for some slices, by key, within the federation.

        `total` are the sums of its records to fit, or of those in a cohort of one in 2^share.
        """
        sums = [self._others(total, outputs, share), self.split_sums("later", outputs), *self._stretches(outputs)]
        others, later, *parts = self.basis(outputs).each(sums)
        ages = shards.ages(sorted(slices), self.config)
        return problem_of(slices, ages, others, parts, later, self.config.model.frozen_ridge)

    def problem(self, total: Sums, outputs: tuple[str, ...], keep: bool = False, share: int = 0) -> SelectionProblem:
        """The task of choosing influences for every slice, see `task`.

        With `keep` what follows from the client's own records is kept for the next time: it is large.
        """
        if outputs in self._problems:
            rest = self.basis(outputs).statistics(self._others(total, outputs, share))
            return replace(self._problems[outputs], rest=rest)
        sums = self.sums("fit", outputs)
        slices = dict(zip(sums, self.basis(outputs).each(list(sums.values())), strict=True))
        found = self.task(slices, total, outputs, share)
        if keep:
            self._problems[outputs] = found
        return found


class Host:
    """Several clients in one process; what a Ray actor wraps and what runs in process.

    `folder` is that of the shards; `fencing_token` is the number of the job, for which see `frmu.storage.fence`.
    Payloads leave through the `pipeline`.
    """

    def __init__(
        self, config: Config, names: Sequence[str], folder: Path, fencing_token: int = 0, pipeline: Pipeline = IDENTITY
    ) -> None:
        by, book = encoders(config), LayerBook()
        bases: dict[tuple[str, ...], Basis] = {}
        self._pipeline = pipeline
        self._clients = {name: Client(name, config, folder, by, fencing_token, book, bases) for name in names}

    def answer(self, work: ClientTask, names: Sequence[str]) -> list[Answer]:
        """Let some of the clients do a work, in the order of their names."""
        with one_thread():
            clients = self.clients(names)
            work.prepare(clients)
            answers = [work.perform(client) for client in clients]
        return [replace(answer, payload=self._pipeline.encode(answer.payload)) for answer in answers]

    def clients(self, names: Sequence[str]) -> list[Client]:
        """Some of the clients, in the order of their names."""
        return [self._clients[name] for name in sorted(names)]
