"""Requests in, withdrawn, listed: what needs no federation, and may be called while a job is at work.

A request needs only the ledger and the store's key, so it can come from another process, or from another machine
where `workspace.ledger` is a PostgreSQL URL and `workspace.key` the key's file. Where the shards lie on this machine
they are searched at once, for the answer; the search that counts is the drain's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_args

from frmu.clients.tasks.erasure import LocateRecords
from frmu.config import Config
from frmu.data.row_filter import parse_row_filter
from frmu.data.shard import clients_in
from frmu.data.tombstones import tombstone
from frmu.errors import LedgerError, RequestError, StoreError, near_miss
from frmu.federation import in_order
from frmu.ledger.ledger import Ledger
from frmu.ledger.request import OPEN, EraseRequest, Stage
from frmu.report.figures import forgotten
from frmu.runtime.local import LocalFederation
from frmu.selection.network import current_policy
from frmu.services.witness import Watch, tracker_of
from frmu.storage.checkpoint import load_state, settled
from frmu.storage.workspace import Anchor, Workspace
from frmu.tracking.queue import Queue
from frmu.tracking.tracker import public
from frmu.types import Selection

__all__ = ["DECLARED", "erase", "ledger_of", "receipt_of", "requests", "status", "withdraw"]

DECLARED = "declared in data.private"  # the requester where a column of the data asks
LONGEST = 1000  # characters of a record id, a subject, a client, a reason, a requester


@contextmanager
def ledger_of(config: Config) -> Iterator[Ledger]:
    """The ledger of a config that was trained before, here or, where `workspace.ledger` is declared, elsewhere."""
    workspace = Workspace(config.folder, config.key_file) if config.store.ledger else Workspace.existing(config)
    anchor = workspace.anchor()
    ledger = Ledger(workspace.ledger_url(config), workspace.existing_key(), make=False)
    try:
        if anchor is not None:
            check_anchor(ledger, anchor)
        Watch(config, ledger, lambda: tracker_of(config, _met(workspace))).check()
        yield ledger
    finally:
        ledger.close()


def _met(workspace: Workspace) -> Queue | None:
    """The outbox, where there is one: it knows whether the tracking server has answered before."""
    return Queue(workspace.outbox) if workspace.outbox.is_dir() else None


def check_anchor(ledger: Ledger, anchor: Anchor) -> None:
    """Raise `LedgerError` where the ledger has not the line that it had after the last job."""
    if not ledger.follows(anchor.number, anchor.digest):
        raise LedgerError(
            f"line {anchor.number} is not the one that the ledger had after the last job: an older copy was put in its "
            "place, or lines were cut off. Restore the ledger"
        )


def erase(
    config: Config, selection: Selection, reason: str = "", due_days: int | None = None, requester: str = ""
) -> dict[str, Any]:
    """Write an erase request into the ledger, where the next drain finds it; the request as plain JSON types.

    What nobody holds is recorded too, and the drain will answer "nothing held". Raises `RequestError` for what cannot
    be meant: a column that the config does not declare, a filter that is none, a client that nobody knows, an id that
    no record can have.
    """
    check_selection(config, selection)
    if selection.kind == "slice":
        selection = replace(selection, rule=config.slice_rule)
    _short(reason=reason, requester=requester)
    with ledger_of(config) as ledger:
        found = _search(config, selection)
        counts = {client: len(names) for client, names in found.items()}
        # From now on the records are refused, so that a new import before the drain cannot hide them from it.
        due = config.erasure.due if due_days is None else due_days
        request = ledger.receive(selection, reason, due, requester, found)
        unknown = _unknown(config, selection, found)
    return {
        "request": request.id,
        "kind": selection.kind,
        "records": sum(counts.values()),
        "clients": counts,
        "not_held": unknown,
        "searched_here": bool(clients_in(Workspace(config.folder, config.key_file).shards)),
        "due": request.due.isoformat(timespec="seconds"),
        "stage": request.stage,
    }


def check_selection(config: Config, selection: Selection) -> None:
    """Raise `RequestError` for a selection that this config gives no meaning to."""
    if selection.kind == "subject" and config.data.subject is None:
        raise RequestError("a request by subject needs data.subject in the config")
    if selection.kind == "between":
        if config.data.time is None:
            raise RequestError("a request by time window needs data.time in the config")
        if selection.between is None or not selection.between[0] < selection.between[1]:
            raise RequestError("a time window must be FROM TO with FROM before TO (TO itself is not in it)")
    if selection.kind == "where":
        parse_row_filter(selection.where or "", config)
    for name, text in (("subject", selection.subject), ("client", selection.client), ("slice", selection.slice)):
        if text is not None and (reason := malformed(text)):
            raise RequestError(f"{text[:40]!r} cannot be a {name}: {reason}")
    for record in selection.records:
        if reason := malformed(record):
            raise RequestError(f"{record[:40]!r} cannot be a record id: {reason}; nothing was requested")
    clients = clients_in(Workspace(config.folder, config.key_file).shards)
    if selection.client is not None and clients and selection.client not in clients:
        raise RequestError(f'no client "{selection.client}" holds a shard{near_miss(selection.client, clients)}')


def malformed(record: str) -> str:
    """Return why a text cannot be a record id; empty where it can.

    >>> malformed("h0-1"), malformed("")
    ('', 'it is empty')
    """
    if not record:
        return "it is empty"
    if len(record) > LONGEST:
        return f"it is longer than {LONGEST:,} characters"
    if any((character < " " and character != "\t") or character == "\x7f" for character in record):
        return "it holds a control character"
    if any("\ud800" <= character <= "\udfff" for character in record):
        return "it is not Unicode text"
    return ""


def _short(**texts: str) -> None:
    for name, text in texts.items():
        if text and (reason := malformed(text.replace("\n", " ").replace("\t", " "))):
            raise RequestError(f"{name} must be plain text of at most {LONGEST:,} characters: {reason}")


def _search(config: Config, selection: Selection) -> dict[str, list[str]]:
    """The tombstones of what a request means at the clients whose shards lie here, by client."""
    workspace = Workspace(config.folder, config.key_file)
    clients = clients_in(workspace.shards)
    federation = LocalFederation(settled(config, workspace.state), clients, workspace.folder)
    replies = in_order(federation.run(LocateRecords({"": selection}, workspace.existing_key())))
    return {reply.client: reply.record["found"][""] for reply in replies if reply.record["found"]}


def _unknown(config: Config, selection: Selection, found: Mapping[str, Collection[str]]) -> list[str]:
    """Return the record ids asked for that nobody holds here."""
    if not selection.records or not clients_in(config.folder / "shards"):
        return []
    key = Workspace(config.folder, config.key_file).existing_key()
    hits = {client: frozenset(names) for client, names in found.items()}
    total = sum(len(names) for names in hits.values())
    if total >= len(selection.records) and len(hits) == 1:
        return []
    return [
        record
        for record in selection.records
        if not any(tombstone(key, client, record) in names for client, names in hits.items())
    ]


def receipt_of(config: Config, request: str) -> dict[str, Any]:
    """The signed receipt of a closed request, as it was last filed."""
    with ledger_of(config) as ledger:
        return find_receipt(ledger, request)


def find_receipt(ledger: Ledger, request: str) -> dict[str, Any]:
    """Find a request's receipt in a ledger; raises `RequestError` that says why there is none."""
    receipts = {receipt["request"]: receipt for receipt in ledger.receipts()}
    stages = {one.id: one.stage for one in ledger.requests()} if request not in receipts else {}
    if request in receipts:
        return receipts[request]
    why = {"closed": "its key was shredded", "withdrawn": "it was withdrawn"}.get(stages.get(request, ""), "it is open")
    if request in stages:
        raise RequestError(f"request {request} has no receipt that could be read: {why}")
    raise RequestError(f'no receipt "{request}"{near_miss(request, receipts)}')


