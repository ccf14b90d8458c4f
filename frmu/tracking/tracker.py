"""Runs, metrics, receipts and pictures in MLflow, or in the outbox while it is away.

Scalars, receipts and pictures go in; sums and rows never do.

What a run is told becomes one step after another, and a step goes to MLflow at once. A server may be away, though,
and training does not need it: the first step that it does not take, and all that follow in this job, go into the
outbox, from where `frmu.tracking.sync` takes them later, by the same call. `frmu.tracking.availability` says what away
means.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from frmu.errors import TrackingUnavailableError
from frmu.tracking.availability import check_uri, public
from frmu.tracking.backend import Backend, ModelRegistry
from frmu.tracking.mlflow_backend import MlflowBackend
from frmu.tracking.queue import Op, Queue, QueuedRun, key

__all__ = ["Run", "Tracker", "public"]
_TABLES = "mlflow.loggedArtifacts"  # which artifacts its page shows as tables


class Run:
    """One MLflow run, open until its context ends; while MLflow is away, one in the outbox.

    `id` is MLflow's, or the key that the run is found by once it is delivered.
    """

    def __init__(self, tracker: Tracker, name: str, tags: Mapping[str, str], parent: str | None) -> None:
        self._tracker, self._name, self._tags, self._parent = tracker, name, dict(tags), parent
        self._key, self._start = key(), _now()
        self._box: QueuedRun | None = None
        self._run = tracker.create(self._key, name, self._tags, parent, self._start)
        if self._run is None:
            self._waiting()  # at once: what is nested in it comes after it

    @property
    def id(self) -> str:
        """Return what the run is called."""
        return self._run or self._key

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a value longer than MLflow takes is cut."""
        self._take(Op("params", {key: str(value)[:6000] for key, value in values.items()}))

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step, in batches; one that is not a number says nothing and is left out."""
        now = _now()
        entries = [[_name(key), float(value), now, step] for key, value in values.items() if value == value]
        self._take(Op("metrics", {"entries": entries}))

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._tags |= values
        self._take(Op("tags", dict(values)))

    def json(self, value: Any, name: str) -> None:
        """Keep a JSON document as an artifact."""
        self._document(json.dumps(value, indent=2, default=str), name)

    def table(self, value: Mapping[str, Any], name: str) -> None:
        """Keep a table (`columns`, and `data` as rows) as a JSON artifact that MLflow's page shows as one."""
        self._document(json.dumps(value), name)
        self.tags({_TABLES: json.dumps([{"path": name, "type": "table"}])})

    def picture(self, path: Path) -> None:
        """Keep a picture as an artifact."""
        self._take(Op("file", {}, path))

    def _document(self, text: str, name: str) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            self.picture(path)

    def model(self, state: Path, digest: str, tags: Mapping[str, str]) -> None:
        """Keep a state in the outbox, to be registered when the run is delivered."""
        self._waiting().add(Op("model", {"state": digest, "tags": dict(tags)}, state))

    def end(self, status: str = "FINISHED") -> None:
        """Say that it is over."""
        self._take(Op("end", {"status": status, "time": _now()}))

    def _take(self, op: Op) -> None:
        run = self._run
        if self._box is None and run and self._tracker.take(run, op):
            return
        self._waiting().add(op)

    def _waiting(self) -> QueuedRun:
        if self._box is None:
            self._box = self._tracker.keep(self._key, self._name, self._tags, self._parent, self._start, self._run)
        return self._box


class Tracker:
    """A connection to a tracking store; opening it proves that the store answers.

    Where there is an outbox a server may be away: `away` says why, and nothing more is tried.
    """

    backend: Backend

    def __init__(self, uri: str, experiment: str, artifacts: Path, outbox: Queue | None = None) -> None:
        self.uri, self.outbox, self.away = uri, outbox, ""
        self._open: list[str] = []
        check_uri(uri)
        host = urlparse(uri).netloc.rpartition("@")[2]
        try:
            self.backend = MlflowBackend(uri, experiment, artifacts, known=outbox is not None and outbox.met(host))
        except TrackingUnavailableError as error:
            self.leave(error)
        else:
            if outbox is not None and uri.startswith("http"):
                outbox.meet(host)

    # -- where a server may be away ---------------------------------------------------------------------------

    def need(self, why: str = "") -> None:
        """Raise `TrackingUnavailableError` where MLflow is away: for what cannot do without, and `why`."""
        if self.away:
            raise TrackingUnavailableError(f"{self.away}. {why}" if why else self.away)

    def leave(self, error: TrackingUnavailableError) -> None:
        """Take MLflow for away from now on; without an outbox that is an error."""
        if self.outbox is None:
            raise error
        self.away = str(error)

    def take(self, run: str, op: Op) -> bool:
        """Return whether MLflow took a step of a run."""
        return self._tried(lambda: self.backend.apply(run, op))

    def _tried(self, call: Callable[[], Any]) -> bool:
        if self.away:
            return False
        try:
            call()
        except TrackingUnavailableError as error:
            self.leave(error)
            return False
        return True

    def keep(
        self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int, run: str | None
    ) -> QueuedRun:
        """Room in the outbox for what a run is told from now on."""
        if self.outbox is None:
            raise TrackingUnavailableError(self.away)
        return self.outbox.begin(key, name, tags, parent, start, run)

    def create(self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int) -> str | None:
        """Begin a run in MLflow; returns its id, None while that is away."""
        made: list[str] = []
        self._tried(lambda: made.append(self.backend.create(key, name, tags, parent, start)))
        return made[0] if made else None

    # -- runs -------------------------------------------------------------------------------------------------

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        """Return a JSON artifact of the newest finished runs of each of some names, and when each began (ISO 8601).

        Oldest first. Runs that do not have it, or have it no more, are passed over.
        """
        self.need()
        return self.backend.documents(names, artifact, most)

    def registry(self, name: str) -> ModelRegistry:
        """Return the model registry of an experiment; raises `TrackingUnavailableError` while MLflow is away."""
        self.need()
        return self.backend.registry(name)

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """A run, nested in the one that is open, if any; it ends as FAILED where an error passes through."""
        run = Run(self, name, tags or {}, self._open[-1] if self._open else None)
        self._open.append(run.id)
        try:
            yield run
        except BaseException:
            with suppress(Exception):  # the error under way is the one to tell
                run.end("FAILED")
            raise
        finally:
            self._open.pop()
        run.end()


def _now() -> int:
    return int(time.time() * 1000)


def _name(key: str) -> str:
    """A metric name that MLflow takes.

    >>> _name("influence/NIA (South)+W40")
    'influence/NIA _South__W40'
    >>> _name("attention/../x")
    'attention/_/x'
    """
    plain = "".join(ch if ch.isalnum() or ch in "_-. /:" else "_" for ch in key)
    return "/".join("_" if part.strip(".") == "" else part for part in plain.split("/"))
