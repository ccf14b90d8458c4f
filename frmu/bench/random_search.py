"""Random search over the weights of the slice policy, as a rival to learning by gradients: nothing is differentiated.

Each iteration draws directions in the space of all weights that act, tries the policy a little to both sides of each on
the same tasks, and steps along the directions that mattered most, by how much the sides differ. (Augmented random
search, version V1-t: Mania, Guy and Recht, "Simple random search of static policies is competitive for reinforcement
learning", NeurIPS 2018.) What is made large is the reward that `frmu.policy.slope` climbs, over the same episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from frmu.clients.client import Rehearsal
from frmu.models.statistics import one_thread
from frmu.selection.network import Network, shapes
from frmu.selection.observation import Fit, Observation, observe
from frmu.selection.problem import SelectionProblem
from frmu.selection.reward import standing_of
from frmu.selection.search import Budget, RefitCounter
from frmu.selection.selectors import follow
from frmu.types import Float

__all__ = ["random_search", "start"]

DIRECTIONS, BEST = 8, 4  # tried in an iteration, and stepped along
NOISE, RATE = 0.03, 0.03  # how far to either side a policy is tried; how far a step goes
TASKS = 16  # of an iteration
STEPS = 3  # refinements of a task, as in training by RLlib
ACTS = ("embed", "blocks", "norm", "head")  # the weights behind the logits; the value and its pooling earn nothing
Weights = dict[str, NDArray[np.float32]]
Begun = tuple[SelectionProblem, Fit, Observation, float]  # with everything kept: its fit, what is seen, its later loss


def start(seed: int) -> Weights:
    """Return the weights that RLlib's module would begin with: an untrained policy, which mostly keeps."""
    import torch

    from frmu.policy.module import SliceNetwork

    torch.manual_seed(seed)
    return {name: weight.numpy().copy() for name, weight in SliceNetwork().state_dict().items()}


def random_search(task_of: Callable[[int], Rehearsal], seed: int) -> Iterator[Weights]:
    """Search without an end from untrained weights; the weights after each iteration, float32.

    `task_of` makes a task from a seed below 2^31.

    >>> from frmu.bench.random_search import start
    >>> sorted(start(0)) == sorted(shapes())
    True
    """
    weights = start(seed)
    names = [name for name in sorted(shapes()) if name.startswith(ACTS)]
    theta = np.concatenate([weights[name].ravel() for name in names]).astype(np.float64)
    rng = np.random.Generator(np.random.PCG64([seed, 2018]))
    with one_thread():
        while True:
            tasks = [_begun(task_of(int(one))) for one in rng.integers(2**31, size=TASKS)]
            delta = rng.standard_normal((DIRECTIONS, len(theta)))
            earned = [
                [_reward(_network(weights, names, theta + side * NOISE * one), tasks) for side in (1.0, -1.0)]
                for one in delta
            ]
            theta = theta + _step(np.array(earned), delta)
            yield dict(weights) | _named(weights, names, theta)


def _step(earned: Float, delta: Float) -> Float:
    """The step (weights,) from what both sides of some directions earned (directions, 2); in units of its spread."""
    best = np.argsort(-earned.max(axis=1), kind="stable")[:BEST]
    spread = float(earned[best].std()) + 1e-12
    slope = (earned[best, 0] - earned[best, 1]) @ delta[best]
    return np.asarray(RATE / (BEST * spread) * slope, dtype=np.float64)


def _network(weights: Weights, names: Sequence[str], theta: Float) -> Network:
    return Network(dict(weights) | _named(weights, names, theta), "", {})


def _named(weights: Mapping[str, NDArray[np.float32]], names: Sequence[str], theta: Float) -> Weights:
    ends = np.cumsum([weights[name].size for name in names])
    parts = np.split(theta, ends[:-1])
    return {name: part.reshape(weights[name].shape).astype(np.float32) for name, part in zip(names, parts, strict=True)}


def _begun(rehearsal: Rehearsal) -> Begun:
    _, _, task, kept, keep = rehearsal
    return task, kept, observe(task, kept, 0.0, kept.loss), keep


def _reward(network: Network, tasks: Sequence[Begun]) -> float:
    """The mean reward of where a policy stands after each of its steps."""
    found = []
    for task, kept, first, keep in tasks:
        met = follow(network, RefitCounter(task, Budget()), first, kept, STEPS)
        found += [standing_of(task, one.fit, keep) for one in met[1:]]
    return float(np.mean(found))
