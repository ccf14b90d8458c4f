"""Training with RLlib: runners that die, trainings that die, sites that train alone; on a real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.config import Config, Policy
from frmu.errors import ClientsUnavailableError, PolicyError
from frmu.policy.checkpoint import read_progress
from frmu.types import Selection

if TYPE_CHECKING:
    from frmu.policy.trainer import Trainer


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def with_policy(folder: Path, table: pd.DataFrame, **policy: object) -> Config:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in ({"samples": 96} | policy).items())
    return put(folder, table, f"{CONFIG}\n[policy]\n{lines}\n[placement]\nclients_per_actor = 2\n")


def learn(config: Config, **options: object) -> dict:
    with api.Experiment(config) as experiment:
        return experiment.learn(**options)  # type: ignore[arg-type]


def descendants(name: str) -> list[int]:
    """Processes of this one, or of those that it started, under a name: actors that are done with their start."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.rstrip(b"\0 ") == name.encode():
                found.append(int(entry.name))
    return [process for process in found if _is_ours(process, parents)]


def _is_ours(process: int, parents: dict[int, int]) -> bool:
    while process in parents and process != os.getpid():
        process = parents[process]
    return process == os.getpid()


RUNNER = "ray::SingleAgentEnvRunner"


LATER = [pytest.param(at, lost, marks=pytest.mark.long) for at, lost in ((0, 2), (1, 1), (1, 2), (3, 1), (3, 2))]


@pytest.mark.cluster
@pytest.mark.parametrize(("at", "lost"), [(0, 1), *LATER])
def test_env_runners_step_the_client_actors_and_may_die(
    tmp_path: Path, table: pd.DataFrame, at: int, lost: int
) -> None:
    """One, or all of them, after any iteration: the training goes on and has them back."""
    from frmu.policy.training import train_policy

    config = with_policy(tmp_path / "runners", table, env_runners=2, samples=960)
    train(config)
    seen: list[float] = []
    killed: list[int] = []

    def watch(number: int, metrics: dict[str, float]) -> None:
        seen.append(metrics["env_runners"])
        if number == at:
            killed.extend(descendants(RUNNER)[:lost])
            for runner in killed:
                threading.Timer(0.3, os.kill, [runner, signal.SIGKILL]).start()  # while it samples
        if number == at + 2:  # Ray starts it again; the next iterations find it
            deadline = time.monotonic() + 90
            while len(descendants(RUNNER)) < 2 and time.monotonic() < deadline:
                time.sleep(0.2)

    with api.Experiment(config) as experiment:
        learned = train_policy(config.policy, [_context(experiment)], None, at + 5, watch)
    assert len(killed) == lost
    assert learned.env_runners == 2
    assert learned.iterations == len(seen) == at + 5
    assert learned.env_steps >= (at + 5) * 960
    assert np.isfinite(learned.history[-1]["evaluation_gain"])
    assert seen[0] == seen[-1] == 2


def _context(experiment: api.Experiment) -> tuple:
    from frmu.policy.training import context_of

    names = [client.name for client in experiment.session.state().clients]
    return context_of(
        experiment.session.config,
        experiment.session.sites.federation(
            experiment.session.sites.locations_of(names, experiment.session.sites.look())
        ),
    )


