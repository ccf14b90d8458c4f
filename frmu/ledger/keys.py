"""The uses of the store's one secret: keyed hashes, sealed texts, signatures.

Every use has a key of its own, derived by HKDF (RFC 5869), so that one backup keeps them all and none gives another
away. What may have to be forgotten is sealed under a fresh key that is thrown away with it (crypto-shredding):
ChaCha20-Poly1305 (RFC 8439). Receipts are signed with Ed25519 (RFC 8032).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from frmu.errors import LedgerError

__all__ = ["Keys", "canonical", "new_key", "seal", "signed_by", "unseal"]


def new_key() -> bytes:
    """32 random bytes."""
    return ChaCha20Poly1305.generate_key()


def canonical(value: Any) -> bytes:
    """JSON in the one form that is hashed and signed: sorted keys, no spaces, UTF-8.

    >>> canonical({"b": 1, "a": "ü"}).decode()
    '{"a":"ü","b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def seal(key: bytes, value: Any, place: str) -> str:
    """A JSON value as base64 text that only `key` opens, and only in the `place` that it was sealed for.

    >>> key = new_key()
    >>> unseal(key, seal(key, {"reason": "asked"}, "r1"), "r1")
    {'reason': 'asked'}
    """
    nonce = os.urandom(12)
    sealed = ChaCha20Poly1305(key).encrypt(nonce, canonical(value), place.encode())
    return base64.b64encode(nonce + sealed).decode()


def unseal(key: bytes, text: str, place: str) -> Any:
    """The inverse of `seal`; raises `LedgerError` where the text was changed, moved or sealed with another key."""
    try:
        raw = base64.b64decode(text, validate=True)
        return json.loads(ChaCha20Poly1305(key).decrypt(raw[:12], raw[12:], place.encode()))
    except (InvalidTag, ValueError):
        raise LedgerError("a sealed text was changed, or sealed with another key; restore the ledger") from None


class Keys:
    """The keys derived from a store's secret."""

    def __init__(self, secret: bytes) -> None:
        self._chain, self._wrap, sign = (_derive(secret, purpose) for purpose in ("chain", "wrap", "sign"))
        self._private = Ed25519PrivateKey.from_private_bytes(sign)

    def keyed(self, text: str) -> str:
        """A keyed hash, 64 hex digits: without the secret it says nothing of the text."""
        return hmac.new(self._chain, text.encode(), hashlib.sha256).hexdigest()

    def wrap(self, value: Any, place: str) -> str:
        """Seal a JSON value with the store's own key."""
        return seal(self._wrap, value, place)

    def unwrap(self, text: str, place: str) -> Any:
        """The inverse of `wrap`."""
        return unseal(self._wrap, text, place)

    @property
    def public(self) -> str:
        """The public key of signatures, 64 hex digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, value: Mapping[str, Any]) -> str:
        """The signature of a JSON object, 128 hex digits."""
        return self._private.sign(canonical(value)).hex()


def signed_by(public: str, value: Mapping[str, Any], signature: str) -> bool:
    """Return whether a signature of a JSON object was made with the private half of a public key.

    >>> keys = Keys(b"k" * 32)
    >>> signed_by(keys.public, {"a": 1}, keys.sign({"a": 1})), signed_by(keys.public, {"a": 2}, keys.sign({"a": 1}))
    (True, False)
    """
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), canonical(value))
    except (InvalidSignature, ValueError):
        return False
    return True


def _derive(secret: bytes, purpose: str) -> bytes:
    return HKDF(SHA256(), 32, salt=b"frmu/2", info=purpose.encode()).derive(secret)
