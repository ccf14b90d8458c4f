"""The witness: the ledger's last line, kept outside the working folder.

The anchor in the folder tells an older ledger from the one that stood there. A folder that is put back as a whole
brings the anchor with it; only what stands elsewhere can tell.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from frmu.errors import StoreError
from frmu.storage.workspace import Anchor

__all__ = ["keep_witness", "place_of", "witnessed"]


def witnessed(path: Path) -> Anchor | None:
    """Return what the witness at `path` last saw, None where it saw nothing yet; raises `StoreError`."""
    try:
        return Anchor.read(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"{path}: the witness cannot be read: {error}; restore it, or set store.witness") from None


def place_of(path: Path | None) -> str:
    """Return a code of a witness's place for the ledger, empty for none: a path may name a person."""
    return "" if path is None else hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]


def keep_witness(path: Path, anchor: Anchor) -> None:
    """Show the witness the ledger's last line; raises `StoreError` where its place is not to be written."""
    try:
        anchor.write(path, aside=path.with_name(f".{path.name}.partial"))
    except OSError as error:
        raise StoreError(f"{path}: the witness cannot be written: {error.strerror}; set store.witness") from None
