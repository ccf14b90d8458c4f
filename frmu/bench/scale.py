"""Quality against the number of slices, at a fixed time: what is left of each selector where slices are many.

A search that tries slices one by one needs a refit each; the policy sees all of them at once. The data are one long
series that the shipped policy never saw, cut into 24, 240 and 2,400 slices of equal size, by itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from frmu.bench.jobs import in_processes
from frmu.bench.policy import gain_of
from frmu.bench.selectors import STEPS, Case, Selector, best_rule, dvrl
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.rollout import Rollout
from frmu.config import load
from frmu.data.parquet import survey
from frmu.datasets import cached
from frmu.models.statistics import one_thread
from frmu.runtime.local import LocalFederation
from frmu.selection.disturbance import KINDS
from frmu.selection.network import Network, read_policy, shipped
from frmu.selection.observation import Observation, observe
from frmu.selection.search import Budget, RefitCounter, ascend, greedy
from frmu.selection.selectors import follow, guided
from frmu.types import Float

__all__ = ["SLICES", "bench_scale"]

SLICES = (24, 240, 2400)
UNSEEN = "traffic-long"
RATE = 0.02  # of an ascent whose end is a time


def bench_scale(cache: Path, seconds: float, seeds: int, processes: int = 2, out: Path | None = None) -> dict[str, Any]:
    """Every selector at each number of slices, with the same seconds; rows of mean gain %, error, refits, seconds."""
    jobs = [(str(cache), slices, seed, seconds) for slices in SLICES for seed in range(seeds)]
    found = [row for rows in in_processes(_job, jobs, processes) for row in rows]
    rows = []
    for name in dict.fromkeys(row["selector"] for row in found):
        for slices in SLICES:
            part = [row for row in found if (row["selector"], row["slices"]) == (name, slices)]
            gains = np.array([row["gain"] for row in part])
            rows.append(
                {
                    "selector": name, "slices": slices, "mean": round(float(gains.mean()), 2),
                    "error": round(float(gains.std() / np.sqrt(len(gains))), 2), "worst": round(float(gains.min()), 1),
                    "refits": round(float(np.mean([row["refits"] for row in part]))),
                    "seconds": round(float(np.mean([row["seconds"] for row in part])), 2), "tasks": len(part),
                }
            )  # fmt: skip
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        _draw(rows, seconds, out / "scale.png")
    return {"policy": read_policy(shipped()).digest, "seconds": seconds, "rows": rows}


def _job(job: tuple[str, int, int, float]) -> list[dict[str, Any]]:
    """All kinds of disturbance at one number of slices, in a process of its own."""
    cache, slices, seed, seconds = job
    config = load(cached(UNSEEN, Path(cache)) / f"slot{slices}.toml")
    rows = []
    with one_thread(), tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        federation = LocalFederation(config, survey(config).clients, Path(folder))
        list(federation.run(StageShard({}, b"bench")))
        list(federation.run(CommitShard(True)))
        client = federation.host.clients(federation.clients)[0]
        outputs = config.data.targets
        rollout = Rollout({}, outputs, client.split_sums("fit", outputs), slices)
        for number, kind in enumerate(KINDS):
            drawn = rollout.rehearse(client, 1000 * seed + number, kind, whole=True)
            hit = np.array([key in drawn[1] for key in drawn[2].keys], dtype=np.float64)
            case = Case(drawn[2], hit, client.split_total("test", outputs))
            for name, select in _selectors(read_policy(shipped())).items():
                rows.append({"selector": name, "slices": slices, **_timed(case, select, seconds)})
    return rows


def _timed(case: Case, select: Selector, seconds: float) -> dict[str, float]:
    account = RefitCounter(case.task, Budget(seconds=seconds))
    start = account.fit(case.task.keep)
    first = observe(case.task, start, 0.0, start.loss)
    influence = select(account, first, case, np.random.Generator(np.random.PCG64(0)))
    spent = {"refits": float(account.refits), "seconds": account.seconds}
    return spent | {"gain": gain_of(case, start, influence)}


def _selectors(network: Network) -> dict[str, Selector]:
    return {
        "learned, 3 steps": partial(_followed, network),
        "learned + search": partial(_guided, network),
        "gradient": lambda account, first, case, rng: ascend(account, first.fit, 10**6, RATE).influence,
        "greedy": lambda account, first, case, rng: greedy(account, first.fit, 10**6).influence,
        "DVRL": dvrl,
        "best rule": best_rule,
    }


def _followed(
    network: Network, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator
) -> Float:
    """The policy without a search: it does not use the time, and shows what the search adds or takes away."""
    return follow(network, account, first, first.fit, STEPS)[-1].fit.influence


def _guided(network: Network, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    return guided(network, account, first, STEPS).fit.influence


def _draw(rows: Sequence[Mapping[str, Any]], seconds: float, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["selector"] for row in rows):
        line = [row for row in rows if row["selector"] == name]
        x, y, error = ([row[key] for row in line] for key in ("slices", "mean", "error"))
        axes.errorbar(x, y, error, marker="o", capsize=3, label=name)
    axes.set_xscale("log")
    axes.set_xlabel("slices")
    axes.set_ylabel("lower test RMSE than keeping everything, %")
    axes.set_title(f"{seconds:g} s a choice")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
