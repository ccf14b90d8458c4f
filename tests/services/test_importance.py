"""The inputs that matter are found, from the checkpoint alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config
from frmu.errors import RequestError, StoreError
from frmu.services.importance import explain_features
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

LEARNED = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 2")
FULL = LEARNED.replace("layers = 2", 'layers = 1\nmetric = "full"')


def frmu(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_what_the_target_is_made_of_counts_and_noise_does_not(tmp_path: Path) -> None:
    table = homes()
    config = put(tmp_path / "homes", table.assign(load=0.3 * table["temperature"]), LEARNED)
    train(config)
    shutil.rmtree(config.folder / "shards")
    Path(config.source).unlink()
    told = explain_features(config)
    assert [one["layer"] for one in told["layers"]] == [1, 2]
    for one in told["layers"]:
        flat = {name: share for of in one["columns"].values() for name, share in of.items()}
        assert sum(flat.values()) == pytest.approx(1.0)
        assert max(flat, key=lambda name: flat[name]) == "temperature"
        assert flat["humidity"] < 0.05
    assert json.loads(json.dumps(told)) == told


def test_at_the_desk(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(), FULL)
    train(config)
    told = frmu("explain", config.file, "--features", "--picture", tmp_path / "a.png")
    assert told.exit_code == 0
    assert "yesterday: known" in told.output
    assert "act together" in told.output
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    result = json.loads(frmu("explain", config.file, "--features", "--json").output.splitlines()[-1])
    assert result["shape"] == "full"
    assert set(result["layers"][0]["columns"]) == {"calendar", "weather"}
    for more in (["--client", "home 1"], ["--slice", "2025-01"], ["--picture", "a.svg"]):
        assert frmu("explain", config.file, "--features", *more).exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [(CONFIG, 'frozen.*set model.encoder = "learned"'), (LEARNED.replace("layers = 2", "layers = 0"), "in 0 layers")],
)
def test_where_nothing_leans_that_is_said(tmp_path: Path, text: str, message: str) -> None:
    config = put(tmp_path / "homes", homes(2), text)
    train(config)
    with pytest.raises(RequestError, match=message):
        explain_features(config)
    assert frmu("explain", config.file, "--features").exit_code == 2


def test_a_state_that_is_not_in_force_is_not_explained(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(2), LEARNED)
    train(config)
    kept = (config.folder / "state.safetensors").read_bytes()
    api.erase(config, Selection("client", client="home 1"))
    drain(config)
    assert explain_features(config)["layers"]
    (config.folder / "state.safetensors").write_bytes(kept)
    with pytest.raises(StoreError, match="an erasure has overtaken"):
        explain_features(config)
    other: Config = config.model_copy(update={"model": config.model.model_copy(update={"seed": 9})})
    with pytest.raises(StoreError, match="another config"):
        explain_features(other)
    (config.folder / "state.safetensors").unlink()
    with pytest.raises(StoreError, match="nothing trained here yet"):
        explain_features(config)