def withdraw(config: Config, request: str) -> dict[str, Any]:
    """Take a request back that no drain has begun with."""
    with ledger_of(config) as ledger:
        ledger.withdraw(request)
    return {"request": request, "stage": "withdrawn"}


def requests(
    config: Config, stages: Collection[str] = get_args(Stage), due_within: int | None = None
) -> list[dict[str, Any]]:
    """Requests in some stages, the most urgent first; `due_within` days leaves only the open ones due by then."""
    with ledger_of(config) as ledger:
        now = ledger.now()
        rows = [_row(request, request.days_left(now)) for request in ledger.requests(stages)]
    if due_within is not None:
        rows = [row for row in rows if row["stage"] in OPEN and row["days_left"] <= due_within]
    return sorted(rows, key=lambda row: (row["stage"] not in OPEN, row["due"]))


def _row(request: EraseRequest, days_left: int) -> dict[str, Any]:
    return {
        "request": request.id,
        "kind": request.kind,
        "stage": request.stage,
        "requester": request.requester,
        "reason": request.reason,
        "received": request.received.isoformat(timespec="seconds"),
        "due": request.due.isoformat(timespec="seconds"),
        "days_left": days_left,
    }


def status(config: Config) -> dict[str, Any]:
    """Return where an experiment stands: its state, its clients, what is pending and by when."""
    workspace = Workspace.existing(config)
    state = load_state(workspace.state)
    if state is None:
        raise StoreError(f"{workspace.state}: no checkpoint; run `frmu train` first")
    now_settled = settled(config, workspace.state)
    with ledger_of(config) as ledger:
        now, open_ = ledger.now(), ledger.pending()
        meant = ledger.meant([r.id for r in open_])
        pending = [{"request": r.id, "kind": r.kind, "stage": r.stage, "days_left": r.days_left(now)} for r in open_]
        private = sum(meant.get(r.id, 0) for r in open_ if r.requester == DECLARED)
        closed = len(ledger.requests(["closed"]))
        policy = current_policy(config.policy_file, workspace.policies, ledger.history.retired())
        clean = state.digest in ledger.history.clean_states()
        public_key = ledger.public_key
    return {
        "state_digest": state.digest,
        "trained_with_this_config": state.config == now_settled.fingerprint(),
        "split_until": str(now_settled.split.until) if config.split.rolling else None,
        "state_is_clean": clean,
        "clients": len(state.clients),
        "records": sum(client.records for client in state.clients),
        "forgotten": forgotten(state),
        "policy": policy.digest,
        "policy_learned_here_from": list(policy.lineage.get("clients", [])),
        "pending": pending,
        "away": workspace.away(),
        "private_to_go": private,
        "receipts": closed,
        "public_key": public_key,
        "folder": str(workspace.folder),
        "tracking": public(workspace.tracking_uri(config)),
        "outbox": {"runs": Queue(workspace.outbox).count(), "folder": str(workspace.outbox)},
    }
