"""Level 3, rehearsed: canaries and a backdoor are planted in a copy of the federation, and erased from it.

What is tried here is not one request but the way in which this federation forgets: with its own records, its own
config and the very code of a drain. Canaries are records with a wrong target, of which half are fitted; a model that
remembers errs less on those. A backdoor is a trigger with a target; a model that remembers is led by it. After the
erasure both must do as they do with a model that never had the planted records. (Carlini et al., "The secret sharer",
2019; Gu et al., "BadNets", 2017; for unlearning: Sommer et al., "Athena", PoPETs 2022.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frmu.clients.tasks.audit import Plant, Recall, Strike
from frmu.clients.tasks.erasure import PurgeShard
from frmu.data.tombstones import tombstones
from frmu.federation import Federation, in_order
from frmu.methods.method import Method
from frmu.models.features import Head, head_of
from frmu.selection.network import Network
from frmu.types import State
from frmu.verification.membership import BAR, auc
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, TUNED, ModelsUnderTest, fine_tune
from frmu.verification.verdict import Verdict

__all__ = ["RehearsalContext", "Trap", "backdoor", "canary", "share_out"]


@dataclass(frozen=True, slots=True)
class RehearsalContext:
    """The federation that a rehearsal takes place in, and a way to start one over copies of its shards.

    `start` takes the name of the copies, which begins with `name`, and the clients that have one.
    """

    live: Federation
    start: Callable[[str, Sequence[str]], Federation]
    name: str
    method: Method
    network: Network | None
    key: bytes
    state: State

    @property
    def clients(self) -> tuple[str, ...]:
        """The clients of the state: one that was erased whole may still have its process."""
        return tuple(client.name for client in self.state.clients)


@dataclass(frozen=True, slots=True)
class Trap:
    """A backdoor: what its trigger sets, and the target that it leads to."""

    trigger: Mapping[str, float | str]
    goal: Any


def share_out(records: Mapping[str, int], number: int) -> dict[str, int]:
    """A number of planted records over clients, as evenly as their sizes allow, the larger first.

    >>> share_out({"a": 10, "b": 30}, 5)
    {'b': 3, 'a': 2}
    """
    clients = sorted(records, key=lambda name: (-records[name], name))
    each, more = divmod(number, max(1, len(clients)))
    return {name: each + (at < more) for at, name in enumerate(clients)}


def canary(stage: RehearsalContext, number: int, seed: int) -> Verdict:
    """Plant canaries at all clients, erase them, and try to tell them from canaries that were never fitted."""
    counts = share_out({client.name: client.records for client in stage.state.clients}, number)
    heads, ids = _plant_and_erase(stage, Plant("canary", counts, seed, f"{stage.name}-canary"))
    every = Plant("canary", counts, seed, f"{stage.name}-lineup", every=True)
    held_back = {reply.client: reply.record["held_back"] for reply in stage.live.run(every, on=stage.clients)}
    lineup = stage.start(every.copy, sorted(held_back))
    found = auc(in_order(lineup.run(Recall(heads, held_back, ids, stage.state.outputs))))
    lineup.close()
    return Verdict(
        level="L3",
        check="canaries (rehearsed)",
        passed=abs(found[STATE] - found[RETRAINED]) <= BAR,
        telling=found[ORIGINAL] - found[RETRAINED] > BAR,
        bar=f"the AUC that tells fitted canaries is within {BAR} of that on a model that never had them",
        numbers={f"canary AUC: {head}": value for head, value in found.items()},
        seeds=(seed,),
        notes={"canaries": sum(map(len, ids.values()))},
    )


def backdoor(stage: RehearsalContext, trap: Trap, counts: Mapping[str, int], seed: int) -> Verdict:
    """Plant a backdoor at some clients, erase it, and pull its trigger."""
    work = Plant("backdoor", counts, seed, f"{stage.name}-backdoor", trap.trigger, trap.goal)
    heads, ids = _plant_and_erase(stage, work)
    replies = in_order(stage.live.run(Strike(heads, trap.trigger, trap.goal, stage.state.outputs), on=stage.clients))
    tried = max(1, sum(reply.record["n"] for reply in replies))
    found = {head: sum(reply.record["led"][head] for reply in replies) / tried for head in heads}
    return Verdict(
        level="L3",
        check="backdoor (rehearsed)",
        passed=abs(found[STATE] - found[RETRAINED]) <= 0.01,
        telling=found[ORIGINAL] - found[RETRAINED] > 0.05,
        bar="the trigger leads as many test records astray as with a model that never had it, give or take 1 %",
        numbers={f"attack success: {head}": value for head, value in found.items()},
        seeds=(seed,),
        notes={"planted": sum(map(len, ids.values())), "trigger": dict(trap.trigger), "target": trap.goal},
    )


def _plant_and_erase(stage: RehearsalContext, work: Plant) -> tuple[dict[str, Head], dict[str, Sequence[str]]]:
    """The four models of a rehearsal, and the ids that were planted, by client."""
    ids = {reply.client: reply.record["planted"] for reply in in_order(stage.live.run(work, on=stage.clients))}
    federation = stage.start(work.copy, sorted(ids))
    method, network = stage.method, stage.network
    original = method.apply(federation, method.init(), network).state
    tombstoned = {client: frozenset(tombstones(stage.key, client, names)) for client, names in ids.items() if names}
    tuned = _tuned(stage, federation, original, tombstoned)
    touched = tuple(sorted(tombstoned))
    kept = method.prepare(federation, original, tombstoned)
    list(federation.run(PurgeShard(tombstoned, stage.key), on=touched))
    erased = method.erase(federation, original, network, touched, kept).state
    federation.close()
    heads = {ORIGINAL: head_of(original), STATE: head_of(erased), RETRAINED: head_of(stage.state), TUNED: tuned}
    return heads, ids


def _tuned(
    stage: RehearsalContext, federation: Federation, state: State, tombstoned: Mapping[str, frozenset[str]]
) -> Head:
    head = head_of(state)
    suspects = ModelsUnderTest({ORIGINAL: head}, state.outputs, federation, tombstoned, stage.key)
    return Head(fine_tune(state.W, suspects.part("retain", ORIGINAL)), head.features)
