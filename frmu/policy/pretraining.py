"""Pretraining on tasks without number: the policy follows the exact slope of what it is rewarded by.

A refit is differentiable, and its derivative by every influence costs one back substitution. So where the later
records are at hand, an action need not be tried against others to know which way was better: the reward's own
gradient goes through the action into the network, step by step of an episode, each from where the last one ended.
That is a policy gradient whose critic is exact. (Deterministic policy gradient: Silver et al., ICML 2014; learning to
optimise: Andrychowicz et al., NeurIPS 2016.)

The value learns beside it the reward of the present influences on later records: with it the policy chooses among
what it meets, which validation records that a search has already fitted cannot do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from frmu.models.statistics import loss, one_thread
from frmu.policy.module import SliceNetwork
from frmu.selection.network import LIMIT, Network
from frmu.selection.observation import FEATURES, Fit, Observation, fit, observe, slopes
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.types import Float

__all__ = ["Weights", "pretrain"]

Weights = dict[str, NDArray[np.float32]]
STEPS = 3
SCALE = 8.0  # a gain of 1 / SCALE is where the reward begins to bend


@dataclass(slots=True)
class _Rollout:
    """A task under way: what was seen with everything kept, where it stands, and the later loss of keeping all."""

    task: SelectionProblem
    first: Observation
    here: Fit
    keep: float

    def observation(self, step: int) -> Observation:
        """Return what is seen from where it stands."""
        if self.here is self.first.fit:
            return self.first
        return observe(self.task, self.here, step / (STEPS + 1), self.first.fit.loss)

    def reward(self) -> float:
        """The reward of standing here: the log of the later RMSE against keeping all, bent."""
        return float(-np.arcsinh(SCALE * self._change()) / SCALE)

    def slope(self) -> Float:
        """The derivative of what is to be made small, by each influence, (K,); harm counts for more than gain."""
        change = self._change()
        bend = 4.0 / np.sqrt(1.0 + (SCALE * change) ** 2) + 0.5 * (0.0 < change < 1.0)
        return 0.5 * bend * slopes(self.task, self.here, self.task.later)

    def _change(self) -> float:
        return float(0.5 * np.log((loss(self.here.W, self.task.later) + 1e-12) / self.keep))


def pretrain(
    make: Callable[[np.random.Generator], SelectionProblem],
    iterations: int,
    batch: int,
    seed: int,
    parent: Network | None = None,
    tell: Callable[[int, float], None] = lambda number, reward: None,
) -> Weights:
    """Train on tasks that `make` gives, `batch` an iteration; weights by name, float32.

    `tell` hears, each iteration, the mean reward where the policy arrived.
    """
    torch.manual_seed(seed)
    network = SliceNetwork()
    if parent is not None:
        network.load_state_dict({name: torch.tensor(weight) for name, weight in parent.weights.items()})
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    rng = np.random.Generator(np.random.PCG64(seed))
    with one_thread(), ThreadPoolExecutor(2) as pool:
        for number in range(iterations):
            for group in optimiser.param_groups:
                group["lr"] = 2e-3 * max(0.02, 1.0 - number / iterations)
            rollouts = list(pool.map(_begin, [(make, int(seed)) for seed in rng.integers(2**62, size=batch)]))
            total, count = torch.zeros(()), 0
            for step in range(1 + int(rng.integers(STEPS))):
                total, count = total + _step(network, rollouts, step, pool), count + 1
            optimiser.zero_grad()
            (total / count).backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimiser.step()
            tell(number, float(np.mean([rollout.reward() for rollout in rollouts])))
    return {name: weight.detach().numpy().astype(np.float32) for name, weight in network.state_dict().items()}


def _begin(asked: tuple[Callable[[np.random.Generator], SelectionProblem], int]) -> _Rollout:
    """A new task; every second one begins where a short search on validation ended."""
    make, seed = asked
    rng = np.random.Generator(np.random.PCG64(seed))
    task = make(rng)
    kept = fit(task, task.keep)
    here = kept if rng.random() < 0.5 else ascend(RefitCounter(task, Budget()), kept, int(rng.choice([6, 12, 20])))
    return _Rollout(task, observe(task, kept, 0.0, kept.loss), here, loss(kept.W, task.later) + 1e-12)


def _step(network: SliceNetwork, rollouts: Sequence[_Rollout], step: int, pool: ThreadPoolExecutor) -> Tensor:
    """Observe, act, refit; the loss whose gradient is that of the rewards, and the value's error before the action."""
    observations = list(pool.map(lambda rollout: rollout.observation(step), rollouts))
    reward = torch.tensor([rollout.reward() for rollout in rollouts])
    rows, relations, mask = _padded(rollouts, observations)
    logits, value, _ = network(rows, relations, mask)
    influence = _influence(logits, mask, torch.tensor([rollout.task.by_itself for rollout in rollouts]))
    given = influence.detach().double().numpy()

    def act(asked: tuple[_Rollout, Float]) -> Float:
        rollout, row = asked
        rollout.here = fit(rollout.task, row[: len(rollout.task)])
        return rollout.slope()

    slope = torch.zeros_like(influence)
    for at, found in enumerate(pool.map(act, zip(rollouts, given, strict=True))):
        slope[at, : len(found)] = torch.from_numpy(found)
    error = torch.nn.functional.smooth_l1_loss(value, reward, beta=0.1)
    return (influence * slope).sum(dim=1).mean() + 2.0 * error


def _influence(logits: Tensor, mask: Tensor, by_itself: Tensor) -> Tensor:
    """`influence.network.influence_of`, with a gradient."""
    influence = torch.sigmoid(logits.clamp(-LIMIT, LIMIT)) * mask
    return torch.where(by_itself[:, None], influence / influence.amax(dim=1, keepdim=True), influence)


def _padded(rollouts: Sequence[_Rollout], observations: Sequence[Observation]) -> tuple[Tensor, Tensor, Tensor]:
    max_slices = max(len(rollout.task) for rollout in rollouts)
    rows = torch.zeros(len(rollouts), max_slices, 2 * len(FEATURES))
    relations = torch.zeros(len(rollouts), 2, max_slices, max_slices)
    mask = torch.zeros(len(rollouts), max_slices, dtype=torch.bool)
    for at, (rollout, observation) in enumerate(zip(rollouts, observations, strict=True)):
        slices = len(rollout.task)
        rows[at, :slices] = torch.from_numpy(np.concatenate([rollout.first.rows, observation.rows], axis=1)).float()
        for number, relation in enumerate((rollout.first.relation, observation.relation)):
            relations[at, number, :slices, :slices] = torch.from_numpy(relation).float()
        mask[at, :slices] = True
    return rows, relations, mask
