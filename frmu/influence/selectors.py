"""Selectors propose influences; the guard decides which proposal is applied.

Rules are the rivals that the learned policy has to beat on every task: a proposal is applied only if it is
not worse on validation than the best rule, and anything but keeping everything must gain at least a margin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from frmu.influence.network import Network
from frmu.influence.observation import FEATURES, observe
from frmu.influence.task import LEVELS, Task, validation_loss
from frmu.types import Float

__all__ = ["Decision", "decide", "follow", "rules"]

_RESIDUAL, _GAIN, _SOLO = (FEATURES.index(name) for name in ("residual", "gain", "solo"))


@dataclass(frozen=True, slots=True)
class Decision:
    """What is applied: influences (K,), who proposed it, each proposal's validation loss, the rows seen."""

    influence: Float
    chosen_by: str
    losses: Mapping[str, float]
    rows: Float
    pool: Float
    refits: int


def rules(rows: Float) -> dict[str, Float]:
    """The fixed rules, from the observation rows (K, features) under full influence, as influences (K,).

    >>> rows = np.zeros((3, len(FEATURES)))
    >>> rows[1, _RESIDUAL] = 1.0
    >>> rules(rows)["residual 1.5"]
    array([1., 0., 1.])
    """
    solo = rows[:, _SOLO] - np.median(rows[:, _SOLO])
    return {
        "residual 1.5": np.where(rows[:, _RESIDUAL] > np.log(1.5), 0.0, 1.0),
        "residual 3": np.where(rows[:, _RESIDUAL] > np.log(3.0), 0.0, 1.0),
        "solo 1.5": np.where(solo > np.log(1.5), 0.0, 1.0),
        "leave-one-out": np.where(rows[:, _GAIN] < -np.arcsinh(0.5), 0.0, 1.0),
    }


def follow(network: Network, task: Task, rows: Float, steps: int) -> tuple[Float, Float]:
    """The influences (K,) that a policy arrives at in some steps, from observation rows under full influence.

    And its attention over slices (K,) at the first look.
    """
    logits, _, pool = network(rows)
    influence = _levels(logits)
    for step in range(1, steps):
        influence = _levels(network(observe(task, influence, step / steps))[0])
    return influence, pool


def _levels(logits: Float) -> Float:
    return np.array([LEVELS[action] for action in np.argmax(logits, axis=1)])


def decide(task: Task, network: Network | None, selector: str, margin: float, steps: int) -> Decision:
    """Choose influences for a task: by the policy and the rules under the guard, by the rules alone, or keep.

    Without a validation record there is nothing to judge by, so everything is kept.
    """
    keep = np.ones(len(task))
    if selector == "keep" or task.validation.n == 0:
        nothing = np.zeros((len(task), len(FEATURES)))
        return Decision(keep, "keep", {}, nothing, keep / len(task), 0)
    rows = observe(task, keep, 0.0)
    proposals = {"keep": keep} | rules(rows)
    pool = keep / len(task)
    refits = 2 * len(task) + 1
    if network is not None and selector == "policy":
        proposals["policy"], pool = follow(network, task, rows, steps)
        refits += (steps - 1) * (2 * len(task) + 1)
    # Where nothing is wrong most proposals are to keep everything: each is fitted once.
    tried: dict[bytes, float] = {}
    for influence in proposals.values():
        if influence.tobytes() not in tried:
            tried[influence.tobytes()] = validation_loss(task, influence)
    losses = {name: tried[influence.tobytes()] for name, influence in proposals.items()}
    chosen = _guard(losses, margin)
    return Decision(proposals[chosen], chosen, losses, rows, pool, refits + len(tried))


def _guard(losses: Mapping[str, float], margin: float) -> str:
    """The proposal with the least validation loss; the policy wins a tie, and keeping wins without a margin."""
    order = sorted(losses, key=lambda name: (losses[name], name != "policy", name))
    best = order[0]
    return best if losses[best] <= (1.0 - margin) * losses["keep"] else "keep"
