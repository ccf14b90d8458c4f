"""A witness in the tracking store: a tag of the experiment, a ledger each.

MLflow may be away. Then nothing is known, and nothing is shown to it: what it is told later must not hide what it saw.
"""

from __future__ import annotations

import json

from frmu.errors import StoreError, TrackingUnavailableError
from frmu.storage.witness import code_of
from frmu.storage.workspace import Anchor
from frmu.tracking.availability import public
from frmu.tracking.tracker import Tracker

__all__ = ["TAG", "TrackingWitness"]

TAG = "frmu.witness."  # and the store's id


class TrackingWitness:
    """The tag of a store, by its `Ledger.store_id`; raises `TrackingUnavailableError` while MLflow is away."""

    kind = "tracking"

    def __init__(self, tracker: Tracker, experiment: str, store: str) -> None:
        self._tracker, self._tag = tracker, f"{TAG}{store}"
        self.place = f'{public(tracker.uri)}, experiment "{experiment}"'
        self.code = code_of(f"{public(tracker.uri).replace('***@', '')} {experiment}")

    def last(self) -> tuple[int, str] | None:
        """Return the line that it saw last, None where it saw nothing yet."""
        self._tracker.need()
        try:
            text = self._tracker.backend.experiment_tag(self._tag)
            if text is None:
                return None
            seen = json.loads(text)
            return int(seen["line"]), str(seen["hash"])
        except TrackingUnavailableError as error:
            self._tracker.leave(error)
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise StoreError(
                f"{self.place}: the witness cannot be read: {error!r}; restore the tag {self._tag}, or set "
                "store.witness"
            ) from None

    def keep(self, anchor: Anchor) -> None:
        """Show it the ledger's last line."""
        self._tracker.need()
        try:
            self._tracker.backend.tag_experiment(self._tag, json.dumps({"line": anchor.number, "hash": anchor.digest}))
        except TrackingUnavailableError as error:
            self._tracker.leave(error)
            raise
