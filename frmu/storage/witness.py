"""The witness: the ledger's last line, kept outside the working folder.

The anchor in the folder tells an older ledger from the one that stood there. A folder that is put back as a whole
brings the anchor with it; only what stands elsewhere can tell. Elsewhere is a file (here), a table in a database
(`frmu.ledger.witness`) or the tracking store (`frmu.tracking.witness`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from frmu.errors import StoreError
from frmu.storage.workspace import Anchor

__all__ = ["FileWitness", "Witness", "code_of"]


class Witness(Protocol):
    """A place outside the working folder that keeps one line of the ledger."""

    @property
    def kind(self) -> str:
        """Return "file", "database" or "tracking"."""

    @property
    def place(self) -> str:
        """Return what messages call it, without a password."""

    @property
    def code(self) -> str:
        """Return a code of its place for the ledger: a path or an address may name a person."""

    def last(self) -> tuple[int, str] | None:
        """Return the number and the digest of the line that it saw last, None where it saw nothing yet.

        Raises `StoreError` where it cannot be read, `TrackingUnavailableError` where it may be back by itself.
        """

    def keep(self, anchor: Anchor) -> None:
        """Show it the ledger's last line; raises what `last` raises."""


def code_of(place: str) -> str:
    """Return the code of a place, 16 hex digits."""
    return hashlib.sha256(place.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class FileWitness:
    """A file, on another disk or machine if it can be."""

    path: Path
    kind: str = "file"

    @property
    def place(self) -> str:
        """The path."""
        return str(self.path)

    @property
    def code(self) -> str:
        """A code of the path."""
        return code_of(str(self.path.resolve()))

    def last(self) -> tuple[int, str] | None:
        """Return the line that it saw last, None where it saw nothing yet; raises `StoreError`."""
        try:
            anchor = Anchor.read(self.path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(
                f"{self.path}: the witness cannot be read: {error}; restore it, or set store.witness"
            ) from None
        return anchor.number, anchor.digest

    def keep(self, anchor: Anchor) -> None:
        """Show it the ledger's last line; raises `StoreError` where its place is not to be written."""
        try:
            anchor.write(self.path, aside=self.path.with_name(f".{self.path.name}.partial"))
        except OSError as error:
            raise StoreError(
                f"{self.path}: the witness cannot be written: {error.strerror}; set store.witness"
            ) from None
