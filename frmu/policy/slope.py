"""An algorithm of our own in RLlib's terms: the deterministic policy gradient with an exact critic.

The environment hands out in `infos` the slope of the reward by each influence at the action that was taken. So the
gradient of the reward goes through the action into the network without a learned critic, and without trying actions
against each other: `loss = mean_t sum_s influence_s(action_t) slope_ts`. The policy acts as it would in production, and
each step of an episode begins where the last one ended. (Deterministic policy gradient: Silver et al., ICML 2014;
learning to optimise: Andrychowicz et al., NeurIPS 2016.)

The value learns beside it the reward of where a task stood before the action: with it the policy chooses among what it
meets, which validation records that a search has already fitted cannot do.

A `training_step` hands the weights out, samples one batch and takes one gradient step; runners, learner and weights are
RLlib's, and PPO runs in the same way. What becomes of runners that are slow, silent or lost: `frmu.policy.runners`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.algorithms.ppo import PPO
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
)
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from frmu.policy.learner import TemporalDifference
from frmu.policy.module import SliceModule, seen
from frmu.policy.runners import Order, Runners, Sampled, sampled
from frmu.selection.network import LIMIT

__all__ = ["FinitePPO", "Slope", "SlopeConfig", "SlopeLearner", "SlopesFromInfos", "faults_of"]

SLOPE, STANDING, REACHED, BY_ITSELF = "slope", "standing", "reached", "by_itself"


class SlopeConfig(AlgorithmConfig):
    """The settings of `Slope`; those of its own are in `training`.

    >>> SlopeConfig().training(batches_per_iteration=5).batches_per_iteration
    5
    """

    def __init__(self, algo_class: type | None = None) -> None:
        self.exploration_config: dict[str, Any] = {}
        super().__init__(algo_class=algo_class or Slope)
        self.value_coeff, self.value_bend, self.batches_per_iteration = 2.0, 0.1, 1
        self.explore = False  # the policy is deterministic: its gradient is that of the action that is taken
        self.gamma, self.num_epochs, self.grad_clip = 0.0, 1, 1.0
        self.lr = 2e-3
        self.rollout_fragment_length = "auto"

    def training(
        self,
        *,
        value_coeff: float | type[NotProvided] = NotProvided,
        value_bend: float | type[NotProvided] = NotProvided,
        batches_per_iteration: int | type[NotProvided] = NotProvided,
        **settings: Any,
    ) -> Self:
        """Set what the value's error counts, where it bends from square to linear, and gradient steps an iteration."""
        super().training(**settings)
        own = {"value_coeff": value_coeff, "value_bend": value_bend, "batches_per_iteration": batches_per_iteration}
        for name, value in own.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Return the spec of the network over slices."""
        return RLModuleSpec(module_class=SliceModule)

    def get_default_learner_class(self) -> type[TorchLearner]:
        """Return the learner of this loss."""
        return SlopeLearner

    def build_learner_connector(
        self, input_observation_space: Any, input_action_space: Any, device: Any = None
    ) -> ConnectorV2:
        """Bring the infos into the batch first, and read the TD errors of the whole batch last; RLlib calls this."""
        pipeline = super().build_learner_connector(input_observation_space, input_action_space, device)
        pipeline.prepend(SlopesFromInfos())
        pipeline.append(TemporalDifference(target=REACHED))
        return pipeline

    def validate(self) -> None:
        """Raise `ValueError` where the action would not be the one whose slope is known."""
        super().validate()
        if self.explore or self.normalize_actions:
            self._value_error("Slope acts as its module says: `explore` and `normalize_actions` must be False.")
        if self.batches_per_iteration < 1:
            self._value_error("`batches_per_iteration` must be at least 1.")


class SlopesFromInfos(ConnectorV2):
    """Brings slope (most,), standing, reached and by_itself of each step into the batch, float32, and a loss mask.

    infos[t + 1] belongs to the action at t; a chunk of an episode begins with the last info of the chunk before, which
    was learned from. A step whose client did not answer has none and is masked.
    """

    def __call__(self, *, batch: dict[str, Any], episodes: Sequence[Any], **_: Any) -> dict[str, Any]:
        """Return the batch with the columns."""
        for episode in self.single_agent_episode_iterator(episodes, agents_that_stepped_only=False):
            infos = episode.get_infos()[1:]
            most = episode.get_actions(0).shape
            nothing = {SLOPE: np.zeros(most, np.float32)} | dict.fromkeys((STANDING, REACHED, BY_ITSELF), 0.0)
            for name, default in nothing.items():
                column = [np.asarray(info.get(name, default), np.float32) for info in infos]
                self.add_n_batch_items(batch, name, column, len(infos), episode)
            self.add_n_batch_items(batch, Columns.LOSS_MASK, [SLOPE in info for info in infos], len(infos), episode)
        return batch


class SlopeLearner(TorchLearner):
    """One gradient step a batch along the exact slope."""

    @classmethod
    def rl_module_required_apis(cls) -> list[type]:
        """Return what a module must offer; RLlib calls this."""
        return [ValueFunctionAPI]

    def compute_loss_for_module(
        self, *, module_id: str, config: SlopeConfig, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """Return the loss whose gradient is that of the rewards, and the value's error before the action: a number."""
        told = batch[Columns.LOSS_MASK].float()
        steps = told.sum().clamp(min=1.0)
        logits, value = fwd_out[Columns.ACTION_DIST_INPUTS].chunk(2, dim=-1)[0], fwd_out[Columns.VF_PREDS]
        influence = influence_of(logits, seen(batch[Columns.OBS])[2], batch[BY_ITSELF] > 0.5)
        error = smooth_l1_loss(value, batch[STANDING], beta=config.value_bend, reduction="none")
        policy_loss = (told * (influence * batch[SLOPE]).sum(dim=1)).sum() / steps
        vf_loss = (told * error).sum() / steps
        metrics = {
            "policy_loss": policy_loss.detach(),
            "vf_loss": vf_loss.detach(),
            "value_error": ((told * (value - batch[STANDING]).abs()).sum() / steps).detach(),
            "slope_norm": ((told * batch[SLOPE].norm(dim=1)).sum() / steps).detach(),
        }
        self.metrics.log_dict(metrics, key=module_id, window=config.batches_per_iteration)
        return policy_loss + config.value_coeff * vf_loss


