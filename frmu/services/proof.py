"""The proof of a state: against a federation rebuilt from the shards, tombstones and standing requests."""

from __future__ import annotations

from dataclasses import replace

from frmu.clients.tasks.erasure import LocateRecords
from frmu.clients.tasks.importing import DescribeShard
from frmu.data import shard
from frmu.methods.rounds import schedule_of
from frmu.services.integrity import changed_shards
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.tracking import queue
from frmu.types import State
from frmu.verification.exact import ExactVerdict, left_behind, verify_exact

__all__ = ["exact_verdict", "standing_verdict"]


def exact_verdict(session: Session, state: State, tombstones: dict[str, frozenset[str]]) -> ExactVerdict:
    """Level 5 of a state: against a federation rebuilt from the shards, and the shards against tombstones."""
    inventory = session.sites.look()
    known = {client.name for client in state.clients}
    away = session.ledger.history.away(state.digest)
    left = session.sites.left(inventory.held)
    strange = _strange(session, inventory)
    strange += _of_other_records(session, inventory)
    strange += [
        f"the shard of {client}, which the state does not know"
        for client in inventory.held
        if client not in known and client not in left and session.ledger.owner(client) not in away
    ]
    verdict = verify_exact(
        session.config, session.from_nothing, session.network(),
        lambda config: session.sites.afresh(config, inventory), state, tombstones, session.key, strange,
    )  # fmt: skip
    changed = [
        f"the shard of {client}, which is not as it was written" for client in changed_shards(session, verdict.shards)
    ]
    return replace(
        verdict, left=verdict.left + _meant(session, inventory), unexpected_files=[*verdict.unexpected_files, *changed]
    )


def standing_verdict(session: Session, state: State, tombstones: dict[str, frozenset[str]]) -> ExactVerdict:
    """The verdict on a state that nothing was taken from: it and its shards are those that were last proven or trained.

    Nothing is rebuilt: where nobody held anything, a federation that never had it is this one.
    """
    inventory = session.sites.look()
    left, scanned, digests = left_behind(session.sites.at_rest(inventory), tombstones, session.key)
    strange = _strange(session, inventory)
    strange += [f"the shard of {client}, which is not as it was written" for client in changed_shards(session, digests)]
    numerics = (state.numerics, state.numerics)
    return ExactVerdict(state.digest, state.digest, left, scanned, strange, 0.0, numerics, digests, rebuilds=False)


def _strange(session: Session, inventory: Inventory) -> list[str]:
    """Files where shards are that frmu did not put there; of the working folder as paths from the shards' folder."""
    waiting = queue.unexpected_files(session.workspace.outbox)
    here = [
        *shard.unexpected_files(session.workspace.shards), *session.workspace.unexpected_files(),
        *(f"../outbox/{name}" for name in waiting),
    ]  # fmt: skip
    return sorted(here) + [name for name in inventory.unexpected_files if session.config.sites]


def _of_other_records(session: Session, inventory: Inventory) -> list[str]:
    """Checkpoints of a training by rounds that are not of the records as they stand."""
    kept = session.workspace.rounds
    if not kept.folder.exists():
        return []
    if not session.config.model.by_rounds:
        return [f"../rounds/{name}" for name in kept.unexpected_files(lambda rounds: "")]
    with session.sites.afresh(inventory=inventory) as federation:
        schedule = schedule_of(session.config, federation.run(DescribeShard()))
    return [f"../rounds/{name}" for name in kept.unexpected_files(schedule.key)]


def _meant(session: Session, inventory: Inventory) -> int:
    """Count the records in the shards that standing requests mean: tombstones were made only where a drain looked."""
    selections = {
        request.id: request.selection for request in session.ledger.standing() if request.selection is not None
    }
    if not selections:
        return 0
    with session.sites.afresh(inventory=inventory) as federation:
        replies = list(federation.run(LocateRecords(selections, session.key)))
    return len(
        {(reply.client, name) for reply in replies for names in reply.record["found"].values() for name in names}
    )
