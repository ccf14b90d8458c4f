"""Disturbances that hit many sites at once, and what each selector does for all of them together.

In a federation one site's fault drowns in the records of the others. A fault that many share does not:

- firmware: from a date on, until validation begins, 30 to 70 % of the sites read with one gain or offset;
- supplier: half of the sites got meters of one batch, whose readings were random for a stretch of time;
- season: for a stretch of time every site's labels tell a relation that no longer holds;
- none: nothing is wrong, and nothing is to be gained.

As in `frmu.bench.scenario` what goes wrong happens in the file that the clients read; what judges is as it was
recorded. Every site chooses influences as it would in a round, all at the same time; one head is fitted under them all
and judged on the test records of all sites. "As applied" is a round of the product, with its guard and attention.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from frmu.bench.jobs import in_processes, write_rows
from frmu.bench.pretraining_tasks import SEEN
from frmu.bench.scenario import filled, held, within, written
from frmu.bench.selectors import Case, selectors
from frmu.clients.client import Client
from frmu.config import Config, load
from frmu.datasets import cached
from frmu.methods.analytic import analytic, sums_of
from frmu.models.ridge import solve
from frmu.models.statistics import loss, one_thread
from frmu.runtime.local import LocalFederation
from frmu.selection.disturbance import disturb
from frmu.selection.network import Network, read_policy, shipped
from frmu.selection.observation import observe
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import Budget, RefitCounter
from frmu.types import Float, Statistics

__all__ = ["APPLIED", "KINDS", "SETS", "bench_many", "shared_fault"]

SETS = ("air", "bikes", "power", "parking", "traffic", "appliances")
KINDS = ("firmware", "supplier", "season", "none")
FAULTS = {"firmware": "gain", "supplier": "labels", "season": "stale"}
ROWS = ("keep all", "best rule", "gradient @ K", "learned, 3 steps", "oracle")
APPLIED = {"as applied": 1, "as applied, two passes": 2}  # and `policy.passes`
Mask = NDArray[np.bool_]


def bench_many(
    cache: Path, seeds: int, sets: Sequence[str] = SETS, processes: int = 2, out: Path | None = None
) -> dict[str, Any]:
    """Every selector on every task: rows by selector, group of sets and kind, and how far ours is ahead, paired.

    Without anything wrong a set is the same for every seed, and is measured once. The single figures go to `out`.
    """
    jobs = [(str(cache), name, seed) for name in sets for seed in range(seeds)]
    found = [row for rows in in_processes(_job, jobs, processes) for row in rows]
    result = {
        "policy": read_policy(shipped()).digest,
        "seeds": seeds,
        "tasks": len({row["task"] for row in found}),
        "rows": list(_summaries(found)),
        "ahead": list(_ahead(found)),
    }
    if out is not None:
        write_rows(result, found, out, "many")
    return result


# -- the tasks -----------------------------------------------------------------------------------------------------


def _job(job: tuple[str, str, int]) -> list[dict[str, Any]]:
    """Everything about one set and seed, in a process of its own."""
    cache, name, seed = job
    network, rows = read_policy(shipped()), []
    folder = cached(name, Path(cache))
    config = load(folder / "slots.toml")
    with one_thread():
        for number, kind in enumerate(KINDS if seed == 0 else KINDS[:-1]):
            rng = np.random.Generator(np.random.PCG64([seed, number, *b"many", *name.encode()]))
            table = pd.read_parquet(folder / "data.parquet").reset_index(drop=True)
            table, hit = shared_fault(table, config, kind, rng)
            label = {
                "task": f"{name}/{kind}/{seed}", "set": name, "kind": kind,
                "group": "sets it learned from" if name in SEEN else "unseen data",
            }  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="frmu-") as scratch:
                there = written(config, table, Path(scratch) / "sites")
                wrong = frozenset(table.loc[hit, config.data.record].astype(str))
                sites = _Sites.of(there, filled(there, Path(scratch) / "sites"), wrong)
                rows += [label | row for row in _compared(sites, network, rng)]
    return rows


def shared_fault(table: pd.DataFrame, config: Config, kind: str, rng: np.random.Generator) -> tuple[pd.DataFrame, Mask]:
    """The table with one of `KINDS` gone wrong among the records to fit, and which rows are hit, (n,)."""
    data, target = config.data, config.data.targets[0]
    assert data.time is not None
    time_of, border = table[data.time], pd.Timestamp(config.split.validation_from)
    fitted = time_of < border
    first, names = time_of[fitted].min(), np.sort(table.loc[fitted, data.client].unique())
    share = {"firmware": rng.uniform(0.3, 0.7), "supplier": 0.5, "season": 1.0, "none": 0.0}[kind]
    chosen = rng.permutation(names)[: round(share * len(names))]
    length = rng.uniform(0.2, 0.5)
    start = first + (1.0 - length if kind == "firmware" else rng.uniform(0.0, 1.0 - length)) * (border - first)
    end = border if kind == "firmware" else start + length * (border - first)
    hit = fitted & table[data.client].isin(chosen) & (time_of >= start) & (time_of < end)
    table = table.astype({target: np.float64})
    for rows, own in _pieces(table[hit], data.client, kind, rng):
        _, y = disturb(FAULTS[kind], {}, table.loc[rows, target].to_numpy(), own)
        table.loc[rows, target] = within(y, data.ranges.get(target))
    return table, hit.to_numpy()


def _pieces(
    hit: pd.DataFrame, client: str, kind: str, rng: np.random.Generator
) -> Iterator[tuple[pd.Index, np.random.Generator]]:
    """The rows that go wrong together: all with one gain, else a site's, and with the same draw at every site."""
    seed = int(rng.integers(2**31))
    groups = [hit.index] if kind == "firmware" else hit.groupby(client).groups.values()
    return ((rows, np.random.Generator(np.random.PCG64(seed))) for rows in groups if len(rows))


