"""What the registry keeps, what a purge removes from MLflow, and what it admits to leaving."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import types
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frmu.errors import TrackingError
from frmu.tracking.lineage import held, holds_tags, model_name
from frmu.tracking.registry import Registry
from frmu.tracking.tracker import Tracker

ADA, BOB, EVE = "0000000a", "0000000b", "0000000e"
STATE = b"a state" * 100


@dataclass
class House:
    """An experiment of its own, with a registry and the raw client beside it."""

    tracker: Tracker
    registry: Registry
    folder: Path
    client: Any = field(init=False)
    experiment: str = field(init=False)

    def __post_init__(self) -> None:
        self.client, self.experiment = self.tracker.backend.client, self.tracker.backend.experiment_id

    def run(self, *owners: str, **more: str) -> tuple[str, str]:
        """A run with a state of these owners; its id and the number of its version."""
        with self.tracker.run("train") as run:
            run.tags(holds_tags(owners))
            run.metrics({"attention/home 1": 0.5, "rmse": 1.0})
            run.json({"a": 1}, "summary.json")
            tags = {**holds_tags(owners), "frmu.state_digest": "d" * 64, **more}
            return run.id, self.registry.register(run.id, self.state(), tags)

    def state(self) -> Path:
        path = self.folder / "checkpoint"
        path.write_bytes(STATE)
        return path

    def files(self, run: str) -> list[str]:
        return [entry.path for entry in self.client.list_artifacts(run)]

    def at(self, model: str, number: str = "1") -> Any:
        return self.client.get_model_version(model, number)


def house(uri: str, folder: Path) -> House:
    tracker = Tracker(uri, str(folder), folder / "artifacts")
    return House(tracker, Registry(tracker.backend.client, uri, tracker.backend.experiment_id, str(folder)), folder)


@pytest.fixture(scope="module")
def uri() -> str:
    # One database: MLflow takes over a second to lay the tables of a new one.
    return f"sqlite:///{tempfile.mkdtemp(prefix='frmu-registry-')}/mlflow.db"


@pytest.fixture
def home(uri: str, tmp_path: Path) -> House:
    return house(uri, tmp_path)


def test_a_version_comes_back_as_it_went_in(home: House) -> None:
    assert home.registry.champion() is None
    assert home.registry.versions() == []
    run, number = home.run(ADA)
    assert home.registry.champion() is None
    home.registry.promote(number)
    champion = home.registry.champion()
    assert champion is not None
    assert (champion.number, champion.run_id, champion.digest) == (number, run, "d" * 64)
    assert held(champion.tags) == {ADA}
    second = home.run(ADA)[1]
    assert [version.number for version in home.registry.versions()] == [number, second]
    fetched = home.registry.fetch(number, home.folder / "new" / "folder")
    assert fetched == home.folder / "new" / "folder" / "state.safetensors"
    assert fetched.read_bytes() == STATE


@pytest.mark.filterwarnings("ignore")  # what importing mlflow.pyfunc says of itself
def test_mlflow_itself_serves_a_version(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow.pyfunc

    class Model:
        def __init__(self, path: str) -> None:
            self.state = Path(path).read_bytes()

        def predict(self, table: Any) -> Any:
            return [len(self.state)] * len(table)

    serving = types.ModuleType("frmu.services.prediction")
    serving._load_pyfunc = Model  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "frmu.services.prediction", serving)
    run, _ = home.run(ADA)
    place = home.client.get_run(run).info.artifact_uri
    model = mlflow.pyfunc.load_model(f"{place}/model")
    assert model.predict([1, 2]) == [len(STATE)] * 2


def test_a_tainted_run_loses_its_state_and_says_what_it_keeps(home: House) -> None:
    run, number = home.run(ADA, BOB)
    home.registry.promote(number)
    assert not home.registry.scan([ADA]).clean
    purged = home.registry.purge([ADA])
    assert purged.runs == (run,)
    assert purged.artifacts == 3
    assert purged.versions == (f"{home.registry.name}/{number}",)
    assert purged.left.clean
    assert any(run in each and "2 numbers (attention, rmse)" in each for each in purged.survivors)
    assert home.files(run) == []
    assert home.registry.champion() is None
    assert home.registry.versions() == []
    assert purged.to_json()["survivors"] == list(purged.survivors)
    left = home.registry.scan([ADA])
    assert left.clean
    assert [run in each for each in left.survivors] == [True]
    again = home.registry.purge([ADA])
    assert (again.artifacts, again.versions) == (0, ())


@pytest.mark.parametrize("delete_runs", [False, True])
def test_what_does_not_carry_them_keeps_everything(home: House, delete_runs: bool) -> None:
    other, number = home.run(BOB)
    fresh, newer = home.run(ADA)
    home.registry.promote(number)
    purged = home.registry.purge([ADA, EVE], keep=[fresh], delete_runs=delete_runs)
    assert (purged.runs, purged.artifacts, purged.versions, purged.survivors) == ((), 0, (), ())
    assert home.registry.purge([]).survivors == ()
    for run in (other, fresh):
        assert home.files(run) == ["model", "summary.json"]
    assert [version.number for version in home.registry.versions()] == [number, newer]
    assert home.registry.champion() == home.registry.versions()[0]


def test_the_codes_of_another_experiment_mean_other_clients(home: House, uri: str, tmp_path: Path) -> None:
    (tmp_path / "next").mkdir()
    neighbour = house(uri, tmp_path / "next")
    run, _ = neighbour.run(ADA)
    assert home.registry.purge([ADA], delete_runs=True).survivors == ()
    assert neighbour.files(run) == ["model", "summary.json"]
    assert len(neighbour.registry.versions()) == 1


def test_copies_under_other_names_go(home: House) -> None:
    run, number = home.run(ADA)
    _, safe = home.run(BOB)
    client, name = home.client, home.registry.name
    place = client.get_run(run).info.artifact_uri
    names = [f"{name}-{kind}" for kind in ("copy", "copy-of-copy", "by-run", "by-path", "by-version")]
    client.copy_model_version(f"models:/{name}/{number}", names[0])
    client.copy_model_version(f"models:/{names[0]}/1", names[1])
    for each in names[2:]:
        client.create_registered_model(each)
    client.create_model_version(names[2], "/somewhere/else", run)
    client.create_model_version(names[3], f"{place}/model")
    client.create_model_version(names[4], f"models:/{name}/{number}")
    client.copy_model_version(f"models:/{name}/{safe}", names[0])
    purged = home.registry.purge([ADA])
    assert set(purged.versions) == {f"{each}/1" for each in names} | {f"{name}/{number}"}
    assert purged.left.clean
    assert home.at(names[0], "2")
    assert [version.number for version in home.registry.versions()] == [safe]


def test_versions_of_others_are_not_asked_for(home: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may keep thousands of them."""
    home.run(ADA)
    home.run(BOB)
    client = home.client
    for name in ("theirs", "theirs too"):
        client.create_registered_model(name)
        client.create_model_version(name, str(tmp_path / "elsewhere" / "model"))
    search, seen = client.search_model_versions, []

    def spied(**query: Any) -> Any:
        page = search(**query)
        seen.extend(version.name for version in page)
        return page

    monkeypatch.setattr(client, "search_model_versions", spied)
    assert len(home.registry.purge([ADA]).versions) == 1
    assert home.registry.name in seen
    assert not {"theirs", "theirs too"} & set(seen)


