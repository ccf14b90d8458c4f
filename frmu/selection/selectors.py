"""Selectors propose influences within a budget; the guard decides which proposal is applied.

Rules are fixed. The policy looks, proposes, and looks again under its own proposal; it refines what a short search
on validation found as well, and its value, which was learned on later records, says which of all that it met to
propose. The guard applies it if it gains at least a margin on validation, else everything is kept. Rules are tried
beside it and told, not applied: chosen by validation among several, they lose on later records what the policy
gains (`frmu bench policy`). Without a policy the best rule is what is proposed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from frmu.models.grid import on_grid
from frmu.selection.network import Network, influence_of
from frmu.selection.observation import FEATURES, Fit, Observation, observe
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.types import Float

__all__ = ["Decision", "Guided", "decide", "follow", "guided", "rules"]

_RESIDUAL, _GAIN = (FEATURES.index(name) for name in ("residual", "gain"))
SEARCH = 20  # refits of one search on validation
NEARLY = 0.05  # this near to forgotten or kept is forgotten or kept
LEAST = 1 / 64  # of a client by itself no slice counts less


@dataclass(frozen=True, slots=True)
class Decision:
    """The influences (K,) applied, who proposed them, each proposal's validation loss, the rows seen, the cost.

    `rows` (K, features) are seen with everything kept; `pool` (K,) is the policy's attention there.
    """

    influence: Float
    chosen_by: str
    losses: Mapping[str, float]
    rows: Float
    pool: Float
    refits: int


@dataclass(frozen=True, slots=True)
class Guided:
    """The policy's proposal: the fit it arrived at, its value, and its attention at the first observation, (K,)."""

    fit: Fit
    value: float
    pool: Float


def rules(rows: Float) -> dict[str, Float]:
    """The fixed rules, from the observation rows (K, features) under full influence, as influences (K,).

    >>> rows = np.zeros((3, len(FEATURES)))
    >>> rows[1, _RESIDUAL] = 1.0
    >>> rules(rows)["residual 1.5"]
    array([1., 0., 1.])
    """
    return {
        "residual 1.5": np.where(rows[:, _RESIDUAL] > np.log(1.5), 0.0, 1.0),
        "residual 3": np.where(rows[:, _RESIDUAL] > np.log(3.0), 0.0, 1.0),
        "leave-one-out": np.where(rows[:, _GAIN] < -np.arcsinh(0.5), 0.0, 1.0),
    }


def follow(network: Network, account: RefitCounter, first: Observation, start: Fit, steps: int) -> list[Guided]:
    """Return what a policy makes of a start in some steps: each fit met, the start first, with its value."""
    met = []
    here = start
    for step in range(steps + 1):
        now = first if here is first.fit else observe(account.task, here, step / (steps + 1), first.fit.loss)
        logits, value, pool = network(first, now)
        met.append(Guided(here, value, pool))
        if step == steps or not account.affords():
            break
        here = account.fit(influence_of(logits, account.task.by_itself))
    return met


def guided(network: Network, account: RefitCounter, first: Observation, steps: int) -> Guided:
    """Policy-guided search: the policy from keeping everything, then from what ascents of validation found.

    As many ascents as the budget affords (it must have a limit), each from where the last refinement ended and half as
    bold; of everything met, what the policy values most.
    """
    met = follow(network, account, first, first.fit, steps)
    start, search = first.fit, SEARCH
    while account.affords(search + steps):
        found = ascend(account, start, search, 2.4 / search if start is first.fit else 1.2 / search)
        refined = follow(network, account, first, found, steps)
        met += refined
        start = max(refined, key=_value).fit
    best = max(met, key=_value)
    return Guided(best.fit, best.value, met[0].pool)


def _value(guided: Guided) -> float:
    return guided.value


def decide(
    task: SelectionProblem, network: Network | None, selector: str, margin: float, steps: int, budget: int
) -> Decision:
    """Choose influences for a task, under the guard: by the policy, by the rules, or keep everything.

    `budget` is in refits. Without a validation record there is nothing to judge by, so everything is kept.
    """
    if selector == "keep" or task.validation.n == 0:
        nothing = np.zeros((len(task), len(FEATURES)))
        return Decision(task.keep, "keep", {}, nothing, task.keep / len(task), 0)
    account = RefitCounter(task, Budget(budget))
    kept = account.fit(task.keep)
    first = observe(task, kept, 0.0, kept.loss)
    proposals = {"keep": kept}
    pool = task.keep / len(task)
    if network is not None and selector == "policy":
        reserved = RefitCounter(
            task, Budget(max(0, budget - 5))
        )  # the rest is for keeping all, for what is settled, for rules
        found = guided(network, reserved, first, steps)
        account.refits += reserved.refits
        settled = _settled(found.fit.influence, task.by_itself)
        proposals["policy"], pool = _fitted(account, settled, [kept, found.fit]), found.pool
    for name, influence in rules(first.rows).items():
        proposals[name] = _fitted(account, influence, list(proposals.values()))
    losses = {name: proposal.loss for name, proposal in proposals.items()}
    chosen = _guard(losses, margin)
    return Decision(proposals[chosen].influence, chosen, losses, first.rows, pool, account.refits)


def _settled(influence: Float, by_itself: bool) -> Float:
    """Influences (K,) where almost all is all and almost nothing is nothing: so a slice can be said to be forgotten.

    A client by itself has nothing but its slices. There what counts little may still count together, and nothing is
    forgotten outright: the cases that end worst look best on every stretch of validation, so no guard that asks it can
    tell them; a floor costs nothing on the mean and halves the worst loss on data that the policy never saw.

    >>> _settled(np.array([0.99, 0.4, 0.01]), by_itself=False)
    array([1.     , 0.40625, 0.     ])
    >>> _settled(np.array([0.99, 0.4, 0.01]), by_itself=True)
    array([1.      , 0.40625 , 0.015625])
    """
    whole = on_grid(np.where(influence >= 1.0 - NEARLY, 1.0, influence))
    return np.maximum(whole, LEAST) if by_itself else np.where(whole <= NEARLY, 0.0, whole)


def _fitted(account: RefitCounter, influence: Float, known: Sequence[Fit]) -> Fit:
    """A fit under some influences; where nothing is wrong most rules keep everything, and that is fitted already."""
    for fit in known:
        if np.array_equal(fit.influence, influence):
            return fit
    return account.fit(influence)


def _guard(losses: Mapping[str, float], margin: float) -> str:
    """The policy's proposal, without one the best rule's; keeping everything if that does not gain the margin."""
    best = "policy" if "policy" in losses else min(losses, key=lambda name: (losses[name], name))
    return best if losses[best] <= (1.0 - margin) * losses["keep"] else "keep"
