"""Each level can fail: never-had passes; what was not unlearned, and what was unlearned too much, does not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config, load
from frmu.errors import RequestError
from frmu.ledger.receipt import check_receipt
from frmu.storage.checkpoint import load_state, save_state
from frmu.types import HEAD, Float, Selection, State

# Slices of persons and no choice of influences: what differs between two models is the erased records alone.
TEXT = CONFIG.replace("features = 8", 'features = 40\n\n[policy]\nselector = "keep"\n\n[attention]\nrule = "size"')
BANDS = (
    TEXT.replace('target = "load"', 'target = "band"')
    .replace('"regression"', '"classification"')
    .replace("load = [-5.0, 20.0]", "")
    .replace('column = "load"', 'column = "temperature"')
)
LEVELS = ["L2", "L3", "L4"]


def odd(table: pd.DataFrame) -> pd.DataFrame:
    """One person whose records go against everybody else's, in both targets."""
    mine = table.person == "p3"
    table.loc[mine, "load"] = 6.0 - table.load[mine].clip(0, 6)
    table.loc[mine, "band"] = np.where(table.load[mine] > 3, "low", "high")
    return table


def verify(config: Config, receipt: str | None, level: str, forget: Path | None = None) -> dict:
    with api.Experiment(config, "local") as experiment:
        return experiment.verify(receipt, level, forget)


def put_head(config: Config, W: Float) -> None:
    """Make a head the state, as if a method had given it."""
    path = config.folder / "state.safetensors"
    state = load_state(path)
    assert state is not None
    save_state(State(state.config, state.policy, state.outputs, state.clients, {HEAD: W}), config, path)


def head(config: Config) -> Float:
    state = load_state(config.folder / "state.safetensors")
    assert state is not None
    return state.W


def fails(config: Config, receipt: str, level: str) -> bool:
    """Whether the checks themselves fail, not only because the ledger does not know the state."""
    result = verify(config, receipt, level)
    assert not result["verified"]
    if "proofs" in result:
        return not all(proof["passed"] for proof in result["proofs"])
    return bool(result["digest"] != result["digest_never_had"])