def test_what_comes_back_is_found(home: House) -> None:
    run, _ = home.run(ADA)
    home.registry.purge([ADA])
    home.client.log_text(run, "weights", "back/state.txt")
    left = home.registry.scan([ADA])
    assert any("1 file" in each and "back/state.txt" in each for each in left.carriers)
    home.registry.purge([ADA])
    home.client.create_model_version(home.registry.name, home.client.get_run(run).info.artifact_uri, run)
    assert home.registry.scan([ADA]).carriers == (f"model version {home.registry.name}/2",)
    assert home.registry.purge([ADA]).left.clean


def test_a_run_somebody_deleted_still_has_files(home: House) -> None:
    run, _ = home.run(ADA)
    home.client.delete_run(run)
    assert any("3 files" in each for each in home.registry.scan([ADA]).carriers)
    purged = home.registry.purge([ADA])
    assert purged.artifacts == 3
    assert any(f"mlflow gc --run-ids {run}" in each for each in purged.survivors)


def test_a_version_outlives_its_run_and_is_found_by_its_tags(home: House) -> None:
    run, number = home.run(ADA)
    home.client.delete_run(run)
    home.client._tracking_client.store._hard_delete_run(run)
    state = next((home.folder / "artifacts").rglob("state.safetensors"))
    assert home.registry.purge([BOB]).versions == ()
    purged = home.registry.purge([ADA])
    assert purged.versions == (f"{home.registry.name}/{number}",)
    assert not state.exists()


