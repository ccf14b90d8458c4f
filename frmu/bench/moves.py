"""The share of erasures that move learned features: records, slices, persons, windows and sites, one at a time.

What was taken out is there again before the next. A sample of each kind is held against a federation that is built from
nothing on the shards that are left: the features, the metrics and the total must be the same to the last bit.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.bench.accuracy import OURS, Tell, config_for
from frmu.bench.scenario import filled, held
from frmu.clients.client import Client
from frmu.clients.layers import FIT, moved_rows
from frmu.config import Config
from frmu.data import shard as shards
from frmu.data.columns import SUBJECT, TIME
from frmu.data.shard import Shard
from frmu.data.sites import SiteLocation
from frmu.methods.analytic import outputs_of
from frmu.methods.features import LearnedFeatures, learn_features
from frmu.models.statistics import one_thread
from frmu.runtime.local import LocalFederation

__all__ = ["KINDS", "bench_moves", "draws"]

DAYS = 3  # of a window
SAMPLE = 3  # erasures of a kind that are held against a federation that never had what went
Mask = NDArray[np.bool_]
Clients = dict[str, Client]
Masks = dict[str, Mask]  # rows that go, by client
Draws = Callable[[Clients, np.random.Generator, int], Iterator[Masks]]


# -- what goes ------------------------------------------------------------------------------------------------


def _at_one(draw: Callable[[Client, np.random.Generator], Mask]) -> Draws:
    """So many draws, each at a random client."""

    def drawn(clients: Clients, rng: np.random.Generator, times: int) -> Iterator[Masks]:
        for _ in range(times):
            name = str(rng.choice(sorted(clients)))
            yield {name: draw(clients[name], rng)}

    return drawn


def _records(number: int) -> Callable[[Client, np.random.Generator], Mask]:
    """Mark some records that are fitted."""

    def draw(client: Client, rng: np.random.Generator) -> Mask:
        rows = np.zeros(len(client.shard), dtype=bool)
        fitted = np.flatnonzero(client.shard.split == FIT)
        rows[rng.choice(fitted, min(number, len(fitted) - 1), replace=False)] = True
        return rows

    return draw


def _slice(client: Client, rng: np.random.Generator) -> Mask:
    """Mark all of one slice that is fitted."""
    fitted = client.shard.split == FIT
    return np.asarray(fitted & (client.shard.slices == rng.choice(np.unique(client.shard.slices[fitted]))))


def _persons(clients: Clients, rng: np.random.Generator, times: int) -> Iterator[Masks]:
    """All records of a person at every site, each person once."""
    values = {name: _column(client, SUBJECT) for name, client in clients.items()}
    fitted = [values[name][client.shard.split == FIT] for name, client in clients.items()]
    for person in rng.permutation(np.unique(np.concatenate(fitted)))[:times]:
        yield _somewhere({name: own == person for name, own in values.items()})


def _windows(clients: Clients, rng: np.random.Generator, times: int) -> Iterator[Masks]:
    """All records of some days at every site, from a day on that has records to fit."""
    values = {name: _column(client, TIME).astype("datetime64[D]") for name, client in clients.items()}
    fitted = [values[name][client.shard.split == FIT] for name, client in clients.items()]
    for first in rng.choice(np.unique(np.concatenate(fitted)), times):
        yield _somewhere({name: (own >= first) & (own < first + DAYS) for name, own in values.items()})


def _sites(clients: Clients, rng: np.random.Generator, times: int) -> Iterator[Masks]:
    """All records of a site, each site once."""
    for name in rng.permutation(sorted(clients))[:times]:
        yield {str(name): np.ones(len(clients[str(name)].shard), dtype=bool)}


def _column(client: Client, name: str) -> NDArray[Any]:
    return np.asarray(client.shard.table[name].to_numpy(zero_copy_only=False))


def _somewhere(masks: Masks) -> Masks:
    return {name: rows for name, rows in masks.items() if rows.any()}


KINDS: Mapping[str, Draws] = {
    "1 record": _at_one(_records(1)), "20 records": _at_one(_records(20)), "a slice": _at_one(_slice),
    "a person": _persons, f"{DAYS} days": _windows, "a site": _sites,
}  # fmt: skip


def draws(kind: str, clients: Clients, config: Config, rng: np.random.Generator, times: int) -> Iterator[Masks]:
    """Draw what goes, so many times at most: nothing where a set has no persons, or no time."""
    lacks = {"a person": config.data.subject, f"{DAYS} days": config.data.time}
    return iter(()) if lacks.get(kind, kind) is None else KINDS[kind](clients, rng, times)


# -- what moves -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Counted:
    """The outcome of a kind of erasure: how many there were and moved something; how many of a sample were exact."""

    times: int
    metric: int
    choice: int
    exact: int
    sample: int
    seconds: float


def bench_moves(sets: Sequence[str], kinds: Sequence[str], times: int, cache: Path, tell: Tell) -> list[dict[str, Any]]:
    """Take out what each kind means, so many times a set, and count how often anything about the features is another.

    Seconds are the mean of an erasure, in which the features are learned again from what is left of the sums.
    """
    found = []
    for name in sets:
        config = config_for(name, cache, 0, OURS["learned"])
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder, one_thread():
            federation = filled(config, Path(folder))
            clients = {client.name: client for client in held(federation)}
            first = _learned(federation, clients)
            for kind in kinds:
                drawn = draws(kind, clients, config, np.random.default_rng(0), times)
                of = _counted(first, federation, clients, drawn)
                counts = {field: getattr(of, field) for field in _Counted.__slots__}
                found.append({"set": name, "kind": kind, "layers": len(first.metrics), **counts})
                tell(
                    f"{name}, {kind}: metrics moved {of.metric} of {of.times} times, choices {of.choice}; exact "
                    f"{of.exact} of {of.sample}; {of.seconds:.2f} s each"
                )
    return found


def _counted(first: LearnedFeatures, federation: LocalFederation, clients: Clients, drawn: Iterator[Masks]) -> _Counted:
    times = metric = choice = exact = 0
    seconds = 0.0
    for masks in drawn:
        began = time.perf_counter()
        with _without(masks, clients) as left:
            after = _learned(federation, left)
            seconds += time.perf_counter() - began
            times += 1
            metric += not _same_metrics(first, after)
            choice += first.header != after.header
            exact += times <= SAMPLE and _same(after, _never(left))
    return _Counted(times, metric, choice, exact, min(times, SAMPLE), seconds / max(1, times))


def _learned(federation: LocalFederation, clients: Clients) -> LearnedFeatures:
    present = [client.shard for client in clients.values()]
    fitted, judging = (sum(int(np.sum(shard.split == code)) for shard in present) for code in (0, 1))
    config = next(iter(clients.values())).config
    outputs = outputs_of(config, set())
    return learn_features(config, federation, sorted(clients), outputs, fitted, judging)


@contextmanager
def _without(masks: Masks, clients: Clients) -> Iterator[Clients]:
    """The clients that are left, without the marked rows in their shards and in the totals of their host."""
    book, old = next(iter(clients.values())).book, {name: clients[name].shard for name in masks}
    totals = dict(book._totals)
    for name, rows in masks.items():
        client, shard = clients[name], old[name]
        if rows.all():
            book.move(name, (shard, rows), None, client.config)
            continue
        client._shard = Shard(shard.without(rows), client.config)
        gone, moved = moved_rows(shard, rows, client._shard, client.config)
        book.move(name, (shard, gone), (client._shard, moved), client.config)
    try:
        yield {name: client for name, client in clients.items() if name not in masks or not masks[name].all()}
    finally:
        book._totals = totals
        for name, shard in old.items():
            clients[name]._shard = shard


def _never(left: Clients) -> LearnedFeatures:
    """The features of a federation that is built from nothing on what is left."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        config = next(iter(left.values())).config
        for name, client in left.items():
            shards.write(client.shard.table, shards.path_of(SiteLocation("", config, Path(folder)).shards, name))
        federation = LocalFederation(config, sorted(left), Path(folder))
        return _learned(federation, {client.name: client for client in held(federation)})


def _same(one: LearnedFeatures, other: LearnedFeatures) -> bool:
    """Tell if features, choices, metrics and total are the same to the last bit."""
    return (
        one.header == other.header
        and _same_metrics(one, other)
        and np.array_equal(one.total.packed, other.total.packed)
    )


def _same_metrics(one: LearnedFeatures, other: LearnedFeatures) -> bool:
    pairs = zip(one.metrics, other.metrics, strict=False)
    return len(one.metrics) == len(other.metrics) and all(np.array_equal(a, b) for a, b in pairs)
