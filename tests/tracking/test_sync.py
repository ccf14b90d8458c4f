"""MLflow is away: the work is done all the same, what it would have been told is kept, and told later, once.

The server is a real one. The fault schedule is its requests: cut before, amid or after each of them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, homes, put, train
from mlflow_server import Gate, Server, contents, free_port, gate, mlflow_server

from frmu import api
from frmu.cli import main
from frmu.config import Config, load
from frmu.errors import RequestError, TrackingError, TrackingUnavailableError
from frmu.services import continual
from frmu.services.continual import Follow
from frmu.services.prediction import predict
from frmu.tracking.queue import Queue, key
from frmu.tracking.tracker import Tracker
from frmu.types import Selection

__all__ = ["gate", "mlflow_server"]  # fixtures

PERSON = Selection("subject", subject="p3")
TABLE = homes(3, 206)
NEVER = TABLE[TABLE.person != "p3"]
SMALL = CONFIG.replace("features = 8", "features = 4")


def federation(folder: Path, uri: str, table: pd.DataFrame = TABLE, more: str = "") -> Config:
    """A config over a server; all of one module have one key, so that lineage tags are the same."""
    config = put(folder, table, SMALL + more)
    shared = Path(f"{folder.parent.parent}/key")
    name = f"{folder.parent.name}-{folder.name}"
    store = f'[store]\ntracking = "{uri}"\nexperiment = "{name}"\nkey = "{shared}"\n'
    config.file.write_text(f"{SMALL}{more}\n{store}")
    return load(config.file)


def client_of(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri)


def told(config: Config, server: Server) -> dict[str, Any]:
    return contents(client_of(server.address), config.experiment)


def deliver(config: Config) -> int:
    with api.Experiment(config, "local") as experiment:
        return experiment.deliver().runs


def waiting(config: Config) -> list[str]:
    return [box.name for box in Queue(config.folder / "outbox").waiting()]


def frmu(*arguments: Any) -> Any:
    return CliRunner().invoke(main, list(map(str, arguments)))


@dataclass
class Undisturbed:
    """What a job gave, what it told MLflow, and in how many requests."""

    digest: str
    told: dict[str, Any]
    requests: int


@pytest.fixture(scope="module")
def trained(mlflow_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    gate = Gate(mlflow_server)
    gate.open()
    config = federation(tmp_path_factory.mktemp("undisturbed") / "homes", gate.address)
    digest = train(config)["state_digest"]
    yield Undisturbed(digest, told(config, mlflow_server), len(gate.seen))
    gate.shut()


# -- train ----------------------------------------------------------------------------------------------------


def test_away_from_the_start(gate: Gate, trained: Undisturbed, tmp_path: Path) -> None:
    config = federation(tmp_path / "homes", gate.address)
    gate.shut()
    run = frmu("train", config.file, "--address", "local")
    assert run.exit_code == 0, run.output
    place = config.folder / "outbox"
    assert f"MLflow is away, and 1 run waits in {place} for `frmu deliver`" in run.output
    assert place.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in place.iterdir()} == {0o600}
    status = api.status(config)
    assert (status["state_digest"], status["outbox"]["runs"]) == (trained.digest, 1)
    with pytest.raises(TrackingUnavailableError, match=r"Connection refused; check store\.tracking"):
        predict(config, Path(config.source), tmp_path / "out.parquet")
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify()["verified"]  # what L5 looks at is here
        assert experiment.explain("home 1")["history_from"] == {"policies": 0, "rounds": 0}
    run = frmu("deliver", config.file)
    assert (run.exit_code, "Connection refused" in run.output) == (2, True)
    gate.open()
    with pytest.raises(RequestError, match="run `frmu deliver`"):
        predict(config, Path(config.source), tmp_path / "out.parquet")
    assert json.loads(frmu("deliver", config.file, "--json").output.splitlines()[-1])["delivered"] == 1
    assert told(config, gate.server) == trained.told
    assert json.loads(frmu("deliver", config.file, "--json").output.splitlines()[-1])["delivered"] == 0
    assert told(config, gate.server) == trained.told
    assert predict(config, Path(config.source), tmp_path / "out.parquet")["state_digest"] == trained.digest
    assert not api.status(config)["outbox"]["runs"]


SHARES = [0.1, 0.3, 0.5, 0.75, 0.9]
MOMENTS = ["before", "amid", "after"]


def cut_and_deliver(gate: Gate, trained: Undisturbed, folder: Path, number: int, moment: str) -> None:
    config = federation(folder, gate.address)
    gate.at(number, moment)
    result = train(config)
    assert result["state_digest"] == trained.digest
    assert result["outbox"]["away"]
    assert result["outbox"]["runs"] == len(waiting(config)) > 0
    gate.open()
    assert deliver(config) == result["outbox"]["runs"]
    assert told(config, gate.server) == trained.told, (number, moment)


@pytest.mark.parametrize(("share", "moment"), list(zip(SHARES, [*MOMENTS, *MOMENTS], strict=False)))
def test_gone_in_the_middle(gate: Gate, trained: Undisturbed, tmp_path: Path, share: float, moment: str) -> None:
    cut_and_deliver(gate, trained, tmp_path / "homes", 1 + int(share * trained.requests), moment)


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_gone_at_every_request(gate: Gate, trained: Undisturbed, tmp_path: Path, moment: str) -> None:
    for number in range(1, trained.requests + 1):
        cut_and_deliver(gate, trained, tmp_path / f"homes{number}", number, moment)


@pytest.mark.cluster
def test_the_server_is_killed(gate: Gate, trained: Undisturbed, tmp_path: Path) -> None:
    """With -9, while it takes the state; started again it has what it said it had, and the next job brings the rest."""
    config = federation(tmp_path / "homes", gate.address)
    number = 1 + next(at for at, line in enumerate(_requests_of(gate, tmp_path)) if "state.safetensors" in line)
    gate.at(number, "amid", gate.server.kill)
    first = train(config)
    assert first["state_digest"] == trained.digest
    assert first["version"] is None
    second = train(config)  # it is away still
    assert second["outbox"]["runs"] == 2
    gate.server.start()
    third = train(config)
    assert third["outbox"]["runs"] == 0
    found = told(config, gate.server)
    assert [run["name"] for run in found["runs"]] == ["train"] * 3
    for run in found["runs"]:
        assert {*run["files"], "model/MLmodel", "model/state.safetensors"} == set(trained.told["runs"][0]["files"])
    assert [version["state"] for version in found["versions"]] == [trained.digest]
    assert predict(config, Path(config.source), tmp_path / "o.parquet")["state_digest"] == trained.digest


def _requests_of(gate: Gate, folder: Path) -> list[str]:
    before = len(gate.seen)
    train(federation(folder / "requests", gate.address))
    return gate.seen[before:]


def test_numbers_keep_their_steps_and_times(gate: Gate, tmp_path: Path) -> None:
    """As in the training of a policy, which logs as it goes."""
    tracker = Tracker(gate.address, str(tmp_path), tmp_path, Queue(tmp_path / "outbox"))
    with tracker.run("policy") as run:
        for step in range(6):
            if step == 3:
                gate.shut()
            run.metrics({"gain": step / 2, "not/a number": float("nan")}, step)
    assert [box.run for box in Queue(tmp_path / "outbox").waiting()] == [run.id]
    gate.open()
    from frmu.tracking.sync import deliver as send

    tracker = Tracker(gate.address, str(tmp_path), tmp_path, Queue(tmp_path / "outbox"))
    again = shutil.copytree(tmp_path / "outbox", tmp_path / "again")
    for place in (tmp_path / "outbox", Path(again)):  # twice is once
        send(tracker, None, Queue(place), {}, lambda *_: None)  # type: ignore[arg-type]
    history = tracker.backend.client.get_metric_history(run.id, "gain")
    assert [(each.step, each.value) for each in history] == [(step, step / 2) for step in range(6)]
    assert sorted(each.timestamp for each in history) == [each.timestamp for each in history]
    done = tracker.backend.client.get_run(run.id).info
    assert (done.status, done.end_time >= history[-1].timestamp) == ("FINISHED", True)


# -- delivery -------------------------------------------------------------------------------------------------

# The process kills itself after so many calls; no code of frmu's knows of it.
DELIVER = """
import os, signal, sys
from frmu import api
from frmu.tracking import mlflow_backend, registry, tracker
from frmu.config import load

