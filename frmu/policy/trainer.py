"""RLlib's PPO over the environment that the client actors feed, held as one resource.

Env runners are in the learner's process on a laptop and actors on a cluster; they mostly wait for the clients, which
do the refits, so a runner asks for half a core. One that dies is started again by Ray, and the training goes on with
the others meanwhile. gamma is 0, so the TD error is reward less value: an action sets all influences anew, and
nothing that a later step earns is owed to an earlier one.

(Proximal policy optimisation: Schulman et al., 2017. Data valuation by reinforcement: Yoon et al., DVRL, ICML
2020. Rewards against a group of copies: Shao et al., 2024.)
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from frmu.config import Policy
from frmu.errors import FederationError, PolicyError
from frmu.policy.env import GROUP, EnvContext, SliceEnv, spaces
from frmu.runtime.deadline import within
from frmu.selection.scores import update

__all__ = ["Trainer", "quiet", "runners_for", "scalars_of"]

GROUPS = 4  # tasks that are met side by side
LAPTOP = 4  # up to so many CPUs there are no env runners of their own
SHARE = 0.5  # of a CPU, an env runner
RATE = 1e-4  # Adam's: it goes on from a policy that is good already, and ten times as much spoils it
AGAIN = 1.0  # seconds between two tries to sample when all env runners were lost; Ray starts them again meanwhile
PROBE = 10.0  # seconds that RLlib waits for a sign of life of an env runner; its own restore timeout is half an hour
RESUME = "What was learned so far is kept: `frmu policy train --resume` goes on with it"

T = TypeVar("T")
_log = logging.getLogger(__name__)
Weights = Mapping[str, NDArray[np.float32]]


def runners_for(setting: int | str, cpus: float, clients: int, samples: int) -> int:
    """Return how many env runners: as set, else from the CPUs that are free in the cluster.

    "auto" is none on a laptop; on a cluster half the CPUs but one, so that the clients that they step have the rest,
    and no more than there are clients to keep busy or parts of a batch to sample. Raises `PolicyError` for
    more than the cluster can place: Ray would wait for ever.

    >>> [runners_for("auto", cpus, clients=24, samples=960) for cpus in (2, 4, 8, 16, 64)]
    [0, 0, 3, 7, 20]
    """
    if setting == "auto":
        if cpus <= LAPTOP:
            return 0
        return max(1, min(int((cpus - 1) // 2), clients, samples // (GROUPS * GROUP)))
    number = int(setting)
    if number * SHARE > cpus:
        raise PolicyError(
            f"policy.env_runners must be at most {int(cpus / SHARE)} here, half a CPU each, got {number}: {cpus:g} "
            'CPUs are free in this cluster. Lower it, or set "auto"'
        )
    return number


class Trainer:
    """One RLlib algorithm over some contexts; a context manager.

    No wait for env runners is longer than `deadline` seconds a dispatch to the clients: a `FederationError` ends it.
    """

    def __init__(
        self, policy: Policy, contexts: Sequence[EnvContext], max_slices: int, runners: int, samples: int, seed: int,
        deadline: float = 300.0,
    ) -> None:  # fmt: skip
        self._deadline = deadline
        # Steps of the vector environment, of which each is a dispatch or two.
        self._longest = deadline * (2 + samples / (GROUPS * GROUP * max(1, runners)))
        config = _ppo(policy, contexts, max_slices, runners, samples, seed, deadline)
        self._algorithm = self._wait(f"RLlib to start {runners} env runners", config.build_algo, deadline)
        self._away: tuple[str, ...] = ()
        self._site: int | None = None
        self._so_far = 0.0  # steps sampled since the algorithm was built

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(FederationError):  # what does not answer is stopped by Ray, with the job
            self._wait("RLlib to stop", self._algorithm.stop, PROBE)

    @staticmethod
    def _wait(what: str, call: Callable[[], T], seconds: float) -> T:
        return within(
            seconds, what, call, f"Bring its node back, set policy.env_runners, or raise rules.deadline. {RESUME}"
        )

    def iterate(self, scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
        """Sample and learn once; the scalars of it. `scores` are updated in place with what the TD errors say.

        Where every env runner was lost RLlib samples nothing, learns nothing, and says again what it said before: that
        is no iteration, and it is gone through once more. Raises `PolicyError` where none comes back.
        """
        deadline, told = time.monotonic() + self._deadline, False
        while (sampled := _sampled(result := self._train())) <= self._so_far:
            if not told:
                _log.warning(
                    "No env runner answers; asking again for %g s. %s", self._deadline,
                    "Those who are away are told by `ray status`",
                )  # fmt: skip
                told = True
            if time.monotonic() > deadline:
                raise PolicyError(
                    f"all env runners were lost and none came back in {self._deadline:g} s; see `ray status`. Bring "
                    f"its node back, or set policy.env_runners = 0. {RESUME}"
                )
            time.sleep(AGAIN)
            self.at(self._site)
        self._so_far = sampled
        self._tell_away()
        healthy = self._algorithm.env_runner_group.num_healthy_remote_workers()
        return scalars_of(result, scores) | {"env_runners": float(healthy)}

    def _train(self) -> dict[str, Any]:
        found: dict[str, Any] = self._wait("an iteration of RLlib", self._algorithm.train, self._longest)
        return found

    def _tell_away(self) -> None:
        """Say which clients the env runners do without, when that changed."""
        found = self._algorithm.env_runner_group.foreach_env_runner(_away_of, timeout_seconds=PROBE)
        away = tuple(sorted({name for names in found for name in names}))
        if away != self._away:
            back = sorted(set(self._away) - set(away))
            _log.warning(
                "The training goes on %s", f"without {', '.join(away)}, which did not answer" if away else
                f"with {', '.join(back)} again",
            )  # fmt: skip
        self._away = away

    def at(self, site: int | None) -> None:
        """Sample at one client alone, by its number over all contexts, from clean episodes on; None: at all."""
        self._site = site
        self._algorithm.env_runner_group.foreach_env_runner(partial(_at, site), timeout_seconds=self._deadline)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights, by the names they have in a policy file."""
        state = self._algorithm.learner_group.get_weights()["default_policy"]
        return {name.removeprefix("network."): np.array(weight, dtype=np.float32) for name, weight in state.items()}

    def load(self, weights: Weights, moments: Weights | None = None) -> None:
        """Take weights over, learner and env runners; and Adam's moments, or none: Adam begins anew."""
        group = self._algorithm.learner_group
        group.set_weights({"default_policy": {f"network.{name}": np.array(w) for name, w in weights.items()}})
        group.foreach_learner(partial(_set_moments, moments or {}))
        self._algorithm.env_runner_group.sync_weights(from_worker_or_learner_group=group, inference_only=True)

    def moments(self) -> dict[str, NDArray[np.float32]]:
        """Adam's moments and step counts, as `<kind>/<weight>`."""
        return next(iter(self._algorithm.learner_group.foreach_learner(_moments))).get()


