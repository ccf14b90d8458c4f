"""The shards as they were last written: the ledger keeps a keyed digest of each, so a change since is found and named.

A digest is written down before a shard is put in place (`staged`) and confirmed after it (`written`): a job that was
killed in between leaves one of two that are known. Digests are keyed, so the ledger tells nothing about records.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from frmu.errors import FederationError, StoreError
from frmu.services.session import Session
from frmu.verification.exact import left_behind

__all__ = ["changed_shards", "check_shards", "note_shards", "standing_check"]


def note_shards(session: Session, digests: Mapping[str, str], staged: bool = False) -> None:
    """Write down the digests of shards (SHA-256, by client) that the ledger does not know as the last ones."""
    known = session.ledger.history.shards()
    codes = {session.ledger.owner(client)[:8]: _keyed(session, client, digest) for client, digest in digests.items()}
    if new := {owner: code for owner, code in sorted(codes.items()) if known.get(owner) != (code,)}:
        session.ledger.note("staged" if staged else "written", {"shards": new})


def changed_shards(session: Session, digests: Mapping[str, str]) -> list[str]:
    """Return the clients whose shard, by its digest, is not one that this federation wrote there last."""
    known = session.ledger.history.shards()
    last = {client: known.get(session.ledger.owner(client)[:8]) for client in digests}
    return [
        client
        for client, digest in sorted(digests.items())
        if (codes := last[client]) is not None and _keyed(session, client, digest) not in codes
    ]


def check_shards(session: Session, digests: Mapping[str, str]) -> None:
    """Raise `FederationError` where a shard was changed or swapped since it was last written.

    Not while a drain is unfinished: one that was killed may have purged a shard and not said so yet.
    """
    if any(request.stage == "planned" for request in session.ledger.pending()):
        return
    if changed := changed_shards(session, digests):
        first = changed[0]
        raise FederationError(
            f'client "{first}": its shard is not as it was last written'
            f"{f' (nor are those of {len(changed) - 1} more)' if changed[1:] else ''}: somebody changed it, or put "
            "another in its place. Nothing was touched. If a backup came back run `frmu drain --replay`; `frmu train` "
            "imports the records anew"
        )


def standing_check(session: Session) -> dict[str, Any]:
    """Check that shards and state are those that were last written, and hold nothing erased; nothing is rebuilt.

    Gives plain JSON types. It costs one reading of the shards, and proves less than `verify`: that what was proven
    when a request was closed has not been changed since.
    """
    lines, state = session.ledger.check(), session.state()
    inventory = session.sites.look()
    resting = session.sites.at_rest(inventory)
    tombstoned = session.ledger.tombstones(resting.clients, begun=True)
    left, scanned, digests = left_behind(resting, tombstoned, session.key)
    changed, known = changed_shards(session, digests), state.contents in session.ledger.history.clean_contents()
    missing = [client.name for client in state.clients if client.records and client.name not in digests]
    return {
        "receipt": None,
        "level": "quick",
        "verified": known and not (left or changed or missing),
        "state_digest": state.digest,
        "state_in_ledger": known,
        "ledger_lines": lines,
        "tombstoned_records_left": left,
        "records_scanned": scanned,
        "shards_changed": changed,
        "shards_missing": missing,
    } | session.watch.facts()


def _keyed(session: Session, client: str, digest: str) -> str:
    if not digest:
        raise StoreError(f'client "{client}": no digest of its shard was told')
    return hmac.new(session.key, f"shard {client}\0{digest}".encode(), hashlib.sha256).hexdigest()[:32]