owner, name, left = sys.argv[2], sys.argv[3], [int(sys.argv[4])]
owners = {"MlflowBackend": mlflow_backend, "Tracker": tracker, "Registry": registry}
place = getattr(owners[owner], owner)
original = getattr(place, name)

def struck(*arguments, **options):
    result = original(*arguments, **options)
    left[0] -= 1
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(place, name, struck)
with api.Experiment(load(sys.argv[1]), "local") as experiment:
    experiment.deliver()
"""
POINTS = [
    ("Registry", "register", 1),
    pytest.param(("Tracker", "create", 1), marks=pytest.mark.cluster),
    pytest.param(("MlflowBackend", "apply", 5), marks=pytest.mark.long),
    pytest.param(("Registry", "promote", 1), marks=pytest.mark.long),
]


@pytest.mark.parametrize("point", POINTS)
def test_a_delivery_that_was_killed_is_gone_on_with(
    gate: Gate, trained: Undisturbed, tmp_path: Path, point: tuple[str, str, int]
) -> None:
    config = federation(tmp_path / "homes", gate.address)
    gate.shut()
    train(config)
    gate.open()
    run = subprocess.run(
        [sys.executable, "-c", DELIVER, config.file, *map(str, point)], capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert deliver(config) == len(trained.told["runs"])
    assert told(config, gate.server) == trained.told


def test_a_run_that_was_deleted_meanwhile_is_not_made_again(gate: Gate, tmp_path: Path) -> None:
    config = federation(tmp_path / "homes", gate.address)
    number = len(_requests_of(gate, tmp_path)) // 2
    gate.at(number, "before")
    run = train(config)["run_id"]
    gate.open()
    client_of(gate.server.address).delete_run(run)
    assert deliver(config) > 0
    assert [one["stage"] for one in told(config, gate.server)["runs"] if one["name"] == "train"] == ["deleted"]


def test_following_delivers_between_rounds(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continual, "_AGAIN", 0.0)
    config = federation(tmp_path / "homes", gate.address)
    gate.shut()
    rounds = Follow(config.file, "local", dt.timedelta(milliseconds=20)).run(lambda: False)
    first = next(rounds)
    assert (first["kind"], first["outbox"]["runs"]) == ("train", 1)
    gate.open()
    second = next(rounds)
    assert (second["kind"], second["delivered"], second["outbox"]["runs"]) == ("deliver", 1, 0)
    rounds.close()  # type: ignore[attr-defined]


# -- erasure --------------------------------------------------------------------------------------------------


def test_a_drain_needs_mlflow(gate: Gate, trained: Undisturbed, tmp_path: Path) -> None:
    """And what waits is purged before it is delivered: the state that knew the erased never comes to the server."""
    config = federation(tmp_path / "homes", gate.address)
    gate.shut()
    train(config)
    api.erase(config, PERSON)
    with pytest.raises(TrackingUnavailableError, match="touched nothing"):
        drain(config)
    assert [one["stage"] for one in api.requests(config)] == ["received"]
    backup = shutil.copytree(config.folder / "outbox", tmp_path / "backup")
    gate.open()
    before = len(gate.seen)
    drained = drain(config)
    receipt = drained["receipts"][0]
    assert (receipt["level"], drained["outbox"]["runs"]) == ("L5", 0)
    purged = receipt["purge"]["mlflow"]
    assert purged["outbox"] == 4  # summary, slices, picture, state
    assert len(purged["runs"]) == 1
    found = told(config, gate.server)
    assert [(run["name"], run["files"] == []) for run in found["runs"]] == [("train", True), ("erasure", False)]
    assert [(version["state"], version["of"]) for version in found["versions"]] == [
        (drained["state_digest"], "erasure")
    ]
    uploads = [line for line in gate.seen[before:] if line.startswith("PUT")]
    assert sum("state.safetensors" in line for line in uploads) == 1
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify("r1", "L1")["verified"]
        assert experiment.session.ledger.check() > 0
    # a backup of the outbox comes back: it is found, not delivered as it was, and purged again
    shutil.copytree(backup, config.folder / "outbox", dirs_exist_ok=True)
    gate.shut()
    with api.Experiment(config, "local") as experiment:
        left = experiment.verify()
        assert (left["verified"], left["level"]) == (False, "L0")
        assert "a state that an erasure has overtaken" in left["left_in_mlflow"][0]
    gate.open()
    with api.Experiment(config, "local") as experiment:
        assert experiment.replay()["verified"]
        assert [version.digest for version in experiment.session.registry.versions()] == [drained["state_digest"]]
        assert experiment.verify()["verified"]


def drain_cut(gate: Gate, folder: Path, number: int, moment: str, never: str) -> bool:
    """A drain that is cut at a request; whether it closed its request nevertheless."""
    config = federation(folder, gate.address)
    train(config)
    api.erase(config, PERSON)
    gate.at(number, moment)
    closed = True
    try:
        drained = drain(config)
        assert drained["receipts"][0]["level"] == "L5"
    except TrackingUnavailableError:
        closed = False
        assert [one["stage"] for one in api.requests(config)] != ["closed"]
    gate.open()
    drained = drain(config)
    with api.Experiment(config, "local") as experiment:
        assert experiment.session.ledger.check() > 0
        assert [receipt["request"] for receipt in experiment.session.ledger.receipts()] == ["r1"]
        verified = experiment.verify("r1")
        versions = experiment.session.registry.versions()
        champion = experiment.session.registry.champion()
    assert (verified["verified"], verified["state_digest"]) == (True, never)
    assert champion is not None
    assert {version.digest for version in versions} == {champion.digest} == {never}
    assert not waiting(config)
    names = [run["name"] for run in told(config, gate.server)["runs"] if run["files"]]
    assert names == ["erasure"]
    for shard in (config.folder / "shards").iterdir():
        assert "p3" not in set(pd.read_parquet(shard)["#subject"])
    again = train(config)
    assert (again["refused"], again["state_digest"]) == (len(TABLE) - len(NEVER), never)
    return closed


@pytest.fixture(scope="module")
def never(mlflow_server: Server, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What a federation has that never had them; and the requests of an undisturbed drain."""
    gate = Gate(mlflow_server)
    gate.open()
    digest = train(federation(tmp_path_factory.mktemp("never") / "homes", gate.address, NEVER))["state_digest"]
    config = federation(tmp_path_factory.mktemp("drained") / "homes", gate.address)
    train(config)
    api.erase(config, PERSON)
    before = len(gate.seen)
    assert drain(config)["state_digest"] == digest
    gate.shut()
    return Undisturbed(digest, {}, len(gate.seen) - before)


