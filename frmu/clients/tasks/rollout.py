"""A policy's rollout at a client: slices disturbed on purpose, exact refits, rewards on later records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from frmu.clients.client import Client, Rehearsal
from frmu.clients.tasks.task import EachClient
from frmu.data.transform import learned_units, raw_units
from frmu.federation import Answer
from frmu.models.encoders import width
from frmu.models.statistics import loss
from frmu.selection.disturbance import disturb, draw
from frmu.selection.observation import fit, observe
from frmu.selection.reward import slope_of, standing_of
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.types import Statistics, Sums

__all__ = ["REHEARSALS", "EnvStep", "Rollout", "arrivals", "take"]

REHEARSALS = 64  # tasks a client keeps in memory while a policy trains


@dataclass(frozen=True, slots=True)
class EnvStep:
    """One step of an episode at one client.

    `seed` names the task, `influence` what to refit with (None: keep all), `step` the share of steps taken, `observe`
    whether an observation is wanted as well. With `search` the client first ascends its validation loss from there,
    in so many refits. `round` counts from 0, the round in which the refit takes place; `enter` says that it was the
    last of that round: the next slices enter, at full influence, and what is seen then is of the round to come.
    """

    seed: int
    influence: tuple[float, ...] | None
    step: float
    observe: bool
    search: int = 0
    round: int = 0
    enter: bool = False


@dataclass(frozen=True, slots=True)
class Rollout(EachClient):
    """Steps of RL episodes: the client disturbs some of its slices by the seed, refits, and tells what it sees.

    The answer holds an observation (aggregates), the influences, the loss on the later records under them and under
    full influence, the slope of the reward by each influence, and which slices were disturbed, for the account of
    precision and recall.

    With several `rounds` the slices stand in a line of time and arrive as they did: a round judges by the records that
    arrived after those it fits, and is rewarded on those that came after them, before anybody fitted them; the last
    round by the validation and the later records. (Prequential: Dawid, "The prequential approach", JRSS A, 1984.)
    """

    env_steps: Mapping[str, tuple[EnvStep, ...]]
    outputs: tuple[str, ...]
    total: Sums
    max_slices: int
    rounds: int = 1

    def perform(self, client: Client) -> Answer:
        """One entry a step."""
        env_steps = self.env_steps.get(client.name, ())
        return Answer(client.name, {"steps": [self._step(client, env_step) for env_step in env_steps]})

    def _step(self, client: Client, env_step: EnvStep) -> dict[str, Any]:
        name = (env_step.seed, self.max_slices, self.rounds)
        rounds = client.rehearsals.get(name)
        if rounds is None:
            while len(client.rehearsals) >= max(1, REHEARSALS // self.rounds):
                client.rehearsals.pop(next(iter(client.rehearsals)))
            rounds = client.rehearsals[name] = self.episode(client, env_step.seed)
        return take(rounds, env_step)

    def rehearse(self, client: Client, seed: int, kind: str | None = None, whole: bool = False) -> Rehearsal:
        """The last round of an episode: the only one, where there is one."""
        return self.episode(client, seed, kind, whole)[-1]

    def episode(self, client: Client, seed: int, kind: str | None = None, whole: bool = False) -> tuple[Rehearsal, ...]:
        """A task over some newest slices of the client, a few of them disturbed, drawn from the seed alone.

        The kind may be given, and `whole` takes as many slices as there may be. One entry a round; where there are too
        few slices for all rounds, fewer.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        slices = client.slices("fit", self.outputs)
        keys = sorted(slices)[-self.max_slices :]
        if not whole:
            keys = keys[-int(rng.integers(min(4, len(keys)), len(keys) + 1)) :]
        kind, hit = draw(keys, rng, kind)
        chosen = dict(slices)
        groups = client.groups(0)
        for key in hit:
            modalities = {name: X[groups[key]] for name, X in client.shard.modalities.items()}
            y = raw_units(client.shard.learned_target[groups[key]], client.config)  # a sensor is off in its own units
            modalities, y = disturb(kind, modalities, y, rng)
            chosen[key] = client.statistics(modalities, learned_units(y, client.config), self.outputs)
        borders = arrivals(len(keys), self.rounds)
        # What judges and what rewards is as it was recorded: a disturbance is of what is fitted.
        blocks = [tuple(slices[key] for key in keys[first:last]) for first, last in pairwise(borders)]
        blocks += [client.parts(self.outputs), (client.split_total("later", self.outputs),)]
        shape = (width(client.config), len(self.outputs))
        total, found = self.total, []
        for number, border in enumerate(borders):
            task = client.task({key: chosen[key] for key in keys[:border]}, total, self.outputs)
            if border < len(keys):
                judge, reward = (Statistics.total(block, *shape) for block in blocks[number : number + 2])
                task = replace(task, validation=judge, parts=blocks[number], later=reward)
            kept = fit(task, task.keep)
            found.append((kind, frozenset(hit) & frozenset(keys[:border]), task, kept, loss(kept.W, task.later)))
        return tuple(found)


def take(rounds: Sequence[Rehearsal], env_step: EnvStep) -> dict[str, Any]:
    """Take one step in a task of some rounds: refit, and tell what is seen, what it earned, and its slope.

    `slope` (K,) is that of the reward by each influence where an action was taken, else None; `reached` is the
    reward of standing where the refit ended, `standing` that of where the next action will be taken: the same, but
    where slices enter (`frmu.selection.reward`). `rows`, `relation` and `first` are None where nothing is observed.
    """
    kind, hit, task, kept, keep = rounds[env_step.round]
    here = kept if env_step.influence is None else fit(task, np.array(env_step.influence))
    if env_step.search:
        here = ascend(RefitCounter(task, Budget()), here, env_step.search)
    lost, reached = loss(here.W, task.later), standing_of(task, here, keep)
    slope = None if env_step.influence is None else slope_of(task, here, keep)
    first = None
    if env_step.enter:
        kind, hit, task, kept, keep = rounds[env_step.round + 1]
        here = fit(task, np.concatenate([here.influence, np.ones(len(task) - len(here.influence))]))
        first = observe(task, kept, 0.0, kept.loss)
    seen = observe(task, here, env_step.step, kept.loss) if env_step.observe else None
    return {
        "kind": kind,
        "keys": task.keys,
        "hit": [key in hit for key in task.keys],
        "by_itself": task.by_itself,
        "influence": here.influence,
        "rows": seen and seen.rows,
        "relation": seen and seen.relation,
        "first": first and (first.rows, first.relation),
        "loss": lost,
        "slope": slope,
        "reached": reached,
        "standing": standing_of(task, here, keep),
        "keep": keep,
        "rounds": len(rounds),
    }


def arrivals(slices: int, rounds: int) -> list[int]:
    """Count the slices that are there in each round, in the order of time: the last number is all of them.

    An episode begins with at least two slices, and about half, and so may have fewer rounds than are asked for.

    >>> arrivals(12, 1), arrivals(12, 3), arrivals(3, 4), arrivals(1, 4)
    ([12], [8, 10, 12], [2, 3], [1])
    """
    rounds = min(rounds, max(1, slices - 1))
    width = max(1, slices // (2 * rounds))
    return [slices - (rounds - 1 - number) * width for number in range(rounds)]
