"""Trained states as model versions in MLflow, and their removal. The other room that knows mlflow.

Lineage is kept in tags: a run or a version that carries something learned from records names its clients by their
codes in `frmu.holds.0`, `.1`, ... A purge finds by these tags, removes, and then looks at the store anew, because
MLflow says deleted and means hidden: a deleted run, version or logged model stays as a row, and its files stay where
they were. What cannot be removed is listed and never passed over.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from frmu.tracking.availability import reaching
from frmu.tracking.lineage import (
    DETAIL,
    HOLDS,
    OF,
    RUN,
    Found,
    Left,
    Purged,
    Version,
    counted,
    held,
    listed,
    model_name,
    row_of,
    version_of,
)
from frmu.tracking.queue import is_key

__all__ = ["Registry"]
_FILE = "state.safetensors"
_ALIAS = "champion"
_LOGGED = "m-"  # how MLflow begins the ids of logged models
_MLMODEL = """\
flavors:
  python_function:
    data: {file}
    loader_module: frmu.services.prediction
    python_version: {python}
mlflow_version: {mlflow}
run_id: {run}
"""


class Registry:
    """The states of one experiment as versions of one registered model."""

    def __init__(self, client: Any, uri: str, experiment_id: str, name: str) -> None:
        self._client = client
        self._uri = uri
        self._experiment = experiment_id
        self.name = model_name(name)

    def register(self, run_id: str, state_file: Path, tags: Mapping[str, str]) -> str:
        """Keep a state as artifact `model/` of a run and as a new version; returns its number."""
        with reaching(self._uri), tempfile.TemporaryDirectory() as folder:
            import mlflow

            (Path(folder) / _FILE).symlink_to(state_file.resolve(strict=True))
            python = ".".join(map(str, sys.version_info[:3]))
            text = _MLMODEL.format(file=_FILE, python=python, mlflow=mlflow.__version__, run=run_id)
            (Path(folder) / "MLmodel").write_text(text)
            self._client.log_artifacts(run_id, folder, "model")
            source = f"{self._client.get_run(run_id).info.artifact_uri}/model"
            every = {**tags, OF: self._experiment}
            with _unless("RESOURCE_ALREADY_EXISTS"):
                self._client.create_registered_model(self.name)
            return str(self._client.create_model_version(self.name, source, run_id, tags=every).version)

    def promote(self, number: str) -> None:
        """Make a version the champion."""
        with reaching(self._uri):
            self._client.set_registered_model_alias(self.name, _ALIAS, number)

    def champion(self) -> Version | None:
        """The version in use, if there is one."""
        found = None
        with reaching(self._uri), _unless("RESOURCE_DOES_NOT_EXIST"):
            number = self._client.get_registered_model(self.name).aliases.get(_ALIAS)
            found = self._client.get_model_version(self.name, number) if number else None
        return version_of(found) if found else None

    def versions(self) -> list[Version]:
        """All versions that were not deleted, oldest first."""
        with reaching(self._uri):
            rows = _pages(self._client.search_model_versions, filter_string=f"name='{self.name}'")
            return sorted(map(version_of, rows), key=lambda version: int(version.number))

    def fetch(self, number: str, folder: Path) -> Path:
        """Download the state of a version into a folder; its own digest tells whether it is whole."""
        with reaching(self._uri):
            place = self._client.get_model_version_download_uri(self.name, number)
            folder.mkdir(parents=True, exist_ok=True)
            return Path(self._files(place).download_artifacts(_FILE, str(folder)))

    def purge(
        self,
        owners: Collection[str],
        keep: Collection[str] = (),
        delete_runs: bool = False,
        known: Collection[str] = (),
    ) -> Purged:
        """Remove what carries a state of these owners, but for the runs in `keep`, then look again.

        `known` are runs that carry one whatever their tags say now.

        Of tainted runs those tagged `DETAIL` are deleted, and all with `delete_runs`; the rows of others stay, with
        their numbers. Where the store is a server, runs can only be marked deleted: `mlflow gc` has to run there.
        """
        with reaching(self._uri):
            found = self._find(owners, keep, known)
            notes: list[str] = []
            for version in found.versions:  # first: their tags and sources are what they are found by
                self._forget(version)
            removed = sum(self._clear(place, notes) for place in found.places)
            for run in found.runs:
                self._drop_traces(run.info.run_id)
            for model in found.models:
                self._drop_model(model, notes)
            for run in found.runs:  # last: after a crash the next purge finds them by their tags
                if delete_runs or DETAIL in run.data.tags:
                    self._drop_run(run, notes)
            if found.versions:
                notes.append(f"emptied rows of {listed(found.names)}: number, dates and the path where the files were")
            if found:
                self._compact(notes)
            again = self._find(owners, keep, known)
            # The places of before, too: a run that is gone from the store no longer tells where its files were.
            left = self._look(replace(again, places=tuple(dict.fromkeys(again.places + found.places))))
        runs = tuple(run.info.run_id for run in found.runs)
        return Purged(runs, removed, found.names, Left(left.carriers, (*left.remains, *notes)))

    def scan(self, owners: Collection[str], keep: Collection[str] = ()) -> Left:
        """Return what the store still has of these owners: active and deleted runs, files, versions, logged models."""
        with reaching(self._uri):
            return self._look(self._find(owners, keep))

    def left_of(self, runs: Collection[str]) -> Left:
        """Return what the store still has of some runs: files, versions, logged models."""
        with reaching(self._uri):
            return self._look(self._find((), (), runs))

    def _find(self, owners: Collection[str], keep: Collection[str], known: Collection[str] = ()) -> Found:
        from mlflow.entities import ViewType

        wanted, kept, client = set(owners), set(keep), self._client
        if not wanted and not known:
            return Found()
        query = {"experiment_ids": [self._experiment], "filter_string": f"tags.`{HOLDS}0` LIKE '%'"}
        rows = _pages(client.search_runs, run_view_type=ViewType.ALL, max_results=1000, **query)
        runs = [run for run in rows if held(run.data.tags) & wanted and run.info.run_id not in kept]
        there = {run.info.run_id for run in runs}
        others = [run for name in known if name not in there | kept for run in self._run(name)]
        runs += [run for run in others if run.info.run_id not in there | kept]
        ids = {run.info.run_id for run in runs}
        models = [
            model
            for model in self._models()
            if model.source_run_id in ids or (held(model.tags) & wanted and model.source_run_id not in kept)
        ]
        ids |= {model.model_id for model in models}
        places = [run.info.artifact_uri for run in runs] + [model.artifact_location for model in models]

        def carries(version: Any) -> bool:
            place = self._place(version)
            ours = version.tags.get(OF) == self._experiment and bool(held(version.tags) & wanted)
            inside = version.run_id in ids or _mentions(place, ids)
            if not inside and not (ours and version.run_id not in kept and not _mentions(place, kept)):
                return False
            # A source outside the tainted runs was named by somebody; only our own tags make it ours to empty.
            if ours and not _mentions(place, ids | kept) and not place.startswith(("runs:", "models:")):
                places.append(place)
            return True

        versions = self._versions(self._asked(ids, tuple(places)), carries)
        return Found(tuple(runs), tuple(models), versions, tuple(dict.fromkeys(places)))

    def _asked(self, ids: Collection[str], places: Collection[str]) -> list[str]:
        """Filters that find every version that may carry a state of some runs and logged models.

        A server may hold the versions of many others, so they are asked for by what can tie one to us: our own tag,
        the run it names, a source that lies beside the files in `places`, or that names an id.
        """
        asked = [f"tags.`{OF}` = '{self._experiment}'"]
        asked += [f"run_id IN ({', '.join(map(repr, some))})" for some in _parts(sorted(ids))]
        asked += [f"source_path LIKE '%{_pattern(folder)}%'" for folder in _beside(ids, places)]
        asked += ["source_path LIKE 'runs:%'"] if ids else []
        return asked + [f"source_path LIKE 'models:/{each}%'" for each in sorted(ids) if each.startswith(_LOGGED)]

    def _versions(self, asked: list[str], carries: Callable[[Any], bool]) -> tuple[Any, ...]:
        """The versions that carry a state, and then those that were copied from one of these, under any name."""
        found: dict[tuple[str, str], Any] = {}
        named, seen = set(), set()
        while asked:
            for version in _pages(self._client.search_model_versions, filter_string=asked.pop(0)):
                if (name := (version.name, str(version.version))) in seen:
                    continue
                seen.add(name)
                if carries(version):
                    found[name] = version
                    if version.name not in named:
                        named.add(version.name)
                        asked.append(f"source_path LIKE 'models:/{_pattern(version.name)}%'")
        return tuple(found.values())

    def _run(self, run_id: str) -> Iterator[Any]:
        """A run by its id, in whatever experiment of this store; one that is gone gives nothing.

        One that began in the outbox is found by the name it had there.
        """
        if is_key(run_id):
            from mlflow.entities import ViewType

            query = {"experiment_ids": [self._experiment], "filter_string": f"tags.`{RUN}` = '{run_id}'"}
            yield from self._client.search_runs(run_view_type=ViewType.ALL, **query)
            return
        with _unless("RESOURCE_DOES_NOT_EXIST"):
            yield self._client.get_run(run_id)

    def _models(self) -> Iterator[Any]:
        """The logged models of the experiment, with those that were deleted where the store can be asked."""
        yield from _pages(self._client.search_logged_models, experiment_ids=[self._experiment])
        if store := self._keeper("_get_deleted_logged_models"):  # a search hides them, and their files are there
            for number in store._get_deleted_logged_models():
                model = store.get_logged_model(number, allow_deleted=True)
                if model.experiment_id == self._experiment:
                    yield model

    def _look(self, found: Found) -> Left:
        carriers = [f"model version {name}" for name in found.names]
        carriers += [f"logged model {model.model_id}" for model in found.models]
        for place in found.places:
            if self._elsewhere(place):
                carriers.append(f"perhaps files in {place}: this host does not see the server's folder; look there")
            elif files := list(_walk(self._files(place))):
                carriers.append(f"{counted(files, 'file')} in {place}: {listed(files)}")
        for run in found.runs:
            if traces := self._traces(run.info.run_id):
                carriers.append(f"{counted(traces, 'trace')} of run {run.info.run_id}")
        return Left(tuple(carriers), tuple(map(row_of, found.runs)))

    def _place(self, version: Any) -> str:
        """Where the files of a version are; a copy names the version it was made of."""
        source = str(version.source or "")
        if source.startswith("models:"):
            with _unless("RESOURCE_DOES_NOT_EXIST"):
                return f"{source} {self._client.get_model_version_download_uri(version.name, version.version)}"
        return source

    def _forget(self, version: Any) -> None:
        """Delete a version, its tags before it: MLflow keeps the tags of a deleted version and hides them."""
        with _unless("RESOURCE_DOES_NOT_EXIST"):  # somebody was faster
            for key in sorted(version.tags, key=lambda key: key.startswith(HOLDS)):
                self._client.delete_model_version_tag(version.name, version.version, key)
            self._client.delete_model_version(version.name, version.version)  # and the aliases that point at it

    def _clear(self, place: str, notes: list[str]) -> int:
        if self._elsewhere(place):
            return 0  # the look says so
        from mlflow.exceptions import MlflowException

        files = list(_walk(self._files(place)))
        try:
            if files:
                self._files(place).delete_artifacts()
        except (MlflowException, OSError, NotImplementedError) as error:
            notes.append(f"files in {place} could not be removed: {str(error)[:200] or type(error).__name__}")
        return len(set(files) - set(_walk(self._files(place))))

    def _drop_traces(self, run_id: str) -> None:
        traces = self._traces(run_id)
        for at in range(0, len(traces), 100):
            self._client.delete_traces(self._experiment, trace_ids=traces[at : at + 100])

    def _traces(self, run_id: str) -> list[str]:
        query = {"locations": [self._experiment], "run_id": run_id, "include_spans": False}
        return [trace.info.trace_id for trace in _pages(self._client.search_traces, **query)]

    def _full(self, place: str) -> bool:
        """Return whether files may be left: their run or model then stays, for the next look finds them by it alone."""
        return self._elsewhere(place) or any(_walk(self._files(place)))

    def _drop_model(self, model: Any, notes: list[str]) -> None:
        if self._full(model.artifact_location):
            return
        with _unless("RESOURCE_DOES_NOT_EXIST"):  # one that was deleted before
            self._client.delete_logged_model(model.model_id)
        if store := self._keeper("_hard_delete_logged_model"):
            store._hard_delete_logged_model(model.model_id)
        else:
            notes.append(f"logged model {model.model_id} is only marked deleted: run `mlflow gc` on the server")

    def _drop_run(self, run: Any, notes: list[str]) -> None:
        if self._full(run.info.artifact_uri):
            return
        if run.info.lifecycle_stage != "deleted":
            self._client.delete_run(run.info.run_id)
        if store := self._keeper("_hard_delete_run"):
            store._hard_delete_run(run.info.run_id)
            if run.inputs and run.inputs.dataset_inputs:
                notes.append(f"the names of data sets logged with run {run.info.run_id}: MLflow has no call for them")

    def _keeper(self, method: str) -> Any:
        """The store itself, where it is a database that we hold; `mlflow gc` asks it in the same way."""
        store = self._client._tracking_client.store
        return store if hasattr(store, method) else None

    def _files(self, place: str) -> Any:
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        return get_artifact_repository(place, tracking_uri=self._uri)

    def _elsewhere(self, place: str) -> bool:
        """Return whether a path was written by a server on another host: here it would look like an empty folder."""
        parsed = urlparse(place)
        if not self._uri.startswith("http") or parsed.scheme not in ("", "file"):
            return False
        return not any(parent.exists() for parent in list(Path(url2pathname(parsed.path)).parents)[:2])

    def _compact(self, notes: list[str]) -> None:
        """Rewrite a SQLite file: a deleted row lives on in free pages where SQLite was built without secure delete."""
        path = self._uri.removeprefix("sqlite:///").split("?")[0]
        if path == self._uri or not path or path == ":memory:":
            return
        try:
            with closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as database:
                database.execute("VACUUM")  # whole or not at all; waits for readers
                database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as error:
            notes.append(f"deleted rows in free pages of {path}: not rewritten ({error}); purge again when it is idle")


def _pages(search: Callable[..., Any], **query: Any) -> Iterator[Any]:
    token: str | None = None
    while True:
        page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return


def _parts(names: Sequence[str], size: int = 100) -> list[Sequence[str]]:
    return [names[at : at + size] for at in range(0, len(names), size)]


def _pattern(name: str) -> str:
    """A name within a LIKE: what cannot stand there stands for any character, so more may be found, and none missed."""
    return "".join("_" if ch in "'\"\\`%" else ch for ch in name)


def _beside(ids: Collection[str], places: Collection[str]) -> list[str]:
    """The folders that the files of runs and models lie in, as the ends of their paths, each with a slash around it.

    >>> _beside(["ab12"], ["mlflow-artifacts:/7/ab12/artifacts"])
    ['/7/']
    """
    found = set()
    for place in places:
        for part in place.split("/"):
            if part in ids:
                found.add(f"/{place.partition(part)[0].rstrip('/').rpartition('/')[2]}/")
    return sorted(found)


def _walk(files: Any, path: str | None = None) -> Iterator[str]:
    for entry in files.list_artifacts(path):
        if entry.is_dir:
            yield from _walk(files, entry.path)
        else:
            yield entry.path


def _mentions(place: str, ids: Iterable[str]) -> bool:
    return any(each in place for each in ids if each)


@contextmanager
def _unless(code: str) -> Iterator[None]:
    """Pass over an MLflow error with this code, and over no other."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != code:
            raise