def influence_of(logits: Tensor, mask: Tensor, by_itself: Tensor) -> Tensor:
    """`frmu.selection.network.influence_of` before it is put on the grid, with a gradient: (batch, most) float32.

    `mask` (batch, most) bool says where there is a slice, `by_itself` (batch,) bool whose influences are relative.
    """
    influence = torch.sigmoid(logits.clamp(-LIMIT, LIMIT)) * mask
    return torch.where(by_itself[:, None], influence / influence.amax(dim=1, keepdim=True), influence)


class _OnPolicy(Algorithm):
    """An algorithm that samples a batch, leaves out what is not finite, and learns once from the rest.

    `faults` has, by client number, how many episodes were left out on its account since somebody set it anew; `away`
    the clients that did not answer in the last batch. `order` says where to sample, and goes out with the weights.
    Of RLlib's settings it takes `env_runner_restore_timeout_s` as what runners have to start, `sample_timeout_s` as
    what a batch may take, and `env_runner_health_probe_timeout_s` as how long one may be silent.
    """

    faults: Counter[int]
    away: tuple[str, ...] = ()
    order = Order(None)
    runners: Runners | None = None

    def setup(self, config: Any) -> None:
        """Build everything in this process, which waits for nobody, then start the runners; RLlib calls this."""
        self.faults = Counter()
        alone = config.copy(copy_frozen=False).env_runners(num_env_runners=0)
        alone.freeze()
        self.config = alone
        super().setup(alone)
        if config.num_env_runners:
            patience, silence = config.env_runner_restore_timeout_s, config.env_runner_health_probe_timeout_s
            self.runners = Runners(config, config.num_env_runners, patience, silence)

    def cleanup(self) -> None:
        """End the runners first; RLlib calls this."""
        if self.runners is not None:
            self.runners.stop()
        super().cleanup()

    def evaluate(self, *_: Any, **__: Any) -> Any:
        """Evaluate by the weights that are there: RLlib passes over those that no update has numbered."""
        self.eval_env_runner_group.local_env_runner.set_state({COMPONENT_RL_MODULE: self._weights()})
        return super().evaluate()

    def learn_once(self) -> bool:
        """Sample, and learn; False where no env runner gave anything."""
        if not (found := self._sample()):
            return False
        self.away = tuple(sorted({name for said in found for name in said.away}))
        self.metrics.aggregate([said.metrics for said in found], key=ENV_RUNNER_RESULTS)
        if sound := list(self._sound([episode for said in found for episode in said.episodes])):
            self._update(sound)
        return True

    def _sample(self) -> list[Sampled]:
        """A batch by the weights that were just learned, whoever samples it."""
        order = replace(self.order, weights=self._weights())
        steps = self.config.total_train_batch_size
        if self.runners is not None:
            return self.runners.sample(order, steps, self.config.sample_timeout_s)
        said = sampled(self.env_runner_group.local_env_runner, order, steps)
        if said.error is not None:
            raise said.error
        return [said]

    def _weights(self) -> Any:
        part = f"{COMPONENT_LEARNER}/{COMPONENT_RL_MODULE}"
        state = self.learner_group.get_state(components=part, inference_only=True)
        return state[COMPONENT_LEARNER][COMPONENT_RL_MODULE]

    def _sound(self, episodes: Sequence[Any]) -> Iterator[Any]:
        for episode in episodes:
            if clients := faults_of(episode):
                self.faults.update(clients)
            else:
                yield episode

    def _update(self, episodes: Sequence[Any]) -> None:
        steps = self.metrics.peek((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME))
        found = self.learner_group.update(
            episodes=episodes, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}, num_epochs=self.config.num_epochs,
            minibatch_size=self.config.minibatch_size, shuffle_batch_per_epoch=self.config.shuffle_batch_per_epoch,
        )  # fmt: skip
        self.metrics.aggregate(found, key=LEARNER_RESULTS)


