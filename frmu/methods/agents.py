"""The agents of FRAMU's algorithm: who they are, and one call for their turns, taken where their records are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from frmu.clients.tasks.framu import Blocks, Seen, Trial, Try, perform, views_of
from frmu.clients.tasks.importing import DescribeShard
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Federation, in_order
from frmu.methods.analytic import digests_of, outputs_of, sums_of
from frmu.selection.problem import SelectionProblem
from frmu.types import Sums

__all__ = ["World", "world_of", "world_of_tasks"]


@dataclass(frozen=True, slots=True)
class World:
    """The agents: names, the keys of each one's slices, records n, modalities; and one dispatch for their turns.

    RLlib copies its config, and a copy of a world would be another federation: it is passed on as it is.
    """

    names: tuple[str, ...]
    keys: tuple[tuple[str, ...], ...]
    n: tuple[float, ...]
    modalities: int
    ask: Callable[[Mapping[str, Trial]], Mapping[str, Seen]] = field(repr=False)

    def __deepcopy__(self, memo: object) -> World:
        return self


@dataclass(frozen=True, slots=True)
class _Tasks:
    """Turns over tasks in this process."""

    tasks: Mapping[str, SelectionProblem]
    views: Mapping[str, Sequence[SelectionProblem]]

    def __call__(self, trials: Mapping[str, Trial]) -> dict[str, Seen]:
        return {name: perform(self.views[name], self.tasks[name], trial) for name, trial in trials.items()}


@dataclass(frozen=True, slots=True)
class _Clients:
    """Turns over the clients of a federation."""

    federation: Federation
    outputs: tuple[str, ...]
    total: Sums

    def __call__(self, trials: Mapping[str, Trial]) -> dict[str, Seen]:
        work = Try(trials, self.outputs, self.total)
        return {reply.client: _seen(reply.record) for reply in in_order(self.federation.run(work, on=sorted(trials)))}


def _seen(record: Mapping[str, object]) -> Seen:
    rows = None if record["rows"] is None else np.array(record["rows"])
    return Seen(rows, np.array(record["rewards"]), record["loss"], record["refits"])  # type: ignore[arg-type]


def world_of_tasks(tasks: Sequence[SelectionProblem], by: Blocks | None = None) -> World:
    """Tasks as agents, in the order given. `by` splits features by modality.

    Raises `FrmuError` where there is no task, or one without validation records.
    """
    if not tasks or any(task.validation.n == 0 for task in tasks):
        raise FrmuError("framu's tasks must be one or more, each with validation records to be rewarded on")
    names = tuple(f"{number:04d}" for number in range(len(tasks)))
    here = dict(zip(names, tasks, strict=True))
    views = {name: views_of(task, by or {}) for name, task in here.items()}
    keys, n = tuple(task.keys for task in tasks), tuple(float(task.n.sum()) for task in tasks)
    return World(names, keys, n, max(1, len(by or {})), _Tasks(here, views))


def world_of(config: Config, federation: Federation) -> World | None:
    """The clients of a federation that hold slices to fit and validation records to judge by; None: there is none."""
    held = [reply for reply in in_order(federation.run(DescribeShard())) if reply.record["rows"]]
    outputs = outputs_of(config, {label for reply in held for label in reply.record["classes"]})
    names = tuple(reply.client for reply in held)
    total = sums_of(config, config.fingerprint(), federation, names, outputs, digests_of(held)).total
    able = [r for r in held if r.record["slices"] and r.record["splits"]["validation"]]
    if not able:
        return None
    return World(
        names=tuple(reply.client for reply in able),
        keys=tuple(tuple(sorted(reply.record["slices"])) for reply in able),
        n=tuple(float(reply.record["splits"]["fit"]) for reply in able),
        modalities=len(config.data.modalities),
        ask=_Clients(federation, outputs, total),
    )