# -- the account ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Sites:
    """A federation: each site's task, which of its slices were hit, and the test records of all."""

    federation: LocalFederation
    config: Config
    tasks: tuple[SelectionProblem, ...]
    hit: tuple[Float, ...]
    test: Statistics

    @staticmethod
    def of(config: Config, federation: LocalFederation, hit: Set[str]) -> _Sites:
        clients, outputs = held(federation), config.data.targets
        names = tuple(client.name for client in clients)
        total = sums_of(config, config.fingerprint(), federation, names, outputs).total
        fitted = [client for client in clients if client.groups(0)]
        tasks = tuple(client.problem(total, outputs) for client in fitted)
        test = _added(client.split_total("test", outputs) for client in clients if client.groups(3))
        return _Sites(federation, config, tasks, tuple(_share_of(client, hit) for client in fitted), test)

    def error(self, W: Float) -> float:
        """Test RMSE over all sites."""
        return math.sqrt(loss(W, self.test) + 1e-12)

    def head(self, influences: Sequence[Float]) -> Float:
        """The one head under the influences of all sites."""
        pairs = list(zip(self.tasks, influences, strict=True))
        H, B = (sum(np.tensordot(i, getattr(task, name), 1) for task, i in pairs) for name in ("G", "b"))
        return solve(np.asarray(H), np.asarray(B), self.config.model.frozen_ridge)


def _share_of(client: Client, hit: Set[str]) -> Float:
    """The share of records that are hit, by slice, (K,)."""
    wrong = np.array([record in hit for record in client.shard.ids.astype(str)])
    return np.array([wrong[rows].mean() for rows in client.groups(0).values()])


def _added(parts: Iterable[Statistics]) -> Statistics:
    first, *rest = parts
    return Statistics.total([first, *rest], *first.b.shape)


def _compared(sites: _Sites, network: Network, rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """Each selector's gain on the test records of all, in percent; refits and seconds are those of all sites."""
    kept = sites.error(sites.head([task.keep for task in sites.tasks]))
    for name in ROWS:
        began, refits, chosen = time.process_time(), 0, []
        for task, hit in zip(sites.tasks, sites.hit, strict=True):
            influence, spent = _chosen(name, task, hit, network, rng)
            chosen.append(influence)
            refits += spent
        seconds = time.process_time() - began
        error = sites.error(sites.head(chosen))
        yield {"selector": name, "gain": 100.0 * (1.0 - error / kept), "refits": refits, "seconds": seconds}
    for name, passes in APPLIED.items():
        began, policy = time.process_time(), sites.config.policy.model_copy(update={"passes": passes})
        method = analytic(sites.config.model_copy(update={"policy": policy}))
        done = method.apply(sites.federation, method.init(), network)
        gain = 100.0 * (1.0 - sites.error(done.state.W) / kept)
        yield {"selector": name, "gain": gain, "refits": done.refits, "seconds": time.process_time() - began}


def _chosen(
    name: str, task: SelectionProblem, hit: Float, network: Network, rng: np.random.Generator
) -> tuple[Float, int]:
    """Influences (K,) that a selector chooses for one site, and its refits; everything where nothing can judge."""
    if task.validation.n == 0 or len(task) < 2:
        return task.keep, 0
    budget, select = selectors(network, len(task))[name]
    account = RefitCounter(task, Budget(budget))
    start = account.fit(task.keep)
    case = Case(task, (hit > 0.5).astype(np.float64), task.validation)
    return select(account, observe(task, start, 0.0, start.loss), case, rng), account.refits


def _summaries(found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Mean gain %, standard error, worst, refits and processor seconds, by selector, group and kind."""
    places = dict.fromkeys((row["selector"], row["group"], row["kind"]) for row in found)
    for place in places:
        part = [row for row in found if (row["selector"], row["group"], row["kind"]) == place]
        gains = np.array([row["gain"] for row in part])
        yield {
            **dict(zip(("selector", "group", "kind"), place, strict=True)),
            "mean": round(float(gains.mean()), 2),
            "error": _error(gains),
            "worst": round(float(gains.min()), 1),
            "refits": round(float(np.mean([row["refits"] for row in part])), 1),
            "seconds": round(float(np.mean([row["seconds"] for row in part])), 3),
            "tasks": len(part),
        }


def _ahead(found: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """By how much the product gains more than each other selector, paired by task, where something is wrong."""
    by = {(row["selector"], row["task"]): row["gain"] for row in found}
    groups = {row["task"]: row["group"] for row in found if row["kind"] != "none"}
    for ours in APPLIED:
        for group in dict.fromkeys(groups.values()):
            tasks = [task for task, of in groups.items() if of == group]
            for rival in dict.fromkeys(row["selector"] for row in found if row["selector"] not in (ours, "oracle")):
                change = np.array([by[ours, task] - by[rival, task] for task in tasks])
                yield {
                    "selector": ours, "group": group, "rival": rival, "difference": round(float(change.mean()), 2),
                    "error": _error(change), "tasks": len(tasks),
                }  # fmt: skip


def _error(values: Float) -> float:
    return round(float(values.std() / math.sqrt(len(values))), 2)