TRAIN = """
import os, signal, sys
from frmu import api
from frmu.services import policy_training
from frmu.config import load

keep = policy_training._keep

def struck(self, progress, lineage):
    keep(self, progress, lineage)
    if progress.iterations == 2:
        os.kill(os.getpid(), signal.SIGKILL)

policy_training._keep = struck
with api.Experiment(load(sys.argv[1])) as experiment:
    experiment.learn(iterations=3)
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A federation whose policy was in training, by a process that was killed with -9 after two iterations."""
    config = with_policy(tmp_path_factory.mktemp("killed") / "homes", homes())
    train(config)
    run = subprocess.run([sys.executable, "-c", TRAIN, config.file], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    return config


def copy(config: Config, folder: Path) -> Config:
    """The same working folder elsewhere: each test goes on in its own way."""
    from frmu.config import load

    shutil.copytree(config.file.parent, folder)
    return load(folder / config.file.name)


@pytest.mark.cluster
def test_a_training_that_was_killed_is_gone_on_with(killed: Config, tmp_path: Path) -> None:
    config = copy(killed, tmp_path / "again")
    before, lineage = read_progress(config.folder / "training.safetensors")
    assert before.iterations == len(before.history) == 2
    assert lineage["clients"] == [f"home {number}" for number in range(4)]
    kinds = {name.partition("/")[0] for name in before.moments}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}
    assert set(before.weights) == {name.partition("/")[2] for name in before.moments}
    learned = learn(config, iterations=3, resume=True, adopt="always")
    assert (learned["iterations"], learned["resumed_at"]) == (3, 2)
    assert learned["gain_first"] == before.history[0]["gain"]
    assert learned["env_steps"] > before.history[-1]["env_steps"]
    assert not (config.folder / "training.safetensors").exists()
    with api.Experiment(config, "local") as experiment:
        assert experiment.session.network().digest == learned["policy"]
        assert experiment.session.workspace.unexpected_files() == []
        run = experiment.session.tracker.backend.client.get_run(learned["run_id"])
    assert run.data.tags["frmu.resumed"] == lineage["run"] != learned["run_id"]
    assert run.data.tags["frmu.policy"] == learned["policy"]
    assert {"gain", "td_error", "value_error", "slope_norm", "evaluation_gain"} <= set(run.data.metrics)


@pytest.mark.cluster
def test_weights_and_moments_come_back_as_they_were(killed: Config) -> None:
    from frmu.policy.trainer import Trainer, quiet

    before, _ = read_progress(killed.folder / "training.safetensors")
    with api.Experiment(killed) as experiment:
        context, slices = _context(experiment)
        with quiet(), Trainer(killed.policy, [context], 4, 0, 96, 0) as trainer:
            assert trainer.moments() == {}
            trainer.load(before.weights, before.moments)
            for was, now in ((before.weights, trainer.weights()), (before.moments, trainer.moments())):
                assert set(was) == set(now)
                assert all(np.array_equal(was[name], now[name]) for name in was)
            trainer.iterate([np.zeros(len(keys)) for keys in slices.values()])
            step = next(value for name, value in trainer.moments().items() if name.startswith("step/"))
            assert step > next(value for name, value in before.moments.items() if name.startswith("step/"))


@pytest.mark.cluster
def test_an_erasure_retires_a_training_as_it_does_a_policy(killed: Config, tmp_path: Path) -> None:
    config = copy(killed, tmp_path / "erased")
    kept = tmp_path / "backup"
    shutil.copy(config.folder / "training.safetensors", kept)
    api.erase(config, Selection("records", records=("h0-0",)))
    receipt = drain(config)["receipts"][0]
    assert len(receipt["evidence"]["policies_retired"]) == 1
    assert not (config.folder / "training.safetensors").exists()
    with pytest.raises(PolicyError, match=r"no training to resume.*retired"):
        learn(config, resume=True)
    shutil.copy(kept, config.folder / "training.safetensors")
    with pytest.raises(PolicyError, match="records that have been erased since"):
        learn(config)
    with api.Experiment(config, "local") as experiment:
        experiment.replay()
    assert not (config.folder / "training.safetensors").exists()


@pytest.mark.cluster
def test_another_setting_is_another_training(killed: Config, tmp_path: Path) -> None:
    config = copy(killed, tmp_path / "other")
    for other in ({"seed": 7}, {"algorithm": "ppo"}):
        changed = config.model_copy(update={"policy": config.policy.model_copy(update=other)})
        assert changed.fingerprint() == config.fingerprint()
        with pytest.raises(PolicyError, match=r"began with another settings"):
            learn(changed, resume=True)
    (config.folder / "training.safetensors").write_bytes(b"half a file")
    with pytest.raises(PolicyError, match="not a whole checkpoint"):
        learn(config)
    api.erase(config, Selection("records", records=("h0-0",)))
    drain(config)  # nobody can tell what it learned from: it goes
    assert not (config.folder / "training.safetensors").exists()


