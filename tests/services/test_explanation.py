"""Why slices count as they do: what is told belongs to the state in force, and is exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config
from frmu.data.shard import clients_in
from frmu.errors import RequestError, StoreError
from frmu.methods.analytic import sums_of
from frmu.report.plots import plot_influence
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped, write_policy
from frmu.selection.observation import FEATURES
from frmu.selection.problem import validation_loss
from frmu.storage.checkpoint import load_state
from frmu.types import HEAD, ClientState, Selection, State

pytestmark = pytest.mark.usefixtures("memory_tracking")


def spoiled(table: pd.DataFrame) -> pd.DataFrame:
    """A sensor that reads three times too high for a month at one home."""
    hit = (table["home"] == "home 1") & (table["ts"].dt.month == 3)
    return table.assign(load=table["load"].where(~hit, table["load"] * 3 + 2))


@pytest.fixture
def config(tmp_path: Path, table: pd.DataFrame) -> Config:
    return put(tmp_path / "homes", spoiled(table))


def explain(config: Config, **options: object) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.explain(**options)


def test_what_is_told_of_a_forgotten_slice(config: Config) -> None:
    digest = train(config)["state_digest"]
    told = explain(config, client="home 1")
    one = told["clients"]["home 1"]
    bad, good = one["slices"]["2025-03"], one["slices"]["2025-02"]
    assert (bad["influence"], good["influence"]) == (0.0, 1.0)
    assert bad["in_full_percent"] > 1.0
    assert bad["without_percent"] == pytest.approx(0.0, abs=1e-9)
    assert bad["why"].startswith(f'forgotten, as "{one["chosen_by"]}" proposed')
    assert one["proposals"][one["chosen_by"]] == pytest.approx(one["loss"])
    assert list(one["proposals"].values()) == sorted(one["proposals"].values())
    assert set(bad["features"]) == set(FEATURES)
    assert bad["features"]["influence"] < good["features"]["influence"]  # as applied, not as first seen
    assert bad["rounds"] == [[bad["rounds"][0][0], 0.0]]
    assert told["state_digest"] == digest
    assert json.loads(json.dumps(told)) == told


def test_the_counterfactual_is_a_refit(config: Config) -> None:
    train(config)
    told = explain(config)
    state = load_state(config.folder / "state.safetensors")
    assert state is not None
    federation = LocalFederation(config, clients_in(config.folder / "shards"), config.folder)
    total = sums_of(config, config.fingerprint(), federation, federation.clients, state.outputs).total
    for one, client in zip(state.clients, federation.host.clients(federation.clients), strict=True):
        task = client.task(client.slices("fit", state.outputs), total, state.outputs)
        for s, key in enumerate(task.keys):
            for other, name in ((0.0, "loss_without"), (1.0, "loss_in_full")):
                influence = np.array([one.influence[k] for k in task.keys])
                influence[s] = other
                found = told["clients"][one.name]["slices"][key][name]
                assert found == pytest.approx(validation_loss(task, influence), rel=1e-8)


def test_asking_changes_nothing(config: Config) -> None:
    train(config)
    before = {file: file.read_bytes() for file in (config.folder / "shards").iterdir()}
    before[config.folder / "state.safetensors"] = (config.folder / "state.safetensors").read_bytes()
    assert explain(config) == explain(config)
    assert {file: file.read_bytes() for file in before} == before


def test_nothing_of_what_was_erased_is_told(config: Config, tmp_path: Path) -> None:
    train(config)
    api.erase(config, Selection("slice", slice="2025-03"))
    api.erase(config, Selection("client", client="home 2"))
    drain(config)
    told = explain(config, picture=tmp_path / "all.png")
    text = json.dumps(told)
    assert "2025-03" not in text
    assert "home 2" not in text
    assert told["history_from"] == {"policies": 0, "rounds": 1}  # the drain's own; what was before is gone
    with pytest.raises(RequestError, match='no client "home 2"'):
        explain(config, client="home 2")


def test_scores_of_policies_in_training_are_history(config: Config) -> None:
    train(config)
    with api.Experiment(config, "local") as experiment:
        for score in (0.5, 1.5):
            with experiment.session.tracker.run("policy", experiment.session.holds(["home 1"])) as run:
                run.json({"home 1": {"2025-03": score}}, "scores.json")
    one = explain(config, slice_="2025-03")["clients"]
    assert [score for _, score in one["home 1"]["slices"]["2025-03"]["scores"]] == [0.5, 1.5]
    assert one["home 0"]["slices"]["2025-03"]["scores"] == []
    api.erase(config, Selection("client", client="home 1"))
    drain(config)  # and with the records goes what was learned from them
    assert explain(config)["history_from"]["policies"] == 0


def test_the_policy_that_made_the_state_explains_it(config: Config) -> None:
    digest = train(config)["state_digest"]
    weights = {name: 0.5 * weight for name, weight in read_policy(shipped()).weights.items()}
    newer = write_policy(weights, {"clients": []}, config.folder / "policies" / "00001-policy.safetensors")
    assert newer.digest != load_state(config.folder / "state.safetensors").policy  # type: ignore[union-attr]
    assert explain(config)["state_digest"] == digest


def test_shards_of_another_state_are_not_explained(config: Config, table: pd.DataFrame) -> None:
    train(config)
    shard = next((config.folder / "shards").glob("*.parquet"))
    pd.read_parquet(shard).iloc[5:].to_parquet(shard, index=False)
    with pytest.raises(StoreError, match="in force is"):
        explain(config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client": "home 7"}, r'no client "home 7"; did you mean "home'),
        ({"slice_": "2025-13"}, r'no client has a slice "2025-13" that is fitted.*there are 2025-01'),
        ({"client": "home 1", "slice_": "1999-01"}, r'client "home 1" has no slice "1999-01"'),
        ({"picture": Path("/nowhere/a.png")}, r"\.png file into a folder"),
        ({"picture": Path("a.svg")}, r"\.png file into a folder"),
    ],
)
def test_what_is_not_there_is_told(config: Config, options: dict, message: str) -> None:
    train(config)
    with pytest.raises(RequestError, match=message):
        explain(config, **options)


@pytest.mark.parametrize("change", ['[policy]\nselector = "keep"', "[model2]"])
def test_without_a_choice_there_is_still_an_account(tmp_path: Path, table: pd.DataFrame, change: str) -> None:
    text = f"{CONFIG}\n{change}" if "keep" in change else CONFIG
    if "keep" not in change:  # no validation record at all
        table = table[(table["ts"] < "2025-05-01") | (table["ts"] >= "2025-06-01")]
    config = put(tmp_path / "a", table, text)
    train(config)
    one = explain(config)["clients"]["home 0"]
    assert one["proposals"] == {}
    assert "nothing was weighed" in one["slices"]["2025-01"]["why"]
    assert (one["slices"]["2025-01"]["without_percent"] is None) == ("keep" not in change)


def test_at_the_desk(config: Config, tmp_path: Path) -> None:
    def frmu(*arguments: str) -> str:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    frmu("train", config.file, "--address", "local")
    told = frmu("explain", config.file, "--picture", tmp_path / "a.png")
    assert "home 3" in told
    assert "without it %" in told
    told = frmu("explain", config.file, "--client", "home 1", "--slice", "2025-03", "--picture", tmp_path / "b.png")
    assert "forgotten, as" in told
    assert "under the applied influences" in told
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"
    assert json.loads(frmu("explain", config.file, "--json"))["features"] == list(FEATURES)


@pytest.mark.parametrize("by", ["day", "week", "month", "subject"])
def test_a_picture_of_any_state(by: str, tmp_path: Path) -> None:
    keys = {
        "day": ["2024-12-31", "2025-02-01"],
        "week": ["2024-W53", "2025-W01"] if by != "week" else ["2020-W53", "2021-W01"],
        "month": ["2024-12", "2025-02"],
        "subject": ["subject-$1", "subject-_2"],
    }[by]
    clients = tuple(
        ClientState(f"$client_{n}$", 3, 1.0, dict(zip(keys, (0.3, n % 2 / 1.0), strict=True)) if n else {})
        for n in range(90)
    )
    plot_influence(State("", "", ("y",), clients, {HEAD: np.zeros((2, 1))}), by, tmp_path / "a.png")
    plot_influence(State("", "", ("y",), clients[:1], {HEAD: np.zeros((2, 1))}), by, tmp_path / "b.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_account_of_a_client_with_nothing_to_fit(tmp_path: Path, table: pd.DataFrame) -> None:
    late = table[(table["home"] != "home 0") | (table["ts"] >= "2025-05-01")]
    config = put(tmp_path / "a", late)
    train(config)
    assert explain(config)["clients"]["home 0"]["slices"] == {}
