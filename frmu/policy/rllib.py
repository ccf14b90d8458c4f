"""RLlib's settings, every one that could change what is learned set on purpose, with its reason beside it.

RLlib's defaults are made for other tasks. One of them, `normalize_actions`, maps what a module emits from [-1, 1] to
the bounds of the space: the environment was given nine times the network's logits, and PPO could not learn. So none is
left to itself here.

(Proximal policy optimisation: Schulman et al., 2017. Data valuation by reinforcement: Yoon et al., DVRL, ICML
2020. Rewards against a group of copies: Shao et al., 2024.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.config import Policy
from frmu.policy.env import GROUP, SliceEnv, TaskSource, spaces

__all__ = ["EVALUATED", "SILENCE", "Rate", "batches_of", "config_of", "copies_of", "parts_of", "rate_of", "steps_of"]

GROUPS = 4  # tasks that PPO meets side by side
TASKS = 32  # tasks that slope meets side by side, over all env runners
BATCH = 96  # steps of one gradient step along the slope
LEAST = 4  # tasks that an env runner of slope meets side by side at least
EVALUATED = 64  # tasks of held-out seeds that a policy is evaluated on, by the rounds of one
SHARE = 0.5  # of a CPU, an env runner
SILENCE = 30.0  # seconds without a sign of life after which an env runner is taken for lost
NEVER = 2**31  # iterations


@dataclass(frozen=True, slots=True)
class Rate:
    """Adam's learning rate: `first`, then linearly to `last` over `steps` env steps, and `last` from there on."""

    first: float
    last: float
    steps: int

    @property
    def schedule(self) -> float | list[list[float]]:
        """Return it as RLlib takes it."""
        return self.first if self.first == self.last else [[0, self.first], [self.steps, self.last]]


# From nothing, and from a policy that is good already: ten times PPO's rate spoils one.
RATES = {"slope": (2e-3, 2e-4), "ppo": (1e-3, 1e-4)}


def rate_of(policy: Policy, scratch: bool, done: int, iterations: int, steps: int) -> Rate:
    """Return the rate of a training of `iterations`, of `steps` env steps each, of which some are done.

    PPO's is constant; that of slope falls linearly to 2 %.

    >>> rate_of(Policy(), scratch=True, done=10, iterations=20, steps=576)
    Rate(first=0.00102, last=4e-05, steps=5760)
    """
    full = RATES[policy.algorithm][0 if scratch else 1]
    if policy.algorithm == "ppo":
        return Rate(full, full, 1)
    left = max(0.0, 1.0 - done / iterations)
    return Rate(full * (0.02 + 0.98 * left), 0.02 * full, max(1, (iterations - done) * steps))