@pytest.fixture(scope="module", params=[TEXT, BANDS], ids=["regression", "classes"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, str, Float]:
    config = put(tmp_path_factory.mktemp("made") / "homes", odd(homes()), request.param)
    train(config)
    before = head(config)
    receipt = api.erase(config, Selection("subject", subject="p3"))["request"]
    drain(config)
    return config, receipt, before


@pytest.fixture
def erased(made: tuple[Config, str, Float], tmp_path: Path) -> tuple[Config, str, Float]:
    """A federation that forgot the odd person; the receipt; the head from before. Each test has a copy of its own."""
    config, receipt, before = made
    shutil.copytree(config.file.parent, tmp_path / "homes")
    return load(tmp_path / "homes" / config.file.name), receipt, before


@pytest.mark.parametrize("level", [*LEVELS, "L1", "L5"])
def test_never_had_passes(erased: tuple[Config, str, Float], level: str) -> None:
    config, receipt, _ = erased
    result = verify(config, receipt, level)
    assert result["verified"], result
    assert result["telling"]


@pytest.mark.parametrize("level", [*LEVELS, "L5"])
def test_what_was_not_unlearned_fails(erased: tuple[Config, str, Float], level: str) -> None:
    config, receipt, before = erased
    put_head(config, before)
    assert fails(config, receipt, level)


@pytest.mark.parametrize("level", [*LEVELS, "L5"])
@pytest.mark.parametrize("harm", ["wiped", "as far again"])
def test_what_was_unlearned_too_much_fails(erased: tuple[Config, str, Float], level: str, harm: str) -> None:
    config, receipt, before = erased
    put_head(config, head(config) * 0.0 if harm == "wiped" else 2 * head(config) - before)
    assert fails(config, receipt, level)


def test_a_leftover_is_found(erased: tuple[Config, str, Float]) -> None:
    """A mixture with the head from before, as an erasure that is not exact would leave it."""
    config, receipt, before = erased
    put_head(config, 0.5 * before + 0.5 * head(config))
    proof = verify(config, receipt, "L3")["proofs"][0]
    assert not proof["passed"]
    assert proof["numbers"]["membership AUC: this state"] > proof["numbers"]["membership AUC: retrained"] + 0.03


def test_the_numbers_are_those_of_four_models(erased: tuple[Config, str, Float]) -> None:
    config, receipt, _ = erased
    proofs = {proof["check"]: proof for level in LEVELS for proof in verify(config, receipt, level)["proofs"]}
    assert set(proofs) == {
        "gap to retraining", "membership (U-LiRA)", "canaries (rehearsed)", "backdoor (rehearsed)", "relearn time",
    }  # fmt: skip
    for proof in proofs.values():
        names = {name.split(": ")[1] for name in proof["numbers"]}
        assert {"original", "this state", "retrained", "fine-tuned"} <= names
        assert proof["seeds"] or proof["check"] == "relearn time"
    steps = proofs["relearn time"]["numbers"]
    assert steps["steps to relearn: original"] == 0 < steps["steps to relearn: this state"]
    attack = proofs["backdoor (rehearsed)"]["numbers"]
    assert attack["attack success: original"] > attack["attack success: retrained"] + 0.05
    assert attack["attack success: this state"] == attack["attack success: retrained"]
    noise = [name for name in proofs["gap to retraining"]["numbers"] if name.endswith("spread of retraining")]
    assert len(noise) == 3
    assert len(proofs["gap to retraining"]["seeds"]) >= 3


def test_what_was_proven_stands_on_the_receipt_and_in_mlflow(erased: tuple[Config, str, Float]) -> None:
    config, receipt, _ = erased
    verify(config, receipt, "L4")
    verify(config, receipt, "L5")
    filed = api.receipt_of(config, receipt)
    check_receipt(filed, api.status(config)["public_key"])
    assert [(proof["level"], proof["passed"]) for proof in filed["proofs"]] == [("L4", True), ("L5", True)]
    with api.Experiment(config, "local") as experiment:
        assert experiment.session.ledger.check() > 0
        place = [experiment.session.tracker.backend.experiment_id]
        runs = experiment.session.tracker.backend.client.search_runs(place, f"tags.`frmu.receipt` = '{receipt}'")
    assert runs[0].data.metrics["L4/steps to relearn/original"] == 0


def test_what_was_purged_at_the_source_has_to_be_brought(
    tmp_path: Path, table: pd.DataFrame, erased: tuple[Config, str, Float]
) -> None:
    config, receipt, _ = erased
    mine = pd.read_parquet(config.source)
    mine[mine.person == "p3"].to_parquet(tmp_path / "mine.parquet", index=False)
    mine[mine.person != "p3"].to_parquet(config.source, index=False)
    with pytest.raises(RequestError, match=r"holds 0 of the \d+ records.*--forget"):
        verify(config, receipt, "L4")
    assert verify(config, receipt, "L4", tmp_path / "mine.parquet")["verified"]
    assert "p3" not in set(pd.read_parquet(config.folder / "shards" / "home%200.parquet")["#subject"])


def test_questions_that_have_no_answer_are_refused(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, TEXT)
    train(config)
    unseen = api.erase(config, Selection("where", where="ts >= '2025-07-20'"))["request"]
    nobody = api.erase(config, Selection("subject", subject="nobody"))["request"]
    drain(config)
    for receipt, level, message in (
        (unseen, "L3", "none of the records .* was fitted"),
        (nobody, "L2", "there is nothing that a model could betray"),
        (None, "L3", "say whose receipt"),
        ("r99", "L3", 'no receipt "r99"'),
        (unseen, "L9", 'no level "L9"'),
    ):
        with pytest.raises(RequestError, match=message):
            verify(config, receipt, level)


def test_a_person_can_read_it(erased: tuple[Config, str, Float]) -> None:
    from click.testing import CliRunner

    config, receipt, before = erased
    command = ["verify", str(config.file), receipt, "--address", "local", "--level"]
    told = CliRunner().invoke(main, [*command, "L3"])
    assert told.exit_code == 0, told.output
    assert "VERIFIED: level L3" in told.output
    put_head(config, before)
    failed = CliRunner().invoke(main, [*command, "L4", "--json"])
    assert failed.exit_code == 1
    assert json.loads(failed.output.splitlines()[-1])["verified"] is False
