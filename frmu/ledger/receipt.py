"""A receipt: what became of one request, on what evidence, signed.

It is a JSON object that stands alone: `check_receipt` needs neither the ledger nor the federation, only the
receipt and the public key that the federation is known by.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from frmu.errors import LedgerError
from frmu.ledger.keys import Keys, signed_by

__all__ = ["FORMAT", "Receipt", "check_receipt", "issue", "read_receipt"]

FORMAT = "frmu-receipt/2"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The outcome of one request.

    `outcome` is "erased" or "nothing held". `level` is "L5" when the state's digest equals that of a federation
    that never had the records, else the highest level that holds ("L1" purged, "L0" located only); it is "L5 of those
    searched" where the clients in `not_searched` had left or were away: they are searched before a record of theirs is
    learned from again. `removed` counts records by client; `searched` what was looked through; `evidence` holds
    digests and checks; `purge` what was done beyond the model; `proofs` what later verifications found; `not_covered`
    says what lies outside.
    """

    experiment: str
    store: str
    request: str
    kind: str
    outcome: str
    requester: str
    reason: str
    received: str
    due: str
    closed: str
    searched: Mapping[str, int]
    removed: Mapping[str, int]
    level: str
    verified: bool
    before_digest: str
    state_digest: str
    seconds: float
    bytes: int
    requests_in_batch: int
    evidence: Mapping[str, Any]
    purge: Mapping[str, Any]
    not_covered: tuple[str, ...]
    not_searched: tuple[str, ...] = ()
    proofs: tuple[Mapping[str, Any], ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = asdict(self)
        return {
            "format": FORMAT,
            **plain,
            "not_covered": list(self.not_covered),
            "not_searched": list(self.not_searched),
            "proofs": list(self.proofs),
        }


def issue(receipt: Mapping[str, Any], keys: Keys, line: int, digest: str) -> dict[str, Any]:
    """Sign a receipt, anchored in the ledger's last line."""
    body = {**receipt, "ledger": {"line": line, "digest": digest}, "public_key": keys.public}
    return {**body, "signature": keys.sign(body)}


def read_receipt(text: str) -> dict[str, Any]:
    """A receipt from its JSON text; raises `ValueError` where two readers could see two receipts in it."""
    found = json.loads(text, object_pairs_hook=_once, parse_constant=_number)
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f'"{twice[0]}" stands in it twice')
    return dict(pairs)


def _number(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def check_receipt(receipt: Mapping[str, Any], public_key: str | None = None) -> None:
    """Raise `LedgerError` unless a receipt bears the signature of the key it names, and that is `public_key`.

    Without `public_key` only the receipt's wholeness is proven, not who signed it.
    """
    if receipt.get("format") != FORMAT:
        raise LedgerError(f"not a receipt of this frmu: its format is {receipt.get('format')!r}, not {FORMAT!r}")
    if public_key is not None and not re.fullmatch(r"\s*[0-9a-fA-F]{64}\s*", public_key):
        raise LedgerError(f"a public key is 64 hex digits, got {public_key[:80]!r}")
    if public_key is not None and receipt.get("public_key") != public_key.strip().lower():
        raise LedgerError(
            f"the receipt was signed with the key {receipt.get('public_key')}, not with {public_key.strip()}: it is "
            "from another federation, or forged"
        )
    later = ("not_searched",)  # what receipts of earlier frmus do not have
    if missing := [one.name for one in fields(Receipt) if one.name not in (*receipt, *later)]:
        raise LedgerError(f"not a whole receipt: it has no {missing[0]}")
    body = {name: value for name, value in receipt.items() if name != "signature"}
    if not signed_by(str(receipt.get("public_key")), body, str(receipt.get("signature"))):
        raise LedgerError("the receipt's signature does not hold: the receipt was changed after it was signed")
