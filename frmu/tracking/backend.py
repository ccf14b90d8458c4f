"""The seam between frmu and what keeps runs and models: MLflow where somebody works, memory in tests of other things.

A backend raises `TrackingUnavailableError` while it is away; what is done about that, `frmu.tracking.tracker` decides.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from frmu.tracking.lineage import Left, Purged, Version
from frmu.tracking.queue import Op

__all__ = ["Backend", "ModelRegistry"]


class ModelRegistry(Protocol):
    """The states of one experiment as versions of one model, and the purge of what carries them."""

    name: str

    def register(self, run_id: str, state_file: Path, tags: Mapping[str, str]) -> str:
        """Keep a state as a new version; returns its number."""

    def promote(self, number: str) -> None:
        """Make a version the champion."""

    def champion(self) -> Version | None:
        """Return the version in use, if there is one."""

    def versions(self) -> list[Version]:
        """Return all versions that were not deleted, oldest first."""

    def fetch(self, number: str, folder: Path) -> Path:
        """Put the state of a version into a folder; returns the file."""

    def purge(
        self,
        owners: Collection[str],
        keep: Collection[str] = (),
        delete_runs: bool = False,
        known: Collection[str] = (),
    ) -> Purged:
        """Remove what carries a state of these owners, but for the runs in `keep`, then look again."""

    def scan(self, owners: Collection[str], keep: Collection[str] = ()) -> Left:
        """Return what the store still has of these owners."""

    def left_of(self, runs: Collection[str]) -> Left:
        """Return what the store still has of some runs."""


class Backend(Protocol):
    """One experiment in a store of runs."""

    def create(self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int) -> str:
        """Begin a run at `start`, in ms since 1970; returns its id. `key` is what `find` finds it by."""

    def apply(self, run: str, op: Op) -> None:
        """Do one step of a run; done twice it is done once."""

    def find(self, key: str) -> str | None:
        """Return the id of the run that was created with a key, if there is one; one that was deleted, too."""

    def alive(self, run: str) -> bool:
        """Return whether nobody deleted a run; one that is not there at all is an error: this may be another store."""

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        """Return a JSON artifact of the newest finished runs of each of some names, and when each began; oldest first.

        Runs that do not have it, or have it no more, are passed over.
        """

    def experiment_tag(self, name: str) -> str | None:
        """Return a tag of the experiment itself, None where it has none of this name."""

    def tag_experiment(self, name: str, text: str) -> None:
        """Set a tag of the experiment itself."""

    def registry(self, name: str) -> ModelRegistry:
        """Return the model registry of an experiment of this name."""
