"""Algorithm 1 as RLlib runs it: TD errors, scores, the mean, the mix and the stop, on a real small federation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import homes, put
from ray.rllib.core.columns import Columns

from frmu.clients.tasks.erasure import PurgeShard
from frmu.clients.tasks.framu import Seen, Trial
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.data.sites import SiteLocation
from frmu.data.tombstones import tombstones
from frmu.errors import PolicyError
from frmu.federation import Federation
from frmu.methods.agents import World, world_of
from frmu.methods.analytic import analytic
from frmu.methods.framu import LEVELS, Outcome, Settings, averaged, framu, gained, mixed, rows_of, run
from frmu.policy.framu import dqn, select
from frmu.runtime.local import LocalFederation
from frmu.types import Float

pytestmark = pytest.mark.usefixtures("memory_tracking")

SETTINGS = Settings(rounds=6, epsilon=0.0, seed=2)


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def filled(config: Config, folder: Path) -> LocalFederation:
    federation = LocalFederation(config, sorted(set(homes(3).home)), folder)
    list(federation.run(StageShard({}, b"k")))
    list(federation.run(CommitShard(True)))
    return federation


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return put(tmp_path_factory.mktemp("framu"), homes(3))


@pytest.fixture(scope="module")
def federation(config: Config, tmp_path_factory: pytest.TempPathFactory) -> LocalFederation:
    return filled(config, tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def world(config: Config, federation: LocalFederation) -> World:
    found = world_of(config, federation)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def outcome(world: World) -> Outcome:
    return run(world, SETTINGS, dqn)


class Recorded:
    """A world's dispatches, written down."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dispatches: list[tuple[Mapping[str, Trial], Mapping[str, Seen]]] = []

    def __call__(self, trials: Mapping[str, Trial]) -> Mapping[str, Seen]:
        answers = self.world.ask(trials)
        self.dispatches.append((trials, answers))
        return answers


def q(w: Mapping[str, np.ndarray], rows: Float) -> Float:
    """Q(s_ij, a; w), (modalities, K, 3), for rows (modalities, K, features)."""
    which = np.broadcast_to(np.eye(len(rows))[:, None, :], (*rows.shape[:2], len(rows)))
    x = np.concatenate([rows, which], axis=2)
    return np.maximum(x @ w["net.0.weight"].T + w["net.0.bias"], 0) @ w["net.2.weight"].T + w["net.2.bias"]


def test_lines_5_to_9_are_the_transitions_that_the_clients_answered(world: World) -> None:
    recorded = Recorded(world)
    with dqn(replace(world, ask=recorded), SETTINGS) as agents:
        for turn in (1, 2):
            w = agents.weights()
            errors = agents.play()
            trials, after = recorded.dispatches[turn]
            _, before = recorded.dispatches[turn - 1]
            for k, name in enumerate(world.names):
                action = np.array([LEVELS.index(level) for level in trials[name].after or ()])
                following = q(w[k], rows_of(after[name])).max(axis=2)
                taken = np.take_along_axis(q(w[k], rows_of(before[name])), action[None, :, None], axis=2)[..., 0]
                d = after[name].rewards + SETTINGS.gamma * following - taken
                assert np.allclose(errors[k], d.T, atol=1e-4)
            assert trials[world.names[0]].before == (recorded.dispatches[turn - 1][0][world.names[0]].after)
        assert agents.refits == sum(seen.refits for _, answers in recorded.dispatches for seen in answers.values())


def test_line_10_learns(world: World) -> None:
    with dqn(world, replace(SETTINGS, replays=0)) as agents:
        first = agents.weights()
        assert all(np.array_equal(first[0][name], w[name]) for w in first for name in w)
        agents.play()
        after = agents.weights()
    assert not any(np.array_equal(first[k]["net.0.weight"], after[k]["net.0.weight"]) for k in range(3))
    assert not np.array_equal(after[0]["net.0.weight"], after[1]["net.0.weight"])


