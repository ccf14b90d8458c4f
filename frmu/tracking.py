"""Runs, metrics, receipts and pictures in MLflow. The only room that knows mlflow.

Without a server the store is SQLite in the working folder. Metrics go in batches: one call costs what a
hundred cost. Scalars, receipts and pictures go in; sums and rows never do.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from frmu.errors import TrackingError

__all__ = ["Run", "Tracker", "public", "reaching"]

_BATCH = 1000  # MLflow takes so many metrics a call
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}


class Run:
    """One MLflow run, open until its context ends."""

    def __init__(self, client: Any, run_id: str) -> None:
        self._client = client
        self.id = run_id

    def params(self, values: Mapping[str, Any]) -> None:
        """Log parameters; a value longer than MLflow takes is cut."""
        from mlflow.entities import Param

        with reaching():
            self._client.log_batch(self.id, params=[Param(key, str(value)[:6000]) for key, value in values.items()])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Log metrics at a step, in batches; one that is not a number says nothing and is left out."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        entries = [Metric(_name(key), float(value), now, step) for key, value in values.items() if value == value]
        with reaching():
            for at in range(0, len(entries), _BATCH):
                self._client.log_batch(self.id, metrics=entries[at : at + _BATCH])

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        with reaching():
            self._client.log_batch(self.id, tags=[RunTag(key, value) for key, value in values.items()])

    def json(self, value: Any, name: str) -> None:
        """Keep a JSON document as an artifact."""
        with reaching():
            self._client.log_text(self.id, json.dumps(value, indent=2, default=str), name)

    def picture(self, path: Path) -> None:
        """Keep a picture as an artifact."""
        with reaching():
            self._client.log_artifact(self.id, str(path))


class Tracker:
    """A connection to a tracking store; opening it proves that the store answers."""

    def __init__(self, uri: str, experiment: str, artifacts: Path) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.CRITICAL)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        with reaching(uri):
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.CRITICAL)
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            if found is None:
                place = artifacts.as_uri() if uri.startswith("sqlite:") else None
                kind = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on training runs
                self.experiment_id = self.client.create_experiment(experiment, artifact_location=place, tags=kind)
            elif found.lifecycle_stage == "deleted":
                raise TrackingError(f'the MLflow experiment "{experiment}" was deleted; set store.experiment')
            else:
                self.experiment_id = found.experiment_id
        self.uri = uri
        self._open: list[str] = []

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        """A JSON artifact of the newest finished runs of each of some names, and when each began; oldest first.

        Runs that do not have it, or have it no more, are passed over.
        """
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
        parent = {"mlflow.parentRunId": self._open[-1]} if self._open else {}
        with _open_run(self.client, self.experiment_id, name, {**parent, **(tags or {})}) as run:
            self._open.append(run.id)
            try:
                yield run
            finally:
                self._open.pop()


@contextmanager
def _open_run(client: Any, experiment: str, name: str, tags: Mapping[str, str]) -> Iterator[Run]:
    with reaching():
        run = client.create_run(experiment, run_name=name, tags=dict(tags))
    try:
        yield Run(client, run.info.run_id)
    except BaseException:
        with suppress(Exception):  # the error under way is the one to tell
            client.set_terminated(run.info.run_id, status="FAILED")
        raise
    with reaching():
        client.set_terminated(run.info.run_id)


@contextmanager
def reaching(uri: str = "") -> Iterator[None]:
    """Turn what MLflow raises into an error that names the knob."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        where = f" {public(uri)}" if uri else ""
        raise TrackingError(
            f"the tracking store{where} does not answer: {public(reason)}; check store.tracking"
        ) from None


def public(uri: str) -> str:
    """A URI without its password.

    >>> public("https://ada:secret@runs.example/x")
    'https://***@runs.example/x'
    """
    return re.sub(r"//[^@/\s]*@", "//***@", uri)


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
