"""A policy that is trained across actors: four env runners step client hosts on three nodes, and survive losses."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CONFIG, homes, put
from three_sites import SITES, Cluster, driver
from three_sites import put as put_sites

from frmu import api
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config, Policy
from frmu.data.parquet import survey
from frmu.federation import Answer
from frmu.policy.env import EnvContext, SliceEnv
from frmu.policy.module import SliceNetwork, seen
from frmu.policy.training import Learned, context_of, train_policy
from frmu.runtime.local import LocalFederation
from frmu.selection.observation import FEATURES

_log = logging.getLogger(__name__)
WEEKS = CONFIG.replace('by = "month"', 'by = "week"')  # eighteen slices of fourteen records to fit, at each client

# -- what crosses ----------------------------------------------------------------------------------------------


@dataclass
class Overheard:
    """A federation whose replies are kept as they cross the seam."""

    federation: Any
    replies: list[Any] = field(default_factory=list)

    def run(self, work: Any, on: Any = None) -> Iterator[Any]:
        """As the federation does it."""
        for reply in self.federation.run(work, on=on):
            self.replies.append(reply)
            yield reply


def overhear(context: EnvContext, max_slices: int = 64) -> list[dict[str, Any]]:
    """Every answer of the clients to an environment of several rounds, over some episodes."""
    heard = Overheard(context.federation)
    env = SliceEnv([replace(context, federation=heard)], max_slices, 6, steps=2, rounds=2, group=1)
    rng = np.random.default_rng(0)
    env.reset(seed=0)
    for _ in range(5):
        env.step(rng.normal(0.0, 3.0, (6, max_slices)).astype(np.float32))
    assert heard.replies
    assert all(set(reply.record) == {"steps"} and reply.payload is None for reply in heard.replies)
    return [answer for reply in heard.replies for answer in reply.record["steps"]]


def shapes(answer: Mapping[str, Any]) -> dict[str, Any]:
    """The shape of everything in an answer, and of what it nests."""
    return {
        name: [np.shape(part) for part in value] if isinstance(value, tuple) and name == "first" else np.shape(value)
        for name, value in answer.items()
    }


def aggregates(slices: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """The shapes of aggregates of so many slices, and nothing else."""
    seen = answer["rows"] is not None
    one: tuple[()] = ()
    return {
        "rows": (slices, len(FEATURES)) if seen else one,
        "relation": (slices, slices) if seen else one,
        "first": one if answer["first"] is None else [(slices, len(FEATURES)), (slices, slices)],
        "slope": one if answer["slope"] is None else np.shape(answer["slope"]),
        "keys": (slices,), "hit": (slices,), "influence": (slices,),
        **dict.fromkeys(("kind", "by_itself", "loss", "reached", "standing", "keep", "rounds"), one),
    }  # fmt: skip


def check(answers: list[dict[str, Any]]) -> None:
    """Raise where an answer has anything beside aggregates of its slices."""
    assert {answer["slope"] is None for answer in answers} == {True, False}
    assert {answer["first"] is None for answer in answers} == {True, False}
    for answer in answers:
        slices = len(answer["keys"])
        assert shapes(answer) == aggregates(slices, answer)
        assert answer["slope"] is None or len(answer["slope"]) <= slices  # of the slices that were there to act on


def local(folder: Path, table: pd.DataFrame) -> EnvContext:
    config = put(folder, table, WEEKS)
    federation = LocalFederation(config, survey(config).clients, folder)
    for work in (StageShard({}, b"key"), CommitShard(True)):
        list(federation.run(work))
    return context_of(config, federation)[0]


def test_nothing_of_a_shard_leaves_a_client_but_aggregates_of_slices(tmp_path: Path) -> None:
    """By shape, and by size: four times the records, and the same bytes."""
    table = homes(2)
    more = pd.concat([table.assign(record=[f"{name}-{copy}" for name in table.record]) for copy in range(4)])
    few, many = (overhear(local(tmp_path / name, rows)) for name, rows in (("few", table), ("many", more)))
    for answers in (few, many):
        check(answers)
    assert [answer["keys"] for answer in few] == [answer["keys"] for answer in many]
    assert [len(pickle.dumps(shapes(answer))) for answer in few] == [len(pickle.dumps(shapes(a))) for a in many]
    sizes = [[len(pickle.dumps(answer, protocol=5)) for answer in answers] for answers in (few, many)]
    assert np.max(np.abs(np.subtract(*sizes))) < 100  # a whole number is written shorter where it is small


# -- three nodes -----------------------------------------------------------------------------------------------

RUNNERS, ITERATIONS, STEPS = 4, 8, 192
TASKS = 128  # held out, to judge by
# Standard deviation between two trainings of these settings that nothing disturbed, in share of the loss: by seeds 0
# to 3 in one process the last evaluation was 9.1, 11.0, 9.0 and 10.3 %. Untrained, a policy gains 5.0 %.
TRAININGS = 0.014


def quiet_homes() -> pd.DataFrame:
    """Homes whose load follows from the features but for a little noise: a slice that was disturbed costs much."""
    table, rng = homes(clients=5), np.random.default_rng(1)
    exact = 3 + table.hour_sin - 0.1 * table.temperature + 0.01 * table.humidity
    return table.assign(load=exact + rng.normal(0, 0.02, len(table)))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    here = Cluster(tmp_path_factory.mktemp("cluster") / "c")
    here.up(list(SITES), cpus=2, postgres=False, mlflow=False)
    try:
        yield here
    finally:
        here.down()


@pytest.fixture
def config(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Config]:
    """Five homes at three sites, trained once; this process is a driver on the cluster."""
    with driver(cluster, monkeypatch):
        made = put_sites(tmp_path / "sites", quiet_homes(), patience=30)
        with api.Experiment(made) as experiment:
            experiment.train()
        yield made


@dataclass(frozen=True, slots=True)
class Process:
    """The process of a client's host, and its node."""

    def prepare(self, clients: Any) -> None: ...

    def perform(self, client: Any) -> Answer:
        import ray

        return Answer(client.name, {"pid": os.getpid(), "node": ray.get_runtime_context().get_node_id()})


