"""A client and its host: the shard, the statistics of its slices, and nothing that outlives them.

Statistics are cached by slice and dropped with the rows behind them. They are recomputed from the rows that
remain, never subtracted, so a client that forgot is, to the last bit, a client that never knew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data import shard as shards
from frmu.data.columns import RECORD
from frmu.data.shard import SPLITS, Shard
from frmu.data.sites import copy_of
from frmu.data.tombstones import tombstones
from frmu.errors import DataError, StoreError
from frmu.federation import Answer, ClientTask
from frmu.models.encoders import Encoder, Words, blocks, encode, encoders, width
from frmu.models.statistics import one_thread, statistics_of, targets
from frmu.selection.network import Network
from frmu.selection.observation import Fit
from frmu.selection.problem import PARTS, SelectionProblem, problem_of
from frmu.storage.fence import fenced
from frmu.types import Float, Statistics
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["Client", "Host", "Rehearsal"]

Rehearsal = tuple[
    str, frozenset[str], SelectionProblem, Fit, float
]  # disturbance, slices hit, task; keeping all: fit, later loss
BLOCK = 32_768  # rows encoded at a time, so that a long slice does not fill the memory


class Client:
    """One holder of a shard."""

    def __init__(
        self, name: str, config: Config, folder: Path, by: Mapping[str, Encoder | Words], fencing_token: int = 0
    ) -> None:
        self.name = name
        self.config = config
        self.path = shards.path_of(folder, name)
        self._fencing_token = fencing_token
        self.incoming: Any = None
        self.blocks = blocks(config)
        self._encoders = dict(by)
        self._shard: Shard | None = None
        self._statistics: dict[tuple[str, ...], dict[tuple[int, str], Statistics]] = {}
        self._parts: dict[tuple[str, ...], tuple[Statistics, ...]] = {}
        self._totals: dict[tuple[str, tuple[str, ...]], Statistics] = {}
        self._tombstones: tuple[bytes, list[str]] | None = None
        self._digest: str | None = None
        self._groups: dict[int, dict[str, NDArray[np.intp]]] = {}
        self.network: Network | None = None
        self.rehearsals: dict[tuple[int, int, int], tuple[Rehearsal, ...]] = {}  # by seed, most, rounds

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
        self._shard = None
        self._statistics.clear()
        self._parts.clear()
        self._totals.clear()
        self._tombstones = None
        self._digest = None
        self._groups.clear()
        self.rehearsals.clear()

    def drop(self, rows: NDArray[np.bool_]) -> None:
        """Purge rows, (n,) bool: the shard is rewritten and what rested on them is forgotten."""
        shard = self.shard
        kept = {slot: cache for slot, cache in self._statistics.items() if not self.config.data.lags}
        touched = {(int(split), str(key)) for split, key in zip(shard.split[rows], shard.slices[rows], strict=True)}
        rest = shard.without(rows)
        with self.writing():
            if rest.num_rows:
                shards.write(rest, self.path)
            else:
                self.path.unlink()
        self.reload()
        # A lag carries a value into other slices, so with lags nothing is kept.
        for outputs, cache in kept.items():
            self._statistics[outputs] = {slot: part for slot, part in cache.items() if slot not in touched}

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

    def slices(self, split: str, outputs: tuple[str, ...]) -> dict[str, Statistics]:
        """The statistics of every slice in one split, by key."""
        code = SPLITS.index(split)
        cache = self._statistics.setdefault(outputs, {})
        for key, rows in self.groups(code).items():
            if (code, key) not in cache:
                cache[code, key] = self.statistics_of_rows(rows, outputs)
        return {key: part for (at, key), part in sorted(cache.items()) if at == code}

    def statistics(
        self, modalities: Mapping[str, NDArray[Any]], y: NDArray[Any], outputs: tuple[str, ...]
    ) -> Statistics:
        """The statistics of some rows, encoded block by block; raises `DataError` where they overflow."""
        with np.errstate(over="ignore", invalid="ignore"):
            parts = [
                statistics_of(self.encoded(modalities, slice(at, at + BLOCK)), targets(y[at : at + BLOCK], outputs))
                for at in range(0, len(y), BLOCK)
            ]
        whole = parts[0] if len(parts) == 1 else Statistics.total(parts, width(self.config), len(outputs))
        if not (np.isfinite(whole.G).all() and np.isfinite(whole.b).all() and np.isfinite(whole.c)):
            raise DataError(
                f'client "{self.name}": the sums of its records overflow float64; declare data.ranges for features of '
                "great size, and give the target in a smaller unit"
            )
        return whole

    def statistics_of_rows(self, rows: NDArray[np.intp], outputs: tuple[str, ...]) -> Statistics:
        """The statistics of some rows of the shard."""
        if not len(rows):
            return Statistics.zero(width(self.config), len(outputs))
        modalities = {name: X[rows] for name, X in self.shard.modalities.items()}
        return self.statistics(modalities, self.shard.target[rows], outputs)

    def encoded(self, modalities: Mapping[str, NDArray[Any]], rows: slice | NDArray[np.intp]) -> Float:
        """phi of some rows, (rows, d)."""
        return encode({name: X[rows] for name, X in modalities.items()}, self._encoders)

    def split_total(self, split: str, outputs: tuple[str, ...]) -> Statistics:
        """The statistics of a whole split, its slices added in the order of their keys."""
        if (split, outputs) not in self._totals:
            parts = self.slices(split, outputs).values()
            self._totals[split, outputs] = Statistics.total(parts, width(self.config), len(outputs))
        return self._totals[split, outputs]

    def rest(self, total: Statistics, outputs: tuple[str, ...]) -> Statistics:
        """The sums of the other clients: the federation's total without this client's own."""
        own = self.split_total("fit", outputs)
        return Statistics(total.n - own.n, total.G - own.G, total.b - own.b, 0.0)

    def parts(self, outputs: tuple[str, ...]) -> tuple[Statistics, ...]:
        """The statistics of the validation records in equal stretches, in the order of time, else of ids."""
        if outputs not in self._parts:
            rows = np.flatnonzero(self.shard.split == SPLITS.index("validation"))
            stretches = np.array_split(self.shard.in_time(rows), PARTS)
            self._parts[outputs] = tuple(self.statistics_of_rows(stretch, outputs) for stretch in stretches)
        return self._parts[outputs]

    def task(self, slices: Mapping[str, Statistics], total: Statistics, outputs: tuple[str, ...]) -> SelectionProblem:
        """The task of choosing influences for some slices, by key, within the federation's total."""
        return problem_of(
            slices,
            shards.ages(sorted(slices), self.config),
            self.rest(total, outputs),
            self.parts(outputs),
            self.split_total("later", outputs),
            self.config.model.ridge,
        )


class Host:
    """Several clients in one process; what a Ray actor wraps and what runs in process.

    `folder` is that of the shards; `fencing_token` is the number of the job, for which see `frmu.storage.fence`.
    Payloads leave through the `pipeline`.
    """

    def __init__(
        self, config: Config, names: Sequence[str], folder: Path, fencing_token: int = 0, pipeline: Pipeline = IDENTITY
    ) -> None:
        by = encoders(config)
        self._pipeline = pipeline
        self._clients = {name: Client(name, config, folder, by, fencing_token) for name in names}

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