def _sampled(result: Mapping[str, Any]) -> float:
    """Steps that were sampled in all iterations up to a result."""
    return float(result.get("env_runners", {}).get("num_env_steps_sampled_lifetime", 0))


def scalars_of(result: Mapping[str, Any], scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """The scalars of one iteration's result; updates the scores in place with what the TD errors say."""
    learner = result["learners"]["default_policy"]
    # RLlib hands a series of one item over as that item, so the rows are told by their width.
    width = 2 + max(len(raw) for raw in scores)
    for said in np.reshape(learner.get("score_updates", ()), (-1, width)):
        raw = scores[int(said[0])]
        raw[:] = update(raw, np.asarray(said[2 : 2 + len(raw)]))
    runners = result["env_runners"]
    return {
        "gain": float(runners.get("gain", float("nan"))),
        "env_steps": _sampled(result),
        "td_error": float(learner.get("td_error", float("nan"))),
        "entropy": float(learner.get("entropy", float("nan"))),
        "policy_loss": float(learner.get("policy_loss", float("nan"))),
        "value_loss": float(learner.get("vf_loss", float("nan"))),
    }


def _away_of(runner: Any) -> tuple[str, ...]:
    return runner.env.unwrapped.away if runner.env is not None else ()


def _at(site: int | None, runner: Any) -> None:
    if runner.env is not None:
        runner.env.unwrapped.only(site)
        runner.sample(num_timesteps=0, force_reset=True)


def _adam(learner: Any) -> tuple[Any, list[str]]:
    """The optimizer, and the names of the weights in its order."""
    (_, optimizer), *_ = learner.get_optimizers_for_module("default_policy")
    module = learner.module["default_policy"]
    return optimizer, [name.removeprefix("network.") for name, _ in module.named_parameters()]


def _moments(learner: Any, *_: Any) -> dict[str, NDArray[np.float32]]:
    optimizer, names = _adam(learner)
    state = optimizer.state_dict()["state"]
    return {
        f"{kind}/{names[number]}": np.array(value, dtype=np.float32)
        for number, kinds in state.items()
        for kind, value in kinds.items()
    }


def _set_moments(moments: Weights, learner: Any, *_: Any) -> None:
    import torch

    optimizer, names = _adam(learner)
    state: dict[int, dict[str, Any]] = {}
    for key, moment in moments.items():
        kind, name = key.split("/", 1)
        state.setdefault(names.index(name), {})[kind] = torch.tensor(moment)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


def _ppo(
    policy: Policy,
    contexts: Sequence[EnvContext],
    max_slices: int,
    runners: int,
    samples: int,
    seed: int,
    deadline: float,
) -> Any:
    from ray.rllib.algorithms.ppo import PPOConfig
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from frmu.policy.learner import SliceLearner
    from frmu.policy.module import SliceModule

    observation, action = spaces(max_slices)
    register_env("frmu-slices", _environment)
    settings = {
        "contexts": contexts,
        "max_slices": max_slices,
        "steps": policy.steps,
        "rounds": policy.rounds,
        "forget_penalty": policy.forget_penalty,
        "seed": seed,
    }
    return (
        PPOConfig()
        .environment(
            "frmu-slices", env_config=settings, observation_space=observation, action_space=action,
            disable_env_checking=True,
        )
        .env_runners(
            num_env_runners=runners,
            num_cpus_per_env_runner=SHARE,
            num_envs_per_env_runner=GROUPS * GROUP,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length="auto",
            validate_env_runners_after_construction=False,  # that wait has no end where a node dies meanwhile
            sample_timeout_s=min(60.0, deadline),
        )
        .callbacks(on_sample_end=_log_gain)
        .fault_tolerance(
            restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0,
            env_runner_health_probe_timeout_s=PROBE, env_runner_restore_timeout_s=PROBE,
        )
        .learners(num_learners=0)
        .rl_module(rl_module_spec=RLModuleSpec(module_class=SliceModule))
        .training(
            learner_class=SliceLearner, gamma=0.0, lambda_=1.0, lr=RATE, train_batch_size_per_learner=samples,
            minibatch_size=min(128, samples), num_epochs=6, entropy_coeff=0.003, vf_loss_coeff=0.5,
            clip_param=0.2, grad_clip=1.0, use_kl_loss=False,
        )
        .debugging(seed=seed, log_level="ERROR")
    )  # fmt: skip


def _log_gain(*, samples: Sequence[Any], metrics_logger: Any, **_: Any) -> None:
    # A chunk of an episode begins with the last info of the chunk before.
    gains = [info["gain"] for episode in samples for info in episode.get_infos()[1:] if "gain" in info]
    if gains:
        metrics_logger.log_value("gain", float(np.mean(gains)), window=1)


def _environment(settings: Any) -> SliceEnv:
    worker = int(getattr(settings, "worker_index", 0))
    options = dict(settings)
    return SliceEnv(**options | {"seed": [options["seed"], worker]})


@contextmanager
def quiet() -> Iterator[None]:
    """RLlib's deprecation warnings and banners are not for the user of frmu."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("ray", "ray.rllib", "ray.rllib.utils.actor_manager", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what it says of actors, we say in a sentence
        yield
