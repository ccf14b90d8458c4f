"""The cost of an erasure that moves nothing: learned features beside frozen ones of the same number.

Frozen ones are of two kinds. Those of a frozen encoder also judge slices, all of them; "fixed" are the wide features of
the learned encoder with no metric, no ramps and a ridge that is told, so that there is nothing to learn or choose, and
slices are judged as where features are learned, with few features of their own.

One fitted record of the largest site goes, again and again, each time another, and the seconds of every part of the
round are added up by the task that took them: the shard is written anew and its rows are taken out of the sums
("drop"), and then come the tasks in the order in which the server asks for them.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from frmu.bench.accuracy import Tell, config_for
from frmu.bench.scenario import filled, held
from frmu.clients.layers import FIT
from frmu.config import Config
from frmu.federation import ClientTask, Reply, ServerTask
from frmu.methods.analytic import analytic
from frmu.models.features import basis_of_features, features_of, what_moved
from frmu.models.statistics import one_thread
from frmu.runtime.local import LocalFederation
from frmu.types import State

__all__ = ["MODELS", "SETS", "bench_unmoved"]

SETS = ("bikes", "power")
MODELS: Mapping[str, Mapping[str, Any]] = {
    "frozen": {"encoder": "relu", "width": 1024},
    "fixed": {"encoder": "learned", "width": 1024, "layers": 0, "bins": 0, "ridge": 1e-2},
    "learned": {"encoder": "learned", "width": 1024},
}


class _Timed:
    """A federation in process whose tasks are timed, by their names."""

    def __init__(self, federation: LocalFederation) -> None:
        self._federation = federation
        self.seconds: dict[str, float] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._federation, name)

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`; all replies are taken before the clock stops."""
        began = time.perf_counter()
        replies = list(self._federation.run(work, on))
        self.took(type(work).__name__, began)
        return iter(replies)

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        began = time.perf_counter()
        found = self._federation.serve(task, replies)
        self.took(type(task).__name__, began)
        return found

    def took(self, name: str, began: float) -> None:
        """Add what went by since then."""
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def bench_unmoved(
    sets: Sequence[str], models: Sequence[str], times: int, cache: Path, tell: Tell
) -> list[dict[str, Any]]:
    """Erase one record so many times from some models of each set: a row a set and model."""
    rows = []
    for name in sets:
        for kind in models:
            found = _erased(config_for(name, cache, 0, MODELS[kind]), times)
            rows.append({"set": name, "model": kind, "times": times, **found})
            tell(f"{name}, {kind}: {found['seconds']:.3f} s an erasure of {found['integers']} integers a record")
    return rows


def _erased(config: Config, times: int) -> dict[str, Any]:
    """The median seconds of an erasure and of each part, and how many moved anything."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder, one_thread():
        federation, method = filled(config, Path(folder)), analytic(config)
        first = state = method.apply(federation, method.init(), None).state
        client = max(held(federation), key=lambda one: len(one.shard))
        rng, timed, moved = np.random.default_rng(0), _Timed(federation), 0
        seconds, parts = [], []
        for _ in range(times):
            rows = np.zeros(len(client.shard), dtype=bool)
            rows[rng.choice(np.flatnonzero(client.shard.split == FIT))] = True
            timed.seconds = {}
            began = time.perf_counter()
            client.drop(rows)
            timed.took("drop", began)
            state = method.erase(timed, state, None, (client.name,), None).state
            seconds.append(time.perf_counter() - began)
            parts.append(timed.seconds)
            moved += bool(state.learned) and not what_moved(first, state).startswith("features unmoved")
        medians = {name: median(one.get(name, 0.0) for one in parts) for name in parts[0]}
        return {"integers": _integers(config, first), "seconds": median(seconds), "parts": medians, "moved": moved}


def _integers(config: Config, state: State) -> int:
    """The integers that a record is made into."""
    return basis_of_features(config, features_of(state), state.outputs).D