@pytest.mark.cluster
@pytest.mark.parametrize(("algorithm", "steps", "runners"), [("slope", 32, 0), ("slope", 32, 2), ("ppo", 48, 0)])
def test_sites_train_alone_and_the_server_averages(
    tmp_path: Path, table: pd.DataFrame, algorithm: str, steps: int, runners: int
) -> None:
    config = with_policy(
        tmp_path / "federated", table, federated=True, beta=0.5, algorithm=algorithm, env_runners=runners
    )
    train(config)
    learned = learn(config, iterations=2, adopt="always")
    assert learned["federated"]
    assert learned["env_runners"] == runners
    assert learned["env_steps"] == 2 * 4 * steps  # rounds, sites, steps at each
    assert np.isfinite(learned["gain_last"])
    assert np.isfinite(learned["evaluation_gain"])
    assert train(config)["policy"] == learned["policy"] != learned["parent"]


@pytest.mark.cluster
@pytest.mark.parametrize("runners", [0, 2])
def test_a_site_begins_where_the_others_do_and_samples_at_itself(
    tmp_path: Path, table: pd.DataFrame, runners: int
) -> None:
    """One that is lost in its turn is left out of the round, and the others are averaged."""
    from frmu.policy.federate import Sites
    from frmu.policy.trainer import Trainer, quiet

    config = with_policy(tmp_path / "turns", table)
    train(config)
    with api.Experiment(config) as experiment, quiet():
        context, slices = _context(experiment)
        scores = [np.zeros(len(keys)) for keys in slices.values()]
        with Trainer(Policy(samples=64), [context], 4, runners, 32, 0) as trainer:
            sites = Sites([context], beta=1.0)
            for _ in range(2):
                shared = trainer.weights()
                turns = watched(trainer)
                sites.iterate(trainer, scores)
                assert [site for site, _, _ in turns] == [0, 1, 2, 3]
                for site, weights, clients in turns:
                    assert clients == {site}
                    assert all(np.array_equal(weights[name], shared[name]) for name in shared)
            gone = ClientsUnavailableError.of({"home 1": "its host died"})
            turns = watched(trainer, gone)
            sites.iterate(trainer, scores)
            assert [site for site, _, _ in turns] == [0, 2, 3]
            watched(trainer, gone, everywhere=True)
            with pytest.raises(ClientsUnavailableError, match="home 0, home 1, home 2, home 3 are away: its host died"):
                sites.iterate(trainer, scores)


def watched(trainer: Trainer, gone: Exception | None = None, everywhere: bool = False) -> list[Any]:
    """What each batch from now on is sampled by: site, weights, clients met; where told so, a site is away."""
    turns: list[Any] = []
    algorithm = trainer._algorithm
    sample = type(algorithm)._sample

    def seen() -> Any:
        site = algorithm.order.site
        if gone is not None and (everywhere or site == 1):
            raise gone
        found = sample(algorithm)
        told = [one for said in found for one in said.episodes]
        state = algorithm._weights()["default_policy"]
        weights = {name.removeprefix("network."): np.array(weight) for name, weight in state.items()}
        turns.append((site, weights, {int(one.get_observations(0)[-1, 0]) for one in told}))
        return found

    algorithm._sample = seen
    return turns