def test_lines_16_and_18_reach_every_network(world: World) -> None:
    with dqn(world, SETTINGS) as agents:
        agents.play()
        w = agents.weights()
        expected = [mixed(averaged(w, world.n), one, 0.5) for one in w]
        agents.load(expected)
        algorithm = agents.algorithm  # type: ignore[attr-defined]
        state = algorithm.learner_group.get_weights()
        runner = algorithm.env_runner.module
        for k, one in enumerate(expected):
            for name, value in one.items():
                assert np.array_equal(state[f"{k:04d}"][name], value)
                assert np.array_equal(state[f"{k:04d}"][name.replace("net", "_target")], value)
                assert np.array_equal(runner[f"{k:04d}"].state_dict()[name].numpy(), value)


def test_greedy_is_what_the_module_would_do(world: World) -> None:
    first = world.ask({name: Trial((1.0,) * len(keys)) for name, keys in zip(world.names, world.keys, strict=True)})
    rows = rows_of(first[world.names[0]])
    with dqn(world, SETTINGS) as agents:
        agents.play()
        seen = np.concatenate([np.swapaxes(rows, 0, 1), np.zeros((rows.shape[1], 2, 1))], axis=2)
        module = agents.algorithm.env_runner.module["0000"]  # type: ignore[attr-defined]
        actions = module.forward_inference({Columns.OBS: torch.tensor(seen, dtype=torch.float32)})[Columns.ACTIONS]
        assert agents.greedy(agents.weights()[0], rows).tolist() == [LEVELS[int(action)] for action in actions]


def test_line_11_scores_are_sums_of_surprise(world: World, outcome: Outcome) -> None:
    """Replayed with the same agents by hand, the scores come out the same."""
    A = [np.zeros((len(keys), 2)) for keys in world.keys]
    with dqn(world, SETTINGS) as agents:
        for _ in range(SETTINGS.rounds):
            more = [gained(one, d, SETTINGS.eta) for one, d in zip(A, agents.play(), strict=True)]
            assert all((new >= old).all() for new, old in zip(more, A, strict=True))
            A, w = more, agents.weights()
            W = averaged(w, world.n)
            agents.load([mixed(W, one, SETTINGS.beta) for one in w])
    assert all(np.array_equal(one, other) for one, other in zip(A, outcome.scores, strict=True))


def test_line_13_fires_early_only(world: World) -> None:
    slices = sum(len(keys) for keys in world.keys)
    long = run(world, replace(SETTINGS, rounds=25, theta=0.05), dqn)
    below = [entry["below"] for entry in long.history]
    assert below == sorted(below, reverse=True)
    assert below[0] > slices / 2
    assert below[-1] < below[0] / 2


def test_line_19_stops(world: World, outcome: Outcome) -> None:
    assert outcome.rounds == SETTINGS.rounds
    stopped = run(world, replace(SETTINGS, epsilon=1e9), dqn)
    assert stopped.rounds == 2
    assert stopped.history == outcome.history[:2]


def test_a_seed_replays_and_another_does_not(world: World, outcome: Outcome) -> None:
    again, other = run(world, SETTINGS, dqn), run(world, replace(SETTINGS, seed=3), dqn)
    assert again.history == outcome.history
    assert again.refits == outcome.refits
    assert all(np.array_equal(one, same) for one, same in zip(again.scores, outcome.scores, strict=True))
    assert not np.array_equal(other.scores[0], outcome.scores[0])


