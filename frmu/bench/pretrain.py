"""The command that made the shipped policy, and that says how good a policy is on tasks that no training meets.

    frmu bench pretrain --out policy.safetensors

RLlib trains it (`frmu.policy.slope`), from scratch, in this process, on tasks cut out of three public series, of which
it sees the first part, and on nothing else; `frmu bench policy` measures it on the other part and on series that it
never saw. The shipped policy meets the same held-out tasks beside it, so that the two are compared pair by pair.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from frmu.bench.pretraining_tasks import SEEN, SLICES, PretrainingTasks, pretraining_task, series_of
from frmu.config import Policy
from frmu.models.statistics import loss, one_thread
from frmu.selection.network import Network, read_policy, shipped, write_policy
from frmu.selection.observation import observe
from frmu.selection.search import Budget, RefitCounter
from frmu.selection.selectors import follow
from frmu.types import Float

if TYPE_CHECKING:
    from frmu.policy.checkpoint import Progress
    from frmu.policy.training import Learned

__all__ = ["compared", "gains_on", "pretrain", "trained"]

SAMPLES = 960  # env steps an iteration: ten gradient steps along the slope
STEPS = 3
JUDGED = 2**33  # seeds from here on are of tasks that judge; training draws below 2^31, its evaluations above 2^32


def pretrain(
    out: Path, cache: Path, iterations: int, seed: int, tell: Callable[[str], None], algorithm: str = "slope",
    judged: int = 400,
) -> dict[str, Any]:  # fmt: skip
    """Train from scratch and write the policy to `out`; its digest, the seconds, the learning curve.

    `compared` has, on `judged` held-out tasks, the gain of both policies and their paired difference, see `compared`.
    """
    series = series_of(cache)
    tasks = PretrainingTasks(partial(pretraining_task, series))
    learned = trained(tasks, iterations, seed, algorithm, tell)
    lineage = {
        "clients": [], "parent": None, "sets": list(SEEN), "seed": seed, "iterations": iterations,
        "algorithm": algorithm,
    }  # fmt: skip
    network = write_policy(learned.weights, lineage, out)
    return {
        "policy": network.digest,
        "seconds": round(learned.seconds, 1),
        "env_steps": learned.env_steps,
        "history": learned.history,
        "compared": compared(tasks, network, read_policy(shipped()), judged),
    }


def trained(
    tasks: PretrainingTasks, iterations: int, seed: int, algorithm: str, tell: Callable[[str], None],
    keep: Callable[[Progress], None] | None = None,
) -> Learned:  # fmt: skip
    """Train by RLlib from scratch, on one runner in this process: the same weights, bit by bit, for a seed.

    `keep` is given the progress after every iteration.
    """
    import torch

    from frmu.policy.training import train_policy
    from frmu.runtime.connect import cluster

    policy = Policy.model_validate(
        {"algorithm": algorithm, "steps": STEPS, "samples": SAMPLES, "env_runners": 0, "seed": seed}
    )
    began = time.perf_counter()

    def heard(number: int, metrics: dict[str, float]) -> None:
        if "evaluation_gain" in metrics:
            gain, held_out = (100 * metrics[name] for name in ("gain", "evaluation_gain"))
            seconds = time.perf_counter() - began
            tell(f"{number + 1:5d}  gain {gain:6.2f} %  on held-out tasks {held_out:6.2f} %  {seconds:.0f} s")

    slices = {name: [f"{number:02d}" for number in range(SLICES)] for name in tasks.clients}
    with ExitStack() as stack:
        stack.enter_context(cluster(None))  # RLlib starts one anyway, open to the network
        stack.enter_context(one_thread())
        threads = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads)
        torch.set_num_threads(1)
        return train_policy(policy, [(tasks, slices)], None, iterations, on_iteration=heard, keep=keep, deadline=3600.0)


def compared(tasks: PretrainingTasks, ours: Network, other: Network, judged: int) -> dict[str, dict[str, float]]:
    """Compare two policies on the same tasks, of clients by themselves and in a federation.

    Each is how much lower the later RMSE is than with everything kept, in percent, mean over tasks; `difference` is
    ours less the other's, with its standard error.
    """
    seeds = range(JUDGED, JUDGED + judged)
    alone = np.array([tasks.task(seed)[2].by_itself for seed in seeds])
    a, b = gains_on(tasks, ours, seeds), gains_on(tasks, other, seeds)
    return {
        setting: _pair(a[among], b[among])
        for setting, among in (("by itself", alone), ("in a federation", ~alone))
        if among.any()
    }


def _pair(ours: Float, other: Float) -> dict[str, float]:
    change = ours - other
    error = float(change.std(ddof=1) / np.sqrt(len(change))) if len(change) > 1 else float("inf")
    found = {"ours": ours.mean(), "other": other.mean(), "difference": change.mean(), "error": error}
    return {name: round(float(value), 3) for name, value in found.items()} | {"tasks": len(change)}


def gains_on(tasks: PretrainingTasks, network: Network, seeds: Sequence[int]) -> Float:
    """Return how much lower the later RMSE is where a policy ends in three steps, in percent, one a task, (tasks,)."""
    found = []
    with one_thread():
        for seed in seeds:
            _, _, task, kept, keep = tasks.task(seed)
            account = RefitCounter(task, Budget())
            met = follow(network, account, observe(task, kept, 0.0, kept.loss), kept, STEPS)
            found.append(100.0 * (1.0 - np.sqrt(loss(met[-1].fit.W, task.later) / keep)))
    return np.array(found)