def test_a_policy_that_is_no_better_is_let_go(tmp_path: Path, table: pd.DataFrame) -> None:
    from click.testing import CliRunner

    from frmu.cli import main

    config = with_policy(tmp_path / "guarded", table)
    before = train(config)["policy"]
    command = ["policy", "train", str(config.file), "--scratch", "--iterations", "1", "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    learned = json.loads(result.output.strip().splitlines()[-1])
    assert learned["policy"] == before != learned["trained"]
    assert not learned["adopted"]
    compared = learned["compared"]
    assert compared["trained"] - compared["in_force"] == pytest.approx(compared["difference"])
    assert compared["chance"] > 0.05
    assert compared["rehearsals"] >= 120
    with api.Experiment(config, "local") as experiment:
        assert experiment.session.network().digest == before
        assert not list(experiment.session.workspace.policies.glob("*.safetensors"))
        assert experiment.session.workspace.unexpected_files() == []


def test_the_better_of_two_policies_is_told_either_way(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    from frmu.policy import compare as comparing
    from frmu.policy.compare import compare
    from frmu.selection.network import read_policy, shipped, write_policy

    monkeypatch.setattr(comparing, "REHEARSALS", 24)
    config = with_policy(tmp_path / "two", table)
    train(config)
    good = read_policy(shipped())
    weights = dict(good.weights) | {"head.weight": -good.weights["head.weight"]}
    bad = write_policy(weights, {"clients": []}, tmp_path / "bad.safetensors")
    with api.Experiment(config, "local") as experiment:
        context, _ = _context(experiment)
        up, down, same = (compare(context, *pair, 4) for pair in ((bad, good), (good, bad), (good, good)))
    assert up.better(0.05)
    assert not down.better(0.05)
    assert down.difference == -up.difference < 0.0
    assert (same.difference, same.better(1.0)) == (0.0, False)


@pytest.mark.parametrize("change", ["one client", "no time", "rounds"])
def test_small_federations_train_too(tmp_path: Path, table: pd.DataFrame, change: str) -> None:
    """One client alone; slices and splits by hash, without a time; data that arrive between the steps."""
    config = with_policy(tmp_path / "small", table, rounds=3 if change == "rounds" else 1)
    text = config.file.read_text()
    if change == "one client":
        table[table.home == "home 0"].to_parquet(config.file.parent / "homes.parquet", index=False)
    if change == "no time":
        for line in ('time = "ts"', 'yesterday = { column = "load", back = "1d" }', "[data.lags]", 'by = "month"'):
            text = text.replace(line, 'by = "subject"' if line.startswith("by") else "")
        split = text[text.index("[split]") : text.index("[model]")]
        config.file.write_text(text.replace(split, "").replace(', "yesterday"', ""))
    from frmu.config import load

    config = load(config.file)
    train(config)
    learned = learn(config, iterations=1)
    assert np.isfinite(learned["gain_last"])
    assert set(learned["scores"]) == ({"home 0"} if change == "one client" else set(table.home))


def test_one_slice_has_nothing_to_choose(tmp_path: Path, table: pd.DataFrame) -> None:
    config = with_policy(tmp_path / "one", table[(table.ts.dt.month == 4) | (table.ts.dt.month > 4)])
    train(config)
    with pytest.raises(PolicyError, match="no client has two slices to fit"):
        learn(config, iterations=1)


@pytest.mark.cluster
def test_of_many_slices_the_newest_train_and_it_is_said(tmp_path: Path, table: pd.DataFrame) -> None:
    from click.testing import CliRunner

    from frmu.cli import main

    text = CONFIG.replace('by = "month"', 'by = "day"')
    config = put(tmp_path / "days", table[table.home < "home 2"], f"{text}\n[policy]\nsamples = 64\n")
    train(config)
    result = CliRunner().invoke(main, ["policy", "train", str(config.file), "--iterations", "1"])
    assert result.exit_code == 0, result.output
    assert "of home 1 the newest 64 slices trained it; 56 older slices took no part" in result.output


def test_more_runners_than_the_cluster_can_place(tmp_path: Path, table: pd.DataFrame) -> None:
    config = with_policy(tmp_path / "many", table, env_runners=1000)
    train(config)
    with pytest.raises(PolicyError, match=r"env_runners must be at most \d+ here"):
        learn(config, iterations=1)