def test_tasks_of_a_federation_are_judged_like_its_clients(
    config: Config, federation: LocalFederation, world: World, outcome: Outcome
) -> None:
    from frmu.clients.tasks.framu import blocks

    total, outputs = world.ask.total, world.ask.outputs  # type: ignore[attr-defined]
    clients = federation.host.clients(world.names)
    tasks = [client.task(client.slices("fit", outputs), total, outputs) for client in clients]
    same = select(tasks, SETTINGS, blocks(config))
    assert all(np.allclose(one, other) for one, other in zip(same.scores, outcome.scores, strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(same.influence, outcome.influence, strict=True))
    assert all(influence.shape == (len(task),) for influence, task in zip(same.influence, tasks, strict=True))


# -- as a method -----------------------------------------------------------------------------------------------


def state_of(config: Config, federation: Federation) -> str:
    method = framu(config, dqn, SETTINGS)
    assert (method.name, method.guarantee) == ("framu", "none")
    done = method.apply(federation, method.init(), None)
    assert done.refits > 0
    assert {name for client in done.state.clients for name in [client.chosen_by]} == {"framu"}
    return done.state.digest


def test_as_a_method_it_gives_a_state_and_leaves_no_checkpoint(tmp_path: Path, config: Config) -> None:
    federation = filled(config, tmp_path)
    method = framu(config, dqn, replace(SETTINGS, theta=0.1))
    done = method.apply(federation, method.init(), None)
    influences = [i for client in done.state.clients for i in client.influence.values()]
    assert set(influences) <= {0.25, 1.0}
    assert 0.25 in influences
    assert np.isfinite(done.state.W).all()
    assert not np.array_equal(done.state.W, done.keep)
    exact = analytic(config)
    assert not (tmp_path / "state.safetensors").exists()
    assert np.allclose(done.keep, exact.apply(federation, exact.init(), None).keep)


def test_it_runs_again_after_a_purge(tmp_path: Path, config: Config) -> None:
    federation = filled(config, tmp_path)
    method = framu(config, dqn, replace(SETTINGS, rounds=2))
    before = method.apply(federation, method.init(), None)
    gone = frozenset(tombstones(b"k", "home 1", [f"h1-{i}" for i in range(80)]))
    list(federation.run(PurgeShard({"home 1": gone}, b"k"), on=["home 1"]))
    after = method.erase(federation, before.state, None, ("home 1",), None)
    assert sum(c.records for c in before.state.clients) - sum(c.records for c in after.state.clients) == 80
    assert len(after.state.clients[1].influence) == len(before.state.clients[1].influence) - 1


@pytest.mark.cluster
def test_the_same_state_on_ray(tmp_path: Path, config: Config, federation: LocalFederation) -> None:
    from frmu.runtime.ray import RayFederation

    remote = RayFederation(config, {name: SiteLocation("", config, tmp_path) for name in federation.clients})
    try:
        list(remote.run(StageShard({}, b"k")))
        list(remote.run(CommitShard(True)))
        assert state_of(config, remote) == state_of(config, federation)
    finally:
        remote.close()


def test_with_nobody_to_judge_everything_is_kept(tmp_path: Path) -> None:
    table = homes(3)
    blind = put(tmp_path / "blind", table[(table.ts < "2025-05-01") | (table.ts > "2025-06-02")])
    federation = filled(blind, tmp_path)
    method = framu(blind, dqn, SETTINGS)
    done = method.apply(federation, method.init(), None)
    assert done.refits == 0
    assert {i for client in done.state.clients for i in client.influence.values()} == {1.0}
    assert np.allclose(done.state.W, done.keep)


def test_one_client_with_one_slice_is_an_agent(config: Config, federation: LocalFederation, world: World) -> None:
    total, outputs = world.ask.total, world.ask.outputs  # type: ignore[attr-defined]
    client = federation.host.clients(world.names)[0]
    key, part = next(iter(client.slices("fit", outputs).items()))
    done = select([client.task({key: part}, total, outputs)], SETTINGS)
    assert done.influence[0].shape == (1,)
    assert done.scores[0].shape == (1, 1)


def test_without_ray_it_does_not_start_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with pytest.raises(PolicyError, match="Ray is not up"), dqn(world, SETTINGS):
        pass