def test_deleted_runs_leave_no_row(home: House, uri: str) -> None:
    run, _ = home.run(ADA)
    other, _ = home.run(BOB)
    purged = home.registry.purge([ADA], delete_runs=True)
    assert purged.runs == (run,)
    assert purged.left.clean
    assert not any(run in each for each in purged.survivors)
    assert home.registry.scan([ADA]).survivors == ()
    assert home.client.get_run(other).info.lifecycle_stage == "active"
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        for table in ("runs", "metrics", "latest_metrics", "params", "tags"):
            assert database.execute(f"SELECT COUNT(*) FROM {table} WHERE run_uuid = ?", (run,)).fetchone() == (0,)
        # MLflow keeps and hides the tags of a deleted version; ours went before it.
        query = "SELECT key FROM model_version_tags WHERE name = ? AND version = 1"
        assert database.execute(query, (home.registry.name,)).fetchall() == []
    assert f"{run}/summary.json".encode() not in Path(uri.removeprefix("sqlite:///")).read_bytes()


@pytest.mark.parametrize("deleted", [False, True])
def test_logged_models_of_a_tainted_run_go(home: House, deleted: bool) -> None:
    run, _ = home.run(ADA)
    safe, _ = home.run(BOB)
    models = [home.client.create_logged_model(home.experiment, source_run_id=each) for each in (run, safe)]
    for model in models:
        home.client.log_model_artifact(model.model_id, str(home.state()))
        home.client.finalize_logged_model(model.model_id, "READY")
    if deleted:  # a search hides it; its files are there
        home.client.delete_logged_model(models[0].model_id)
    assert f"logged model {models[0].model_id}" in home.registry.scan([ADA]).carriers
    purged = home.registry.purge([ADA])
    assert purged.artifacts == 4
    assert purged.left.clean
    assert [each.model_id for each in home.client.search_logged_models([home.experiment])] == [models[1].model_id]
    assert list((home.folder / "artifacts" / "models").rglob("checkpoint")) != []


def test_traces_of_a_tainted_run_go(home: House) -> None:
    from mlflow.entities import TraceInfo, TraceLocation, TraceState

    run, _ = home.run(ADA)
    place = TraceLocation.from_experiment_id(home.experiment)
    for number, source in enumerate((run, home.run(BOB)[0])):
        info = TraceInfo(f"tr-{run}-{number}", place, 1, TraceState.OK, trace_metadata={"mlflow.sourceRun": source})
        home.client._tracking_client.store.start_trace(info)
    assert f"1 trace of run {run}" in home.registry.scan([ADA]).carriers
    assert home.registry.purge([ADA]).left.clean
    traces = home.client.search_traces(locations=[home.experiment], include_spans=False)
    assert [trace.info.trace_id for trace in traces] == [f"tr-{run}-1"]


