"""The table of accuracy: the same rows for all, lines that are not measured twice, and what went is there again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from click.testing import CliRunner
from conftest import CONFIG, homes, put

from frmu.bench import accuracy, images, lines, moves, rivals, unmoved
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
    assert 0.5 < found["holds"] <= 1.0
    assert accuracy._ours(learned, erase=False) | {"fit": 0.0} == {**found, "fit": 0.0, "erase": None, "exact": None}


def test_rivals_see_all_columns_of_all_sites_by_split(learned: Config) -> None:
    rows = accuracy._pooled(learned)
    assert set(rows) == {"fit", "validation", "later", "test"}
    assert rows["fit"][0].shape[1] == 2 + 2 + 2 + 2  # a lag is two, and each modality says whether it is there
    assert sum(len(y) for _, y in rows.values()) == 2 * 424
    found = rivals.measured(rivals.RIVALS["boosted trees"], rows, 0)
    assert 0.0 < found["error"] < 1.0
    assert found["fit"] == found["erase"]
    assert found["exact"] is None


def test_a_rival_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images.importlib, "import_module", lambda name: (_ for _ in ()).throw(ImportError("no")))
    with pytest.raises(ConfigError, match=r"install the extra frmu\[bench\]"):
        rivals.measured(rivals.RIVALS["LightGBM"], {}, 0)


def test_rivals_run_on_one_thread() -> None:
    def fit(X: Any, y: Any, V: Any, v: Any, seed: int) -> Any:
        pools = {pool["user_api"]: pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
        assert set(pools.values()) == {1}
        assert "openmp" in pools
        return SimpleNamespace(predict=lambda X: np.zeros(len(X)))

    rows = {name: (np.zeros((2, 1)), np.array([0.0, 1.0])) for name in ("fit", "validation", "test")}
    rivals.measured(rivals.Rival("scikit-learn", ("sklearn.ensemble",), fit), rows, 0)


def test_what_is_scaled_answers_with_classes_and_numbers() -> None:
    model = SimpleNamespace(predict=lambda X: np.array([1, 0]))
    scaler = SimpleNamespace(transform=lambda X: X)
    classes = rivals._Scaled(scaler, model, np.array(["a", "b"]))
    assert classes.predict(np.zeros((2, 1))).tolist() == ["b", "a"]
    assert classes.target(np.array(["b", "b", "a"])).tolist() == [1, 1, 0]
    assert rivals._Scaled(scaler, model, None).target(np.array([0.5])).shape == (1, 1)


def test_what_stands_in_the_file_is_not_measured_again(
    tmp_path: Path, learned: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def ours(config: Config, erase: bool) -> dict[str, Any]:
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
    monkeypatch.setattr(lines, "VERSION", -1)  # of other data all is measured again, and that is said once
    told.clear()
    accuracy.bench_accuracy(["bikes"], ["learned"], 3, tmp_path, out, told.append)
    assert asked == [0, 1, 2, 0, 1, 2]
    assert told[0].endswith(
        "lines of other settings, code or data are passed over, that of bikes, learned, 0 among them"
    )
    assert len(told) == 4
    assert len(out.read_text().splitlines()) == 6


def test_a_line_that_was_cut_off_is_dropped_and_the_next_stands_by_itself(tmp_path: Path) -> None:
    out, told = tmp_path / "lines.jsonl", []
    lines.Lines(out, ("name",), told.append).put({"name": "a", "digest": "1"})
    with out.open("a") as file:
        file.write('{"name": "b", "dig')
    found = lines.Lines(out, ("name",), told.append)
    assert told == [f"{out}: its last line was cut off, and is dropped"]
    assert found.get("1", name="a") == {"name": "a", "digest": "1"}
    assert found.get("2", name="b") is None
    found.put({"name": "b", "digest": "2"})
    assert lines.Lines(out, ("name",), told.append).get("2", name="b") == {"name": "b", "digest": "2"}
    assert len(told) == 1


def test_a_digest_of_a_line_hangs_on_the_model_and_not_on_where_it_lies(learned: Config) -> None:
    other = learned.model_copy(update={"model": learned.model.model_copy(update={"lattice": 0.5})})
    moved = learned.model_copy(update={"file": Path("/elsewhere/config.toml")})
    assert accuracy._digest("learned", learned) == accuracy._digest("learned", moved)
    assert accuracy._digest("learned", learned) != accuracy._digest("learned", other)
    assert accuracy._digest("boosted trees", learned) == accuracy._digest("boosted trees", other)
    assert accuracy._digest("boosted trees", learned) != accuracy._digest("LightGBM", learned)


def test_a_width_is_that_of_all_modalities_together(
    tmp_path: Path, learned: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy, "cached", lambda name, cache: learned.file.parent)
    frozen = accuracy.config_for("homes", tmp_path, 0, {"encoder": "relu", "width": 512})
    assert (frozen.model.features, len(frozen.data.modalities)) == (256, 2)
    assert accuracy.config_for("homes", tmp_path, 1, {"encoder": "learned", "width": 512}).model.features == 512


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


def test_what_is_taken_out_is_as_if_it_had_never_been_there_and_comes_back(learned: Config, tmp_path: Path) -> None:
    federation = filled(learned, tmp_path / "scratch")
    clients = {client.name: client for client in held(federation)}
    first = moves._learned(federation, clients)
    for kind in moves.KINDS:
        (masks,) = moves.draws(kind, clients, learned, np.random.default_rng(0), 1)
        with moves._without(masks, clients) as left:
            after = moves._learned(federation, left)
            assert after.total.n < first.total.n, kind
            assert moves._same(after, moves._never(left)), kind
        back = moves._learned(federation, clients)
        assert moves._same(back, first), kind
    assert not moves._same(after, first)


def test_a_kind_means_what_it_says(learned: Config, tmp_path: Path) -> None:
    clients = {client.name: client for client in held(filled(learned, tmp_path / "scratch"))}
    rng = np.random.default_rng(0)
    for masks in moves.draws("a person", clients, learned, rng, 2):
        for name, rows in masks.items():
            persons = clients[name].shard.table["#subject"].to_numpy(zero_copy_only=False)
            (person,) = set(persons[rows])
            assert np.array_equal(persons == person, rows)
    nobody = learned.model_copy(update={"data": learned.data.model_copy(update={"subject": None})})
    assert not list(moves.draws("a person", clients, nobody, rng, 2))
    assert [list(masks) for masks in moves.draws("a site", clients, learned, rng, 9)] in (
        [["home 0"], ["home 1"]], [["home 1"], ["home 0"]]
    )  # fmt: skip
    for masks in moves.draws("3 days", clients, learned, rng, 3):
        assert list(masks) == ["home 0", "home 1"]
        times = clients["home 0"].shard.table["#time"].to_numpy()[masks["home 0"]]
        assert np.ptp(times) < np.timedelta64(3, "D")


def test_an_erasure_is_timed_part_by_part(learned: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = unmoved._erased(learned, 2)
    assert set(found["parts"]) > {"drop", "SumLayers", "ChooseFeatures", "SolveModel"}
    assert sum(found["parts"].values()) <= 1.5 * found["seconds"]
    assert found["integers"] > 16


@pytest.mark.parametrize("command", ["accuracy", "moves", "unmoved"])
def test_an_unknown_set_is_told(command: str) -> None:
    run = CliRunner().invoke(main, ["bench", command, "--set", "nothing"])
    assert run.exit_code == 2
    assert "no set nothing; there are: bikes" in run.output
