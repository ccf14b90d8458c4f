"""The command that made the shipped policy, and the table on its card.

    frmu bench pretrain --out policy.safetensors

It trains on three federations made of public series - air quality, bike trips, household power, each cut into
periods of 20 weeks that act as sites - and measures on the parking federation, which it never saw.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from frmu.bench.sources import cached
from frmu.client.work import Commit, Import, Packed, Play
from frmu.config import Config, Policy, load
from frmu.data.source import survey
from frmu.influence.network import Network, write_policy
from frmu.influence.observation import observe
from frmu.influence.selectors import decide, follow, rules
from frmu.influence.task import Task, refit
from frmu.learning.statistics import loss, one_thread
from frmu.methods.analytic import total_of
from frmu.runtime.local import LocalFederation

__all__ = ["evaluate", "pretrain"]

SEEN = ("air", "bikes", "power")
UNSEEN = "parking"


def pretrain(out: Path, cache: Path, iterations: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train from scratch on the seen sets, write the policy to `out`, and measure it on the unseen one."""
    from frmu.policy.learn import board_of, train_policy
    from frmu.runtime.remote import RayFederation, cluster

    policy = Policy(iterations=iterations, seed=seed, samples=960)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frmu-")))
        stack.enter_context(cluster(None))
        boards = []
        for name in SEEN:
            config = load(cached(name, cache) / "config.toml")
            config = config.model_copy(
                update={"placement": config.placement.model_copy(update={"clients_per_actor": 12})}
            )
            federation = RayFederation(config, survey(config).clients, work / name)
            stack.callback(federation.close)
            _fill(federation)
            boards.append(board_of(config, federation))
        learned = train_policy(
            policy,
            boards,
            None,
            on_iteration=lambda n, m: tell(f"{n:4d} gain {100 * m['gain']:6.2f} % entropy {m['entropy']:.2f}"),
        )
    lineage = {"clients": [], "parent": None, "sets": list(SEEN), "seed": seed, "iterations": iterations}
    network = write_policy(learned.weights, lineage, out)
    tables = {name: evaluate(load(cached(name, cache) / "config.toml"), network) for name in (UNSEEN, *SEEN)}
    return {
        "policy": network.digest,
        "seconds": learned.seconds,
        "env_steps": learned.env_steps,
        "tables": tables,
    }


def evaluate(config: Config, network: Network, tasks: int = 300) -> dict[str, dict[str, float]]:
    """Selectors on tasks of every client: mean, standard error and worst drop of later RMSE against keeping all, %."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder, one_thread():
        federation = LocalFederation(config, survey(config).clients, Path(folder))
        _fill(federation)
        outputs = (config.data.target,)
        total, _ = total_of(config, config.fingerprint(), federation, federation.clients, outputs)
        play = Play({}, outputs, Packed.of(total), 64)
        usable = [client for client in federation.host.clients(federation.clients) if _teaches(client)]
        rows: dict[str, list[float]] = {}
        for number in range(tasks):
            kind, hit, task, keep = play.rehearse(usable[number % len(usable)], 1_000_000 + number)
            for selector, influence in _selected(config, task, hit, network).items():
                change = 100.0 * (1.0 - np.sqrt(loss(refit(task, influence), task.later) / keep))
                for name in (selector, f"{selector}, {'undisturbed' if kind == 'none' else 'disturbed'}"):
                    rows.setdefault(name, []).append(change)
    return {name: _summary(changes) for name, changes in sorted(rows.items())}


def _teaches(client: Any) -> bool:
    return bool(client.held and len(client.groups(0)) > 3 and client.groups(1) and client.groups(2))


def _selected(config: Config, task: Task, hit: frozenset[str], network: Network) -> dict[str, Any]:
    keep = np.ones(len(task))
    seen = observe(task, keep, 0.0)
    policy = config.policy
    selected = rules(seen)
    selected["best rule, guarded"] = decide(task, None, "rules", policy.margin, 1).influence
    selected["policy"] = follow(network, task, seen, 1)[0]
    selected["policy and rules, guarded"] = decide(task, network, "policy", policy.margin, 1).influence
    selected["oracle"] = np.array([0.0 if key in hit else 1.0 for key in task.keys])
    return selected


def _summary(changes: Sequence[float]) -> dict[str, float]:
    values = np.array(changes)
    return {
        "mean": round(float(values.mean()), 2),
        "error": round(float(values.std() / np.sqrt(len(values))), 2),
        "worst": round(float(values.min()), 2),
        "tasks": len(values),
    }


def _fill(federation: Any) -> None:
    list(federation.run(Import({}, b"bench")))
    list(federation.run(Commit(True)))
