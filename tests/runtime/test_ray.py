"""The federation on real Ray: the same bits as in process, errors that survive the way back, a policy that learns."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, homes, put, train

from frmu import api
from frmu.bench.encoder import Cnn, exported
from frmu.bench.many import shared_fault
from frmu.config import Config
from frmu.data.sites import SiteLocation
from frmu.errors import ClientsUnavailableError, DataError
from frmu.selection.scores import below
from frmu.types import Selection


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def test_a_private_ray_starts_nothing_that_nobody_asks() -> None:
    import ray

    running = set(ray._private.worker._global_node.all_processes)
    assert {"gcs_server", "raylet"} <= running
    assert not running & {"dashboard", "monitor", "log_monitor"}


def packed(folder: Path, table: pd.DataFrame, per_actor: int | str) -> Config:
    value = f'"{per_actor}"' if isinstance(per_actor, str) else per_actor
    return put(folder, table, f"{CONFIG}\n[placement]\nclients_per_actor = {value}\n")


def life(config: Config, address: str | None) -> list[object]:
    """Train, erase twice, drain: every digest on the way. What hosts add up is as many bytes as there are hosts."""
    with api.Experiment(config, address) as experiment:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        api.erase(config, Selection("client", client="home 3"))
        drained = experiment.drain()
    assert drained["verified"]
    assert trained["bytes_up"] > 0
    return [trained["state_digest"], drained["state_digest"]]


def test_the_same_bits_in_process_and_on_ray(tmp_path: Path, table: pd.DataFrame) -> None:
    local = life(packed(tmp_path / "local", table, 1), "local")
    assert life(packed(tmp_path / "each", table, 1), None) == local
    assert life(packed(tmp_path / "three", table, 3), None) == local


@pytest.mark.cluster
def test_a_joint_step_is_the_same_bits_on_ray(tmp_path: Path) -> None:
    """In a season that was wrong everywhere, where it is taken: see tests/methods/test_together.py."""
    text = CONFIG.replace('by = "month"', 'by = "week"').replace("later_from = 2025-06-01", "later_from = 2025-05-23")
    text += "\n[policy]\npasses = 2\n[placement]\nclients_per_actor = 2\n"
    table, digests = homes(6), []
    declared = put(tmp_path / "declared", table, text)
    table, _ = shared_fault(table, declared, "season", np.random.Generator(np.random.PCG64(0)))
    for address in ("local", None):
        config = put(tmp_path / str(address), table, text)
        digests.append(life(config, address))
        with api.Experiment(config, "local") as experiment:
            assert {client.chosen_by for client in experiment.session.state().clients} == {"together"}
    assert digests[0] == digests[1]


@pytest.mark.cluster
def test_an_encoder_of_ones_own_goes_to_the_actors_with_the_config(tmp_path: Path, table: pd.DataFrame) -> None:
    """The file itself is gone before they start, as it is not on their machines."""
    net = Cnn((1, 2, 2), 6, (4,))
    text = CONFIG + 'encoders = { weather = "a.pt2" }\n[model.files.weather]\noutputs = 6\nrange = [0.0, 1.0]\n'
    digests = []
    for address in ("local", None):
        folder = tmp_path / str(address)
        folder.mkdir()
        (folder / "a.pt2").write_bytes(exported(net, (1, 2, 2)))
        config = put(folder, table, f"{text}shape = [1, 2, 2]\n[placement]\nclients_per_actor = 2\n")
        (folder / "a.pt2").unlink()
        digests.append(life(config, address))
    assert digests[0] == digests[1]


def test_an_error_of_a_client_arrives_as_it_was(tmp_path: Path, table: pd.DataFrame) -> None:
    config = packed(tmp_path / "bad", table.assign(humidity=500.0), 2)
    with pytest.raises(DataError, match=r'"humidity" must be within'), api.Experiment(config) as experiment:
        experiment.train()
    assert not list((config.folder / "shards").iterdir())


def test_arrays_pass_from_clients_to_the_server_as_refs(tmp_path: Path, table: pd.DataFrame) -> None:
    import ray

    from frmu.clients.tasks.statistics import ComputeStatistics

    config = packed(tmp_path / "refs", table, 2)
    with api.Experiment(config) as experiment:
        experiment.train()
        replies = list(
            experiment.session.sites.federation(experiment.session.sites.look().locations).run(
                ComputeStatistics(("load",))
            )
        )
        assert len(replies) == 4
        assert all(isinstance(reply.payload, ray.ObjectRef) for reply in replies)


def test_a_client_that_died_is_named(tmp_path: Path, table: pd.DataFrame) -> None:
    import ray

    from frmu.clients.tasks.importing import DescribeShard

    config = packed(tmp_path / "dead", table, 2)
    with api.Experiment(config) as experiment:
        experiment.train()
        federation = experiment.session.sites.federation(experiment.session.sites.look().locations)
        ray.kill(federation._dispatcher.handles[0].actor, no_restart=True)  # type: ignore[attr-defined]
        with pytest.raises(ClientsUnavailableError, match="clients home 0, home 1 are away: its host died"):
            list(federation.run(DescribeShard()))


@dataclass(frozen=True, slots=True)
class Process:
    """A task that says which process does it; one that does it twice is told."""

    refused: int = 0

    def perform(self, place: SiteLocation) -> int:
        if os.getpid() == self.refused:
            raise DataError(f"again in {self.refused}")
        return os.getpid()


def test_a_site_has_one_process_for_all_tasks_and_another_where_it_died(tmp_path: Path, config: Config) -> None:
    import ray

    from frmu.runtime.nodes import SiteWorkers

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    place = SiteLocation("lyon", config, tmp_path)
    with closing(SiteWorkers(1.0, 60.0)) as workers:
        found, away = workers.run_at_sites(Process(), [place])
        assert away == {}
        with pytest.raises(DataError, match=f"again in {found['lyon']}"):
            workers.run_at_sites(Process(found["lyon"]), [place])
        os.kill(found["lyon"], signal.SIGKILL)
        again, away = workers.run_at_sites(Process(), [place])
        assert away == {}
        assert again["lyon"] not in (os.getpid(), found["lyon"])


@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.cluster)])
def test_rllib_trains_on_the_client_actors(tmp_path: Path, table: pd.DataFrame, runners: int) -> None:
    text = f"{CONFIG}\n[policy]\nsamples = 96\nenv_runners = {runners}\n"
    config = put(tmp_path / "policy", table, text)
    with api.Experiment(config) as experiment:
        shipped = experiment.train()
        learned = experiment.learn(iterations=2, adopt="always")
        trained = experiment.train()
        assert learned["policy"] == trained["policy"] != shipped["policy"] == learned["parent"]
        assert learned["env_steps"] >= 192
        assert learned["td_error"] > 0
        for scores in learned["scores"].values():
            assert sum(scores.values()) / len(scores) == pytest.approx(1.0)
        assert any(len(set(scores.values())) > 1 for scores in learned["scores"].values())
        assert learned["below_theta"] == below(learned["scores"], 0.5)
        api.erase(config, Selection("records", records=("h0-0",)))
        drained = experiment.drain()
        never = put(tmp_path / "never", table[table.record != "h0-0"], text)
    # A policy that learned from an erased record goes with it: the shipped one decides again.
    assert drained["receipts"][0]["evidence"]["policies_retired"] == [learned["policy"]]
    assert not list((config.folder / "policies").iterdir())
    with api.Experiment(never, "local") as experiment:
        assert experiment.train()["state_digest"] == drained["state_digest"]


def test_runs_of_a_job_are_in_mlflow(tmp_path: Path, table: pd.DataFrame) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import ViewType

    config = put(tmp_path / "runs", table)
    with api.Experiment(config, "local") as experiment, experiment.session.tracker.run("all") as job:
        trained = experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        drained = experiment.drain()
        client = MlflowClient(experiment.session.tracker.uri)
        place = experiment.session.tracker.backend.experiment_id
    for result in (trained, drained):
        run = client.get_run(result["run_id"])
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == job.id
        assert run.data.tags["frmu.state_digest"] == result["state_digest"]
        assert run.data.metrics["test_rmse"] == result["metrics"]["test_rmse"]
    names = {artifact.path for artifact in client.list_artifacts(drained["run_id"])}
    assert names == {"receipts.json", "slices.json", "influence.png", "model"}
    # What carried the erased records is gone; of the run remain numbers of the whole federation.
    assert client.list_artifacts(trained["run_id"]) == []
    runs = client.search_runs([place], run_view_type=ViewType.ALL)
    assert not [name for run in runs for name in run.data.metrics if "home" in name]
    assert client.get_run(drained["run_id"]).data.metrics["slices"] == 16.0
    rows = experiment.session.tracker.documents(["erasure"], "slices.json", 1)[0][1]
    assert rows["columns"][:3] == ["client", "slice", "influence"]
    assert ["home 0", "2025-01"] in [row[:2] for row in rows["data"]]
    assert json.loads(json.dumps(drained))["receipts"]


@pytest.mark.cluster
def test_attacks_run_on_the_client_actors(tmp_path: Path, table: pd.DataFrame) -> None:
    """Shadow models and rehearsals are fitted where the clients are; the numbers are those of one process."""
    config = packed(tmp_path / "audit", table, 4)
    train(config)
    receipt = api.erase(config, Selection("subject", subject="p2"))["request"]
    with api.Experiment(config) as experiment:
        experiment.drain()
        on_ray = experiment.verify(receipt, "L3")["proofs"]
    with api.Experiment(config, "local") as experiment:
        in_process = experiment.verify(receipt, "L3")["proofs"]
    assert [proof["numbers"] for proof in on_ray] == [proof["numbers"] for proof in in_process]