@pytest.mark.parametrize(
    ("share", "moment"),
    [
        pytest.param(0.05, "after", marks=pytest.mark.long),
        pytest.param(0.4, "before", marks=pytest.mark.cluster),
        pytest.param(0.7, "amid", marks=pytest.mark.long),
    ],
)
def test_a_drain_is_cut(gate: Gate, never: Undisturbed, tmp_path: Path, share: float, moment: str) -> None:
    drain_cut(gate, tmp_path / "homes", 1 + int(share * never.requests), moment, never.digest)


@pytest.mark.long
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_drain_is_cut_at_every_request(gate: Gate, never: Undisturbed, tmp_path: Path, moment: str) -> None:
    closed = [
        drain_cut(gate, tmp_path / f"homes{number}", number, moment, never.digest)
        for number in range(1, never.requests + 1)
    ]
    assert closed[0] is False
    assert closed[-1] is True
    assert closed == sorted(closed)  # once MLflow is purged and has the clean state it may go


# -- what is wrong, not away ----------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", ["htp://x", "http:/x", "http://127.0.0.1:99999", "http://no-such-host.invalid:5000"])
def test_a_uri_that_cannot_be_right_is_told_at_once(tmp_path: Path, uri: str) -> None:
    run = frmu("train", federation(tmp_path / "homes", uri).file, "--address", "local")
    assert run.exit_code == 2
    assert "check store.tracking" in run.output
    assert "Traceback" not in run.output
    assert not (tmp_path / "homes" / "homes.frmu" / "state.safetensors").exists()


