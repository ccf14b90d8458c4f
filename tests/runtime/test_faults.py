"""Fault schedules: hosts and the server are killed, with -9, wherever a seed says; nothing comes out differently.

A schedule is one to three faults in the life of a federation (train, two requests, drain). Each strikes at the n-th
dispatch or task, before, in the middle of or after what is done there, in the process of a host or of the server. The
same clients take part, so every digest must be that of the undisturbed life; the ledger must be whole, no record back.

`pytest -m long tests/runtime/test_faults.py` runs 200 schedules; a handful run by default.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import CONFIG, put

from frmu import api
from frmu.config import Config
from frmu.errors import ClientsUnavailableError
from frmu.federation import Answer
from frmu.runtime.ray import RayFederation
from frmu.types import Selection

pytestmark = pytest.mark.cluster
RULES = "\n[rules]\ndeadline = 60\n"


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    import ray

    from frmu.runtime.connect import cluster

    with cluster(None):
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        yield


# -- what strikes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Struck:
    """A work that kills the process which does it for some client, once."""

    work: Any
    client: str
    when: str  # "before" or "after" what the client does
    marker: str

    @property
    def lasting(self) -> bool:
        return getattr(self.work, "lasting", False)

    def prepare(self, clients: Any) -> None:
        self.work.prepare(clients)

    def perform(self, client: Any) -> Answer:
        if client.name != self.client:
            return self.work.perform(client)
        if self.when == "before":
            die_once(self.marker)
        answer = self.work.perform(client)
        die_once(self.marker)
        return answer


@dataclass(frozen=True, slots=True)
class StruckTask:
    """A task that kills the server, once."""

    task: Any
    when: str
    marker: str

    @property
    def afresh(self) -> bool:
        return getattr(self.task, "afresh", False)

    def perform(self, server: Any, payloads: Mapping[str, Any]) -> Any:
        if self.when == "before":
            die_once(self.marker)
        done = self.task.perform(server, payloads)
        die_once(self.marker)
        return done


def die_once(marker: str) -> None:
    try:
        os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True, slots=True)
class Fault:
    """At which dispatch (counted over the whole life), whom, when."""

    at: int
    victim: str  # a client, or "server"
    when: str


class Striker:
    """Puts faults into the works and tasks that a federation sends."""

    def __init__(self, faults: list[Fault], folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.dispatches = self.tasks = 0
        self.folder, self.faults, self.stages = folder, faults, []
        run, serve = RayFederation.run, RayFederation.serve

        def struck_run(federation: RayFederation, work: Any, on: Any = None) -> Iterator[Any]:
            for number, fault in enumerate(self.faults):
                asked = federation.clients if on is None else on
                if fault.victim != "server" and fault.at == self.dispatches and fault.victim in asked:
                    self.stages.append(f"{type(work).__name__} of {fault.victim}, {fault.when}")
                    work = Struck(work, fault.victim, fault.when, str(self.folder / f"fault-{number}"))
            self.dispatches += 1
            return run(federation, work, on)

        def struck_serve(federation: RayFederation, task: Any, replies: Any = ()) -> Any:
            for number, fault in enumerate(self.faults):
                if fault.victim == "server" and fault.at == self.tasks:
                    self.stages.append(f"{type(task).__name__} of the server, {fault.when}")
                    task = StruckTask(task, fault.when, str(self.folder / f"fault-{number}"))
            self.tasks += 1
            return serve(federation, task, replies)

        patch.setattr(RayFederation, "run", struck_run)
        patch.setattr(RayFederation, "serve", struck_serve)


# -- a life ---------------------------------------------------------------------------------------------------


def life(config: Config, address: str | None = None) -> dict[str, Any]:
    """Train, ask for two erasures, drain, and what must not depend on who died meanwhile."""
    with api.Experiment(config, address) as experiment:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        api.erase(config, Selection("client", client="home 2"))
        drained = experiment.drain()
        lines = experiment.session.ledger.check()
        receipts = [(r["request"], r["level"], dict(r["removed"])) for r in drained["receipts"]]
    return {
        "trained": trained["state_digest"],
        "metrics": trained["metrics"],
        "away": trained["away"],
        "drained": drained["state_digest"],
        "receipts": receipts,
        "lines": lines,
    }


def small(folder: Path, table: pd.DataFrame, per_actor: int = 1) -> Config:
    keep = table[table.home.isin(["home 0", "home 1", "home 2"])]
    return put(folder, keep, f"{CONFIG}{RULES}\n[placement]\nclients_per_actor = {per_actor}\n")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from conftest import homes

    return life(small(tmp_path_factory.mktemp("undisturbed"), homes()), "local")


def schedule(seed: int) -> tuple[list[Fault], int]:
    """One to three faults, and how many clients share an actor."""
    draw = random.Random(seed)
    faults = []
    for _ in range(draw.randint(1, 3)):
        victim = draw.choice(["home 0", "home 1", "home 2", "server"])
        at = draw.randrange(8) if victim == "server" else draw.randrange(14)
        faults.append(Fault(at, victim, draw.choice(["before", "after"])))
    return faults, draw.choice([1, 2])


def live_through(
    faults: list[Fault], per_actor: int, folder: Path, table: pd.DataFrame, patch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], Striker]:
    config = small(folder / "homes", table, per_actor)
    striker = Striker(faults, folder, patch)
    return life(config), striker


# By default: a host in the middle of an import, between being told the policy and choosing, while it purges; the
# server before it adds up, and after it has aggregated; two at once.
HANDFUL = {
    "import": [Fault(0, "home 1", "after")],
    "told and lost": [Fault(3, "home 0", "after"), Fault(5, "home 1", "before")],
    "purge": [Fault(8, "home 2", "after")],
    "server": [Fault(1, "server", "before"), Fault(4, "server", "after")],
    "both": [Fault(4, "home 0", "before"), Fault(2, "server", "after")],
}
BRIEFLY = ("import", "told and lost", "both")


@pytest.mark.parametrize("name", [n if n in BRIEFLY else pytest.param(n, marks=pytest.mark.long) for n in HANDFUL])
def test_nothing_comes_out_differently(
    name: str, tmp_path: Path, table: pd.DataFrame, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, striker = live_through(HANDFUL[name], 1, tmp_path, table, monkeypatch)
    assert len(list(tmp_path.glob("fault-*"))) == len(HANDFUL[name]), striker.stages
    assert found == undisturbed, striker.stages


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_a_schedule_of_faults(
    seed: int, tmp_path: Path, table: pd.DataFrame, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    faults, per_actor = schedule(seed)
    found, striker = live_through(faults, per_actor, tmp_path, table, monkeypatch)
    assert found == undisturbed, striker.stages


# -- who does not come back -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Poison:
    """A work that kills its host whenever it is done for one client."""

    work: Any
    client: str
    lasting = False

    def prepare(self, clients: Any) -> None:
        self.work.prepare(clients)

    def perform(self, client: Any) -> Answer:
        if client.name == self.client:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.work.perform(client)


def test_a_client_that_kills_its_host_takes_nobody_with_it(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four clients share a host, and the records of one kill it: the other three train, as if it were not there."""
    from frmu.clients.tasks.importing import StageShard

    text = f"{CONFIG}{RULES}\n[placement]\nclients_per_actor = 4\n"
    config = put(tmp_path / "homes", table, text)
    run = RayFederation.run

    def poisoned(federation: RayFederation, work: Any, on: Any = None) -> Iterator[Any]:
        return run(federation, Poison(work, "home 2") if isinstance(work, StageShard) else work, on)

    with api.Experiment(config) as experiment:
        with monkeypatch.context() as patch:
            patch.setattr(RayFederation, "run", poisoned)
            without = experiment.train()
        again = experiment.train()
    assert list(without["away"]) == ["home 2"]
    assert "its host died at" in without["away"]["home 2"]
    assert without["clients"] == 3
    only = put(tmp_path / "only", table[table.home != "home 2"], text)
    with api.Experiment(only, "local") as experiment:
        assert experiment.train()["state_digest"] == without["state_digest"]
    # and in the next round it is back
    assert (again["away"], again["clients"]) == ({}, 4)


