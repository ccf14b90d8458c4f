"""Runs, metrics, receipts and pictures in MLflow. With the registry the only room that knows mlflow.

Without a server the store is SQLite in the working folder. Metrics go in batches: one call costs what a
hundred cost. Scalars, receipts and pictures go in; sums and rows never do.

What a run is told becomes one step after another, and a step goes to MLflow at once. A server may be away, though,
and training does not need it: the first step that it does not take, and all that follow in this job, go into the
outbox, from where `frmu.tracking.sync` takes them later, by the same call. `frmu.tracking.availability` says what away
means.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from frmu.errors import TrackingError, TrackingUnavailableError
from frmu.tracking.availability import check_uri, public, reaching
from frmu.tracking.queue import Op, Queue, QueuedRun, key

__all__ = ["RUN", "Run", "Tracker", "apply", "public", "reaching"]

_BATCH = 1000  # MLflow takes so many metrics a call
RUN = "frmu.run"  # the name that a run has before it has one in MLflow: one that was made is not made again
_PARENT = "mlflow.parentRunId"
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # seconds, doubled: three tries that are refused take about three
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


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
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_text(json.dumps(value, indent=2, default=str), encoding="utf-8")
            self.picture(path)

    def picture(self, path: Path) -> None:
        """Keep a picture as an artifact."""
        self._take(Op("file", {}, path))

    def model(self, state: Path, digest: str, tags: Mapping[str, str]) -> None:
        """Keep a state in the outbox, to be registered when the run is delivered."""
        self._waiting().add(Op("model", {"state": digest, "tags": dict(tags)}, state))

    def end(self, status: str = "FINISHED") -> None:
        """Say that it is over."""
        self._take(Op("end", {"status": status, "time": _now()}))

    def _take(self, op: Op) -> None:
        run = self._run
        if self._box is None and run and self._tracker.tried(lambda client: apply(client, run, op)):
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

    def __init__(self, uri: str, experiment: str, artifacts: Path, outbox: Queue | None = None) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self.uri, self.outbox, self.away = uri, outbox, ""
        self.experiment_id = ""
        self._served = uri.startswith("http")
        self._open: list[str] = []
        check_uri(uri)
        host = urlparse(uri).netloc.rpartition("@")[2]
        try:
            with reaching(uri, known=outbox is not None and outbox.met(host)):
                self._connect(experiment, artifacts)
        except TrackingUnavailableError as error:
            self.leave(error)
        else:
            if outbox is not None and self._served:
                outbox.meet(host)

    def _connect(self, experiment: str, artifacts: Path) -> None:
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        self.client = MlflowClient(tracking_uri=self.uri)
        found = self.client.get_experiment_by_name(experiment)
        if found is None:
            place = artifacts.as_uri() if self.uri.startswith("sqlite:") else None
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on training runs
            self.experiment_id = self.client.create_experiment(experiment, artifact_location=place, tags=kind)
        elif found.lifecycle_stage == "deleted":
            raise TrackingError(f'the MLflow experiment "{experiment}" was deleted; set store.experiment')
        else:
            self.experiment_id = found.experiment_id

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

    def tried(self, call: Callable[[Any], Any]) -> bool:
        """Return whether MLflow took something."""
        if self.away:
            return False
        try:
            with reaching(self.uri):
                call(self.client)
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
        """A new run in MLflow; None while that is away."""
        made = []
        more = ({_PARENT: parent} if parent else {}) | ({RUN: key} if self._served else {})
        self.tried(
            lambda client: made.append(
                client.create_run(self.experiment_id, start_time=start, run_name=name, tags={**more, **tags})
            )
        )
        return made[0].info.run_id if made else None

    def find(self, key: str) -> str | None:
        """The run in MLflow that had this name before, if there is one; one that was deleted, too."""
        from mlflow.entities import ViewType

        found = self.client.search_runs([self.experiment_id], f"tags.`{RUN}` = '{key}'", run_view_type=ViewType.ALL)
        return found[0].info.run_id if found else None

    def alive(self, run: str) -> bool:
        """Return whether nobody deleted a run; one that is not there at all is an error, for this may be another
        server."""
        return bool(self.client.get_run(run).info.lifecycle_stage == "active")

    # -- runs -------------------------------------------------------------------------------------------------

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        """A JSON artifact of the newest finished runs of each of some names, and when each began; oldest first.

        Runs that do not have it, or have it no more, are passed over.
        """
        self.need()
        found = []
        with reaching(self.uri), tempfile.TemporaryDirectory() as folder:
            for name in names:
                asked = f"attributes.run_name = '{name}' and attributes.status = 'FINISHED'"
                for run in self.client.search_runs(
                    [self.experiment_id], asked, max_results=most, order_by=["attributes.start_time DESC"]
                ):
                    if any(file.path == artifact for file in self.client.list_artifacts(run.info.run_id)):
                        place = Path(folder) / run.info.run_id
                        place.mkdir()
                        text = Path(self.client.download_artifacts(run.info.run_id, artifact, str(place))).read_text()
                        found.append((run.info.start_time, json.loads(text)))
        began = sorted(found, key=lambda one: one[0])
        return [(_time(milliseconds), document) for milliseconds, document in began]

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


def apply(client: Any, run: str, op: Op) -> None:
    """Do one step of a run in MLflow; done twice it is done once."""
    from mlflow.entities import Metric, Param, RunTag

    if op.kind == "params":
        client.log_batch(run, params=[Param(key, value) for key, value in op.body.items()])
    elif op.kind == "metrics":
        entries = [Metric(*entry) for entry in op.body["entries"]]
        for at in range(0, len(entries), _BATCH):
            client.log_batch(run, metrics=entries[at : at + _BATCH])
    elif op.kind == "tags":
        client.log_batch(run, tags=[RunTag(key, value) for key, value in op.body.items()])
    elif op.kind == "file":
        client.log_artifact(run, str(op.data))
    elif op.kind == "end":
        client.set_terminated(run, status=op.body["status"], end_time=op.body["time"])


def _now() -> int:
    return int(time.time() * 1000)


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")


def _name(key: str) -> str:
    """A metric name that MLflow takes.

    >>> _name("influence/NIA (South)+W40")
    'influence/NIA _South__W40'
    >>> _name("attention/../x")
    'attention/_/x'
    """
    plain = "".join(ch if ch.isalnum() or ch in "_-. /:" else "_" for ch in key)
    return "/".join("_" if part.strip(".") == "" else part for part in plain.split("/"))
