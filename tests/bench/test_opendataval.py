"""The bench beside OpenDataVal: what goes to its process, what comes back, and the environment it has."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from frmu.bench import opendataval as bench
from frmu.bench import opendataval_venv as venv
from frmu.cli import main
from frmu.errors import FrmuError

LINE = {"f1": 0.5, "found": 0.4, "low_first": 0.9, "high_first": 0.7, "seconds": 1.0}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have gone to OpenDataVal's process: set, evaluators and seed."""
    asked: list[tuple[Any, ...]] = []

    def measured(name: str, evaluators: list[str], seed: int, *_: Any) -> Iterator[dict[str, Any]]:
        asked.append((name, tuple(evaluators), seed))
        for number, one in enumerate(evaluators):
            yield {"evaluator": one, **LINE, "f1": 0.5 + 0.1 * seed - 0.01 * number}

    monkeypatch.setattr(bench, "_measured", measured)
    return asked


def run(*arguments: str) -> Any:
    done = CliRunner().invoke(main, ["bench", "opendataval", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout.splitlines()[-1])


def test_what_stands_in_the_file_is_not_measured_again(asked: list[Any], tmp_path: Path) -> None:
    arguments = ["--set", "digits", "--evaluator", "frmu", "--seeds", "2", "--out", str(tmp_path / "lines")]
    run(*arguments)
    told = run(*arguments, "--evaluator", "DVRL", "--picture", str(tmp_path / "f1.png"))
    assert asked == [
        ("digits", ("frmu",), 0), ("digits", ("frmu",), 1), ("digits", ("DVRL",), 0), ("digits", ("DVRL",), 1)
    ]  # fmt: skip
    assert (tmp_path / "f1.png").read_bytes()[:4] == b"\x89PNG"
    assert [row["evaluator"] for row in told["rows"]] == ["frmu", "DVRL"]
    run(*arguments, "--models", "7")  # frmu fits none of them
    assert len(asked) == 4


def test_an_evaluator_of_classes_is_left_out_of_a_regression(asked: list[Any]) -> None:
    run("--set", "diabetes", "--seeds", "1")
    [(_, evaluators, _)] = asked
    assert evaluators == tuple(one for one in bench.EVALUATORS if one not in bench.CLASSES_ONLY)


def test_a_row_has_mean_and_standard_error() -> None:
    lines = [{"set": "a", "evaluator": "b", "seed": seed, **LINE, "f1": f1} for seed, f1 in enumerate([0.4, 0.6])]
    [row] = bench.summed_up(lines)
    assert row["f1"] == pytest.approx(0.5)
    assert row["f1_error"] == pytest.approx(0.1)
    assert bench.summed_up(lines[:1])[0]["f1_error"] is None


def test_an_unknown_set_is_told(asked: list[Any]) -> None:
    done = CliRunner().invoke(main, ["bench", "opendataval", "--set", "digit"])
    assert done.exit_code == 2
    assert "breast_cancer" in done.output
    assert not asked


def test_what_comes_out_of_a_process_is_read_and_its_end_is_told(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nprint('{{\"evaluator\": \"a\"}}')\nsys.exit('no such set')\n")
    python.chmod(0o755)
    told = bench._said_by(python, tmp_path)
    assert next(told) == {"evaluator": "a"}
    with pytest.raises(FrmuError, match="ended with 1: no such set"):
        next(told)


def test_the_environment_has_the_versions_that_frmu_runs_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def ran(command: list[str]) -> None:
        commands.append(command)
        (tmp_path / "venv" / "bin").mkdir(exist_ok=True)
        (tmp_path / "venv" / "bin" / "python").touch()

    monkeypatch.setattr(venv, "_run", ran)
    told: list[str] = []
    python = venv.environment(tmp_path / "venv", told.append)
    assert python == tmp_path / "venv" / "bin" / "python"
    assert "opendataval==1.3.0" in commands[-1]
    assert "--no-deps" in commands[-1]
    assert f"torch=={venv.importlib.metadata.version('torch').partition('+')[0]}" in commands[1]
    made = len(commands)
    assert made == 3
    venv.environment(tmp_path / "venv", told.append)
    assert len(commands) == made  # it is there
    monkeypatch.setattr(venv, "PINNED", ("opendataval==1.3.1",))
    venv.environment(tmp_path / "venv", told.append)
    assert "opendataval==1.3.1" in commands[-1]  # other versions: made anew
    assert len(told) == 2


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all of it")
    with pytest.raises(FrmuError, match="--venv"):
        venv.environment(tmp_path, lambda line: None)
    assert (tmp_path / "thesis.txt").read_text() == "all of it"


@pytest.mark.long
def test_opendataval_itself() -> None:
    """With the environment in the cache, or made there."""
    told = run("--set", "breast_cancer", "--set", "diabetes", "--seeds", "1", "--models", "5")
    of = {(row["set"], row["evaluator"]): row for row in told["rows"]}
    assert len(of) == 2 * len(bench.EVALUATORS) - len(bench.CLASSES_ONLY)
    assert all(0.0 <= row["f1"] <= 1.0 and 0.0 <= row["found"] <= 1.0 for row in of.values())
    assert of["breast_cancer", "frmu"]["f1"] > 0.6 > of["breast_cancer", "random"]["f1"]
    assert of["breast_cancer", "frmu"]["low_first"] > of["breast_cancer", "frmu"]["high_first"]
