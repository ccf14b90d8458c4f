"""A ledger under the eyes of its witness, of whatever kind it is.

It is asked when a ledger is opened, before anything is done on the word of that ledger, and shown its last line after:
a job that is killed in between leaves a witness that saw less than there is, never one that saw more. An MLflow that is
away can neither be asked nor shown anything. Training goes on, and says so; a drain needs MLflow in any case.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from frmu.config import Config
from frmu.errors import LedgerError, TrackingUnavailableError
from frmu.ledger.ledger import Ledger
from frmu.storage.witness import FileWitness, Witness
from frmu.storage.workspace import Anchor, Workspace
from frmu.tracking.queue import Queue
from frmu.tracking.tracker import Tracker

__all__ = ["Watch", "tracker_of"]

_log = logging.getLogger(__name__)


def tracker_of(config: Config, outbox: Queue | None = None) -> Tracker:
    """The tracking store of a config; with an outbox it may be away."""
    workspace = Workspace(config.folder, config.key_file)
    return Tracker(workspace.tracking_uri(config), config.experiment, config.folder.absolute() / "mlartifacts", outbox)


class Watch:
    """A ledger and its witness, if the config names one; `away` says why it could not be asked.

    `tracker` is called only where the witness is the tracking store.
    """

    def __init__(self, config: Config, ledger: Ledger, tracker: Callable[[], Tracker]) -> None:
        self._ledger = ledger
        self.away = ""
        self.witness: Witness | None = None
        try:
            self.witness = _witness_of(config, ledger, tracker)
            self.named = self.witness is not None
        except TrackingUnavailableError as error:
            self.named = True
            self._leave(error)

    @property
    def watching(self) -> bool:
        """Return whether a folder that is put back as a whole would have been noticed."""
        return self.witness is not None and not self.away

    @property
    def kind(self) -> str | None:
        """Return the kind of witness that was asked, None where none was."""
        return self.witness.kind if self.witness is not None and not self.away else None

    def facts(self) -> dict[str, Any]:
        """Return whether there is a witness, where, and why it could not be asked; plain JSON types."""
        place = self.witness.place if self.witness is not None else ""
        return {"witness": self.named, "witness_place": place, "witness_away": self.away}

    def check(self) -> None:
        """Raise `LedgerError` where the ledger has not the line that the witness saw last, or the witness is gone."""
        if self.witness is None or self.away:
            return
        try:
            seen = self.witness.last()
        except TrackingUnavailableError as error:
            self._leave(error)
            return
        if seen is None and self._noted() == self.witness.code:
            raise LedgerError(
                f"{self.witness.place}: the witness of this ledger is gone. Put it back; or, to go on with one that "
                "saw nothing, give store.witness another name"
            )
        if seen is not None and not (seen[0] > 0 and self._ledger.follows(*seen)):
            raise LedgerError(
                f"{self.witness.place}: the witness saw line {seen[0]} of this ledger, and it is not there: the "
                "working folder was put back as a whole from an older copy, or the witness is of another federation. "
                "Restore the newer one"
            )

    def show(self, anchor: Anchor) -> None:
        """Show the witness the last line of a ledger that it was asked about."""
        if self.witness is None or self.away:
            return
        try:
            self.witness.keep(anchor)
        except TrackingUnavailableError as error:
            self._leave(error)

    def changed(self) -> bool:
        """Return whether the ledger knows of another witness than this one, or of none."""
        return not self.away and self._code() != self._noted()

    def note(self) -> None:
        """Write down that there is a witness, so that one that is gone is missed; not before it has seen something."""
        if not self.away:
            self._ledger.note("witnessed", {"witness": self._code()})

    def _code(self) -> str:
        return self.witness.code if self.witness is not None else ""

    def _noted(self) -> str:
        noted = [line.body["witness"] for line in self._ledger.lines(["witnessed"])]
        return noted[-1] if noted else ""

    def _leave(self, error: TrackingUnavailableError) -> None:
        self.away = str(error)
        _log.warning("The witness cannot be asked or shown anything now: %s", self.away)


def _witness_of(config: Config, ledger: Ledger, tracker: Callable[[], Tracker]) -> Witness | None:
    named = config.witness
    if named is None or isinstance(named, Path):
        return None if named is None else FileWitness(named)
    if named == "tracking":
        from frmu.tracking.witness import TrackingWitness

        return TrackingWitness(tracker(), config.experiment, ledger.store_id)
    from frmu.ledger.witness import DatabaseWitness

    return DatabaseWitness(named, ledger.store_id)