def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(TrackingError, match="is a folder"):
        train(federation(tmp_path / "homes", f"sqlite:///{tmp_path}"))


def test_a_server_that_is_no_mlflow_is_not_away(gate: Gate, tmp_path: Path) -> None:
    for uri, why in ((f"{gate.address}/elsewhere", "404"), (gate.address.replace("http", "https"), "SSL")):
        with pytest.raises(TrackingError, match=why) as caught:
            Tracker(uri, "homes", tmp_path, Queue(tmp_path / "outbox"))
        assert not isinstance(caught.value, TrackingUnavailableError)


@pytest.mark.parametrize("answer", [500, 503, 429, None, 401, 501])
def test_answers_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: int | None) -> None:
    """What a gateway says whose server is gone, or nothing at all; and what it says where something is wrong."""
    for name, value in (("TIMEOUT", "1"), ("MAX_RETRIES", "1"), ("BACKOFF_JITTER", "0")):
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", value)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        threading.Thread(target=_answer, args=(listener, answer), daemon=True).start()
        began = time.monotonic()
        if answer in (401, 501):
            with pytest.raises(TrackingError, match=str(answer)):
                Tracker(uri, "homes", tmp_path, Queue(tmp_path / "outbox"))
        else:
            tracker = Tracker(uri, "homes", tmp_path, Queue(tmp_path / "outbox"))
            assert (str(answer) if answer else "timed out") in tracker.away
        assert time.monotonic() - began < 60
        listener.shutdown(socket.SHUT_RDWR)


