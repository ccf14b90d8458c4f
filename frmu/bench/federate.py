"""One policy for all sites against one a site and their average, at equal env steps.

    frmu bench federate

Both go on from the shipped policy, or from scratch, by RLlib on series that it learned from, and are measured on tasks
that neither met: of all sites of those series, and of the parking federation, which they never saw. What is measured
is where the policy ends by itself, without search or guard. A site's attention is that of a state trained before.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.rollout import Rollout
from frmu.config import Config, Policy, load
from frmu.data.parquet import survey
from frmu.datasets import cached
from frmu.methods.analytic import analytic
from frmu.models.statistics import loss, one_thread
from frmu.policy.env import EnvContext
from frmu.policy.training import MOST, context_of, train_policy
from frmu.runtime.local import LocalFederation
from frmu.selection.network import Network, read_policy, shipped, write_policy
from frmu.selection.observation import observe
from frmu.selection.search import Budget, RefitCounter
from frmu.selection.selectors import follow

__all__ = ["bench_federate"]

MODES = ("shared", "federated")
UNSEEN = "parking"


def bench_federate(
    cache: Path,
    sets: Sequence[str],
    sites: int,
    seeds: int,
    env_steps: int,
    tasks: int,
    scratch: bool,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Gain on later records, in percent of the RMSE of keeping everything, by set and mode: mean, error over seeds.

    The first `sites` of each set train; `difference` is federated less shared, paired by seed. `start` is the gain of
    the policy that both began with, or none from `scratch`.
    """
    from frmu.runtime.connect import cluster

    configs = {name: load(cached(name, cache) / "config.toml") for name in (*sets, UNSEEN)}
    runs: list[dict[str, Any]] = []
    parent = None if scratch else read_policy(shipped())
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="frmu-")))
        stack.enter_context(cluster(None))
        federations = {name: _filled(config, work / name) for name, config in configs.items()}
        contexts = [_trained_context(configs[name], federations[name], sites) for name in sets]
        start = {}
        if parent is not None:
            start = {name: _gain(config, federations[name], parent, tasks) for name, config in configs.items()}
            tell(f"at the start: {start}")
        for seed in range(seeds):
            for mode in MODES:
                network, learned = _train(contexts, parent, mode == "federated", seed, env_steps, work)
                found = {name: _gain(config, federations[name], network, tasks) for name, config in configs.items()}
                runs.append({"mode": mode, "seed": seed, **learned, "gain": found})
                tell(f"seed {seed} {mode:9} {learned['env_steps']} steps, {learned['seconds']:.0f} s: {found}")
    return {"runs": runs, "start": start, "rows": {name: _row(runs, name) for name in configs}}


def _filled(config: Config, folder: Path) -> LocalFederation:
    federation = LocalFederation(config, survey(config).clients, folder)
    list(federation.run(StageShard({}, b"bench")))
    list(federation.run(CommitShard(True)))
    return federation


def _gain(config: Config, federation: LocalFederation, network: Network, tasks: int) -> float:
    """By how much the policy's influences lower the RMSE on later records, in percent, mean over tasks."""
    context, _ = context_of(config, federation)
    rollout = Rollout({}, context.outputs, context.total, MOST)
    clients = federation.host.clients(context.clients)
    gains = []
    with one_thread():
        for number in range(tasks):
            _, _, task, kept, keep = rollout.rehearse(clients[number % len(clients)], 1_000_000 + number)
            account = RefitCounter(task, Budget())
            met = follow(network, account, observe(task, kept, 0.0, kept.loss), kept, config.policy.steps)
            gains.append(100.0 * (1.0 - np.sqrt(loss(met[-1].fit.W, task.later) / keep)))
    return round(float(np.mean(gains)), 2)


def _trained_context(
    config: Config, federation: LocalFederation, sites: int
) -> tuple[EnvContext, dict[str, list[str]]]:
    """The context of a federation that was trained once, so that its clients have attention; only some train."""
    method = analytic(config)
    state = method.apply(federation, method.init(), None).state
    context, slices = context_of(config, federation, {client.name: client.attention for client in state.clients})
    some = context.clients[:sites]
    return replace(context, clients=some, shares=context.shares[:sites]), {name: slices[name] for name in some}


def _train(
    contexts: Sequence[Any], parent: Network | None, federated: bool, seed: int, env_steps: int, work: Path
) -> tuple[Network, dict[str, Any]]:
    from frmu.policy.federate import batch_of
    from frmu.policy.rllib import copies_of

    sites = sum(len(context.clients) for context, _ in contexts)
    policy = Policy(seed=seed, samples=960, federated=federated, env_runners=0)
    # The steps of one round of all sites; the shared policy has the nearest number of iterations.
    a_round = sites * batch_of(policy.samples, sites, copies_of(policy, 0))
    rounds = max(1, round(env_steps / a_round))
    iterations = rounds if federated else max(1, round(rounds * a_round / policy.samples))
    learned = train_policy(policy, contexts, parent, iterations)
    network = write_policy(learned.weights, {"clients": [], "seed": seed}, work / "policy.safetensors")
    return network, {
        "env_steps": learned.env_steps,
        "iterations": learned.iterations,
        "sites": sites,
        "seconds": round(learned.seconds, 1),
    }


def _row(runs: Sequence[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    by = {mode: np.array([run["gain"][name] for run in runs if run["mode"] == mode]) for mode in MODES}
    by["difference"] = by["federated"] - by["shared"]
    return {
        mode: {"mean": round(float(v.mean()), 2), "error": round(float(v.std(ddof=1) / np.sqrt(len(v))), 2)}
        for mode, v in by.items()
    }
