"""Three sites on three nodes: train, lose a node, let it rejoin, erase, prove; and a driver that is killed.

Each site keeps its files and its shards in folders of its own, which only its node's hosts open. The cluster is the
one that `cluster/local` starts, with a token and, where it is installed, PostgreSQL for the ledger.
"""

from __future__ import annotations

import json
import signal
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
from conftest import homes, train
from three_sites import SITES, Cluster, driver, environment, put

from frmu import api
from frmu.config import Config
from frmu.errors import ClientsUnavailableError
from frmu.federation import Answer
from frmu.runtime.ray import RayFederation
from frmu.types import Selection

pytestmark = pytest.mark.cluster
FRMU = str(Path(sys.executable).parent / "frmu")


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return homes(clients=5)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    here = Cluster(tmp_path_factory.mktemp("cluster") / "c")
    here.up(list(SITES), postgres=False, mlflow=False)
    try:
        yield here
    finally:
        here.down()


@pytest.fixture(autouse=True)
def all_nodes_are_there(cluster: Cluster) -> None:
    """Whatever became of the test before."""
    alive = {process.name for process in cluster.processes() if process.alive}
    for site in sorted(set(SITES) - alive):
        cluster.add(site)


def frmu(cluster: Cluster, *words: Any, code: int = 0) -> dict[str, Any]:
    """A command of a user's, on the cluster; its last line."""
    run = subprocess.run(
        [FRMU, *map(str, words), "--json"], env=environment(cluster), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip
    assert run.returncode == code, run.stdout + run.stderr
    return json.loads(run.stdout.splitlines()[-1]) | {"stderr": run.stderr}


@pytest.fixture
def attached(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as a driver on the cluster."""
    with driver(cluster, monkeypatch):
        yield


@pytest.mark.usefixtures("attached")
def test_train_lose_a_node_rejoin_erase_verify(
    cluster: Cluster, tmp_path: Path, table: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    config = put(tmp_path / "sites", table)
    with api.Experiment(config) as experiment:
        first = experiment.train()
        assert (first["clients"], first["away"]) == (5, {})
        assert first["state_digest"] == train(put(tmp_path / "same", table))["state_digest"]
        for site, clients in SITES.items():  # shards lie at their site, and nowhere else
            shards = tmp_path / "sites" / f"disk-{site}" / "frmu" / "homes.frmu" / "shards"
            assert len(list(shards.iterdir())) == len(clients)
        assert not list((config.folder / "shards").iterdir())
        assert where_they_run(experiment) == {name: site for site, names in SITES.items() for name in names}

        cluster.kill("c")
        without = experiment.train()
        assert list(without["away"]) == ["home 4"]
        assert "no node has the label site=c" in without["away"]["home 4"]
        assert "quorum 0.6 still met (4 of 5)" in caplog.text
        api.erase(config, Selection("subject", subject="p2"))
        with pytest.raises(ClientsUnavailableError, match="client home 4 is away: no node has the label site=c"):
            experiment.drain()
        assert [request.stage for request in experiment.session.ledger.pending()] == ["received"]
        verified = experiment.verify()
        assert (verified["verified"], verified["state_digest"]) == (True, without["state_digest"])

        cluster.add("c")
        back = experiment.train()
        assert (back["clients"], back["away"]) == (5, {})
        drained = experiment.drain()
        assert drained["verified"]
        assert drained["receipts"][0]["removed"] == table[table.person == "p2"].home.value_counts().to_dict()
    never = put(tmp_path / "never", table[table.person != "p2"])
    assert train(never)["state_digest"] == drained["state_digest"]


@pytest.mark.usefixtures("attached")
def test_a_person_erased_while_a_site_was_gone_does_not_come_back_with_it(
    cluster: Cluster, tmp_path: Path, table: pd.DataFrame
) -> None:
    """The node dies after the request, its client leaves, the drain closes without it, and it joins again."""
    config = put(tmp_path / "sites", table)
    frmu(cluster, "train", config.file)
    frmu(cluster, "erase", config.file, "--subject", "p2")
    cluster.kill("c")
    try:
        refused = frmu(cluster, "drain", config.file, code=2)
        assert "client home 4 is away" in refused["error"]
        frmu(cluster, "client", "leave", config.file, "home 4")
        frmu(cluster, "train", config.file)
        [receipt] = frmu(cluster, "drain", config.file)["receipts"]
        assert (receipt["level"], receipt["not_searched"]) == ("L5 of those searched", ["home 4"])
        assert frmu(cluster, "verify", config.file, "r1")["level"] == "L5 of those searched"
    finally:
        cluster.add("c")
    frmu(cluster, "client", "join", config.file, "home 4")
    back = frmu(cluster, "train", config.file)
    never = put(tmp_path / "never", table[table.person != "p2"])
    assert (back["clients"], back["state_digest"]) == (5, train(never)["state_digest"])
    verified = frmu(cluster, "verify", config.file, "r1")
    assert (verified["level"], verified["verified"]) == ("L5", True)


def test_follow_waits_for_a_site_and_leaves_the_folder_free(
    cluster: Cluster, tmp_path: Path, table: pd.DataFrame
) -> None:
    """Two of three sites are gone: said once, no run, no lock; a round follows when they are back."""
    config = put(tmp_path / "sites", table)
    frmu(cluster, "train", config.file)
    log = tmp_path / "follow.log"
    command = [FRMU, "train", str(config.file), "--follow", "--every", "1s", "--json"]
    with log.open("w") as out:
        follow = subprocess.Popen(command, env=environment(cluster), stdout=out, stderr=subprocess.STDOUT)
    try:
        entries = until(log, lambda entries: [e for e in entries if e["kind"] == "train"])
        cluster.kill("b")
        cluster.kill("c")
        away = until(log, lambda entries: [e for e in entries if e["kind"] == "away" and set(e["away"]) == {"b", "c"}])
        assert "rules.quorum = 0.6 is not met (2 of 5)" in away[-1]["waits"]
        assert away[-1]["away"]["b"]["clients"] == ["home 2", "home 3"]
        runs = len(told_runs(config))
        for _ in range(3):  # the folder is free: a drain is answered for what it is, not turned away
            assert "receipts" in frmu(cluster, "drain", config.file)
        assert set(frmu(cluster, "status", config.file)["away"]) == {"b", "c"}
        members = {row["client"]: row["standing"] for row in listed(cluster, config)}
        assert members["home 4"].startswith("away since")
        assert members["home 0"] == "in"
        assert len(told_runs(config)) == runs
        cluster.add("b")
        cluster.add("c")
        until(log, lambda entries: [e for e in entries if e["kind"] == "away" and not e["away"]])
        entries = read(log)
        assert 1 <= len([e for e in entries if e["kind"] == "away"]) <= 4
        assert len([e for e in entries if e["kind"] == "error"]) <= 1
    finally:
        follow.send_signal(signal.SIGTERM)
        follow.wait(60)
    assert follow.returncode == 0


@pytest.mark.parametrize("when", [pytest.param("while RLlib starts", marks=pytest.mark.long), "in an iteration"])
def test_a_policy_job_that_loses_a_node_says_so_and_can_be_resumed(
    cluster: Cluster, tmp_path: Path, table: pd.DataFrame, when: str
) -> None:
    """The runners and clients that are there go on; the end names who is missing, and --resume takes it from there."""
    config = put(tmp_path / "sites", table)
    frmu(cluster, "train", config.file)
    config.file.write_text(config.file.read_text() + "[policy]\nenv_runners = 2\nsamples = 96\niterations = 3\n")
    frmu(cluster, "train", config.file)
    log = tmp_path / "policy.log"
    with log.open("w") as out:
        command = [FRMU, "policy", "train", str(config.file)]
        job = subprocess.Popen(command, env=environment(cluster), stdout=out, stderr=subprocess.STDOUT)
    end = time.monotonic() + 90
    mark = "SingleAgentEnvRunner" if when == "while RLlib starts" else "iteration 1 of 3"
    while mark not in log.read_text() and job.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    cluster.kill("c")
    began = time.monotonic()
    try:
        job.wait(180)  # three times rules.deadline
    finally:
        job.kill()
        cluster.add("c")
    said = log.read_text()
    assert job.returncode == 2, said
    assert time.monotonic() - began < 120
    assert "goes on without home 4, which did not answer" in said
    assert "iteration 3 of 3" in said
    assert "--resume` goes on with it" in said.splitlines()[-1]
    assert "actor_manager.py" not in said
    resumed = frmu(cluster, "policy", "train", config.file, "--resume")
    assert (resumed["resumed_at"], resumed["iterations"]) == (3, 3)


def read(log: Path) -> list[dict[str, Any]]:
    lines = [line for line in log.read_text().splitlines() if line.startswith("{")]
    return [entry for line in lines if "kind" in (entry := json.loads(line))]


def until(log: Path, there: Any, seconds: float = 120) -> list[dict[str, Any]]:
    end = time.monotonic() + seconds
    while not (found := there(read(log))):
        assert time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.5)
    return found


def listed(cluster: Cluster, config: Config) -> list[dict[str, Any]]:
    run = subprocess.run(
        [FRMU, "client", "list", str(config.file), "--json"], env=environment(cluster), capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    return json.loads(run.stdout.splitlines()[-1])


def told_runs(config: Config) -> list[Any]:
    from frmu.services.witness import tracker_of

    tracker = tracker_of(config)
    return list(tracker.backend.client.search_runs([tracker.backend.experiment_id]))


@pytest.mark.long
@pytest.mark.usefixtures("attached")
def test_an_audit_is_done_at_the_sites(cluster: Cluster, tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "sites", table)
    with api.Experiment(config) as experiment:
        experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        experiment.drain()
        assert experiment.verify("r1", "L3")["verified"]
    for site in SITES:  # and the copies of the audit are gone
        assert not list((tmp_path / "sites" / f"disk-{site}" / "frmu" / "homes.frmu" / "scratch").iterdir())


@dataclass(frozen=True, slots=True)
class Where:
    """On which node a client's host is."""

    def prepare(self, clients: Any) -> None: ...

    def perform(self, client: Any) -> Answer:
        import ray

        return Answer(client.name, {"node": ray.get_runtime_context().get_node_id()})


def where_they_run(experiment: api.Experiment) -> dict[str, str]:
    """The site of the node that each client's host is on."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    labels = {node["NodeID"]: node["Labels"].get("site", "") for node in ray.nodes()}
    federation = experiment.session.sites.federation(experiment.session.sites.look().locations)
    return {reply.client: labels[reply.record["node"]] for reply in federation.run(Where())}


def test_a_plan_and_what_no_node_sees(cluster: Cluster, tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "sites", table)
    plan = frmu(cluster, "plan", config.file)
    assert {site: one["hosts"] for site, one in plan["sites"].items()} == {"a": 1, "b": 1, "c": 1}
    text = config.file.read_text().replace('path = "disk-b/homes.parquet"', 'path = "disk-x/homes.parquet"')
    config.file.write_text(text + '[sites.nowhere]\nclients = ["home 9"]\n')
    refused = frmu(cluster, "plan", config.file, code=2)
    assert "disk-x/homes.parquet: no Parquet file there" in refused["error"]
    assert 'looked for on the node of site "b" (label site=b): check sites.b.path' in refused["error"]


@pytest.mark.usefixtures("attached")
def test_a_driver_that_was_killed_leaves_its_server_to_the_next(
    cluster: Cluster, tmp_path: Path, table: pd.DataFrame
) -> None:
    config = put(tmp_path / "sites", table)
    code = f"""
import os, signal
from frmu import api
from frmu.config import load
from frmu.services.session import Session

Session.checkpoint = lambda self, state: os.kill(os.getpid(), signal.SIGKILL)
with api.Experiment(load({str(config.file)!r})) as experiment:
    experiment.train()
"""
    run = subprocess.run([sys.executable, "-c", code], env=environment(cluster), capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    with api.Experiment(config) as experiment:
        again = experiment.train()
    assert again["state_digest"] == train(put(tmp_path / "same", table))["state_digest"]
    # The server had every client's sums, and the shards are the same: nobody was asked for them again.
    assert again["summed"] == 0
    with api.Experiment(config) as experiment:  # and a job that ends ends its server
        assert experiment.train()["summed"] == 5


# -- every stage of a life, one after the other -----------------------------------------------------------------

DISPATCHES = 15  # of a life: a training, then a request of two and their drain


def life(config: Config) -> list[str]:
    """What comes of it: the digests of both states, and who was away."""
    with api.Experiment(config) as experiment:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        drained = experiment.drain()
        assert drained["verified"]
        assert experiment.session.ledger.check()
    return [trained["state_digest"], str(trained["away"]), drained["state_digest"]]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, table: pd.DataFrame) -> list[str]:
    config = put(tmp_path_factory.mktemp("undisturbed") / "sites", table)
    with api.Experiment(config, "local") as experiment:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        return [trained["state_digest"], "{}", experiment.drain()["state_digest"]]


@pytest.mark.long
@pytest.mark.usefixtures("attached")
@pytest.mark.parametrize("at", range(DISPATCHES))
def test_a_node_lost_at_any_dispatch_and_back_in_time(
    at: int, cluster: Cluster, tmp_path: Path, table: pd.DataFrame, undisturbed: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run, dispatches = RayFederation.run, iter(range(1000))
    helpers: list[threading.Thread] = []

    def struck(federation: RayFederation, work: Any, on: Any = None) -> Any:
        if next(dispatches) == at:
            cluster.kill("c")
            helpers.append(threading.Thread(target=cluster.add, args=("c",)))
            helpers[0].start()
        return run(federation, work, on)

    monkeypatch.setattr(RayFederation, "run", struck)
    try:
        found = life(put(tmp_path / "sites", table, patience=120))
    finally:
        for helper in helpers:
            helper.join()
    assert (found, len(helpers)) == (undisturbed, 1)


@pytest.mark.long
@pytest.mark.parametrize("at", range(DISPATCHES))
def test_a_driver_killed_at_any_dispatch(
    at: int, cluster: Cluster, tmp_path: Path, table: pd.DataFrame, undisturbed: list[str]
) -> None:
    config = put(tmp_path / "sites", table)
    code = f"""
import os, signal
from frmu import api
from frmu.config import load
from frmu.runtime.ray import RayFederation
from frmu.types import Selection

run, dispatches = RayFederation.run, iter(range(1000))

def struck(federation, work, on=None):
    if next(dispatches) == {at}:
        replies = run(federation, work, on)
        next(replies, None)  # the work is under way everywhere, and one has answered
        os.kill(os.getpid(), signal.SIGKILL)
    return run(federation, work, on)

RayFederation.run = struck
config = load({str(config.file)!r})
with api.Experiment(config) as experiment:
    experiment.train()
    api.erase(config, Selection("subject", subject="p2"))
    experiment.drain()
"""
    run = subprocess.run([sys.executable, "-c", code], env=environment(cluster), capture_output=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()[-2000:]
    if not (config.folder / "state.safetensors").exists():
        assert frmu(cluster, "train", config.file)["state_digest"] == undisturbed[0]
    if not frmu(cluster, "requests", config.file)["requests"]:
        frmu(cluster, "erase", config.file, "--subject", "p2")
    frmu(cluster, "drain", config.file)
    verified = frmu(cluster, "verify", config.file)
    assert (verified["verified"], verified["state_digest"]) == (True, undisturbed[2])


@pytest.mark.long
def test_a_job_runs_under_the_python_of_its_node(cluster: Cluster, tmp_path: Path, table: pd.DataFrame) -> None:
    """Whatever comes first on the path of whoever started the cluster: its own Python has what a job needs."""
    config = put(tmp_path / "sites", table)
    told = frmu(cluster, "submit", "train", config.file)
    assert (told["status"], told["result"]["clients"]) == ("SUCCEEDED", 5)
