"""Env runners as actors that are slow, silent, broken or lost: each by rule or in one sentence; on a real Ray."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from problems import SLICES, shuffled

from frmu.bench.pretraining_tasks import PretrainingTasks
from frmu.config import Policy
from frmu.errors import ClientsUnavailableError, DataError, FrmuError, PolicyError
from frmu.policy.env import SliceEnv
from frmu.policy.rllib import Rate, config_of
from frmu.policy.runners import Order, Sampled, cause_of, sampled
from frmu.policy.trainer import Trainer, quiet

TOLD = [np.zeros(SLICES)]


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def trainer(tasks: Any, runners: int, deadline: float = 300.0, samples: int = 96) -> Trainer:
    return Trainer(Policy(samples=samples), [tasks], SLICES, runners, samples, 3, deadline)


def pids(made: Trainer) -> list[int]:
    runners = made._algorithm.runners
    return runners._ask(runners._runners, 60.0, lambda runner: os.getpid())


def acted_by(runner: Any, order: Order) -> dict[str, Any]:
    """The weights that a runner acts by when it samples."""
    assert sampled(runner, order, 32).steps == 32
    return {name.removeprefix("network."): np.array(w) for name, w in runner.module.get_state().items()}


@pytest.mark.parametrize("runners", [0, pytest.param(2, marks=pytest.mark.cluster)])
def test_a_batch_is_sampled_by_the_weights_that_were_loaded(runners: int) -> None:
    """RLlib's own hand-over passes over weights that no update has numbered: those of the next site, or the mean."""
    with quiet(), trainer(PretrainingTasks(shuffled), runners) as made:
        before = made.weights()
        made.iterate(TOLD)
        after = made.weights()
        assert any(not np.array_equal(before[name], after[name]) for name in after)
        made.load(before)
        algorithm = made._algorithm
        order = Order(algorithm._weights())
        if runners:
            found = algorithm.runners._ask(algorithm.runners._runners, 60.0, acted_by, order)
        else:
            found = [acted_by(algorithm.env_runner_group.local_env_runner, order)]
        assert len(found) == max(1, runners)
        for weights in found:
            assert all(np.array_equal(weights[name], before[name]) for name in before)
        # The evaluation, too, is one of the weights that are there now.
        told = made.evaluate()
        made.load(after)
        assert made.evaluate() != told


def test_an_order_of_another_turn_begins_anew_at_its_client() -> None:
    tasks = PretrainingTasks(shuffled, clients=("one", "two"), shares=(1.0, 1.0))
    with quiet(), trainer(tasks, 0) as made:
        runner, weights = made._algorithm.env_runner_group.local_env_runner, made._algorithm._weights()
        everywhere = sampled(runner, Order(weights), 64)
        alone = sampled(runner, Order(weights, 1, 7), 64)
        still = sampled(runner, Order(weights, 1, 7), 64)
        assert clients_of(everywhere) == {0, 1}
        assert clients_of(alone) == clients_of(still) == {1}
        assert {len(episode) for episode in alone.episodes} == {2}  # the first two steps of clean episodes
        assert {one.id_ for one in alone.episodes} == {one.id_ for one in still.episodes}


def clients_of(said: Sampled) -> set[int]:
    return {int(episode.get_observations(0)[-1, 0]) for episode in said.episodes}


def test_the_error_of_ours_that_led_to_another() -> None:
    ours, outer, foreign = DataError("why"), RuntimeError("RLlib's"), ValueError("theirs")
    outer.__cause__ = ours
    assert cause_of(outer) is cause_of(ours) is ours
    assert cause_of(foreign) is cause_of(None) is None


class Gone(PretrainingTasks):
    """Clients that answer at first, and then no more."""

    def rollout(self, env_steps: Any, max_slices: int, rounds: int) -> Any:
        if any(step.influence is not None for steps in env_steps.values() for step in steps):
            raise ClientsUnavailableError.of({"pretraining": "its host died"})
        return super().rollout(env_steps, max_slices, rounds)


class Torn(PretrainingTasks):
    """Clients that answer with an error of ours."""

    def rollout(self, env_steps: Any, max_slices: int, rounds: int) -> Any:
        raise DataError("client pretraining: the shard is torn")


@pytest.mark.parametrize("runners", [0, pytest.param(1, marks=pytest.mark.cluster)])
@pytest.mark.parametrize(("tasks", "error"), [(Gone, ClientsUnavailableError), (Torn, DataError)])
def test_what_clients_say_is_raised_as_it_was(
    tasks: type[PretrainingTasks], error: type[FrmuError], runners: int
) -> None:
    """Not as a runner that was lost: nobody would look at the clients then."""
    with quiet(), trainer(tasks(shuffled), runners) as made, pytest.raises(error, match="pretraining"):
        made.iterate(TOLD)


