"""The learning curve: random search that learns and replays, and learners that have the same seconds."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from problems import shuffled

from frmu.bench import curve as benching
from frmu.bench import pretrain as pretraining
from frmu.bench import random_search as searching
from frmu.bench.curve import LEARNERS, POINTS, bench_curve, draw_curve
from frmu.bench.pretraining_tasks import PretrainingTasks
from frmu.bench.random_search import random_search, start
from frmu.cli import main
from frmu.selection.network import shapes


@pytest.fixture(autouse=True)
def few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, few in {"TASKS": 2, "DIRECTIONS": 3, "BEST": 2}.items():
        monkeypatch.setattr(searching, name, few)


def test_random_search_replays_by_its_seed_and_leaves_the_value_alone() -> None:
    tasks = PretrainingTasks(shuffled)
    one, again, other = (list(islice(random_search(tasks.task, seed), 1))[-1] for seed in (0, 0, 1))
    assert {name: weight.shape for name, weight in one.items()} == shapes()
    assert all(weight.dtype == np.float32 for weight in one.values())
    assert all(np.array_equal(weight, again[name]) for name, weight in one.items())
    assert not np.array_equal(one["head.weight"], other["head.weight"])
    assert np.array_equal(one["value.weight"], start(0)["value.weight"])


def test_random_search_climbs_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a reward that is greatest where the last layer is zero."""
    norm = {}
    monkeypatch.setattr(searching, "_reward", lambda network, tasks: -np.linalg.norm(network.weights["head.weight"]))
    norm["before"] = np.linalg.norm(start(0)["head.weight"] * 30.0)
    monkeypatch.setattr(searching, "ACTS", ("head",))
    monkeypatch.setattr(searching, "start", lambda seed: start(seed) | {"head.weight": start(0)["head.weight"] * 30.0})
    *_, last = islice(random_search(PretrainingTasks(shuffled).task, 0), 40)
    assert np.linalg.norm(last["head.weight"]) < 0.9 * norm["before"]


def test_the_weights_nearest_to_each_point_are_judged() -> None:
    kept = [(number + 1, float(number + 1), {}) for number in range(8)]
    assert [number for number, _, _ in benching._points(kept)] == [2, 4, 6, 8]
    assert [number for number, _, _ in benching._points(kept[:1])] == [1] * len(POINTS)


@pytest.mark.cluster
def test_the_command_measures_all_learners_and_goes_on_from_its_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretraining, "SAMPLES", 96)
    monkeypatch.setattr(benching, "series_of", lambda cache: [])
    monkeypatch.setattr(benching, "pretraining_task", lambda series, rng: shuffled(rng))
    out, picture = tmp_path / "curve.jsonl", tmp_path / "curve.png"
    command = ["bench", "curve", "--iterations", "2", "--tasks", "20", "--out", str(out), "--picture", str(picture)]
    run = CliRunner().invoke(main, [*command, "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.strip().splitlines()[-1])
    assert [line["learner"] for line in result["lines"]] == [name for name in LEARNERS for _ in POINTS]
    ends = {line["learner"]: line["seconds"] for line in result["lines"]}
    assert result["lines"][len(POINTS) - 1]["iteration"] == 2
    assert all(seconds >= ends["slope"] for seconds in ends.values())
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(benching, "_learn", None)  # nobody is trained again
    assert bench_curve(tmp_path, 2, 20, 0, out, lambda line: None)["lines"] == result["lines"]
    draw_curve(result, tmp_path / "again.png")
