"""Every selector of the table of policies: rules, searches, rivals and the learned one, each within its budget.

(DVRL: Yoon et al., "Data valuation using reinforcement learning", ICML 2020; here its estimator is a logit a slice,
trained by REINFORCE on validation.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from frmu.clients.tasks.framu import Blocks
from frmu.config import Policy
from frmu.models.ridge import solve
from frmu.models.statistics import loss
from frmu.selection.network import Network
from frmu.selection.observation import FEATURES, Observation
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import RefitCounter, ascend, greedy, leave_one_out
from frmu.selection.selectors import decide, follow, guided, rules
from frmu.types import Float, Statistics

__all__ = ["BUDGETS", "STEPS", "Case", "Selector", "best_rule", "dvrl", "selectors"]


BUDGETS: tuple[int | str, ...] = ("K", 100, 200, 800)  # K: a refit a slice
STEPS = 3


@dataclass(frozen=True, slots=True)
class Case:
    """One task as a selector meets it, and what only the judge knows: the test records, which slices were hit.

    `fellows` gives the tasks of the other clients, undisturbed, and `by` the features of each modality: `framu` acts
    with a whole federation at once.
    """

    task: SelectionProblem
    hit: Float
    test: Statistics
    fellows: Callable[[], Sequence[SelectionProblem]] = tuple
    by: Blocks | None = None


Selector = Callable[[RefitCounter, Observation, Case, np.random.Generator], Float]


def selectors(network: Network, slices: int, framu: bool = False) -> dict[str, tuple[int | None, Selector]]:
    """Every row of the table by name: its budget in refits (None: as it needs) and how it selects."""
    letter: dict[str, tuple[int | None, Selector]] = {"FRAMU to the letter": (None, _framu)} if framu else {}
    table: dict[str, tuple[int | None, Selector]] = {
        "keep all": (None, lambda account, first, case, rng: case.task.keep),
        "random": (None, lambda account, first, case, rng: (rng.random(slices) < 0.8).astype(np.float64)),
        "oracle": (None, lambda account, first, case, rng: 1.0 - case.hit),
        "sliding window": (None, lambda account, first, case, rng: (case.task.age <= 0.5).astype(np.float64)),
        "leave-one-out": (None, lambda account, first, case, rng: leave_one_out(account, first.fit)),
        "residual rule": (None, lambda account, first, case, rng: rules(first.rows)["residual 1.5"]),
        "solo rule": (None, _solo),
        "gradient-norm rule": (None, _gradient_norm),
        "best rule": (None, best_rule),
        "greedy 4": (None, lambda account, first, case, rng: greedy(account, first.fit, 4).influence),
        "greedy 16": (None, lambda account, first, case, rng: greedy(account, first.fit, 16).influence),
        "learned, one pass": (None, partial(_steps, network, 1)),
        "learned, 3 steps": (None, partial(_steps, network, STEPS)),
        "applied (guarded)": (None, partial(_applied, network)),
        **letter,
    }
    for life in (2, 4, 8):
        table[f"decay, half-life {life}"] = (None, partial(_decay, life))
    for name in BUDGETS:
        budget = slices if isinstance(name, str) else name
        table[f"greedy @ {name}"] = (budget, lambda account, first, case, rng: greedy(account, first.fit, 99).influence)
        table[f"gradient @ {name}"] = (budget, partial(_gradient, budget))
        table[f"DVRL @ {name}"] = (budget, dvrl)
        table[f"learned + search @ {name}"] = (budget, partial(_guided, network))
    return table


def _decay(life: int, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    return np.asarray(0.5 ** (case.task.age * (len(case.task) - 1) / life), dtype=np.float64)


def _solo(account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    """Forget a slice whose own head is half as bad again on validation as the median one."""
    task = case.task
    alone = []
    for s in range(len(task)):
        account.refits += 1
        alone.append(loss(solve(task.G[s], task.b[s], task.ridge), task.validation))
    return np.where(np.array(alone) > 1.5 * np.median(alone), 0.0, 1.0)


def _gradient_norm(account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    return np.where(first.rows[:, FEATURES.index("force")] > np.log(3.0), 0.0, 1.0)


def best_rule(account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    """Of every fixed rule, the one with the least validation loss."""
    found = [first.fit]
    found += [account.fit(influence) for influence in rules(first.rows).values()]
    found += [account.fit(f(account, first, case, rng)) for f in (_solo, _gradient_norm)]
    found += [account.fit(_decay(life, account, first, case, rng)) for life in (2, 4, 8)]
    found.append(account.fit(leave_one_out(account, first.fit)))
    return min(found, key=lambda one: one.loss).influence


def _gradient(steps: int, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    return ascend(account, first.fit, steps).influence


def dvrl(account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    """A logit a slice by REINFORCE on validation, within the budget; the best draw met."""
    logits, baseline = np.full(len(case.task), 2.0), 0.0
    best = first.fit
    while account.affords():
        chance = 1.0 / (1.0 + np.exp(-logits))
        drawn = (rng.random(len(logits)) < chance).astype(np.float64)
        found = account.fit(drawn)
        reward = -math.log(found.loss / first.fit.loss)
        logits = np.clip(logits + 10.0 * (reward - baseline) * (drawn - chance), -4.0, 4.0)
        baseline = 0.9 * baseline + 0.1 * reward
        best = found if found.loss < best.loss else best
    return best.influence


def _steps(
    network: Network, steps: int, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator
) -> Float:
    return follow(network, account, first, first.fit, steps)[-1].fit.influence


def _guided(network: Network, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    return guided(network, account, first, STEPS).fit.influence


def _applied(
    network: Network, account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator
) -> Float:
    decision = decide(case.task, network, "policy", 0.01, STEPS, Policy().budget)
    account.refits += decision.refits - 1
    return decision.influence


def _framu(account: RefitCounter, first: Observation, case: Case, rng: np.random.Generator) -> Float:
    """Algorithm 1 with all clients of the federation as agents; of the refits that they spend together, a share."""
    from frmu.methods.framu import Settings
    from frmu.policy.framu import select

    tasks = [case.task, *case.fellows()]
    outcome = select(tasks, Settings(seed=int(rng.integers(2**31))), case.by)
    account.refits += round(outcome.refits / len(tasks))
    return outcome.influence[0]
