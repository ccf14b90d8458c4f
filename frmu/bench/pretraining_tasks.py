"""Pretraining tasks without number, cut at random from a few long series, for a policy that is to move to others.

A task draws a series, which of its columns is to be predicted, where it begins, how long it is fitted, judged and
rewarded, how finely it is sliced, its random encoders, whether it is alone or in a federation, and what went wrong
with which slices. What stays the same from task to task is what a policy can carry to a site it never saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from frmu.clients.client import Rehearsal
from frmu.clients.tasks.rollout import EnvStep, take
from frmu.config import load
from frmu.datasets import cached
from frmu.models.encoders import Encoder, encode
from frmu.models.statistics import loss, statistics_of
from frmu.selection.disturbance import disturb, draw
from frmu.selection.observation import fit
from frmu.selection.problem import PARTS, SelectionProblem, problem_of
from frmu.types import Float, Statistics

__all__ = ["SEEN", "SLICES", "PretrainingTasks", "Series", "pretraining_task", "series_of"]

SEEN = ("air", "bikes", "power")
SEEN_SHARE = 0.7  # of the sites of a set, the first ones; the others are the unseen sites
RIDGE = 1e-3
SLICES = 32  # of a task at most
THREADS = 2  # that work on tasks: a task is its seed's alone, so their number changes nothing
KEPT = 256  # tasks in memory


@dataclass(frozen=True)
class PretrainingTasks:
    """A source of tasks for the environment of the policy (`frmu.policy.env.TaskSource`): no client, and no end.

    A task is `make` of a generator that its seed begins.
    """

    make: Callable[[np.random.Generator], SelectionProblem]
    clients: tuple[str, ...] = ("pretraining",)
    shares: tuple[float, ...] = (1.0,)
    _begun: dict[int, tuple[Rehearsal, ...]] = field(default_factory=dict, repr=False)

    def rollout(
        self, env_steps: Mapping[str, tuple[EnvStep, ...]], max_slices: int, rounds: int
    ) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """Answer steps, some at a time; a task has one round, and as many slices as it has."""
        with ThreadPoolExecutor(THREADS) as pool:
            for name, steps in env_steps.items():
                yield name, list(pool.map(self._take, steps))
        while len(self._begun) > KEPT:
            self._begun.pop(next(iter(self._begun)))

    def _take(self, env_step: EnvStep) -> dict[str, Any]:
        rounds = self._begun.get(env_step.seed)
        if rounds is None:
            rounds = self._begun[env_step.seed] = (self.task(env_step.seed),)
        return take(rounds, env_step)

    def task(self, seed: int) -> Rehearsal:
        """The task of a seed, with everything kept; whether something was disturbed, and what, it does not know."""
        task = self.make(np.random.Generator(np.random.PCG64(seed)))
        kept = fit(task, task.keep)
        return "drawn", frozenset(), task, kept, loss(kept.W, task.later)


@dataclass(frozen=True, slots=True)
class Series:
    """One column of a long series to predict: calendar (n, 5), other columns (n, columns), target (n,), in time."""

    calendar: Float
    others: Float
    target: Float
    day: int


def series_of(cache: Path) -> list[Series]:
    """Every way to predict one column of the seen sets from the others, in the first part of their time."""
    found = []
    for name in SEEN:
        folder = cached(name, cache)
        config = load(folder / "config.toml")
        table = pd.read_parquet(folder / "data.parquet").sort_values(["client", "ts"])
        clients = sorted(table["client"].unique())
        table = table[table["client"].isin(clients[: int(SEEN_SHARE * len(clients))])]
        calendar, rest = config.data.modalities["calendar"], config.data.modalities["weather"]
        columns = [config.data.targets[0], *(column for column in rest if column not in config.data.lags)]
        found += [_series(table, calendar, columns, target) for target in columns]
    return found


def _series(table: pd.DataFrame, calendar: list[str], columns: list[str], target: str) -> Series:
    day = 24
    y = _scaled(table[target].to_numpy(np.float64))
    others = [_scaled(table[column].to_numpy(np.float64)) / 1.5 for column in columns if column != target]
    yesterday = np.concatenate([np.zeros(day), y[:-day]]) / 1.5
    return Series(table[calendar].to_numpy(np.float64), np.stack([*others, yesterday], axis=1), y, day)


def _scaled(x: Float) -> Float:
    return np.asarray((x - x.mean()) / (x.std() + 1e-9), dtype=np.float64)


def pretraining_task(series: list[Series], rng: np.random.Generator) -> SelectionProblem:
    """One task over 10 to 32 slices; `later` is what its reward is computed on."""
    one = series[int(rng.integers(len(series)))]
    fitted = int(np.exp(rng.uniform(np.log(30), np.log(170))) * one.day)
    judged, rewarded = int(fitted * rng.uniform(0.06, 0.3)), int(fitted * rng.uniform(0.1, 0.3))
    start = int(rng.integers(0, len(one.target) - fitted - judged - rewarded))
    by = _encoders(one, int(rng.choice([16, 24, 32])), rng)
    slices = int(rng.integers(10, SLICES + 1))
    keys = [f"{s:02d}" for s in range(slices)]
    kind, hit = draw(keys, rng)
    phi = _encoded(one, by, start, start + fitted + judged + rewarded)  # once: slices are rows of it
    y = one.target[start : start + len(phi)]
    borders = np.linspace(0, fitted, slices + 1).astype(int)
    cut = {}
    for key, first, last in zip(keys, borders[:-1], borders[1:], strict=True):
        cut[key] = _sums(phi[first:last], y[first:last])
        if key in hit:
            cut[key] = _disturbed(one, by, start + first, start + last, kind, rng)
    stretches = fitted + np.linspace(0, judged, PARTS + 1).astype(int)
    parts = [_sums(phi[first:last], y[first:last]) for first, last in pairwise(stretches)]
    later = _sums(phi[stretches[-1] :], y[stretches[-1] :])
    return problem_of(cut, np.linspace(1, 0, slices), _rest(one, by, fitted, rng), parts, later, RIDGE)


def _encoders(one: Series, features: int, rng: np.random.Generator) -> dict[str, Encoder]:
    def drawn(columns: int) -> Encoder:
        R = rng.standard_normal((columns, features)) * np.sqrt(2.0 / columns)
        return Encoder("relu", R, rng.uniform(-1.0, 1.0, features))

    return {"calendar": drawn(one.calendar.shape[1]), "others": drawn(one.others.shape[1])}


def _encoded(one: Series, by: dict[str, Encoder], first: int, last: int) -> Float:
    return encode({"calendar": one.calendar[first:last], "others": one.others[first:last]}, by)


def _sums(phi: Float, y: Float) -> Statistics:
    return statistics_of(phi, y.reshape(-1, 1))


def _disturbed(
    one: Series, by: dict[str, Encoder], first: int, last: int, kind: str, rng: np.random.Generator
) -> Statistics:
    X = {"calendar": one.calendar[first:last], "others": one.others[first:last]}
    X, y = disturb(kind, X, one.target[first:last], rng)
    return _sums(encode(X, by), y)


def _rest(one: Series, by: dict[str, Encoder], fitted: int, rng: np.random.Generator) -> Statistics:
    """The other clients: none for six tasks in ten, else half as many records as the client has, to twelve times."""
    parts = [by[name].R.shape[1] + by[name].R.shape[0] for name in by]
    if rng.random() < 0.6:
        return Statistics.zero(sum(parts) + 1, 1)
    weight = float(np.exp(rng.uniform(np.log(0.5), np.log(12.0)))) / 3
    starts = rng.integers(0, len(one.target) - fitted, 3)
    among = [_sums(_encoded(one, by, at, at + fitted), one.target[at : at + fitted]) for at in starts]
    total = Statistics.total(among, sum(parts) + 1, 1)
    return total.scaled(weight)
