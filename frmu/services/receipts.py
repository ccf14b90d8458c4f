"""Receipts: who was searched, the level that may be claimed, what is not covered."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.types import State

__all__ = ["new_receipt", "not_covered", "not_searched", "open_part", "scoped", "unsearched"]


_COVER = (
    "copies of the records outside frmu, backups of its folder and of the ledger's database among them",
    "what people or other programs have read from the model, from MLflow or from receipts before this drain",
)
_WHOLE = "a working folder that is put back as a whole from an older copy (set store.witness to have it noticed)"
_NETS = "what the encoders that are files ({files}) have learned elsewhere, before they were frozen"
_SOURCE = "the files that data.path points at (set store.purge_source to have them rewritten as well)"


def not_searched(session: Session, inventory: Inventory, state: State, searched: Collection[str]) -> dict[str, str]:
    """Return the clients that took part once and were not searched, by the first 8 digits of their codes.

    Each by name where this folder still knows it; by code otherwise.
    """
    names = {
        *session.workspace.client_sites(),
        *inventory.held,
        *inventory.away,
        *(client.name for client in state.clients),
    }
    known = session.ledger.history.known() | {
        session.ledger.owner(name)[:8] for name in (*session.workspace.client_sites(), *inventory.away)
    }
    gone = {owner[:8] for owner in session.ledger.history.gone()}
    out = known - gone - {session.ledger.owner(client)[:8] for client in searched}
    if not out:
        return {}
    names |= set(session.sites.look(source=True).rows)  # who left has no shard here, and may have a file
    by_code = {session.ledger.owner(name)[:8]: name for name in sorted(names)}
    return {code: by_code.get(code, f"client {code}") for code in sorted(out)}


def scoped(level: str, unsearched: Collection[str]) -> str:
    """Return a level as it may be claimed where some clients were not searched."""
    return f"{level} of those searched" if level == "L5" and unsearched else level


def unsearched(clients: Collection[str]) -> tuple[str, ...]:
    """Return what a receipt does not cover where clients were not searched; nothing where all were."""
    told = ", ".join(clients)
    return (f"the records of {told}: not searched, and searched before one is learned from again",) * bool(clients)


def not_covered(session: Session, inventory: Inventory, rewritten: bool) -> tuple[str, ...]:
    """Return what a receipt does not speak of, a line each."""
    orphan = f"sums in the memory of a server that a killed job left at {session.sites.orphaned_server} (stop it there)"
    left = "the shards of clients that have left, at sites that are away (they are removed when these are back)"
    nets = sorted(Path(name).name for name in session.config.model.encoder_files.values())
    away = bool(session.sites.left(session.workspace.client_sites()) and session.sites.left(inventory.away))
    return (
        *((_SOURCE,) * (not rewritten)),
        *((orphan,) * bool(session.sites.orphaned_server)),
        *((left,) * away),
        *((_NETS.format(files=", ".join(nets)),) * bool(nets)),
        *((_WHOLE,) * (not session.watch.watching)),
        *_COVER,
    )


def open_part(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return a receipt without what may name somebody: MLflow is no place that the ledger can shred."""
    named = ("reason", "requester", "signature", "removed", "searched", "purge", "not_searched", "not_covered")
    counts = {name: sum(receipt[name].values()) for name in ("removed", "searched")}
    return {name: value for name, value in receipt.items() if name not in named} | counts


def new_receipt(
    request: EraseRequest, removed: Mapping[str, int], shared: Mapping[str, Any], purge: Mapping[str, Any]
) -> Receipt:
    """Build one request's receipt: what is its own, and what it shares with its batch."""
    return Receipt(
        request=request.id,
        kind=request.kind,
        outcome="erased" if removed else "nothing held",
        requester=request.requester,
        reason=request.reason,
        received=request.received.isoformat(timespec="seconds"),
        due=request.due.isoformat(timespec="seconds"),
        removed=removed,
        purge=purge,
        **shared,
    )
