"""The Q-learning agents of `framu`: RLlib's DQN, one module a client, on its new API stack.

Every slice of every client is an agent of one multi-agent environment, so that RLlib's transitions are Algorithm 1's:
from s_ij to s'_ij, the same slice after the turn. All slices of a client share that client's module, w_k. The TD
errors of a turn are read from the update on the turn itself, each transition once, as lines 9 to 11 have it; DQN's
replays follow and touch no score. The target network is brought level after each update and each mix, since line 9
knows no other parameters than w_k.

(Deep Q-networks: Mnih et al., "Human-level control through deep reinforcement learning", Nature 518, 2015.)
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.dqn.dqn import DQN, DQNConfig
from ray.rllib.algorithms.dqn.dqn_learner import QF_PREDS, QF_TARGET_NEXT_PREDS
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, QNetAPI, TargetNetworkAPI
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.env.multi_agent_env import MultiAgentEnv
from ray.rllib.execution.rollout_ops import synchronous_parallel_sample
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from torch import Tensor, nn

from frmu.clients.tasks.framu import Blocks, Seen, Trial
from frmu.errors import PolicyError
from frmu.methods.agents import World, world_of_tasks
from frmu.methods.framu import LEVELS, Agents, Outcome, Settings, Weights, rows_of, run
from frmu.policy.trainer import quiet
from frmu.selection.observation import FEATURES
from frmu.selection.problem import SelectionProblem
from frmu.types import Float

__all__ = ["QModule", "SlicesEnv", "dqn", "select"]

HIDDEN = 32
BATCH, CAPACITY = 32, 100_000  # transitions: of one replay and client; of the buffer
ERRORS = "td_errors_by_slice"


class SlicesEnv(MultiAgentEnv):
    """Slices as agents, numbered client by client; a step is one turn of all of them.

    An observation is (modalities, features + 1) float32; the last column is the number of the slice at its client,
    for the account of scores alone. No episode ends.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.world: World = config["world"]
        self.refits = 0
        # Numbers and not names: RLlib keeps agents in sets, and only numbers have the same order in every process.
        self.possible_agents = list(range(sum(len(keys) for keys in self.world.keys)))
        self.agents = list(self.possible_agents)
        box, levels = config["spaces"]
        self.observation_spaces = dict.fromkeys(self.agents, box)
        self.action_spaces = dict.fromkeys(self.agents, levels)
        self._influence: list[Float] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, Any]:
        """Every slice in full."""
        self._influence = [np.ones(len(keys)) for keys in self.world.keys]
        return self._turn(None)[0], {}

    def step(self, action_dict: Mapping[int, int]) -> tuple[Any, Any, Any, Any, Any]:
        """One turn; a reward a slice."""
        levels = np.array([LEVELS[int(action_dict[agent])] for agent in self.agents])
        ends = np.cumsum([len(keys) for keys in self.world.keys])
        observations, rewards = self._turn(np.split(levels, ends[:-1]))
        return observations, rewards, {"__all__": False}, {"__all__": False}, {}

    def _turn(self, after: list[Float] | None) -> tuple[dict[int, NDArray[np.float32]], dict[int, float]]:
        then = after or self._influence
        answers = self.world.ask(
            {
                name: Trial(tuple(old.tolist()), tuple(new.tolist()))
                for name, old, new in zip(self.world.names, self._influence, then, strict=True)
            }
        )
        self._influence = then
        seen = [answers[name] for name in self.world.names]
        self.refits += sum(one.refits for one in seen)
        rows = [row for one in seen for row in _numbered(one)]
        rewards = np.concatenate([one.rewards for one in seen]).tolist()
        return dict(zip(self.agents, rows, strict=True)), dict(zip(self.agents, rewards, strict=True))


def _numbered(seen: Seen) -> NDArray[np.float32]:
    """The rows of a client, (K, modalities, features + 1)."""
    rows = np.swapaxes(rows_of(seen), 0, 1)
    number = np.broadcast_to(np.arange(len(rows))[:, None, None], (*rows.shape[:2], 1))
    return np.concatenate([rows, number], axis=2).astype(np.float32)


def _spaces(modalities: int, features: int) -> tuple[gym.spaces.Box, gym.spaces.Discrete]:
    return gym.spaces.Box(-1e6, 1e6, (modalities, features + 1), np.float32), gym.spaces.Discrete(len(LEVELS))