@dataclass(frozen=True)
class Cracked(PretrainingTasks):
    """Clients whose answers break the environment, as a fault of ours would."""

    def rollout(self, env_steps: Any, max_slices: int, rounds: int) -> Any:
        raise KeyError("no such slice")


@pytest.mark.cluster
def test_a_fault_of_ours_in_a_runner_is_shown_and_not_gone_through_again() -> None:
    with quiet(), trainer(Cracked(shuffled), 1) as made, pytest.raises(RuntimeError, match="no such slice"):
        made.iterate(TOLD)


@pytest.mark.cluster
def test_one_that_is_lost_or_hangs_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    """The others sample its share meanwhile; and an end waits for nobody, not even for one that hangs."""
    with quiet(), trainer(PretrainingTasks(shuffled), 2) as made:
        made.iterate(TOLD)
        runners = made._algorithm.runners
        runners._silence = 10.0
        for sign, told in ((signal.SIGKILL, "1 was lost"), (signal.SIGSTOP, "1: no sign of life in 10 s")):
            before, steps = pids(made), made._so_far
            os.kill(before[0], sign)
            began = time.monotonic()
            assert made.iterate(TOLD)["env_steps"] == steps + 96  # a whole batch all the same
            assert time.monotonic() - began < 60.0
            assert runners.there == 1
            assert told in caplog.text
            end = time.monotonic() + 120.0
            while runners.there < 2:
                assert time.monotonic() < end
                made.iterate(TOLD)
            assert before[0] not in pids(made)
            assert before[1] in pids(made)
        pid = pids(made)[1]
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    assert time.monotonic() - began < 10.0
    end = time.monotonic() + 60.0
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.2)
    assert not Path(f"/proc/{pid}").exists()


def some_broken(folder: Path, broken: int) -> Any:
    """An environment that the first so many processes elsewhere cannot make; made here, so they get it by value."""
    here = os.getpid()

    class Fragile(SliceEnv):
        def __init__(self, settings: Any) -> None:
            for number in range(broken if os.getpid() != here else 0):
                with suppress(FileExistsError):
                    (folder / f"broken {number}").touch(exist_ok=False)
                    raise ValueError("no such sensor here")
            super().__init__(**dict(settings))

    return Fragile


def free_cpus() -> float:
    """All CPUs, as soon as those who were ended have given theirs back."""
    import ray

    while ray.available_resources().get("CPU", 0.0) < ray.cluster_resources()["CPU"]:
        time.sleep(0.1)
    return float(ray.cluster_resources()["CPU"])


def built(environment: Any, runners: int, patience: float = 300.0) -> Any:
    policy, rate = Policy(samples=96), Rate(2e-3, 2e-3, 1)
    made = config_of(policy, [PretrainingTasks(shuffled)], SLICES, runners, 96, 0, rate).environment(environment)
    return made.fault_tolerance(env_runner_restore_timeout_s=patience).build_algo()


@pytest.mark.cluster
def test_a_runner_that_cannot_start_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with quiet():
        made = built(some_broken(tmp_path, 1), 2)
        try:
            assert made.runners.there == 1
            assert made.learn_once()
            assert re.search(r"Env runner [12] cannot start: ValueError: no such sensor here", caplog.text)
        finally:
            made.stop()
        (more := tmp_path / "more").mkdir()
        with pytest.raises(PolicyError, match=r"none of 2 env runners started: ValueError: no such sensor"):
            built(some_broken(more, 2), 2)


@pytest.mark.cluster
def test_a_runner_that_nobody_has_room_for_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import ray

    @ray.remote
    class Other:
        """Somebody else's."""

    cpus = free_cpus()
    taken = Other.options(num_cpus=cpus - 0.6).remote()
    ray.get(taken.__ray_ready__.remote())
    with quiet():
        made = built(some_broken(tmp_path, 0), 2)  # the second needs half a core, and a tenth is left
        try:
            assert made.runners.there == 1
            assert "1 of 2 env runners did not start in " in caplog.text
            ray.kill(taken)
            end = time.monotonic() + 90.0
            while made.runners.there < 2:
                assert time.monotonic() < end
                assert made.learn_once()
        finally:
            made.stop()
        taken = Other.options(num_cpus=free_cpus() - 0.1).remote()
        ray.get(taken.__ray_ready__.remote())
        with pytest.raises(PolicyError, match=r"none of 1 env runners started: no answer in 2 s\. Lower"):
            built(some_broken(tmp_path, 0), 1, patience=2.0)
        ray.kill(taken)