def test_a_straggler_is_let_go_and_comes_back(tmp_path: Path, table: pd.DataFrame) -> None:
    text = f"{CONFIG}\n[rules]\ndeadline = 10\n[placement]\nclients_per_actor = 1\n"
    config = put(tmp_path / "homes", table, text)
    with api.Experiment(config) as experiment:
        first = experiment.train()
        pid = _pid(_handle_of(experiment, "home 3"))
        os.kill(pid, signal.SIGSTOP)
        try:
            without = experiment.train()
        finally:
            os.kill(pid, signal.SIGCONT)
        verified = experiment.verify()
        back = experiment.train()
    assert without["away"] == {"home 3": "no reply in 10 s"}
    assert without["clients"] == 3
    assert verified["verified"], verified  # the shard of who was away is not unexpected
    assert back["state_digest"] == first["state_digest"]


def test_a_drain_goes_on_without_nobody(tmp_path: Path, table: pd.DataFrame) -> None:
    """An erasure is not honoured while a client that may hold records cannot be searched."""
    text = f"{CONFIG}\n[rules]\ndeadline = 10\n[placement]\nclients_per_actor = 1\n"
    config = put(tmp_path / "homes", table, text)
    with api.Experiment(config) as experiment:
        experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        pid = _pid(_handle_of(experiment, "home 3"))
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(
                ClientsUnavailableError, match=r"client home 3 is away: no reply in 10 s.*frmu client leave"
            ):
                experiment.drain()
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [request.stage for request in experiment.session.ledger.pending()] == ["received"]
        assert experiment.drain()["verified"]


def test_a_client_is_back_soon(tmp_path: Path, table: pd.DataFrame) -> None:
    """Five seconds on an idle machine, for a host that needs no torch; `frmu bench recovery` measures it."""
    from frmu.clients.tasks.importing import DescribeShard

    config = small(tmp_path / "homes", table)
    with api.Experiment(config) as experiment:
        experiment.train()
        federation = experiment.session.sites._federation
        assert federation is not None
        os.kill(_pid(_handle_of(experiment, "home 1")), signal.SIGKILL)
        began = time.monotonic()
        assert len(list(federation.run(DescribeShard()))) == 3
        assert time.monotonic() - began < 60


def _handle_of(experiment: api.Experiment, client: str) -> Any:
    return next(handle for handle in experiment.session.sites._federation._dispatcher.handles if client in handle.names)  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class Where:
    """Which process a client is in."""

    def prepare(self, clients: Any) -> None: ...

    def perform(self, client: Any) -> Answer:
        return Answer(client.name, {"pid": os.getpid()})


def _pid(handle: Any) -> int:
    import ray

    return ray.get(handle.actor.answer.remote(Where(), handle.names, None)).replies[0].record["pid"]