class QModule(TorchRLModule, InferenceOnlyAPI, TargetNetworkAPI, QNetAPI):
    """Q(s_ij, a; w_k): rows (batch, modalities, features + 1) to values (batch, modalities, 3).

    One network for all modalities; which one a row is of stands beside it.
    """

    def setup(self) -> None:
        """Build the network; RLlib calls this. The seed is the same for all clients: line 2's one W."""
        modalities, columns = self.observation_space.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.model_config["seed"])
            self.net = nn.Sequential(
                nn.Linear(columns - 1 + modalities, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, len(LEVELS))
            )
        self.register_buffer("which", torch.eye(modalities))
        draws = np.random.SeedSequence([self.model_config["seed"], self.model_config["client"]])
        self._draw = torch.Generator().manual_seed(int(draws.generate_state(1)[0]))

    def make_target_networks(self) -> None:
        """RLlib calls this at the learner."""
        self._target = copy.deepcopy(self.net).requires_grad_(False)

    def get_target_network_pairs(self) -> list[tuple[Any, Any]]:
        """The network and its target."""
        return [(self.net, self._target)]

    def get_non_inference_attributes(self) -> list[str]:
        """Return what an env runner does without."""
        return ["_target"]

    def forward_target(self, batch: dict[str, Any]) -> Tensor:
        """Target values of the observations."""
        return self._target(self._input(batch[Columns.OBS]))

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Values of the observations."""
        return {QF_PREDS: self.net(self._input(batch[Columns.OBS]))}

    def _input(self, observation: Tensor) -> Tensor:
        which = self.which.expand(len(observation), -1, -1)
        return torch.cat([observation[..., :-1], which], dim=-1)

    def _forward_inference(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        return {Columns.ACTIONS: self.compute_q_values(batch)[QF_PREDS].mean(dim=1).argmax(dim=-1)}

    def _forward_exploration(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        best = self._forward_inference(batch)[Columns.ACTIONS]
        random = torch.randint(len(LEVELS), best.shape, generator=self._draw)
        explores = torch.rand(best.shape, generator=self._draw) < self.model_config["explore"]
        return {Columns.ACTIONS: torch.where(explores, random, best)}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            following = self.forward_target({Columns.OBS: batch[Columns.NEXT_OBS]})
        return self.compute_q_values(batch) | {QF_TARGET_NEXT_PREDS: following}


class QLearner(DQNTorchLearner):
    """DQN with a TD error for each modality of a slice, which it tells by slice."""

    def compute_loss_for_module(
        self, *, module_id: str, config: Any, batch: dict[str, Any], fwd_out: dict[str, Tensor]
    ) -> Tensor:
        """Line 9, d = r + gamma max_a Q(s', a) - Q(s, a), and the loss whose step is line 10."""
        q = fwd_out[QF_PREDS]
        action = batch[Columns.ACTIONS].long().view(-1, 1, 1).expand(-1, q.shape[1], 1)
        following = fwd_out[QF_TARGET_NEXT_PREDS].amax(dim=-1)
        d = batch[Columns.REWARDS].view(-1, 1) + config.gamma * following - q.gather(-1, action).squeeze(-1)
        told = torch.cat([batch[Columns.OBS][:, :1, -1], d.detach()], dim=1)
        self.metrics.log_value((module_id, ERRORS), told.numpy(), reduce="item_series")
        return nn.functional.huber_loss(d, torch.zeros_like(d))


class TurnByTurn(DQN):
    """DQN that learns from each turn once before it replays, and keeps that turn's TD errors in `errors`."""

    errors: Mapping[str, NDArray[np.float32]]

    def training_step(self) -> None:
        """One turn, one update on it, then replays."""
        episodes, told = synchronous_parallel_sample(
            worker_set=self.env_runner_group, concat=True, sample_timeout_s=self.config.sample_timeout_s,
            _uses_new_env_runners=True, _return_metrics=True,
        )  # fmt: skip
        self.metrics.aggregate(told, key=ENV_RUNNER_RESULTS)
        self.local_replay_buffer.add(episodes)
        self.errors = self._update(episodes)
        for _ in range(self.config.learner_config_dict["replays"]):
            drawn = self.local_replay_buffer.sample(
                num_items=self.config.total_train_batch_size, n_step=1, modules_to_sample=sorted(self.errors)
            )
            self._update(drawn)
        self.env_runner_group.sync_weights(from_worker_or_learner_group=self.learner_group, inference_only=True)

    def _update(self, episodes: Any) -> dict[str, NDArray[np.float32]]:
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), default=0)
        results = self.learner_group.update(episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps})
        errors = {
            name: np.concatenate(of.pop(ERRORS).peek())
            for result in results
            for name, of in result.items()
            if ERRORS in of
        }
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        return errors


