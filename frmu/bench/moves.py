"""The share of erasures that move learned features: random records and slices, taken out one at a time.

What is taken out is put back before the next: a total is the same to the last bit, whatever came and went.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.bench.accuracy import OURS, Tell, config_for
from frmu.bench.scenario import filled, held
from frmu.clients.client import Client
from frmu.clients.layers import FIT, moved_rows
from frmu.data.shard import Shard
from frmu.methods.analytic import outputs_of
from frmu.methods.features import LearnedFeatures, learn_features
from frmu.runtime.local import LocalFederation

__all__ = ["KINDS", "bench_moves"]

Mask = NDArray[np.bool_]


def _records(number: int) -> Callable[[Client, np.random.Generator], Mask]:
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


KINDS: dict[str, Callable[[Client, np.random.Generator], Mask]] = {
    "1 record": _records(1), "20 records": _records(20), "a slice": _slice,
}  # fmt: skip


def bench_moves(sets: Sequence[str], times: int, cache: Path, tell: Tell) -> list[dict[str, Any]]:
    """Take out what each kind means, so many times a set, and count how often anything about the features is another.

    What is taken out was fitted.
    """
    found = []
    for name in sets:
        config = config_for(name, cache, 0, OURS["learned"])
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            federation = filled(config, Path(folder))
            clients = {client.name: client for client in held(federation)}
            first = _learned(federation, clients)
            rng = np.random.default_rng(0)
            for kind, draw in KINDS.items():
                metric = choice = 0
                began = time.perf_counter()
                for _ in range(times):
                    client = clients[str(rng.choice(sorted(clients)))]
                    for after in _without(client, draw(client, rng), federation, clients):
                        metric += not _same_metrics(first, after)
                        choice += first.header != after.header
                seconds = (time.perf_counter() - began) / times
                counts = {"layers": len(first.metrics), "metric": metric, "choice": choice}
                found.append({"set": name, "kind": kind, "times": times, **counts, "seconds": seconds})
                tell(f"{name}, {kind}: metrics moved {metric} of {times} times, choices {choice}")
    return found


def _learned(federation: LocalFederation, clients: dict[str, Client]) -> LearnedFeatures:
    shards = [client.shard for client in clients.values()]
    fitted, judging = (sum(int(np.sum(shard.split == code)) for shard in shards) for code in (0, 1))
    config = next(iter(clients.values())).config
    outputs = outputs_of(config, set())
    return learn_features(config, federation, sorted(clients), outputs, fitted, judging)


def _without(
    client: Client, rows: Mask, federation: LocalFederation, clients: dict[str, Client]
) -> Iterator[LearnedFeatures]:
    """The features without some rows of a client; they are back afterwards."""
    old = client.shard
    new = Shard(old.without(rows), client.config)
    gone, moved = moved_rows(old, rows, new, client.config)
    client.book.move(client.name, (old, gone), (new, moved), client.config)
    client._shard = new
    yield _learned(federation, clients)
    client.book.move(client.name, (new, moved), (old, gone), client.config)
    client._shard = old


def _same_metrics(one: LearnedFeatures, other: LearnedFeatures) -> bool:
    pairs = zip(one.metrics, other.metrics, strict=False)
    return len(one.metrics) == len(other.metrics) and all(np.array_equal(a, b) for a, b in pairs)
