"""The environment: real clients, in process, and the same answers on every replay."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import homes, put, train
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st

from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.rollout import Rollout, arrivals
from frmu.errors import ClientsUnavailableError
from frmu.policy.env import MASK, TASKS_PER_EPISODE, EnvContext, SliceEnv
from frmu.policy.module import SliceNetwork
from frmu.policy.trainer import scalars_of
from frmu.policy.training import context_of
from frmu.runtime.local import LocalFederation
from frmu.selection.network import LIMIT, Network, read_policy, shipped
from frmu.selection.observation import FEATURES, Observation

MOST = 4
LOW = np.log(1e-4) / 3.0 + 1.0  # an influence that is none, from its logarithm


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> EnvContext:
    folder = tmp_path_factory.mktemp("env")
    table = homes(3)
    config = put(folder, table)
    federation = LocalFederation(config, sorted(set(table.home)), folder)
    list(federation.run(StageShard({}, b"k")))
    list(federation.run(CommitShard(True)))
    return context_of(config, federation)[0]


def env(context: EnvContext, **options: int) -> SliceEnv:
    return SliceEnv([context], MOST, **{"num_envs": 24, "seed": 3} | options)  # type: ignore[arg-type]


def test_what_it_gives_is_in_its_spaces(context: EnvContext) -> None:
    e = env(context)
    observation, _ = e.reset(seed=1)
    for _ in range(TASKS_PER_EPISODE + 3):
        assert e.observation_space.contains(observation)
        observation, reward, terminated, truncated, _ = e.step(e.action_space.sample())
        assert np.isfinite(reward).all()
        assert reward.shape == terminated.shape == truncated.shape == (24,)


def test_a_seed_replays(context: EnvContext) -> None:
    def replay() -> list[np.ndarray]:
        e, rng = env(context), np.random.default_rng(0)
        seen = [e.reset(seed=5)[0]]
        for _ in range(4):
            observation, reward, *_ = e.step(rng.normal(size=(24, MOST)).astype(np.float32))
            seen += [observation, reward]
        return seen

    assert all(np.array_equal(a, b) for a, b in zip(replay(), replay(), strict=True))


def test_an_episode_ends_for_all_and_begins_anew(context: EnvContext) -> None:
    e = env(context)
    e.reset(seed=0)
    ends = [e.step(np.full((24, MOST), 2.0, np.float32))[2] for _ in range(TASKS_PER_EPISODE + 2)]
    assert [end.all() for end in ends] == [False] * (TASKS_PER_EPISODE - 1) + [True] + [False] * 2
    assert not ends[0].any()


def test_equal_actions_earn_equal_rewards(context: EnvContext) -> None:
    e = env(context)
    e.reset(seed=0)
    _, reward, *_ = e.step(np.full((24, MOST), 2.0, np.float32))
    assert np.allclose(reward, 0.0)


def test_forgetting_what_was_shuffled_earns_more(context: EnvContext) -> None:
    """Somewhere among many tasks, the copy that forgets the disturbed slices beats the one that keeps all."""
    e = env(context, num_envs=2)
    wins = []
    for seed in range(30):
        e.reset(seed=seed)
        episode = e._episodes[0]
        client, name = episode.client, e.contexts[0].clients[episode.client]
        hit = np.array(_hit(e, name, episode.seed))
        if not hit.any() or hit.all():
            continue
        actions = np.full((2, MOST), 9.0, np.float32)
        actions[0, : len(hit)] = np.where(hit, -9.0, 9.0)
        _, reward, *_ = e.step(actions)
        wins.append(reward[0] > reward[1])
        assert client < 3
    assert np.mean(wins) > 0.6


def _hit(e: SliceEnv, name: str, seed: int) -> list[bool]:
    from frmu.clients.tasks.rollout import EnvStep, Rollout

    context = e.contexts[0]
    rollout = Rollout({name: (EnvStep(seed, None, 0.0, True),)}, context.outputs, context.total, MOST)
    return next(iter(context.federation.run(rollout, on=[name]))).record["steps"][0]["hit"]


def test_the_last_row_is_for_the_account_alone(context: EnvContext) -> None:
    observation, _ = env(context).reset(seed=0)
    assert observation.shape == (24, MOST + 1, MASK + 1 + 2 * MOST)
    assert not observation[:, -1, MASK].any()


@pytest.fixture(scope="module")
def twins() -> tuple[Network, SliceNetwork]:
    network = read_policy(Path(shipped()))
    twin = SliceNetwork()
    twin.load_state_dict({name: torch.tensor(weight) for name, weight in network.weights.items()})
    return network, twin.double()


@pytest.mark.parametrize("slices", [1, 3, 9])
def test_numpy_and_torch_compute_the_same_policy(twins: tuple[Network, SliceNetwork], slices: int) -> None:
    network, twin = twins
    rng = np.random.default_rng(slices)
    first, now = (
        Observation(rng.normal(size=(slices, len(FEATURES))), rng.uniform(-1, 1, (slices, slices)), None)  # type: ignore[arg-type]
        for _ in range(2)
    )
    rows, relations = torch.zeros(1, 12, 2 * len(FEATURES)), torch.zeros(1, 2, 12, 12)
    rows[0, :slices] = torch.tensor(np.concatenate([first.rows, now.rows], axis=1))
    for number, seen in enumerate((first, now)):
        relations[0, number, :slices, :slices] = torch.tensor(seen.relation)
    mask = torch.arange(12)[None] < slices
    with torch.no_grad():
        logits, value, pool = twin(rows.double(), relations.double(), mask)
    ours = network(first, now)
    assert np.allclose(ours[0], logits[0, :slices].numpy(), atol=1e-5)
    assert np.isclose(ours[1], float(value[0]), atol=1e-5)
    assert np.allclose(ours[2], pool[0, :slices].numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = put(tmp_path_factory.mktemp("trained"), homes(2))
    train(config)
    return str(config.file)


@pytest.mark.parametrize(("steps", "rounds"), [(1, 1), (2, 3)])
def test_the_single_environment_passes_gymnasiums_checker(trained: str, steps: int, rounds: int) -> None:
    made = gym.make("frmu.policy.single:frmu/Slices-v0", config=trained, max_slices=MOST, steps=steps, rounds=rounds)
    check_env(made.unwrapped)


def test_the_single_environment_shows_where_a_task_ended(trained: str) -> None:
    e = gym.make("frmu.policy.single:frmu/Slices-v0", config=trained, max_slices=MOST, steps=2)
    observation, _ = e.reset(seed=4)
    seen = [e.step(np.full(MOST, logit, np.float32)) for logit in (-1.0, 1.0)]
    assert [terminated for _, _, terminated, _, _ in seen] == [False, True]
    # Forgetting everything is refitted and seen, and so is keeping everything again.
    influence = len(FEATURES) + FEATURES.index("influence")
    shown = observation[:, MASK] > 0.5
    assert seen[0][0][shown, influence] == pytest.approx(LOW, abs=1e-3)
    assert seen[1][0][shown, influence] == pytest.approx(1.0, abs=1e-3)
    assert abs(seen[0][4]["gain"]) > 100 * abs(seen[1][4]["gain"])


def test_the_single_environment_gives_the_same_episodes(context: EnvContext) -> None:
    from frmu.policy.single import SliceTask

    single, many = SliceTask([context], MOST), env(context, num_envs=2)
    for seed in range(5):
        one, all_ = single.reset(seed=seed)[0], many.reset(seed=seed)[0]
        assert np.array_equal(one, all_[0])
        action = np.random.default_rng(seed).uniform(-1, 1, MOST).astype(np.float32)
        assert single.step(action)[4]["gain"] == many.step(LIMIT * np.stack([action, action]))[4]["gain"][0]


@given(slices=st.integers(1, 64), rounds=st.integers(1, 16))
def test_slices_arrive_one_by_one_until_all_are_there(slices: int, rounds: int) -> None:
    borders = arrivals(slices, rounds)
    assert borders[-1] == slices
    assert 1 <= len(borders) <= rounds
    assert borders[0] >= min(2, slices)
    assert all(before < after for before, after in itertools.pairwise(borders))


def test_a_round_judges_by_what_came_next_and_is_rewarded_on_what_came_then(context: EnvContext) -> None:
    client = context.federation.host.clients(["home 0"])[0]  # type: ignore[attr-defined]
    rollout = Rollout({}, context.outputs, context.total, MOST, rounds=3)
    clean = client.slices("fit", context.outputs)
    for seed in range(20):
        rounds = rollout.episode(client, seed)
        keys = rounds[-1][2].keys
        assert [len(task) for _, _, task, _, _ in rounds] == arrivals(len(keys), 3)
        blocks = [set(task.keys) for _, _, task, _, _ in rounds]
        for number, (kind, hit, task, _, _) in enumerate(rounds):
            assert hit <= blocks[number]
            assert (task.age[0], task.age[-1]) == (1.0, 0.0)  # who is newest now ages as others come
            if number + 1 < len(rounds):
                coming = sorted(blocks[number + 1] - blocks[number])
                assert task.validation.n == sum(part.n for part in task.parts) == sum(clean[key].n for key in coming)
            assert kind == rounds[0][0]
        assert rounds[-1][2].later.n == client.split_total("later", context.outputs).n
        if len(rounds) > 1:
            assert rounds[-2][2].later.n == rounds[-1][2].validation.n


def test_slices_enter_between_the_steps_of_a_task(context: EnvContext) -> None:
    e = env(context, num_envs=12, rounds=3)
    observation, _ = e.reset(seed=0)
    number = [int(observation[0, :, MASK].sum())]
    while not e._episodes[0].over and len(number) < 9:
        before = e._episodes[0]
        observation, _, terminated, _, info = e.step(np.full((12, MOST), -9.0, np.float32))
        assert not terminated.any()
        assert (info["gain"] <= 1).all()
        if e._episodes[0] is not before:
            break
        number.append(int(observation[0, :, MASK].sum()))
        influence = observation[0, : number[-1], len(FEATURES) + FEATURES.index("influence")]
        assert influence == pytest.approx([LOW] * number[-2] + [1.0] * (number[-1] - number[-2]), abs=1e-3)
    assert number == arrivals(number[-1], 3)
    assert len(number) > 1


def test_from_one_site_alone(context: EnvContext) -> None:
    e = env(context)
    e.only(2)
    e.reset(seed=0)
    for _ in range(3):
        e.step(np.full((24, MOST), 2.0, np.float32))
        assert {episode.client for episode in e._episodes} == {2}
    e.only(None)
    e.reset(seed=0)
    assert len({episode.client for seed in range(5) for episode in (e.reset(seed=seed), e._episodes)[1]}) > 1


@pytest.mark.parametrize("updates", [0, 1, 3])
def test_scores_take_any_number_of_updates(updates: int) -> None:
    """RLlib gives a series of one item as the item itself."""
    series = [np.array([1.0, 5.0, 1.0, -1.0, 0.0])] * updates
    told = {"score_updates": series[0] if updates == 1 else series} if updates else {}
    scores = [np.zeros(3), np.zeros(2)]
    scalars_of({"learners": {"default_policy": told}, "env_runners": {}}, scores)
    assert not scores[0].any()
    assert np.allclose(scores[1], [0.1 * updates, -0.1 * updates])


class Unsteady:
    """A federation in which some clients do not answer."""

    def __init__(self, federation: LocalFederation) -> None:
        self._federation = federation
        self.gone: set[str] = set()
        self.asked: list[str] = []

    def run(self, work: object, on: list[str]):
        self.asked = sorted(on)
        yield from self._federation.run(work, on=[name for name in on if name not in self.gone])
        if lost := self.gone & set(on):
            raise ClientsUnavailableError.of(dict.fromkeys(lost, "its host died"))


def test_a_client_that_does_not_answer_is_done_without_until_it_is_back(
    context: EnvContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    unsteady = Unsteady(context.federation)  # type: ignore[arg-type]
    e = env(dataclasses.replace(context, federation=unsteady), num_envs=24)  # type: ignore[arg-type]
    e.reset(seed=1)
    unsteady.gone = {"home 0"}
    ended = 0
    for _ in range(60):
        _, reward, terminated, _, _ = e.step(e.action_space.sample())
        assert np.isfinite(reward).all()
        ended += bool(terminated.all())
    assert e.away == ("home 0",)
    assert "home 0" not in unsteady.asked
    assert ended >= 2
    unsteady.gone = set(context.clients)
    e.step(e.action_space.sample())
    with pytest.raises(ClientsUnavailableError, match="home 0, home 1, home 2 are away: its host died"):
        e.reset()
    unsteady.gone = set()
    monkeypatch.setattr("frmu.policy.env.time.monotonic", lambda: 1e12)
    e.reset()
    assert e.away == ()