def test_files_that_cannot_be_removed_are_named(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    def refuse(*_: Any) -> None:
        raise PermissionError("not yours")

    run, _ = home.run(ADA)
    monkeypatch.setattr(LocalArtifactRepository, "delete_artifacts", refuse)
    purged = home.registry.purge([ADA], delete_runs=True)
    assert purged.artifacts == 0
    assert not purged.left.clean
    assert any("3 files" in each and run in each for each in purged.left.carriers)
    assert any("not yours" in each for each in purged.survivors)
    monkeypatch.undo()
    assert not home.registry.scan([ADA]).clean
    assert home.registry.purge([ADA], delete_runs=True).artifacts == 3
    assert home.registry.scan([ADA]).survivors == ()


def test_a_database_in_use_is_said_so(home: House, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(
        "frmu.tracking.registry.sqlite3.connect", lambda path, **more: connect(path, **more | {"timeout": 0.05})
    )
    notes: list[str] = []
    with closing(connect(uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN IMMEDIATE")
        home.registry._compact(notes)
        other.rollback()
    assert len(notes) == 1
    assert "locked" in notes[0]


def test_a_folder_on_another_host_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    far = Registry(None, "http://runs.example", "1", "homes")
    assert far._elsewhere("/srv/mlflow/1/ab/artifacts")
    assert far._elsewhere("file:///srv/mlflow/1/ab/artifacts")
    assert not far._elsewhere((tmp_path / "ab" / "artifacts").as_uri())
    assert not far._elsewhere("mlflow-artifacts:/1/ab/artifacts")
    assert not Registry(None, "sqlite:///x.db", "1", "homes")._elsewhere("/srv/mlflow/1/ab/artifacts")


def test_a_search_reads_every_page(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = {home.run(ADA)[0] for _ in range(3)}
    for name in ("search_runs", "search_model_versions"):
        search = getattr(home.client, name)
        monkeypatch.setattr(home.client, name, lambda search=search, **query: search(**query | {"max_results": 1}))
    assert set(home.registry.purge([ADA]).runs) == runs
    assert home.registry.versions() == []


def test_a_store_that_does_not_answer_names_the_knob(home: House, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.exceptions import MlflowException

    def refuse(*_: Any, **__: Any) -> None:
        raise MlflowException("no route")

    with pytest.raises(TrackingError, match=r"store\.tracking"):
        home.registry.fetch("99", home.folder)
    for name in ("get_registered_model", "search_model_versions", "search_runs"):
        monkeypatch.setattr(home.client, name, refuse)
    for ask in (home.registry.champion, home.registry.versions, lambda: home.registry.purge([ADA])):
        with pytest.raises(TrackingError, match=r"store\.tracking"):
            ask()


@given(st.sets(st.integers(0, 2**32 - 1).map("{:08x}".format)))
def test_tags_hold_every_owner(owners: set[str]) -> None:
    assert held(holds_tags(owners)) == owners


@given(st.integers(0, 3000))
def test_no_tag_is_longer_than_mlflow_takes(count: int) -> None:
    tags = holds_tags(f"{number:08x}" for number in range(count))
    assert all(0 < len(value) <= 4000 for value in tags.values())
    assert list(tags) == [f"frmu.holds.{number}" for number in range(len(tags))]
    assert len(held(tags)) == count


@given(st.text(max_size=220), st.text(max_size=220))
def test_mlflow_takes_every_name_and_two_stay_two(one: str, two: str) -> None:
    from mlflow.utils.validation import _validate_model_name

    _validate_model_name(model_name(one))
    assert len(model_name(one)) <= 256
    assert "'" not in model_name(one)
    assert (model_name(one) == model_name(two)) == (one == two)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address, log = f"http://127.0.0.1:{port}", (tmp_path / "log").open("w")
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--artifacts-destination", f"{tmp_path}/art"]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, env=environment)
    try:
        until = time.monotonic() + 90
        while not _answers(address):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # its workers are children of its own session
        process.wait(30)
        log.close()


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=1) as reply:
            return reply.status == 200
    except OSError:
        return False


@pytest.mark.long
def test_on_a_server_deleted_runs_are_only_marked(server: str, tmp_path: Path) -> None:
    home = house(server, tmp_path)
    run, number = home.run(ADA)
    safe, newer = home.run(BOB)
    home.registry.promote(number)
    home.client.copy_model_version(f"models:/{home.registry.name}/{number}", "other")
    assert home.registry.fetch(number, tmp_path / "fetched").read_bytes() == STATE
    purged = home.registry.purge([ADA], delete_runs=True)
    assert (purged.runs, purged.artifacts) == ((run,), 3)
    assert set(purged.versions) == {f"{home.registry.name}/{number}", "other/1"}
    assert purged.left.clean
    assert any(f"mlflow gc --run-ids {run}" in each for each in purged.survivors)
    assert home.registry.champion() is None
    assert [version.number for version in home.registry.versions()] == [newer]
    assert home.files(safe) == ["model", "summary.json"]
    assert [path.name for path in (tmp_path / "art").rglob("state.safetensors")] == ["state.safetensors"]
