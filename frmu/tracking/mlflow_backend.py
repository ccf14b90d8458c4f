"""MLflow as the backend of runs and models. With the registry the only module that knows mlflow.

Without a server the store is SQLite in the working folder. Metrics go in batches: one call costs what a hundred cost.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from frmu.errors import TrackingError
from frmu.tracking.availability import reaching
from frmu.tracking.lineage import RUN
from frmu.tracking.queue import Op
from frmu.tracking.registry import Registry

__all__ = ["MlflowBackend"]

_BATCH = 1000  # MLflow takes so many metrics a call
_PARENT = "mlflow.parentRunId"
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",  # seconds, doubled: three tries that are refused take about three
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowBackend:
    """One experiment of a tracking store; opening it proves that the store answers.

    `artifacts` is where files go if the store is SQLite; a server knows a place of its own. `known` says that the
    host has answered before.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path, known: bool = True) -> None:
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        logging.getLogger("alembic").setLevel(logging.ERROR)
        logging.getLogger("urllib3").setLevel(logging.ERROR)
        self._uri = uri
        with reaching(uri, known):
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.CRITICAL)
            self.client = MlflowClient(tracking_uri=uri)
            self.experiment_id = self._experiment(experiment, artifacts)

    def _experiment(self, name: str, artifacts: Path) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is None:
            place = artifacts.as_uri() if self._uri.startswith("sqlite:") else None
            kind = {"mlflow.experimentKind": "custom_model_development"}  # the page opens on training runs
            return str(self.client.create_experiment(name, artifact_location=place, tags=kind))
        if found.lifecycle_stage == "deleted":
            raise TrackingError(f'the MLflow experiment "{name}" was deleted; set store.experiment')
        return str(found.experiment_id)

    def create(self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int) -> str:
        """Begin a run; the key is kept as a tag where a server may be away."""
        more = ({_PARENT: parent} if parent else {}) | ({RUN: key} if self._uri.startswith("http") else {})
        with reaching(self._uri):
            run = self.client.create_run(self.experiment_id, start_time=start, run_name=name, tags={**more, **tags})
        return str(run.info.run_id)

    def apply(self, run: str, op: Op) -> None:
        """Do one step of a run; done twice it is done once."""
        from mlflow.entities import Metric, Param, RunTag

        with reaching(self._uri):
            if op.kind == "params":
                self.client.log_batch(run, params=[Param(key, value) for key, value in op.body.items()])
            elif op.kind == "metrics":
                entries = [Metric(*entry) for entry in op.body["entries"]]
                for at in range(0, len(entries), _BATCH):
                    self.client.log_batch(run, metrics=entries[at : at + _BATCH])
            elif op.kind == "tags":
                self.client.log_batch(run, tags=[RunTag(key, value) for key, value in op.body.items()])
            elif op.kind == "file":
                self.client.log_artifact(run, str(op.data))
            elif op.kind == "end":
                self.client.set_terminated(run, status=op.body["status"], end_time=op.body["time"])

    def find(self, key: str) -> str | None:
        """Return the run that was created with a key, if there is one; one that was deleted, too."""
        from mlflow.entities import ViewType

        with reaching(self._uri):
            asked = f"tags.`{RUN}` = '{key}'"
            found = self.client.search_runs([self.experiment_id], asked, run_view_type=ViewType.ALL)
        return found[0].info.run_id if found else None

    def alive(self, run: str) -> bool:
        """Return whether nobody deleted a run; one that is not there at all is an error."""
        with reaching(self._uri):
            return bool(self.client.get_run(run).info.lifecycle_stage == "active")

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        """Return a JSON artifact of the newest finished runs of each of some names, and when each began;
        oldest first.

        Runs that do not have it, or have it no more, are passed over.
        """
        found = []
        with reaching(self._uri), tempfile.TemporaryDirectory() as folder:
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

    def experiment_tag(self, name: str) -> str | None:
        """Return a tag of the experiment itself, None where it has none of this name."""
        with reaching(self._uri):
            tags: Mapping[str, str] = self.client.get_experiment(self.experiment_id).tags
        return tags.get(name)

    def tag_experiment(self, name: str, text: str) -> None:
        """Set a tag of the experiment itself."""
        with reaching(self._uri):
            self.client.set_experiment_tag(self.experiment_id, name, text)

    def registry(self, name: str) -> Registry:
        """Return the model registry beside the runs."""
        return Registry(self.client, self._uri, self.experiment_id, name)


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat(timespec="seconds")
