"""The replay after a backup came back: what has a tombstone is removed again, and the state is made anew."""

from __future__ import annotations

from typing import Any

from frmu.clients.tasks.erasure import PurgeShard
from frmu.errors import ClientsUnavailableError
from frmu.federation import in_order
from frmu.report.figures import measure
from frmu.selection.network import read_policy
from frmu.services.erasure import UNTOUCHED, locate_pending
from frmu.services.integrity import note_shards
from frmu.services.proof import exact_verdict
from frmu.services.purge import purge_runs
from frmu.services.session import Session

__all__ = ["replay"]


def replay(session: Session) -> dict[str, Any]:
    """Remove again whatever has a tombstone: for shards, checkpoints or runs that were restored from a backup."""
    result = _replay(session)
    session.deliver()
    return result | session.waiting()


def _replay(session: Session) -> dict[str, Any]:
    session.tracker.need(UNTOUCHED)
    inventory = session.sites.look()
    if inventory.away:
        raise ClientsUnavailableError.of(inventory.away)
    clients = sorted(set(inventory.held) - session.sites.left(inventory.held))
    federation = session.sites.federation(session.sites.locations_of(clients, inventory))
    locate_pending(session, federation, session.ledger.standing(), None)
    tombstoned = session.ledger.tombstones(clients, begun=True)
    purged = in_order(federation.run(PurgeShard(tombstoned, session.key), on=clients))
    back = {reply.client: reply.record["dropped"] for reply in purged if reply.record["dropped"]}
    note_shards(session, {reply.client: reply.record["digest"] for reply in purged if reply.record["rows"]})
    for file in sorted(session.workspace.policies.glob("*.safetensors")):
        if read_policy(file).digest in session.ledger.history.retired():
            file.unlink()
    session.workspace.training.unlink(missing_ok=True)  # what it learned from may have come back with it
    with session.run("replay", session.holds(clients)) as run:
        done = session.method.apply(federation, session.method.init(), session.network())
        session.checkpoint(done.state)
        removed = purge_runs(session, list(back), run.id)
        verdict = exact_verdict(session, done.state, session.ledger.tombstones(federation.clients, begun=True))
        passed = verdict.passed and removed.left.clean
        learned_from = {"run": run.id, "clients": session.owners(client.name for client in done.state.clients)}
        made = {"state": done.state.digest, "contents": done.state.contents}
        body = {"records": sum(back.values()), **made, "passed": passed}
        session.ledger.note("replayed", body | learned_from)
        if passed and done.state.clients:
            session.register(run, done.state)
        session.log_round(run, done)
        run.metrics(measure(federation, done) | {"records_that_had_come_back": sum(back.values())})
    return {
        "came_back": back,
        "state_digest": done.state.digest,
        "verified": passed,
        "level": verdict.level if removed.left.clean else "L0",
        "mlflow": removed.to_json(),
        "pending": len(session.ledger.pending()),
        "run_id": run.id,
    }
