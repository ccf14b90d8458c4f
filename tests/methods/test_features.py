"""A federation that learns features: what is erased was never there, however clients are put on hosts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, drain, homes, hosted, put, train

from frmu import api
from frmu.config import Config
from frmu.errors import ConfigError
from frmu.methods.analytic import analytic
from frmu.models.features import features_of
from frmu.selection.network import read_policy, shipped
from frmu.storage.checkpoint import load_state
from frmu.types import Selection, State

pytestmark = pytest.mark.usefixtures("memory_tracking")

LEARNED = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 2")
BY_HASH = LEARNED.split("[slices]")[0] + LEARNED[LEARNED.index("[model]") :]
BY_HASH = BY_HASH.replace(', "yesterday"', "").replace(
    '[data.lags]\nyesterday = { column = "load", back = "1d" }\n', ""
)


def state_of(config: Config) -> State:
    state = load_state(config.folder / "state.safetensors")
    assert state is not None
    return state


def disturbed(seed: int = 0) -> pd.DataFrame:
    """Homes of which one reports at random for two months."""
    table = homes(seed=seed)
    hit = (table["home"] == "home 2") & (table["ts"] < "2025-03-01")
    table.loc[hit, "load"] = np.random.default_rng(1).permutation(table.loc[hit, "load"])
    return table


@pytest.mark.parametrize("rule", ["size", "counterfactual", "trusted"])
def test_hosts_of_1_and_all_clients_give_the_same_state(tmp_path: Path, rule: str) -> None:
    config = put(tmp_path / "homes", disturbed(), LEARNED + f'\n[attention]\nrule = "{rule}"\n')
    digest = train(config)["state_digest"]
    network, method = read_policy(shipped()), analytic(config)
    for size in (1, 3, 4):
        federation = hosted(config, size)
        for _ in range(2):  # from nothing, and with what hosts know by now
            done = method.apply(federation, method.init(), network)
            assert done.state.digest == digest
    assert done.state.contents == state_of(config).contents


@pytest.mark.parametrize("text", [LEARNED, BY_HASH], ids=["two modalities, lags", "by hash"])
def test_a_drain_leaves_the_state_of_never_had_and_says_what_moved(tmp_path: Path, text: str) -> None:
    table = disturbed()
    config = put(tmp_path / "all", table, text)
    with api.Experiment(config, "local") as experiment:
        experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        told = experiment.drain(now=True)
        api.erase(config, Selection("client", client="home 1"))
        told = experiment.drain(now=True)
    assert told["verified"]
    assert told["receipts"][0]["evidence"]["features"].startswith("features ")
    gone = (table["person"] == "p2") | (table["home"] == "home 1")
    never = put(tmp_path / "never", table[~gone], text)
    assert train(never)["state_digest"] == told["state_digest"]
    assert train(config)["state_digest"] == told["state_digest"]


def test_one_record_moves_no_feature_and_the_receipt_says_so(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(), LEARNED.replace("layers = 2", "layers = 1\nlattice = 1.0"))
    train(config)
    before = state_of(config)
    api.erase(config, Selection("records", client="home 1", records=("h1-7",)))
    told = drain(config)
    after = state_of(config)
    assert told["verified"]
    assert told["receipts"][0]["evidence"]["features"] == "features unmoved: only the erased rows were subtracted"
    assert before.learned == after.learned
    assert np.array_equal(before.parameters["metric.1"], after.parameters["metric.1"])
    assert before.digest != after.digest


def test_lags_and_what_may_be_missing_are_hidden_in_copies_that_go_with_their_record(tmp_path: Path) -> None:
    text = LEARNED.replace('target = "load"', 'target = "load"\nmissing = ["humidity"]').replace(
        "layers = 2", "layers = 2\nhidden = 2"
    )
    table = homes()
    table.loc[::7, "humidity"] = np.nan
    config = put(tmp_path / "all", table, text)
    assert config.unknowable("weather") == ({1: 0.0, 2: 1.0}, {3: 0.0, 4: 0.0})
    assert config.column_names("weather") == (
        "temperature", "humidity", "humidity: missing", "yesterday", "yesterday: known",
    )  # fmt: skip
    first = train(config)
    without = put(tmp_path / "none", table, text.replace("hidden = 2", "hidden = 0"))
    assert train(without)["state_digest"] != first["state_digest"]
    api.erase(config, Selection("subject", subject="p2"))
    told = drain(config)
    assert told["verified"]
    never = put(tmp_path / "never", table[table["person"] != "p2"], text)
    assert train(never)["state_digest"] == told["state_digest"]


def test_a_proposal_that_noise_explains_is_drawn_back(tmp_path: Path) -> None:
    forgets = train(put(tmp_path / "any", disturbed(), LEARNED + "\n[policy]\nsignificance = 1.0\n"))
    assert forgets["forgotten"]
    kept = train(put(tmp_path / "sure", disturbed(), LEARNED + "\n[policy]\nsignificance = 1e-6\n"))
    assert not kept["forgotten"]
    assert kept["metrics"]["test_rmse"] == kept["metrics"]["keep_test_rmse"]


def test_what_is_chosen_is_chosen_inside_the_account(tmp_path: Path) -> None:
    text = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 8\ncohort = 256")
    config = put(tmp_path / "homes", homes(), text)
    said = train(config)["features"]
    state = state_of(config)
    assert state.learned["share"] == 2  # some 480 records are fitted at four homes... of 256 wanted
    assert "chosen on validation" in said
    assert features_of(state) is not None
    api.erase(config, Selection("client", client="home 3"))
    api.erase(config, Selection("client", client="home 2"))
    assert drain(config)["verified"]
    assert state_of(config).learned["share"] < 2


def odd(change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> pd.DataFrame:
    table = homes()
    changed = change(table)
    return table if changed is None else changed


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.assign(humidity=50.0),
        lambda t: t.assign(load=1.0),
        lambda t: t.assign(hour_sin=0.0, hour_cos=1.0, humidity=3.0, temperature=1.0),
        lambda t: t[t["ts"] < "2025-05-01"],  # nothing to judge by
        lambda t: t[(t["ts"] < "2025-05-01") | (t["ts"] >= "2025-05-31")],  # hardly anything
        lambda t: t.head(1),
    ],
    ids=["constant column", "constant target", "nothing varies", "no validation", "little validation", "one record"],
)
def test_odd_records_train_and_are_forgotten(tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    table = odd(change)
    config = put(tmp_path / "all", table, LEARNED)
    trained = train(config)
    assert np.isfinite(list(trained["metrics"].values())).all()
    if len(table) > 1:
        api.erase(config, Selection("subject", subject="p2"))
        told = drain(config)
        assert told["verified"]
        assert (
            train(put(tmp_path / "never", table[table["person"] != "p2"], LEARNED))["state_digest"]
            == told["state_digest"]
        )


def test_too_few_to_choose_by_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = put(
        tmp_path / "homes", homes().query("ts < '2025-05-01'"), CONFIG.replace('encoder = "relu"\nfeatures = 8', "")
    )
    with caplog.at_level(logging.INFO, "frmu"):
        said = train(config)["features"]
    assert "by default, for want of validation records" in said
    assert any("too few to choose features by" in record.message for record in caplog.records)


def test_classes_are_learned_too(tmp_path: Path) -> None:
    text = LEARNED.replace('target = "load"', 'target = "band"').replace("regression", "classification")
    table = homes()
    config = put(tmp_path / "all", table, text)
    assert train(config)["metrics"]["test_accuracy"] > 0.5
    api.erase(config, Selection("subject", subject="p1"))
    told = drain(config)
    assert told["verified"]
    assert train(put(tmp_path / "never", table[table["person"] != "p1"], text))["state_digest"] == told["state_digest"]
    single = put(tmp_path / "single", table.assign(band="low"), text)
    assert train(single)["metrics"]["test_accuracy"] == 1.0


@pytest.mark.parametrize("level", ["L2", "L3", "L4"])
def test_attacks_try_the_learned_model(tmp_path: Path, level: str) -> None:
    config = put(tmp_path / "homes", disturbed(), LEARNED)
    train(config)
    api.erase(config, Selection("client", client="home 2"))
    drain(config)
    with api.Experiment(config, "local") as experiment:
        told = experiment.verify("r1", level)
    assert all(proof["passed"] for proof in told["proofs"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ('encoder = "relu"\nlayers = 2', 'layers is for learned features; set encoder = "learned"'),
        ('method = "finetune"', 'method = "finetune" needs a frozen encoder: set encoder = "relu"'),
        ("layers = 9", 'layers must be an integer from 0 to 8, or "auto"'),
        ('features = "many"', 'features must be an integer from 1 to 8192, or "auto"'),
        ("lattice = 0.0", "model.lattice"),
        ("cohort = 10", "model.cohort"),
        ('kind = "cosine"', "model.kind"),
        ("hidden = -1", "model.hidden"),
    ],
)
def test_a_model_that_cannot_be_is_refused(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        put(tmp_path / "homes", homes(), CONFIG.replace('encoder = "relu"\nfeatures = 8', model))
