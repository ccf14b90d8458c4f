"""The purge of what was learned from records that go: policies of this store, runs and versions of MLflow."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

from frmu.policy.checkpoint import lineage_of
from frmu.selection.network import Network, read_policy
from frmu.services.session import Session
from frmu.tracking.lineage import Purged
from frmu.tracking.sync import Taint, empty, left_in

__all__ = ["purge_runs", "retire"]


def retire(session: Session, ids: Sequence[str], touched: Collection[str]) -> list[str]:
    """Rule out and delete every policy that learned at a client whose records are going, a half-trained one too."""
    for file in sorted(session.workspace.policies.glob("*.safetensors")):
        if _tainted(network := read_policy(file), touched):
            session.ledger.note("retired", {"policy": network.digest, "requests": ids})
            file.unlink()
    if session.workspace.training.exists():
        digest, lineage = lineage_of(session.workspace.training)
        if lineage is None or set(lineage.get("clients", [])) & set(touched):
            session.ledger.note("retired", {"policy": digest, "requests": ids})
            session.workspace.training.unlink()
    while _tainted(network := session.network(), touched):  # one that policy.file names
        session.ledger.note("retired", {"policy": network.digest, "requests": ids})
    lines = [line for line in session.ledger.lines(["retired"]) if set(line.body["requests"]) & set(ids)]
    return sorted({line.body["policy"] for line in lines})


def _tainted(network: Network, touched: Collection[str]) -> bool:
    return bool(set(network.lineage.get("clients", [])) & set(touched))


def purge_runs(session: Session, touched: Sequence[str], keep: str, requests: Sequence[str] = ()) -> Purged:
    """Remove from MLflow what was learned from some clients: by lineage tags, and by what the ledger knows itself.

    From the outbox first: that is done, and noted, even where MLflow goes away now.
    """
    owners = set(session.owners(touched))
    whole, known = session.config.erasure.runs == "delete", session.ledger.history.runs(owners)
    taint = Taint(owners, known, (keep,), session.ledger.history.clean_states())
    gone = empty(session.outbox, taint, whole)
    if gone.files or gone.runs:
        session.ledger.note("emptied", {"requests": list(requests), "runs": list(gone.runs), "files": gone.files})
    purged = session.registry.purge(owners, keep=(keep,), delete_runs=whole, known=known)
    told = [line.body for line in session.ledger.lines(["emptied"]) if set(line.body["requests"]) & set(requests)]
    runs = {*purged.runs, *gone.runs, *(run for body in told for run in body["runs"])}
    files = sum(body["files"] for body in told) if requests else gone.files
    left = replace(purged.left, carriers=(*purged.left.carriers, *left_in(session.outbox, taint)))
    return replace(purged, runs=tuple(sorted(runs)), left=left, outbox=files)
