"""A client's part in `framu`: try influences slice by slice, tell what it sees and what each trial gained.

A state s_ij is the observation row of slice i computed from the features of modality j alone (and the bias): a task
in which the other modalities do not exist. So the same aggregates serve every modality, and with a single
modality they are those of `observe`. Only aggregates of whole slices leave the client.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from frmu.clients.client import Client
from frmu.clients.tasks.selection import weighted_sums
from frmu.clients.tasks.task import EachClient
from frmu.config import Config
from frmu.federation import Answer
from frmu.models import encoders
from frmu.models.encoders import width
from frmu.models.grid import on_grid
from frmu.models.ridge import solve
from frmu.models.statistics import loss
from frmu.selection.observation import fit, observe
from frmu.selection.problem import SelectionProblem, validation_loss, weighted
from frmu.types import Float, Statistics, Sums

__all__ = ["Blocks", "Seen", "Trial", "Try", "Weigh", "blocks", "perform", "seen_by", "views_of"]

Blocks = Mapping[str, NDArray[np.intp]]
_TINY = 1e-12


def blocks(config: Config) -> dict[str, NDArray[np.intp]]:
    """Return the features of an encoded record by modality, the bias to each: indices by name."""
    bias = width(config) - 1
    columns = np.arange(width(config))
    return {name: np.append(columns[block], bias) for name, block in encoders.blocks(config).items()}


@dataclass(frozen=True, slots=True)
class Trial:
    """One turn of an agent: influences (K,) before it and after it; `after` None: nothing is tried.

    `observe` says whether the rows are wanted that are seen at the end.
    """

    before: tuple[float, ...]
    after: tuple[float, ...] | None = None
    observe: bool = True


@dataclass(frozen=True, slots=True)
class Seen:
    """The outcome of a turn: `rows` (modalities, K, features) or None, `rewards` (K,), validation loss, refits."""

    rows: Float | None
    rewards: Float
    loss: float
    refits: int


def perform(views: Sequence[SelectionProblem], task: SelectionProblem, trial: Trial) -> Seen:
    """Try each change of a turn alone, then make all of them and observe.

    The reward of a slice is how much the validation loss falls if it alone is changed, relative to the loss before
    the turn, in percent, as the inverse hyperbolic sine; a slice that is left as it is earns zero.
    """
    before = np.array(trial.before)
    after = before if trial.after is None else np.array(trial.after)
    changed = np.flatnonzero(after != before)
    rewards = np.zeros(len(task))
    if len(changed):
        H, B = weighted(task, before)
        now = loss(solve(H, B, task.ridge), task.validation) + _TINY
        for s in changed:
            by = after[s] - before[s]
            alone = loss(solve(H + by * task.G[s], B + by * task.b[s], task.ridge), task.validation)
            rewards[s] = np.arcsinh(100.0 * (1.0 - alone / now))
    rows = np.stack([seen_by(view, after) for view in views]) if trial.observe else None
    observed = 2 * len(views) if trial.observe else 0
    tried = len(changed) + 1 if len(changed) else 0
    return Seen(rows, rewards, validation_loss(task, after), observed + tried + 1)


def seen_by(view: SelectionProblem, influence: Float) -> Float:
    """The observation rows (K, features) of one view under some influences: two refits, one with everything kept."""
    kept = fit(view, view.keep)
    return observe(view, fit(view, influence), 0.0, kept.loss).rows


def views_of(task: SelectionProblem, by: Blocks) -> list[SelectionProblem]:
    """The task as each modality sees it; the task itself where there is one modality."""
    return [task] if len(by) < 2 else [_restricted(task, columns) for columns in by.values()]


def _restricted(task: SelectionProblem, columns: NDArray[np.intp]) -> SelectionProblem:
    def part(s: Statistics) -> Statistics:
        return Statistics(s.n, s.G[np.ix_(columns, columns)], s.b[columns], s.c)

    G, b = task.G[:, columns[:, None], columns], task.b[:, columns]
    parts = tuple(part(stretch) for stretch in task.parts)
    rest, validation, later = part(task.rest), part(task.validation), part(task.later)
    return replace(task, G=G, b=b, rest=rest, validation=validation, parts=parts, later=later)


@dataclass(frozen=True, slots=True)
class Try(EachClient):
    """Take one turn at each client that has a trial."""

    trials: Mapping[str, Trial]
    outputs: tuple[str, ...]
    total: Sums

    def perform(self, client: Client) -> Answer:
        """Rows, rewards and loss: aggregates of whole slices."""
        task = client.task(client.slices("fit", self.outputs), self.total, self.outputs)
        by, trial = blocks(client.config), self.trials[client.name]
        views = views_of(task, by) if trial.observe else []
        found = perform(views, task, trial)
        rows = None if found.rows is None else found.rows.tolist()
        record = {"rows": rows, "rewards": found.rewards.tolist(), "loss": found.loss, "refits": found.refits}
        return Answer(client.name, record)


@dataclass(frozen=True, slots=True)
class Weigh(EachClient):
    """Send the sums of the slices under given influences, by client and slice; slices not named count in full."""

    influence: Mapping[str, Mapping[str, float]]
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload, added slice by slice in the order of the keys."""
        of = self.influence.get(client.name, {})
        keys = client.sums("fit", self.outputs)
        applied = dict(zip(keys, on_grid(np.array([of.get(key, 1.0) for key in keys])).tolist(), strict=True))
        return Answer(
            client.name, {"influence": applied}, {"fit": weighted_sums(client, self.outputs, applied, {}).packed}
        )