class _Dqn:
    """The agents of a world behind `frmu.methods.framu.Agents`."""

    def __init__(self, algorithm: TurnByTurn, world: World) -> None:
        self.algorithm, self.world = algorithm, world
        self._names = [_module(k) for k in range(len(world.names))]

    @property
    def refits(self) -> int:
        """Refits spent by turns so far."""
        return int(self._env().refits)

    def play(self) -> list[Float]:
        """One turn, learned from once, and DQN's replays."""
        self.algorithm.train()
        return [self._by_slice(self.algorithm.errors[name]) for name in self._names]

    def weights(self) -> list[Weights]:
        """The online networks; the targets equal them."""
        state = self.algorithm.learner_group.get_weights()
        return [{key: np.array(w) for key, w in state[name].items() if key.startswith("net.")} for name in self._names]

    def load(self, weights: Sequence[Weights]) -> None:
        """Online and target networks alike."""
        group = self.algorithm.learner_group
        state = group.get_weights()
        for name, w in zip(self._names, weights, strict=True):
            targets = {key.replace("net.", "_target.", 1): value for key, value in w.items()}
            state[name] = {**state[name], **w, **targets}
        group.set_weights(state)
        # Not by sync_weights: it passes over weights that no update of the learner has numbered.
        self.algorithm.env_runner.set_state({COMPONENT_RL_MODULE: state})

    def greedy(self, weights: Weights, rows: Float) -> Float:
        """The network in numpy; the mean over modalities decides."""
        which = np.broadcast_to(np.eye(len(rows))[:, None, :], (*rows.shape[:2], len(rows)))
        hidden = np.concatenate([rows, which], axis=2) @ weights["net.0.weight"].T + weights["net.0.bias"]
        q = np.maximum(hidden, 0.0) @ weights["net.2.weight"].T + weights["net.2.bias"]
        return np.array([LEVELS[action] for action in q.mean(axis=0).argmax(axis=1)])

    def _by_slice(self, told: NDArray[np.float32]) -> Float:
        return np.asarray(told[np.argsort(told[:, 0]), 1:], dtype=np.float64)

    def _env(self) -> SlicesEnv:
        return self.algorithm.env_runner.env.envs[0].unwrapped


def _module(number: int) -> str:
    return f"{number:04d}"


@contextmanager
def dqn(world: World, settings: Settings) -> Iterator[Agents]:
    """RLlib's DQN over a world, in the learner's process. Raises `PolicyError` where Ray is not up."""
    if not ray.is_initialized():  # RLlib would start one of its own, open to the network
        raise PolicyError("framu's agents are trained by RLlib, and Ray is not up; enter `frmu.runtime.ray.cluster`")
    with quiet():
        algorithm = _config(world, settings).build_algo()
        # The buffer draws from a generator that RLlib does not seed.
        algorithm.local_replay_buffer.rng = np.random.Generator(np.random.PCG64(settings.seed))
        try:
            yield _Dqn(algorithm, world)
        finally:
            algorithm.stop()


def _config(world: World, settings: Settings) -> DQNConfig:
    box, levels = _spaces(world.modalities, len(FEATURES))
    owner = [_module(k) for k, keys in enumerate(world.keys) for _ in keys]
    modules = {
        name: RLModuleSpec(
            module_class=QModule, observation_space=box, action_space=levels,
            model_config={"seed": settings.seed, "client": k, "explore": settings.explore},
        )
        for k, name in enumerate(dict.fromkeys(owner))
    }  # fmt: skip
    return (
        DQNConfig(algo_class=TurnByTurn)
        .environment(
            SlicesEnv, env_config={"world": world, "spaces": (box, levels)}, disable_env_checking=True
        )
        .env_runners(num_env_runners=0, rollout_fragment_length=1)
        .learners(num_learners=0)
        .multi_agent(policies=set(modules), policy_mapping_fn=lambda agent, *_, **__: owner[agent])
        .rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=modules))
        .training(
            learner_class=QLearner, gamma=settings.gamma, lr=settings.alpha, train_batch_size_per_learner=BATCH,
            num_steps_sampled_before_learning_starts=0, target_network_update_freq=0, grad_clip=10.0,
            replay_buffer_config={"type": "MultiAgentEpisodeReplayBuffer", "capacity": CAPACITY},
            learner_config_dict={"replays": settings.replays},
        )
        .reporting(min_time_s_per_iteration=0, min_sample_timesteps_per_iteration=0)
        .debugging(seed=settings.seed, log_level="ERROR")
    )  # fmt: skip


def select(tasks: Sequence[SelectionProblem], settings: Settings | None = None, by: Blocks | None = None) -> Outcome:
    """`framu` as a selector: tasks are the agents of one federation, in the order given; one influence a slice.

    The more agents there are, the smaller is the mean of line 13, so tasks are given by federation: those of its
    clients, and no others. Each needs validation records. `by` splits features by modality. The refits of the outcome
    are those of all tasks together.
    """
    return run(world_of_tasks(tasks, by), settings or Settings(), dqn)
