"""The worth of training the policy at home, on two federations unlike those that the shipped policy learned on.

    frmu bench home

Each seed makes a federation anew (`frmu.bench.home_federations`), which goes the way of a user: `frmu init`,
`frmu train`, `frmu policy train` from the shipped policy, `frmu train`. What is measured is the state that comes out,
with the guard as applied: its errors on the later records, on which the training was rewarded, and on the test records,
which no reward ever saw. `frmu policy train` would keep the trained policy or let it go; here it is put in force in any
case, so that both can be seen, and what it would have done stands beside.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frmu.api import Experiment
from frmu.bench.home_federations import declared
from frmu.bench.lines import Line, Lines, code_digest, digest_of_line
from frmu.config import Config
from frmu.policy.compare import Comparison, compare
from frmu.policy.training import MOST, context_of
from frmu.selection.network import Network, read_policy, shipped

__all__ = ["SPLITS", "bench_home"]

SPLITS = ("later", "test")
SHOWN = ("rules", "shipped", "home")
CODE = ("policy/*.py", "selection/*.py", "clients/*.py", "clients/tasks/*.py", "methods/*.py", "bench/home*.py")


def bench_home(
    names: Sequence[str], seeds: int, iterations: int, out: Path | None, tell: Callable[[str], None],
    settings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Train at home in every federation; `lines` has one a federation and seed, `rows` one a federation and split.

    A row has the error of keeping everything (RMSE in units of the target, or percent of wrong classes), and by how
    many percent rules, the shipped policy and the one trained at home lower it: mean over seeds and its standard error;
    `difference` is home less shipped, paired. `rehearsals` of a line compare the two policies on rehearsals.
    `settings` are of [policy]. Lines that are in `out` already are not made again.
    """
    from frmu.runtime.connect import cluster

    known, found = Lines(out, ("federation", "seed", "iterations"), tell), []
    told = dict(settings or {})
    digest = digest_of_line(
        {"code": code_digest(*CODE), "policy": read_policy(shipped()).digest, "settings": told, "splits": SPLITS}
    )
    with cluster(None):
        for seed in range(seeds):
            for name in names:
                named = {"federation": name, "seed": seed, "iterations": iterations}
                line = known.get(digest, **named)
                if line is None:
                    line = {**named, **_measured(name, seed, iterations, told), "digest": digest}
                    known.put(line)
                tell(_told(line))
                found.append(line)
    rows = [_row(name, split, found) for name in names for split in SPLITS]
    return {"rows": rows, "lines": found, "policy": read_policy(shipped()).digest}


def _measured(name: str, seed: int, iterations: int, settings: Mapping[str, Any]) -> Line:
    """Everything about one federation: errors by who chose and split, the comparisons, seconds of the training."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        config = _with(declared(name, seed, Path(folder)), {"seed": seed, **settings})
        with Experiment(config, "local") as experiment:
            before = experiment.train()["metrics"]
            learned = experiment.learn(iterations, adopt="always")
            after = experiment.train()["metrics"]
            on_test = _compared(experiment, experiment.session.network())
        with Experiment(_with(config, {"selector": "rules"}), "local") as experiment:
            rules = experiment.train()["metrics"]
    on_later = Comparison(**learned["compared"])
    return {
        "errors": {
            split: {"keep": _error(before, f"keep_{split}")}
            | {who: _error(metrics, split) for who, metrics in zip(SHOWN, (rules, before, after), strict=True)}
            for split in SPLITS
        },
        "rehearsals": {split: _shares(one) for split, one in zip(SPLITS, (on_later, on_test), strict=True)},
        "kept": on_later.better(config.policy.significance),
        "seconds": learned["seconds"],
    }  # fmt: skip


def _with(config: Config, settings: Mapping[str, Any]) -> Config:
    policy = config.policy.model_validate(config.policy.model_dump() | dict(settings))
    return config.model_copy(update={"policy": policy})


def _compared(experiment: Experiment, home: Network) -> Comparison:
    """The shipped policy and another on the rehearsals of `frmu policy train`, judged by the test records."""
    session = experiment.session
    state = session.state()
    names = [client.name for client in state.clients]
    federation = session.sites.federation(session.sites.locations_of(names, session.sites.look()))
    context, _ = context_of(session.config, federation, {client.name: client.attention for client in state.clients})
    return compare(context, read_policy(shipped()), home, MOST, "test")


def _error(metrics: Mapping[str, float], split: str) -> float:
    """The RMSE in units of the target, or how many percent of classes are wrong."""
    if f"{split}_accuracy" in metrics:
        return 100.0 * (1.0 - metrics[f"{split}_accuracy"])
    return metrics[f"{split}_rmse"]


def _shares(one: Comparison) -> dict[str, float]:
    """A comparison in percent."""
    return {name: 100.0 * getattr(one, name) for name in ("in_force", "trained", "difference", "error", "chance")}


def _gains(line: Line, split: str) -> dict[str, float]:
    """By how many percent each who chose is below the error of keeping everything."""
    errors = line["errors"][split]
    return {who: 100.0 * (1.0 - errors[who] / errors["keep"]) for who in SHOWN}


def _told(line: Line) -> str:
    gains = {split: " ".join(f"{who} {gain:+.2f}" for who, gain in _gains(line, split).items()) for split in SPLITS}
    rehearsed = ", ".join(
        f"{split} {of['difference']:+.2f} ± {of['error']:.2f}" for split, of in line["rehearsals"].items()
    )
    return (
        f"{line['federation']} {line['seed']}: later {gains['later']}; test {gains['test']}; rehearsals {rehearsed}, "
        f"{'kept' if line['kept'] else 'let go'}; {line['seconds']:.0f} s"
    )


def _row(name: str, split: str, lines: Sequence[Line]) -> dict[str, Any]:
    mine = [line for line in lines if line["federation"] == name]
    gains = [_gains(line, split) for line in mine]
    by = {who: [one[who] for one in gains] for who in SHOWN}
    by["difference"] = [one["home"] - one["shipped"] for one in gains]
    rehearsed = [line["rehearsals"][split]["difference"] for line in mine]
    return {
        "federation": name,
        "split": split,
        "keep": _mean([line["errors"][split]["keep"] for line in mine]),
        **{who: _mean(values) for who, values in by.items()},
        "rehearsals": _mean(rehearsed),
        "kept": sum(line["kept"] for line in mine),
        "seeds": len(mine),
    }


def _mean(values: Sequence[float]) -> dict[str, float | None]:
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "error": error}