def processes(experiment: api.Experiment) -> dict[str, dict[str, Any]]:
    import sys

    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    return {reply.client: reply.record for reply in federation_of(experiment).run(Process())}


def federation_of(experiment: api.Experiment) -> Any:
    sites = experiment.session.sites
    names = [client.name for client in experiment.session.state().clients]
    return sites.federation(sites.locations_of(names, sites.look()))


def runners() -> list[dict[str, Any]]:
    """The env runners that are alive, as Ray knows them."""
    import ray._private.state

    alive = ray._private.state.actors().values()
    return [one for one in alive if one["ActorClassName"] == "SingleAgentEnvRunner" and one["State"] == "ALIVE"]


def learn(experiment: api.Experiment, policy: Policy, strike: bool, told: list[dict[str, Any]]) -> Learned:
    """Train from nothing; with `strike`, an env runner and a client host are killed while the second round samples."""

    def watch(number: int, metrics: dict[str, float]) -> None:
        told.append(metrics | {"nodes": len({one["Address"]["NodeID"] for one in runners()})})
        if strike and number == 0:
            for pid in (runners()[0]["Pid"], processes(experiment)["home 2"]["pid"]):
                threading.Timer(0.5, os.kill, [pid, signal.SIGKILL]).start()

    context, slices = context_of(experiment.session.config, federation_of(experiment))
    return train_policy(policy, [(context, slices)], None, ITERATIONS, watch, deadline=120.0)


def gains(context: EnvContext, weights: Mapping[str, Any], policy: Policy) -> Any:
    """The gain on later records where each of the held-out tasks ends, as the environment tells it; (TASKS,)."""
    network, slices = SliceNetwork(), 4
    network.load_state_dict({name: torch.as_tensor(np.asarray(weight)) for name, weight in weights.items()})
    env = SliceEnv([context], slices, TASKS, policy.steps, group=1, held_out=True, tasks_per_episode=1)
    observation, _ = env.reset()
    for _ in range(policy.steps):
        with torch.no_grad():
            logits = network(*seen(torch.from_numpy(observation)))[0].numpy()
        observation, _, ended, _, infos = env.step(logits)
    assert ended.all()
    return infos["gain"]


def paired(one: Any, other: Any) -> tuple[float, float]:
    """The mean difference over the same tasks, and its standard error."""
    difference = other - one
    return float(difference.mean()), float(difference.std(ddof=1) / np.sqrt(len(difference)))


@pytest.mark.long  # minutes, on three nodes
@pytest.mark.cluster
def test_a_training_that_loses_a_runner_and_a_client_host_ends_as_good(config: Config) -> None:
    """Both learn, and their paired difference on held-out tasks is noise."""
    policy = Policy(env_runners=RUNNERS, samples=STEPS)
    found: dict[str, Any] = {"untrained": SliceNetwork().state_dict()}
    seen_of: dict[str, list[dict[str, Any]]] = {}
    with api.Experiment(config) as experiment:
        hosts = processes(experiment)
        assert len({host["node"] for host in hosts.values()}) == len(SITES)
        for name in ("undisturbed", "struck"):
            seen_of[name] = []
            learned = learn(experiment, policy, name == "struck", seen_of[name])
            assert (learned.iterations, learned.env_runners) == (ITERATIONS, RUNNERS)
            assert learned.env_steps == pytest.approx(ITERATIONS * STEPS, rel=0.1)  # batches are whole all the same
            found[name] = learned.weights
        assert processes(experiment)["home 2"]["pid"] != hosts["home 2"]["pid"]
        assert seen_of["undisturbed"][-1]["env_runners"] == RUNNERS
        assert min(metrics["env_runners"] for metrics in seen_of["struck"][1:]) < RUNNERS
        assert seen_of["undisturbed"][-1]["nodes"] == len(SITES)
        context, _ = context_of(config, federation_of(experiment))
        check(overhear(context))  # from hosts on other nodes, too, come aggregates
        gained = {name: gains(context, weights, policy) for name, weights in found.items()}
    told = {name: round(100 * float(gain.mean()), 2) for name, gain in gained.items()}
    for name in ("undisturbed", "struck"):
        better, error = paired(gained["untrained"], gained[name])
        assert better > 2 * error, told
    difference, error = paired(gained["undisturbed"], gained["struck"])
    _log.info("gains in %%: %s; struck less undisturbed %+.3f ± %.3f", told, 100 * difference, 100 * error)
    assert abs(difference) < 2 * np.hypot(error, TRAININGS), (told, difference, error)
