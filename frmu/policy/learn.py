"""Train the slice policy: RLlib's PPO over the environment that the client actors feed.

Env runners are in the learner's process on a laptop and actors on a cluster (`policy.env_runners`). One task is
one step of an episode and no step leads to the next, so gamma is 0 and the TD error is reward less value.
(Proximal policy optimisation: Schulman et al., 2017. Data valuation by reinforcement: Yoon et al., DVRL, ICML
2020. Rewards against a group of copies: Shao et al., 2024.)
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.client.work import Describe, Packed
from frmu.config import Config, Policy
from frmu.errors import PolicyError
from frmu.federation import Federation, in_order
from frmu.influence.network import Network
from frmu.influence.scores import normalise, update
from frmu.methods.analytic import outputs_of, total_of
from frmu.policy.env import GROUP, Board, SliceEnv, spaces

__all__ = ["Learned", "board_of", "train_policy"]

MOST = 64  # slices of one client that take part in training; the newest, where there are more
GROUPS = 4  # tasks that are played side by side


@dataclass(frozen=True, slots=True)
class Learned:
    """Weights by name (float32), scores by client and slice (mean 1 a client), one entry an iteration."""

    weights: Mapping[str, NDArray[np.float32]]
    scores: dict[str, dict[str, float]]
    history: list[dict[str, float]]
    iterations: int
    env_steps: int
    seconds: float


def board_of(config: Config, federation: Federation) -> tuple[Board, dict[str, list[str]]]:
    """The clients of a federation that can teach, and their slices: those with something to fit, to see, to be
    rewarded on. Raises `PolicyError` where there is none."""
    described = [reply for reply in in_order(federation.run(Describe())) if reply.record["rows"]]
    teachers = {
        reply.client: sorted(reply.record["slices"])[-MOST:]
        for reply in described
        if reply.record["splits"]["validation"] and reply.record["splits"]["later"] and len(reply.record["slices"]) > 1
    }
    if not teachers:
        raise PolicyError(
            "no client has two slices to fit, validation records and later records; move the dates in [split], or "
            "cut finer slices"
        )
    outputs = outputs_of(config, {label for reply in described for label in reply.record["classes"]})
    names = tuple(reply.client for reply in described)
    total, _ = total_of(config, config.fingerprint(), federation, names, outputs)
    return Board(federation, tuple(teachers), outputs, Packed.of(total)), teachers


def train_policy(
    policy: Policy,
    boards: Sequence[tuple[Board, dict[str, list[str]]]],
    parent: Network | None,
    iterations: int | None = None,
    on_iteration: Callable[[int, dict[str, float]], None] | None = None,
) -> Learned:
    """Train on the clients of some boards, from `parent`'s weights or from scratch."""
    began = time.perf_counter()
    teachers = [(name, keys) for _, slices in boards for name, keys in slices.items()]
    scores = [np.zeros(len(keys)) for _, keys in teachers]
    history: list[dict[str, float]] = []
    most = max(len(keys) for _, keys in teachers)
    with _quiet():
        algorithm = _ppo(policy, [board for board, _ in boards], most).build_algo()
        try:
            if parent is not None:
                _set_weights(algorithm, parent)
            for number in range(iterations or policy.iterations):
                history.append(_digest(algorithm.train(), scores))
                if on_iteration is not None:
                    on_iteration(number, history[-1])
            weights = _get_weights(algorithm)
        finally:
            algorithm.stop()
    shown = {
        name: dict(zip(keys, normalise(raw).tolist(), strict=True))
        for (name, keys), raw in zip(teachers, scores, strict=True)
    }
    seconds = time.perf_counter() - began
    return Learned(weights, shown, history, len(history), int(history[-1]["env_steps"]), seconds)


def _ppo(policy: Policy, boards: Sequence[Board], most: int) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from frmu.policy.learner import SliceLearner
    from frmu.policy.module import SliceModule

    observation, action = spaces(most)
    register_env("frmu-slices", _environment)
    settings = {
        "boards": boards,
        "most": most,
        "steps": policy.steps,
        "price": policy.price,
        "seed": policy.seed,
    }
    return (
        PPOConfig()
        .environment(
            "frmu-slices", env_config=settings, observation_space=observation, action_space=action,
            disable_env_checking=True,
        )
        .env_runners(
            num_env_runners=policy.env_runners,
            num_envs_per_env_runner=GROUPS * GROUP,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length="auto",
        )
        .callbacks(on_episode_end=_log_gain)
        .fault_tolerance(restart_failed_env_runners=True)
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SliceModule))
        .training(
            learner_class=SliceLearner, gamma=0.0, lambda_=1.0, lr=1e-3, train_batch_size_per_learner=policy.samples,
            minibatch_size=min(128, policy.samples), num_epochs=6, entropy_coeff=0.003, vf_loss_coeff=0.5,
            clip_param=0.2, grad_clip=1.0, use_kl_loss=False,
        )
        .debugging(seed=policy.seed, log_level="ERROR")
    )  # fmt: skip


def _log_gain(*, episode: Any, metrics_logger: Any, **_: Any) -> None:
    gains = [info["gain"] for info in episode.get_infos() if "gain" in info]
    if gains:
        metrics_logger.log_value("gain", float(np.mean(gains)), window=200)


def _environment(settings: Any) -> SliceEnv:
    worker = int(getattr(settings, "worker_index", 0))
    options = dict(settings)
    return SliceEnv(**options | {"seed": [options["seed"], worker]})


def _digest(result: Mapping[str, Any], scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """The scalars of one iteration; updates the scores in place with what the TD errors say."""
    learner = result["learners"]["default_policy"]
    # RLlib hands a series of one item over as that item, so the rows are told by their width.
    width = 2 + max(len(raw) for raw in scores)
    for said in np.reshape(learner.get("score_updates", ()), (-1, width)):
        raw = scores[int(said[0])]
        raw[:] = update(raw, np.asarray(said[2 : 2 + len(raw)]))
    runners = result["env_runners"]
    return {
        "gain": float(runners.get("gain", float("nan"))),
        "env_steps": float(runners.get("num_env_steps_sampled_lifetime", 0)),
        "td_error": float(learner.get("td_error", float("nan"))),
        "entropy": float(learner.get("entropy", float("nan"))),
        "policy_loss": float(learner.get("policy_loss", float("nan"))),
        "value_loss": float(learner.get("vf_loss", float("nan"))),
    }


def _get_weights(algorithm: Any) -> dict[str, NDArray[np.float32]]:
    state = algorithm.learner_group.get_weights()["default_policy"]
    return {name.removeprefix("network."): np.asarray(weight, dtype=np.float32) for name, weight in state.items()}


def _set_weights(algorithm: Any, parent: Network) -> None:
    weights = {f"network.{name}": weight for name, weight in parent.weights.items()}
    group = algorithm.learner_group
    group.set_weights({"default_policy": weights})
    algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=group, inference_only=True)


@contextmanager
def _quiet() -> Iterator[None]:
    """RLlib's deprecation warnings and banners are not for the user of frmu."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("ray", "ray.rllib", "ray.tune"):
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
