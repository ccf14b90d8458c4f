"""The guard over a federation: what clients propose stands where it gains more than noise, alone and all together.

1. Each client's proposal is held against keeping everything, in the model that is used: it must gain the margin, and
   seldom so much by chance (`frmu.selection.significance`).
2. All that stand must not lose together on the validation records of all clients; if they do, the least sure are drawn
   back.
3. Attention that is taken from clients must gain, beyond noise, for those from whom none is taken; else the least
   accused get it back.

Steps 2 and 3 look for the most that may stand by halving, so a round is a few dispatches longer where something is
drawn back, and none where nothing is proposed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from frmu.clients.tasks.changes import AddChanges, Influences
from frmu.clients.tasks.guard import CompareHeads, GuardInfluences
from frmu.config import Config
from frmu.federation import Federation, Reply, in_order
from frmu.models.features import Features, Head, head_of
from frmu.models.grid import WEIGHTS, on_grid
from frmu.selection.significance import Paired, discoveries
from frmu.server.server import Aggregated, AttendClients, SolveModel, states_of
from frmu.types import Float, Sums

__all__ = ["Fitting", "Records", "attended", "below", "influences_of", "settle"]

_log = logging.getLogger(__name__)
Records = dict[str, Mapping[str, Any]]  # what clients said, by name


@dataclass(frozen=True, slots=True)
class Fitting:
    """A model to be solved for under influences and attention: its features, ridge, and sums at full influence.

    Without `features` it stands on the frozen ones; `learned` and `metrics` are what a state says of learned ones.
    """

    config: Config
    federation: Federation
    policy: str
    outputs: tuple[str, ...]
    total: Sums = field(repr=False)
    ridge: float
    features: Features | None = None
    learned: Mapping[str, Any] = field(default_factory=dict)
    metrics: Sequence[Float] = field(default=(), repr=False)

    def solve(self, records: Records, attention: Mapping[str, float], scores: Mapping[str, float]) -> Aggregated:
        """The state under the influences in `records`, and attention on the grid, by client."""
        steps = {name: round(a * WEIGHTS) for name, a in attention.items()}
        common = max(steps.values(), default=WEIGHTS)
        moved = {name: influences_of(one) for name, one in records.items() if below(one) or steps[name] != common}
        work = AddChanges(self.features, self.outputs, moved, {name: steps[name] for name in moved}, common)
        replies = in_order(self.federation.run(work, on=sorted(moved))) if moved else []
        solving = SolveModel(
            self.config, self.policy, self.outputs, states_of(records, attention), self.features, self.ridge,
            self.total, common, self.learned, self.metrics, scores,
        )  # fmt: skip
        found: Aggregated = self.federation.serve(solving, [one for one in replies if one.payload is not None])
        return found

    def compared(self, before: Head, after: Head, on: Sequence[str]) -> Paired:
        """By how much less a head errs than another on the validation records of some clients."""
        replies = in_order(self.federation.run(CompareHeads(before, after, self.outputs), on=on))
        return Paired.of(reply.record for reply in replies)


def settle(fitting: Fitting, records: Records) -> tuple[Aggregated, Records]:
    """The state without attention, and the records of clients, brought up to date where a proposal is drawn back."""
    names, nobody = sorted(records), dict.fromkeys(records, 0.0)
    even = dict.fromkeys(names, 1.0)
    records, standing = _alone(fitting, records)
    now = fitting.solve(records, even, nobody)
    if standing:
        kept = Head(now.keep, fitting.features)

        def gains(done: Aggregated) -> bool:
            return fitting.compared(kept, head_of(done.state), names).mean >= 0.0

        most, now = _most(
            len(standing), now, lambda m: fitting.solve(_without(records, standing[m:], ""), even, nobody), gains
        )
        records = _without(records, standing[most:], "the federation lost by all that was proposed together")
    return now, records


def attended(fitting: Fitting, records: Records, now: Aggregated, changed: Sequence[Reply]) -> Aggregated:
    """The state under attention to clients; `changed` are answers with the sums that the clients' influences give."""
    payloads = [reply for reply in changed if below(records[reply.client])]
    scores, weights = fitting.federation.serve(AttendClients(records, fitting.config, fitting.outputs), payloads)
    return _attended(fitting, records, now, scores, weights)