def faults_of(episode: Any) -> set[int]:
    """The numbers of the clients whose reward or slope is not finite in an episode (or a chunk of one)."""
    rewards, infos = np.asarray(episode.get_rewards()), episode.get_infos()[1:]
    bad = [not (np.isfinite(reward) and _finite(info)) for reward, info in zip(rewards, infos, strict=True)]
    client: NDArray[np.float32] = episode.get_observations(slice(0, len(rewards)))[:, -1, 0]
    return {int(number) for number in client[np.array(bad, dtype=bool)]}


def _finite(info: Mapping[str, Any]) -> bool:
    return all(np.all(np.isfinite(info[name])) for name in (SLOPE, STANDING, REACHED) if name in info)


class Slope(_OnPolicy):
    """The deterministic policy gradient with an exact critic; see the module."""

    @classmethod
    def get_default_config(cls) -> SlopeConfig:
        """Return the settings as they are if nobody sets them."""
        return SlopeConfig()

    def training_step(self) -> None:
        """Learn from some batches, one gradient step each."""
        for _ in range(self.config.batches_per_iteration):
            if not self.learn_once():
                break


class FinitePPO(_OnPolicy, PPO):
    """PPO that leaves out episodes which are not finite."""

    def training_step(self) -> None:
        """Learn from one batch, in epochs of minibatches."""
        self.learn_once()
