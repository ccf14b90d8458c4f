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
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.models.grid import on_grid
from frmu.models.ridge import Factor
from frmu.selection.network import Network, influence_of
from frmu.selection.observation import FEATURES, Fit, Observation, observe
from frmu.selection.problem import SelectionProblem, pick, stack
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.types import Float

__all__ = ["Decision", "Guided", "decide", "decide_all", "follow", "guided", "rules"]

_RESIDUAL, _GAIN = (FEATURES.index(name) for name in ("residual", "gain"))
SEARCH = 20  # refits of one search on validation
RESERVED = 5  # refits for keeping all, for what is settled, and for rules
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
    value: Any
    pool: Float


def rules(rows: Float) -> dict[str, Float]:
    """The fixed rules, from the observation rows (K, features) under full influence, as influences (K,).

    >>> rows = np.zeros((3, len(FEATURES)))
    >>> rows[1, _RESIDUAL] = 1.0
    >>> rules(rows)["residual 1.5"]
    array([1., 0., 1.])
    """
    return {
        "residual 1.5": np.where(rows[..., _RESIDUAL] > np.log(1.5), 0.0, 1.0),
        "residual 3": np.where(rows[..., _RESIDUAL] > np.log(3.0), 0.0, 1.0),
        "leave-one-out": np.where(rows[..., _GAIN] < -np.arcsinh(0.5), 0.0, 1.0),
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
    bold; of everything met, what the policy values most. Of a stack of problems no search is made.
    """
    met = follow(network, account, first, first.fit, steps)
    start, search = first.fit, SEARCH
    while first.rows.ndim == 2 and account.affords(search + steps):
        found = ascend(account, start, search, 2.4 / search if start is first.fit else 1.2 / search)
        refined = follow(network, account, first, found, steps)
        met += refined
        start = _valued_most(refined).fit
    best = _valued_most(met)
    return Guided(best.fit, best.value, met[0].pool)


def _valued_most(met: Sequence[Guided]) -> Guided:
    """Return what the policy values most; of a stack, for each problem."""
    best = np.argmax(np.stack([np.asarray(one.value) for one in met]), axis=0)
    if not best.ndim:
        return met[int(best)]
    fits = [one.fit for one in met]
    influence, H, B, rows, W, losses = (
        _each_of(best, arrays)
        for arrays in zip(
            *((f.influence, f.H, f.B, np.swapaxes(f.factor.L, -1, -2), f.W, f.loss) for f in fits), strict=True
        )
    )
    fit = Fit(fits[0].task, influence, H, B, Factor(np.swapaxes(rows, -1, -2)), W, losses)
    return Guided(fit, _each_of(best, [one.value for one in met]), met[0].pool)


def _each_of(best: NDArray[np.intp], arrays: Sequence[Float]) -> Float:
    """Of some arrays (problems, ...), for each problem the row of the one that is best there, (problems,)."""
    found = arrays[0].copy()
    for at in range(1, len(arrays)):
        found[best == at] = arrays[at][best == at]
    return found


def decide(
    task: SelectionProblem, network: Network | None, selector: str, margin: float, steps: int, budget: int
) -> Decision:
    """Choose influences for a task, under the guard: by the policy, by the rules, or keep everything.

    `budget` is in refits. Without a validation record there is nothing to judge by, so everything is kept.
    """
    return decide_all([task], network, selector, margin, steps, budget)[0]


def decide_all(
    tasks: Sequence[SelectionProblem], network: Network | None, selector: str, margin: float, steps: int, budget: int
) -> list[Decision]:
    """Choose influences for many tasks: those that are alike in shape at once, each as if it were alone."""
    decisions: dict[int, Decision] = {}
    alike: dict[tuple[Any, ...], list[int]] = {}
    for at, task in enumerate(tasks):
        if selector == "keep" or task.validation.n == 0:
            nothing = np.zeros((len(task), len(FEATURES)))
            decisions[at] = Decision(task.keep, "keep", {}, nothing, task.keep / len(task), 0)
        else:
            alone = at if budget - RESERVED >= SEARCH + 2 * steps else None  # there is room to search: one by one
            alike.setdefault((task.G.shape, len(task.parts), task.by_itself, alone), []).append(at)
    policy = network if selector == "policy" else None
    for places in alike.values():
        found = _decided([tasks[at] for at in places], policy, margin, steps, budget)
        decisions |= dict(zip(places, found, strict=True))
    return [decisions[at] for at in range(len(tasks))]


def _decided(
    many: Sequence[SelectionProblem], network: Network | None, margin: float, steps: int, budget: int
) -> list[Decision]:
    """Decide for problems that are alike in shape."""
    task = many[0] if len(many) == 1 else stack(many)
    account = RefitCounter(task, Budget(budget))
    kept = account.fit(task.keep)
    first = observe(task, kept, 0.0, kept.loss)
    tried = _Proposals(task, account.refits, kept)
    pool = task.keep / len(task)
    if network is not None:
        reserved = RefitCounter(task, Budget(max(0, budget - RESERVED)))
        found = guided(network, reserved, first, steps)
        tried.refits += reserved.refits
        pool = found.pool
        tried.add("policy", _settled(found.fit.influence, task.by_itself), found.fit)
    for name, influence in rules(first.rows).items():
        tried.add(name, influence)
    rows, pools = first.rows.reshape(len(many), len(task), -1), pool.reshape(len(many), -1)
    return [_chosen(*of, margin, *seen) for of, *seen in zip(tried.each(), rows, pools, strict=True)]


class _Proposals:
    """Proposals for a problem, or for a stack of them, with the validation loss that each gives.

    Where nothing is wrong most rules keep everything, and that is fitted already: what is known is not fitted again.
    """

    def __init__(self, task: SelectionProblem, refits: int, kept: Fit) -> None:
        self._task = task
        self._front = task.n.shape[:-1]
        self._known = {"keep": (kept.influence, np.asarray(kept.loss))}
        self.refits = np.full(self._front, refits)

    def add(self, name: str, influence: Float, like: Fit | None = None) -> None:
        """Fit a proposal where it is new; `like` is a fit that may be the same."""
        losses = np.full(self._front, np.nan)
        known = list(self._known.values()) + ([(like.influence, np.asarray(like.loss))] if like is not None else [])
        for before, loss in known:
            losses = np.where(np.isnan(losses) & np.all(influence == before, axis=-1), loss, losses)
        if (new := np.isnan(losses)).any():
            some, of = (self._task, influence) if new.all() else (pick(self._task, new), influence[new])
            account = RefitCounter(some, Budget())
            losses[new] = account.fit(of).loss
            self.refits = self.refits + new * account.refits
        self._known[name] = (influence, losses)

    def each(self) -> list[tuple[dict[str, tuple[Float, float]], int]]:
        """The proposals for each problem, by name, and the refits they took."""
        refits = self.refits.reshape(-1).tolist()
        many = len(refits)
        flat = {name: (of.reshape(many, -1), loss.reshape(-1).tolist()) for name, (of, loss) in self._known.items()}
        return [({name: (of[at], loss[at]) for name, (of, loss) in flat.items()}, refits[at]) for at in range(many)]


def _chosen(
    proposals: Mapping[str, tuple[Float, float]], refits: int, margin: float, rows: Float, pool: Float
) -> Decision:
    losses = {name: loss for name, (_, loss) in proposals.items()}
    chosen = _guard(losses, margin)
    return Decision(proposals[chosen][0], chosen, losses, rows, pool, refits)


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


def _guard(losses: Mapping[str, float], margin: float) -> str:
    """The policy's proposal, without one the best rule's; keeping everything if that does not gain the margin."""
    best = "policy" if "policy" in losses else min(losses, key=lambda name: (losses[name], name))
    return best if losses[best] <= (1.0 - margin) * losses["keep"] else "keep"