def _alone(fitting: Fitting, records: Records) -> tuple[Records, list[str]]:
    """The records without proposals that gain too little or may do so by chance; those that stand, the surest first."""
    proposed = {name: influences_of(record) for name, record in records.items() if below(record)}
    if not proposed:
        return records, []
    policy, found, chances = fitting.config.policy, dict(records), {}
    guard = GuardInfluences(fitting.features, fitting.outputs, fitting.total, fitting.ridge, proposed)
    for reply in in_order(fitting.federation.run(guard, on=sorted(proposed))):
        name, losses = reply.client, reply.record["losses"]
        chances[name] = min(1.0, _tried(records[name]) * reply.record["chance"])
        found[name] = {**records[name], "model_losses": losses, "chance": chances[name]}
        if not losses or losses["proposed"] >= losses["keep"] * (1.0 - policy.margin):
            chances[name] = 1.0
            found |= _without(found, [name], "it does not gain policy.margin in the model")
        elif not reply.record["sees"] and policy.significance < 1.0:
            found |= _without(found, [name], "its validation records span less time than a slice")
    sure = [name for name in discoveries(chances, policy.significance) if below(found[name])]
    for name in sorted(set(chances) - set(sure)):
        if below(found[name]):
            why = (
                f"noise alone gains as much in {100.0 * chances[name]:.3g} of 100 cases, and {len(chances)} were tried"
            )
            found |= _without(found, [name], why)
    return found, sure


def _tried(record: Mapping[str, Any]) -> int:
    """Count what a client tried: of unlike rules the best was taken, and each has its share of the chance.

    The policy proposes once.
    """
    losses = record["losses"]
    return 1 if record["chosen_by"] == "policy" else max(1, len(set(losses.values()) - {losses.get("keep")}))


def _attended(
    fitting: Fitting, records: Records, now: Aggregated, scores: Mapping[str, float], weights: Mapping[str, float]
) -> Aggregated:
    """The state under attention, as far as those from whom none is taken gain by it beyond noise."""
    full = max(weights.values(), default=1.0)
    accused = sorted((name for name, a in weights.items() if a < full), key=lambda name: (weights[name], name))
    if not accused:
        return replace(now, scores=scores)
    before, judges = head_of(now.state), [name for name in records if name not in accused]

    def solve(most: int) -> Aggregated:
        share = {name: a / full if name in accused[:most] else 1.0 for name, a in weights.items()}
        mean = float(np.mean(list(share.values())))
        even = {name: float(on_grid(np.array(of / mean))) for name, of in share.items()}
        return fitting.solve(records, even, scores)

    def gains(done: Aggregated) -> bool:
        # Every client could have been accused, and some look bad by chance: each has its share of it.
        chance = fitting.compared(before, head_of(done.state), judges).chance
        return min(1.0, chance * len(weights)) <= fitting.config.policy.significance

    most, found = _most(len(accused), solve(len(accused)), solve, gains)
    if most < len(accused):
        _log.info("attention is given back to %s: the others gain no more by that than noise", accused[most:])
    return found


def _most(
    number: int, done: Aggregated, solve: Callable[[int], Aggregated], gains: Callable[[Aggregated], bool]
) -> tuple[int, Aggregated]:
    """The most of so many, in their order, that gain, and the state with them; `done` is that with all."""
    if gains(done):
        return number, done
    low, high, best = 0, number, solve(0)
    while high - low > 1:
        middle = (low + high) // 2
        tried = solve(middle)
        if gains(tried):
            low, best = middle, tried
        else:
            high = middle
    return low, best


def _without(records: Records, names: Sequence[str], why: str) -> Records:
    """The records with what some clients proposed drawn back."""
    return records | {
        name: {
            **records[name],
            "influence": dict.fromkeys(records[name]["influence"], 1.0), "modalities": {}, "chosen_by": "keep",
            "drawn_back": why,
        }
        for name in names
    }  # fmt: skip


def influences_of(record: Mapping[str, Any]) -> Influences:
    """Return what a client's slices count, and modalities within them."""
    return record["influence"], record["modalities"]


def below(record: Mapping[str, Any]) -> bool:
    """Return whether anything of a client counts less than in full."""
    return bool(record["modalities"]) or any(value != 1.0 for value in record["influence"].values())
