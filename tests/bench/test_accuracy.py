"""The table of accuracy: the same rows for all, lines that are not measured twice, and totals that are put back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import CONFIG, homes, put

from frmu.bench import accuracy, images, moves
from frmu.bench.scenario import filled, held
from frmu.cli import main
from frmu.cli.bench_accuracy import summed_up
from frmu.config import Config
from frmu.errors import ConfigError

LEARNED = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 4\nfeatures = 16\nlayers = 1")
LEARNED += '\n[policy]\nselector = "keep"\n[attention]\nrule = "size"\n'


@pytest.fixture
def learned(tmp_path: Path) -> Config:
    return put(tmp_path / "homes", homes(2), LEARNED)


def test_ours_is_erased_exactly_and_its_error_is_in_standard_deviations(learned: Config) -> None:
    found = accuracy._ours(learned)
    assert found["exact"] is True
    assert 0.0 < found["error"] < 1.0
    assert found["fit"] > 0.0
    assert found["erase"] > 0.0


def test_rivals_see_all_columns_of_all_sites_by_split(learned: Config) -> None:
    rows = accuracy._pooled(learned)
    assert set(rows) == {"fit", "validation", "later", "test"}
    assert rows["fit"][0].shape[1] == 2 + 2 + 2 + 2  # a lag is two, and each modality says whether it is there
    assert sum(len(y) for _, y in rows.values()) == 2 * 424
    found = accuracy._rival(accuracy.RIVALS["boosted trees"], rows, 0)
    assert 0.0 < found["error"] < 1.0
    assert found["fit"] == found["erase"]
    assert found["exact"] is None


def test_a_rival_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no")))
    with pytest.raises(ConfigError, match=r"install the extra frmu\[bench\]"):
        accuracy._lightgbm(np.zeros((2, 1)), np.zeros(2), np.zeros((1, 1)), np.zeros(1), 0)


def test_what_stands_in_the_file_is_not_measured_again(
    tmp_path: Path, learned: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def ours(config: Config) -> dict[str, Any]:
        asked.append(config.model.seed)
        return {"error": 0.5, "fit": 1.0, "erase": 0.1, "exact": True}

    monkeypatch.setattr(accuracy, "config_for", lambda name, cache, seed, model: learned.model_copy(
        update={"model": learned.model.model_copy(update={"seed": seed})}))  # fmt: skip
    monkeypatch.setattr(accuracy, "_ours", ours)
    out, told = tmp_path / "lines.jsonl", []
    first = accuracy.bench_accuracy(["bikes"], ["learned"], 2, tmp_path, out, told.append)
    assert len(first) == 2
    again = accuracy.bench_accuracy(["bikes"], ["learned"], 3, tmp_path, out, told.append)
    assert asked == [0, 1, 2]
    assert len(again) == 3
    assert [json.loads(line)["seed"] for line in out.read_text().splitlines()] == [0, 1, 2]
    assert told[0] == "bikes, learned, seed 0: 0.5000 in 1.0 s"


def test_a_row_is_a_mean_over_seeds_against_boosted_trees(tmp_path: Path) -> None:
    def line(method: str, seed: int, error: float, exact: bool | None) -> dict[str, Any]:
        return {"set": "s", "method": method, "seed": seed, "error": error, "fit": 1.0, "erase": 2.0, "exact": exact}

    trees, ours = summed_up(
        [line("boosted trees", 0, 2.0, None), line("learned", 0, 1.0, True), line("learned", 1, 2.0, False)]
    )
    assert (trees["against"], trees["spread"], trees["exact"]) == (0.0, None, None)
    assert (ours["error"], ours["against"], ours["seeds"], ours["exact"]) == (1.5, -25.0, 2, False)
    accuracy.draw_accuracy([trees, ours], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"


def test_what_is_taken_out_is_put_back_to_the_last_bit(learned: Config, tmp_path: Path) -> None:
    federation = filled(learned, tmp_path / "scratch")
    clients = {client.name: client for client in held(federation)}
    first = moves._learned(federation, clients)
    for draw in moves.KINDS.values():
        client = clients["home 1"]
        rows = draw(client, np.random.default_rng(0))
        assert rows.any()
        for after in moves._without(client, rows, federation, clients):
            assert after.total.n < first.total.n
        back = moves._learned(federation, clients)
        assert np.array_equal(back.total.packed, first.total.packed)
        assert moves._same_metrics(back, first)
        assert back.header == first.header


@pytest.mark.parametrize("command", ["accuracy", "moves"])
def test_an_unknown_set_is_told(command: str) -> None:
    run = CliRunner().invoke(main, ["bench", command, "--set", "nothing"])
    assert run.exit_code == 2
    assert "no set nothing; there are: bikes" in run.output
