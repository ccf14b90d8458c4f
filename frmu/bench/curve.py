"""The learning curve: along the slope, PPO as mended, and random search, from scratch, for the same processor seconds.

    frmu bench curve --out curve.jsonl --picture curve.png

All learn on the tasks of `frmu bench pretrain`. Along the slope goes first, for so many iterations, over which its rate
falls; the others then have as many processor seconds of this process as it took (what others do on the machine counts
for nothing). A few weights on the way are judged on the same held-out tasks, after the clock has stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frmu.bench.lines import Line, Lines, code_digest, digest_of_line
from frmu.bench.pretrain import JUDGED, gains_on, trained
from frmu.bench.pretraining_tasks import PretrainingTasks, pretraining_task, series_of
from frmu.bench.random_search import random_search
from frmu.selection.network import Network, read_policy, shipped
from frmu.types import Float

if TYPE_CHECKING:
    from frmu.policy.checkpoint import Progress

__all__ = ["LEARNERS", "bench_curve", "draw_curve"]

LEARNERS = ("slope", "PPO", "random search")
POINTS = (0.25, 0.5, 0.75, 1.0)  # of the processor seconds
ENDLESS = 100_000  # iterations
SETTINGS = ("by itself", "in a federation")
CODE = ("policy/*.py", "selection/*.py", "bench/curve.py", "bench/random_search.py", "bench/pretrain*.py")
Kept = list[tuple[int, float, Mapping[str, NDArray[np.float32]]]]  # iteration, processor seconds, weights


class _TimeUpError(Exception):
    """The processor seconds of a learner are spent."""


def bench_curve(
    cache: Path, iterations: int, judged: int, seed: int, out: Path | None, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Train each learner and judge it on the way; `lines` has one a learner and point, `shipped` the shipped policy.

    A line has the iteration, processor seconds, and by setting (a client by itself, in a federation) how much lower
    the later RMSE is than with everything kept, in percent, over `judged` held-out tasks: mean and standard error; and
    the paired difference from the shipped policy. Learners whose lines are in `out` are not trained again.
    """
    tasks = PretrainingTasks(partial(pretraining_task, series_of(cache)))
    judge = _Judge(tasks, judged)
    digest = digest_of_line({"code": code_digest(*CODE), "judged": judged, "policy": read_policy(shipped()).digest})
    known, found = Lines(out, ("learner", "seed", "iterations", "point"), tell), []
    seconds = np.inf
    for learner in LEARNERS:
        names = [{"learner": learner, "seed": seed, "iterations": iterations, "point": point} for point in POINTS]
        lines = [line for name in names if (line := known.get(digest, **name)) is not None]
        if len(lines) < len(POINTS):
            kept = _learn(learner, tasks, iterations, seed, seconds, tell)
            lines = []
            for name, one in zip(names, _points(kept), strict=True):
                line = {**name, **judge.line(*one), "digest": digest}
                known.put(line)
                lines.append(line)
                tell(_told(line))
        found += lines
        if learner == "slope":
            seconds = lines[-1]["seconds"]
    return {"lines": found, "shipped": judge.shipped_gains(), "seed": seed, "tasks": judged}


# -- who learns -----------------------------------------------------------------------------------------------


def _learn(
    learner: str, tasks: PretrainingTasks, iterations: int, seed: int, seconds: float, tell: Callable[[str], None]
) -> Kept:
    """The weights after each iteration, and the processor seconds up to it: for so many, or for all iterations."""
    kept: Kept = []
    began = time.process_time()

    def keep(weights: Mapping[str, NDArray[np.float32]]) -> None:
        kept.append((len(kept) + 1, time.process_time() - began, weights))
        if kept[-1][1] >= seconds:
            raise _TimeUpError

    try:
        if learner == "random search":
            for weights in random_search(tasks.task, seed):
                keep(weights)
        else:
            algorithm, most = ("slope", iterations) if learner == "slope" else ("ppo", ENDLESS)
            trained(tasks, most, seed, algorithm, tell, keep=lambda progress: keep(_weights(progress)))
    except _TimeUpError:
        pass
    return kept


def _weights(progress: Progress) -> dict[str, NDArray[np.float32]]:
    return {name: np.array(weight) for name, weight in progress.weights.items()}


def _points(kept: Kept) -> Kept:
    """The weights kept nearest to each point of the seconds that were spent."""
    seconds = np.array([spent for _, spent, _ in kept])
    return [kept[int(np.argmin(np.abs(seconds - point * seconds[-1])))] for point in POINTS]


# -- who judges -----------------------------------------------------------------------------------------------


class _Judge:
    """The held-out tasks, and what the shipped policy gains on each."""

    def __init__(self, tasks: PretrainingTasks, judged: int) -> None:
        self._tasks, self._seeds = tasks, range(JUDGED, JUDGED + judged)
        alone = np.array([tasks.task(seed)[2].by_itself for seed in self._seeds])
        self._among = dict(zip(SETTINGS, (alone, ~alone), strict=True))
        self._shipped: Float | None = None

    @property
    def shipped(self) -> Float:
        """The gain of the shipped policy on each task, in percent."""
        if self._shipped is None:
            self._shipped = gains_on(self._tasks, read_policy(shipped()), self._seeds)
        return self._shipped

    def shipped_gains(self) -> dict[str, dict[str, float]]:
        """The gain of the shipped policy by setting, and its standard error."""
        return {setting: _mean(self.shipped[among]) for setting, among in self._among.items()}

    def line(self, iteration: int, seconds: float, weights: Mapping[str, NDArray[np.float32]]) -> dict[str, Any]:
        """Judge some weights."""
        gains = gains_on(self._tasks, Network(weights, "", {}), self._seeds)
        by = {
            setting: _mean(gains[among]) | {"difference": _mean((gains - self.shipped)[among])}
            for setting, among in self._among.items()
        }
        return {"iteration": iteration, "seconds": seconds, **by}


def _mean(values: Float) -> dict[str, float]:
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("inf")
    return {"mean": float(values.mean()), "error": error}


def _told(line: Line) -> str:
    gains = ", ".join(f"{setting} {line[setting]['mean']:.2f} %" for setting in SETTINGS)
    return f"{line['learner']}, iteration {line['iteration']}, {line['seconds']:.0f} s: {gains}"


# -- the picture ----------------------------------------------------------------------------------------------


def draw_curve(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the gain on held-out tasks against processor seconds, a line a learner, a panel a setting."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.0, 4.2), layout="constrained")
    for axes, setting in zip(figure.subplots(1, 2), SETTINGS, strict=True):
        for learner, colour in zip(LEARNERS, ("C3", "C0", "C7"), strict=True):
            _line(axes, [line for line in result["lines"] if line["learner"] == learner], setting, colour)
        axes.axhline(result["shipped"][setting]["mean"], color="black", linestyle=":", label="shipped policy")
        axes.set_title(setting)
        axes.set_xlabel("processor seconds")
        axes.set_xlim(left=0.0)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supylabel("lower later RMSE than keeping everything, %")
    figure.suptitle(f"From scratch, on {result['tasks']} held-out tasks, seed {result['seed']}")
    figure.savefig(path, dpi=110)


def _line(axes: Any, lines: Sequence[Line], setting: str, colour: str) -> None:
    axes.errorbar(
        [line["seconds"] for line in lines], [line[setting]["mean"] for line in lines],
        [line[setting]["error"] for line in lines],
        marker="o", capsize=3, color=colour, label=lines[0]["learner"],
    )  # fmt: skip