def copies_of(policy: Policy, runners: int) -> int:
    """Return how many copies of the environment an env runner steps: of slope, which shares a batch, fewer in many.

    And fewer where a task has many rounds: a client keeps so many of them in memory.

    >>> copies_of(Policy(), 0), copies_of(Policy(), 2), copies_of(Policy(algorithm="ppo"), 2)
    (32, 16, 48)
    """
    return GROUPS * GROUP if policy.algorithm == "ppo" else max(LEAST, TASKS // (policy.rounds * max(1, runners)))


def parts_of(policy: Policy) -> int:
    """Return how many env runners a batch has work for."""
    return policy.samples // (GROUPS * GROUP) if policy.algorithm == "ppo" else TASKS // LEAST


def batches_of(samples: int) -> tuple[int, int]:
    """Return how many batches along the slope an iteration of about so many env steps has, and of how many steps each.

    >>> batches_of(960), batches_of(512), batches_of(128), batches_of(32)
    ((10, 96), (5, 96), (1, 128), (1, 32))
    """
    batches = max(1, round(samples / BATCH))
    return batches, max(1, round(samples / batches / TASKS)) * TASKS


def steps_of(policy: Policy, samples: int) -> int:
    """Return the env steps of an iteration that asks for `samples`."""
    if policy.algorithm == "ppo":
        return samples
    batches, batch = batches_of(samples)
    return batches * batch


def config_of(
    policy: Policy, contexts: Sequence[TaskSource], max_slices: int, runners: int, samples: int, seed: int,
    rate: Rate, deadline: float = 300.0,
) -> Any:  # fmt: skip
    """Return the `AlgorithmConfig` of a policy's algorithm, over tasks of some contexts."""
    config = (_ppo if policy.algorithm == "ppo" else _slope)(samples, rate)
    config = _environment(config, policy, contexts, max_slices, seed)
    return _machinery(config, policy, runners, deadline).debugging(seed=seed, log_level="ERROR")


def _ppo(samples: int, rate: Rate) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig

    from frmu.policy.learner import SliceLearner
    from frmu.policy.slope import FinitePPO

    return (
        PPOConfig(algo_class=FinitePPO)
        .env_runners(explore=True)  # it learns from what it tries
        .training(
            learner_class=SliceLearner,
            gamma=0.0,  # an action sets all influences anew: nothing that a later step earns is owed to it
            use_gae=True, lambda_=1.0,  # with gamma 0 an advantage is reward less value; standardised over the batch
            use_critic=True, vf_loss_coeff=0.5,
            vf_clip_param=math.inf,  # a squared error beyond it would have no gradient; rewards are bent already
            lr=rate.schedule,
            entropy_coeff=0.003,  # the spread does not learn, so this only keeps the metric
            clip_param=0.2,
            use_kl_loss=False,  # the clip is enough: six epochs of small steps
            grad_clip=1.0, grad_clip_by="global_norm",
            train_batch_size_per_learner=samples, minibatch_size=min(128, samples), num_epochs=6,
            shuffle_batch_per_epoch=True,  # else a minibatch is the same few episodes in every epoch
        )
    )  # fmt: skip


def _slope(samples: int, rate: Rate) -> Any:
    from frmu.policy.slope import SlopeConfig

    batches, batch = batches_of(samples)
    return (
        SlopeConfig()
        .env_runners(explore=False)  # the slope is that of the action which the module emits
        .training(
            gamma=0.0,  # the value's target comes with the task; returns are not used
            lr=rate.schedule, grad_clip=1.0, grad_clip_by="global_norm",
            train_batch_size_per_learner=batch, minibatch_size=None, num_epochs=1,  # one step: then the slope is old
            shuffle_batch_per_epoch=False,
            batches_per_iteration=batches,
            value_coeff=2.0, value_bend=0.1,
        )
    )  # fmt: skip


def _environment(config: Any, policy: Policy, contexts: Sequence[TaskSource], max_slices: int, seed: int) -> Any:
    from ray.tune.registry import register_env

    observation, action = spaces(max_slices)
    register_env("frmu-slices", _made)
    settings = {
        "contexts": contexts,
        "max_slices": max_slices,
        "steps": policy.steps,
        "rounds": policy.rounds,
        "forget_penalty": policy.forget_penalty,
        "seed": seed,
        "group": GROUP if policy.algorithm == "ppo" else 1,  # the slope needs nothing to be compared with
    }
    evaluated = max(LEAST, EVALUATED // policy.rounds)
    return config.environment(
        "frmu-slices", env_config=settings, observation_space=observation, action_space=action,
        normalize_actions=False,  # an action is a logit: what the module emits is what the environment gets
        clip_actions=True,  # to the Box, beyond which an influence is 0 or 1
        clip_rewards=False,  # they are bent already, and one of an Atari game is not at hand
        is_atari=False,
        disable_env_checking=True,  # it would draw tasks
    ).evaluation(
        # On RLlib's evaluation worker, in this process, which waits meanwhile; we ask for it (`Trainer.evaluate`):
        # a round of a federated training is many of RLlib's iterations.
        evaluation_interval=NEVER, evaluation_num_env_runners=0, evaluation_duration=evaluated,
        evaluation_duration_unit="episodes", evaluation_force_reset_envs_before_iteration=True,
        evaluation_config={
            "explore": False,  # as production acts
            "num_envs_per_env_runner": evaluated,
            "callbacks_on_sample_end": log_evaluation,
            "env_config": settings | {"group": 1, "held_out": True, "tasks_per_episode": 1},
        },
    )  # fmt: skip


def _machinery(config: Any, policy: Policy, runners: int, deadline: float) -> Any:
    copies = copies_of(policy, runners)
    rounds = math.ceil(config.total_train_batch_size / (copies * max(1, runners)))  # of all copies, in a batch
    return (
        config.env_runners(
            num_env_runners=runners,
            num_cpus_per_env_runner=SHARE,
            num_envs_per_env_runner=copies,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length="auto",
            batch_mode="truncate_episodes",  # with gamma 0 nothing is bootstrapped where a chunk ends
            episode_lookback_horizon=1,  # a chunk begins with the last info of the chunk before; no more is read
            observation_filter="NoFilter",  # observations are scaled and clipped where they are made, as in production
            env_to_module_connector=None, module_to_env_connector=None,
            merge_env_runner_states=False,  # no connector has a state
            compress_observations=False,
            sample_timeout_s=deadline * (2 + 2 * rounds),  # each is a dispatch to the clients, or two
            broadcast_env_runner_states=False,  # orders carry the weights (`frmu.policy.runners`)
        )
        .callbacks(on_sample_end=log_gain)
        .fault_tolerance(
            restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=min(SILENCE, deadline), env_runner_restore_timeout_s=deadline,
        )
        .learners(num_learners=0)  # the network is small: a gradient step is milliseconds
        .rl_module(rl_module_spec=_module())
    )  # fmt: skip


def _module() -> Any:
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec

    from frmu.policy.module import SliceModule

    return RLModuleSpec(module_class=SliceModule)


def log_gain(*, samples: Sequence[Any], metrics_logger: Any, **_: Any) -> None:
    """Log the mean gain over all steps of a sample; RLlib calls this on its env runners."""
    # A chunk of an episode begins with the last info of the chunk before.
    _log_mean((info.get("gain", np.nan) for episode in samples for info in episode.get_infos()[1:]), metrics_logger)


def log_evaluation(*, samples: Sequence[Any], metrics_logger: Any, **_: Any) -> None:
    """Log the mean gain where tasks ended; RLlib calls this on its evaluation worker."""
    _log_mean((episode.get_infos()[-1].get("gain", np.nan) for episode in samples), metrics_logger)


def _log_mean(gains: Iterable[float], metrics_logger: Any) -> None:
    if finite := [gain for gain in gains if np.isfinite(gain)]:
        metrics_logger.log_value("gain", float(np.mean(finite)), window=1)


def _made(settings: Any) -> SliceEnv:
    worker = int(getattr(settings, "worker_index", 0))
    options = dict(settings)
    return SliceEnv(**options | {"seed": [options["seed"], worker]})
