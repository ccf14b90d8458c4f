"""The algorithm of our own: its slope is exact, RLlib carries it unchanged, and what is no number is left out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from problems import SLICES, shuffled
from ray.rllib.core.columns import Columns

from frmu.bench.pretraining_tasks import PretrainingTasks
from frmu.clients.tasks.rollout import EnvStep, take
from frmu.config import Policy
from frmu.errors import ClientsUnavailableError, PolicyError
from frmu.models.statistics import loss
from frmu.policy.env import HELD_OUT, SliceEnv
from frmu.policy.rllib import EVALUATED, Rate, config_of, rate_of
from frmu.policy.slope import SLOPE, STANDING, SlopeConfig, SlopesFromInfos, faults_of, influence_of
from frmu.policy.trainer import Trainer, quiet
from frmu.selection import network
from frmu.selection.observation import fit
from frmu.selection.reward import slope_of, standing_of

RATE = Rate(2e-3, 2e-3, 1)


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def config(tasks: Any, algorithm: str = "slope", runners: int = 0, samples: int = 96, **settings: Any) -> Any:
    policy = Policy(algorithm=algorithm, samples=samples, **settings)
    return config_of(policy, [tasks], SLICES, runners, samples, 0, RATE)


def recording() -> Any:
    """An environment that remembers what it was given; made here, so that a remote runner gets it by value."""

    class Recording(SliceEnv):
        def __init__(self, settings: Any) -> None:
            super().__init__(**dict(settings))
            self.received: list[Any] = []

        def step(self, actions: Any) -> Any:
            self.received.append(np.array(actions))
            return super().step(actions)

    return Recording


def sampled(runner: Any) -> tuple[Any, Any, Any]:
    """What a runner's environment received, what its episodes say was acted, and the module's own logits there."""
    episodes = runner.sample(num_timesteps=2 * runner.num_envs, force_reset=True)
    observations = np.stack([episode.get_observations(slice(0, 2)) for episode in episodes], axis=1)
    with torch.no_grad():
        flat = torch.from_numpy(observations.reshape(-1, *observations.shape[2:]))
        logits = runner.module.look(flat)[0].reshape(*observations.shape[:2], -1).numpy()
    acted = np.stack([episode.get_actions() for episode in episodes], axis=1)
    return np.stack(runner.env.unwrapped.received[-2:]), acted, logits


@pytest.mark.parametrize("algorithm", ["slope", "ppo"])
@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.cluster)])
def test_the_environment_gets_what_the_module_emits(algorithm: str, runners: int) -> None:
    with quiet():
        made = config(PretrainingTasks(shuffled), algorithm, runners).environment(recording()).build_algo()
        try:
            if runners:
                [(received, acted, logits)] = made.runners._ask(made.runners._runners, 60.0, sampled)
            else:
                received, acted, logits = sampled(made.env_runner_group.local_env_runner)
        finally:
            made.stop()
    assert received.dtype == acted.dtype == np.float32
    if algorithm == "slope":
        assert np.array_equal(received, acted)
        assert np.allclose(acted, logits, atol=1e-6)
    else:  # what was drawn about the logits, clipped to the space, and not stretched to it
        assert np.array_equal(received, np.clip(acted, -network.LIMIT, network.LIMIT))
        assert 0.3 < np.std(acted - logits) < 0.5


def test_the_slope_is_the_derivative_of_the_reward() -> None:
    for seed in range(6):
        rng = np.random.default_rng(seed)
        task = shuffled(rng)
        influence = rng.uniform(0.2, 1.0, SLICES)
        keep = loss(fit(task, task.keep).W, task.later)
        at = fit(task, influence)
        standing, slope = standing_of(task, at, keep), slope_of(task, at, keep)
        assert standing_of(task, fit(task, task.keep), keep) == 0.0
        small = 1e-6
        moved = [standing_of(task, fit(task, influence + small * one), keep) for one in np.eye(SLICES)]
        derivative = -(np.array(moved) - standing) / small
        # Four times the derivative of the reward; where it is worse than keeping all, harm is added as it is.
        change = np.sinh(-8.0 * standing) / 8.0
        bent = 1.0 / np.sqrt(1.0 + (8.0 * change) ** 2)
        assert slope == pytest.approx(derivative * (4.0 + (0.5 / bent if 0 < change < 1 else 0.0)), rel=1e-2, abs=1e-4)


@pytest.mark.parametrize("by_itself", [True, False])
def test_the_influence_of_the_loss_is_that_of_the_environment(by_itself: bool) -> None:
    logits = np.random.default_rng(0).normal(0.0, 5.0, (4, SLICES)).astype(np.float32)
    ours = influence_of(
        torch.tensor(logits), torch.ones(4, SLICES, dtype=torch.bool), torch.full((4,), by_itself)
    ).numpy()
    theirs = np.stack([network.influence_of(row.astype(np.float64), by_itself) for row in logits])
    assert np.abs(ours - theirs).max() <= 0.5 / 64 + 1e-6


def test_infos_belong_to_the_actions_that_they_follow_even_where_a_chunk_begins() -> None:
    tasks = PretrainingTasks(shuffled)
    with quiet():
        made = config(tasks, samples=64, steps=3).build_algo()
        runner = made.env_runner_group.local_env_runner
        before = runner.sample(num_timesteps=32)
        seeds = [episode.seed for episode in runner.env.unwrapped._episodes]  # the next steps end these tasks
        after = runner.sample(num_timesteps=64)
        made.stop()
    columns: list[dict[str, Any]] = [{}, {}]
    for batch, episodes in zip(columns, (before, after), strict=True):
        SlopesFromInfos()(batch=batch, episodes=episodes)
    slopes, standings = ([_columns(batch, name) for batch in columns] for name in (SLOPE, STANDING))
    for number, seed in enumerate(seeds):
        acted = np.concatenate([episodes[number].get_actions() for episodes in (before, after)])
        rounds = (tasks.task(seed),)
        stood = None
        for step, action in enumerate(acted):
            influence = network.influence_of(action.astype(np.float64), rounds[0][2].by_itself)
            answer = take(rounds, EnvStep(seed, tuple(influence), 0.0, False))
            chunk, at = (0, 0) if step == 0 else (1, step - 1)
            assert slopes[chunk][number][at] == pytest.approx(answer["slope"], rel=1e-4, abs=1e-6)
            if stood is not None:
                assert standings[chunk][number][at] == pytest.approx(stood, rel=1e-4, abs=1e-6)
            stood = answer["reached"]


def _columns(batch: dict[str, Any], name: str) -> list[Any]:
    return [np.stack(column) for column in batch[name].values()]


def test_the_loss_follows_the_slope_and_leaves_out_who_did_not_answer() -> None:
    with quiet():
        made = config(PretrainingTasks(shuffled)).build_algo()
        learner = made.learner_group._learner
        made.stop()
    observation, _ = SliceEnv([PretrainingTasks(shuffled)], SLICES, 4, group=1).reset(seed=0)
    obs = torch.from_numpy(observation)
    slope = torch.randn(4, SLICES, generator=torch.Generator().manual_seed(0))
    batch = {
        Columns.OBS: obs, SLOPE: slope, STANDING: torch.tensor([0.1, 0.0, -0.5, 9.0]),
        "by_itself": torch.tensor([0.0, 1.0, 0.0, 0.0]), Columns.LOSS_MASK: torch.tensor([True, True, True, False]),
    }  # fmt: skip
    module = learner.module["default_policy"].unwrapped()
    found = learner.compute_loss_for_module(
        module_id="default_policy", config=learner.config, batch=batch, fwd_out=module.forward_train(batch)
    )
    logits, value, _ = module.look(obs)
    influence = torch.sigmoid(logits)
    influence[1] = influence[1] / influence[1].max()
    error = (value - batch[STANDING]).abs()
    bent = torch.where(error < 0.1, 0.5 * error**2 / 0.1, error - 0.05)
    by_hand = ((influence * slope).sum(dim=1) + 2.0 * bent)[:3].mean()
    assert float(found.detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    assert found.requires_grad


def test_the_settings_of_slope_say_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="`explore` and `normalize_actions` must be False"):
        SlopeConfig().validate()
    with pytest.raises(ValueError, match="`batches_per_iteration` must be at least 1"):
        SlopeConfig().environment(normalize_actions=False).training(batches_per_iteration=0).validate()


def test_the_rate_falls_to_a_fiftieth_and_goes_on_where_it_was() -> None:
    policy = Policy()
    whole = rate_of(policy, True, 0, 20, 576)
    assert whole.schedule == [[0, 2e-3], [20 * 576, 4e-5]]
    later = rate_of(policy, True, 5, 20, 576)
    assert later.first == pytest.approx(2e-3 + 5 / 20 * (4e-5 - 2e-3))
    assert later.steps == 15 * 576
    assert rate_of(Policy(algorithm="ppo"), False, 5, 20, 576).schedule == 1e-4


@pytest.fixture(scope="module")
def learned() -> list[tuple[Any, ...]]:
    """Two trainings of two iterations, by the same seed, with the evaluations after them and the scores."""
    return [_learned() for _ in range(2)]


def _learned() -> tuple[Any, ...]:
    scores = [np.zeros(SLICES)]
    policy = Policy(samples=192)
    with quiet(), Trainer(policy, [Undisturbed(shuffled)], SLICES, 0, 192, 3, rate=RATE) as trainer:
        history = [trainer.iterate(scores) for _ in range(2)]
        evaluations = [trainer.evaluate() for _ in range(2)]
        return trainer.weights(), history, evaluations, scores


@dataclass(frozen=True)
class Undisturbed(PretrainingTasks):
    """Tasks that say of themselves that nothing was disturbed, as those that scores are updated by."""

    def task(self, seed: int) -> Any:
        return ("none", *super().task(seed)[1:])


def test_a_seed_replays_bit_by_bit(learned: list[tuple[Any, ...]]) -> None:
    (weights, history, evaluations, scores), (again, after, evaluated, scored) = learned
    assert all(np.array_equal(weights[name], weight) for name, weight in again.items())
    assert evaluations == evaluated
    assert np.array_equal(scores[0], scored[0])
    for one, other in zip(history, after, strict=True):
        assert {**one, "steps_per_second": 0} == {**other, "steps_per_second": 0}


def test_an_iteration_tells_how_it_went_and_updates_the_scores(learned: list[tuple[Any, ...]]) -> None:
    _, history, evaluations, scores = learned[0]
    for metrics in history:
        assert all(np.isfinite(value) for value in metrics.values())
        assert {"gain", "value_error", "slope_norm", "steps_per_second", "td_error"} <= set(metrics)
        assert metrics["dropped"] == 0.0
    assert [metrics["env_steps"] for metrics in history] == [192.0, 384.0]
    assert scores[0].any()
    # The same tasks each time, and the policy acts alike on them.
    assert evaluations[0] == evaluations[1]
    assert np.isfinite(evaluations[0]["evaluation_gain"])


def test_a_policy_is_evaluated_on_seeds_that_no_training_draws() -> None:
    drawn = [SliceEnv([PretrainingTasks(shuffled)], SLICES, 8, group=1, held_out=held) for held in (False, True)]
    seeds = []
    for env in drawn:
        env.reset(seed=1)
        seeds.append([episode.seed for episode in env._episodes])
    assert max(seeds[0]) < 2**31 < HELD_OUT <= min(seeds[1])
    drawn[1].reset(seed=2)
    assert [episode.seed for episode in drawn[1]._episodes] == seeds[1]
    assert EVALUATED >= 32


@dataclass(frozen=True)
class Broken(PretrainingTasks):
    """Clients of which one answers with a slope that is no number."""

    clients: tuple[str, ...] = ("sound", "broken", "fine")
    shares: tuple[float, ...] = (1.0, 1.0, 1.0)

    def rollout(self, env_steps: Any, max_slices: int, rounds: int) -> Any:
        for name, said in super().rollout(env_steps, max_slices, rounds):
            if name == "broken":
                said = [one | ({} if one["slope"] is None else {"slope": one["slope"] * np.nan}) for one in said]
            yield name, said


@pytest.mark.parametrize("algorithm", ["slope", "ppo"])
def test_what_is_no_number_is_left_out_and_ends_the_training_with_a_name(
    algorithm: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy(algorithm=algorithm, samples=96)
    with quiet(), Trainer(policy, [Broken(shuffled)], SLICES, 0, 96, 3) as trainer:
        dropped = [trainer.iterate([np.zeros(SLICES)] * 3)["dropped"] for _ in range(2)]
        assert sum(dropped) > 0
        assert all(np.isfinite(weight).all() for weight in trainer.weights().values())
        assert "episodes of broken were left out" in caplog.text
        with pytest.raises(PolicyError, match="broken gave rewards or slopes that are no finite numbers in 3 iter"):
            _iterate(trainer, 9)


def _iterate(trainer: Trainer, times: int) -> None:
    for _ in range(times):
        trainer.iterate([np.zeros(SLICES)] * 3)


class Away(PretrainingTasks):
    """Clients that are gone whenever a policy is evaluated."""

    def rollout(self, env_steps: Any, max_slices: int, rounds: int) -> Any:
        if any(step.seed >= HELD_OUT for steps in env_steps.values() for step in steps):
            raise ClientsUnavailableError.of({"pretraining": "its host died"})
        return super().rollout(env_steps, max_slices, rounds)


def test_a_training_is_not_ended_by_an_evaluation_that_nobody_answers(caplog: pytest.LogCaptureFixture) -> None:
    with quiet(), Trainer(Policy(samples=64), [Away(shuffled)], SLICES, 0, 64, 3) as trainer:
        assert trainer.evaluate() == {}
        assert "The policy was not evaluated" in caplog.text
        assert trainer.iterate([np.zeros(SLICES)])["env_steps"] == 64


def test_a_fault_is_its_clients() -> None:
    env = SliceEnv([Broken(shuffled)], SLICES, 6, group=1)
    observation, _ = env.reset(seed=0)
    client = observation[:, -1, 0]
    assert set(client) == {0.0, 1.0, 2.0}
    *_, infos = env.step(np.zeros((6, SLICES), np.float32))
    for number in range(6):
        assert faults_of(_Episode(observation[number : number + 1], infos["slope"][number])) == (
            {1} if client[number] == 1.0 else set()
        )


class _Episode:
    """As much of an episode of one step as is asked for."""

    def __init__(self, observation: Any, slope: Any) -> None:
        self.observation, self.slope = observation, slope

    def get_rewards(self) -> Any:
        return [0.0]

    def get_infos(self) -> Any:
        return [{}, {SLOPE: self.slope}]

    def get_observations(self, indices: slice) -> Any:
        return self.observation[indices]
