"""PPO's learner, and the attention scores that TD errors update, under any algorithm.

FRAMU's line 11 adds |TD error| to the score of every point. Surprise alone keeps what is stale or noisy, so
here the sign counts: a step that went better than expected raises the scores of the slices it kept and lowers
those it forgot, each by its share in the value's attention. Steps on disturbed slices train the policy and do
not touch the scores, which are of the records as they are. What a step was expected to earn is the value of where it
began: under PPO of its reward, whose value is near nought, and under `frmu.policy.slope` of standing there, so that
what it earned is the reward of where it arrived.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core.columns import Columns
from ray.rllib.evaluation.postprocessing import Postprocessing

from frmu.policy.module import seen
from frmu.selection.scores import change

__all__ = ["SliceLearner", "TemporalDifference"]


class TemporalDifference(ConnectorV2):
    """Reads the TD errors of a batch, column `target` less the value, and logs what they add to each slice's score.

    Steps that the loss leaves out are left out here.
    """

    def __init__(self, *spaces: Any, target: str = Postprocessing.VALUE_TARGETS) -> None:
        super().__init__(*spaces)
        self.target = target

    def __call__(self, *, rl_module: Any, batch: dict[str, Any], metrics: Any = None, **_: Any) -> dict[str, Any]:
        """Leave the batch as it is."""
        for name, part in batch.items():
            module = rl_module[name].unwrapped()
            counts = part[Columns.LOSS_MASK].bool()
            observation, actions, target = (
                part[column][counts] for column in (Columns.OBS, Columns.ACTIONS, self.target)
            )
            with torch.no_grad():
                _, value, pool = module.look(observation)
                error = target - value
                updates = _updates(observation, actions, error, pool)
            if metrics is not None and len(error):
                metrics.log_value((name, "td_error"), float(error.abs().mean()), window=1)
                for update in updates:
                    metrics.log_value((name, "score_updates"), update, reduce="item_series")
        return batch


def _updates(observation: Any, actions: Any, error: Any, pool: Any) -> list[np.ndarray[Any, Any]]:
    """One array a client that was met undisturbed: its number, its steps, then the mean update of each slice."""
    mask = seen(observation)[2]
    sign = (2.0 * torch.sigmoid(actions) - 1.0).numpy()  # -1 forgets, 1 keeps
    share, error = (pool * mask.sum(dim=1, keepdim=True)).numpy(), error.numpy()  # (steps, most)
    client, real = observation[:, -1, 0].long(), observation[:, -1, 1] > 0.5
    updates = []
    for number in torch.unique(client[real]):
        rows = (real & (client == number)).numpy()
        said = change(error[rows], share[rows], sign[rows])
        updates.append(np.concatenate([[float(number), float(rows.sum())], said]))
    return updates


class SliceLearner(PPOTorchLearner):
    """PPO that reports its TD errors."""

    def build(self) -> None:
        """Append the reader behind the advantage estimation; RLlib calls this."""
        super().build()
        self._learner_connector.append(TemporalDifference())