def _answer(listener: socket.socket, status: int | None) -> None:
    with contextlib.ExitStack() as kept, contextlib.suppress(OSError):
        while True:
            near = kept.enter_context(listener.accept()[0])
            if status is not None:
                near.recv(1 << 16)
                near.sendall(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
                near.close()


def test_a_host_is_away_only_where_it_was_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    outbox, uri = Queue(tmp_path / "outbox"), "http://ada:secret@no-such-host.invalid:5000"
    with pytest.raises(TrackingError) as caught:
        Tracker(uri, "homes", tmp_path, outbox)
    assert not isinstance(caught.value, TrackingUnavailableError)
    outbox.meet("no-such-host.invalid:5000")
    assert "secret" not in Tracker(uri, "homes", tmp_path, outbox).away
    with pytest.raises(TrackingUnavailableError):
        Tracker(f"http://127.0.0.1:{free_port()}", "homes", tmp_path)  # nowhere to keep anything


# -- given up, and strays -------------------------------------------------------------------------------------


def test_a_run_that_is_refused_can_be_given_up(gate: Gate, tmp_path: Path) -> None:
    config = federation(tmp_path / "homes", gate.address)
    train(config)
    outbox = Queue(config.folder / "outbox")
    box = outbox.begin(key(), "of elsewhere", {}, None, 1, "0" * 32)  # MLflow knows no such run
    for _ in range(2):
        run = frmu("deliver", config.file)
        assert run.exit_code == 2
        assert f'run "of elsewhere" ({box.key}) in {outbox.file} is refused' in run.output
        assert f"`frmu deliver CONFIG --give-up {box.key}`" in run.output
    for other in (box.key[:-1], "train"):
        run = frmu("deliver", config.file, "--give-up", other)
        assert (run.exit_code, f'no run "{other}" waits in {outbox.file}' in run.output) == (2, True)
        assert ("did you mean" in run.output, f'"{box.key}"?' in run.output) == (other != "train",) * 2
    assert outbox.count() == 1
    gate.shut()  # it needs no MLflow
    run = frmu("deliver", config.file, "--give-up", box.key)
    assert (run.exit_code, run.output) == (0, f'run "of elsewhere" ({box.key}) is given up\n')
    gate.open()
    told = json.loads(frmu("deliver", config.file, "--json").output.splitlines()[-1])
    assert (told["delivered"], told["outbox"]["runs"]) == (0, 0)


def test_strays_in_the_outbox_are_seen_by_l1(gate: Gate, tmp_path: Path) -> None:
    config = federation(tmp_path / "homes", gate.address)
    train(config)
    (config.folder / "outbox" / "copy.safetensors").write_bytes(b"kept by somebody")
    with api.Experiment(config, "local") as experiment:
        result = experiment.verify(level="L1")
    assert not result["verified"]
    assert result["files_that_are_no_shards"] == ["../outbox/copy.safetensors"]
