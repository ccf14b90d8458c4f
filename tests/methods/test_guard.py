"""The guard over a federation: what is noise is drawn back, what is wrong is found, and all together must not lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.methods import guard
from frmu.methods.analytic import analytic
from frmu.methods.method import Round
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped
from frmu.selection.significance import Paired
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

WIDE = CONFIG.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 1")
TEXTS = pytest.mark.parametrize("text", [CONFIG, WIDE], ids=["frozen", "learned"])


def lied(seed: int = 0) -> pd.DataFrame:
    """Homes of which one reported four times as much for two months."""
    table = homes(seed=seed)
    hit = (table["home"] == "home 2") & (table["ts"] < "2025-03-01")
    return table.assign(load=table["load"].where(~hit, 4.0 * table["load"]))


def trained(config: Config, folder: Path) -> Round:
    federation = LocalFederation(config, ["home 0", "home 1", "home 2", "home 3"], folder)
    list(federation.run(StageShard({}, b"k")))
    list(federation.run(CommitShard(True)))
    method = analytic(config)
    return method.apply(federation, method.init(), read_policy(shipped()))


def below(done: Round) -> set[str]:
    return {c.name for c in done.state.clients if min(c.influence.values()) < 1.0 or c.attention < 1.0}


@TEXTS
def test_what_lied_is_found_and_what_is_clean_is_kept(tmp_path: Path, text: str) -> None:
    assert "home 2" in below(trained(put(tmp_path / "lied", lied(seed=1), text), tmp_path / "a"))
    assert not below(trained(put(tmp_path / "clean", homes(seed=1), text), tmp_path / "b"))


@TEXTS
def test_what_loses_together_is_drawn_back_and_says_why(
    tmp_path: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = put(tmp_path / "lied", lied(), text + "\n[policy]\nsignificance = 0.5\n")
    monkeypatch.setattr(guard.Fitting, "compared", lambda *_: Paired(np.ones(12), np.full(12, -1.0)))
    done = trained(config, tmp_path / "a")
    assert not below(done)
    assert np.array_equal(done.state.W, done.keep)
    said = {name: record.get("drawn_back", "") for name, record in done.records.items()}
    assert said["home 2"] == "the federation lost by all that was proposed together"


@TEXTS
def test_a_few_validation_records_judge_nothing(tmp_path: Path, text: str) -> None:
    table = lied()
    few = table[(table["ts"] < "2025-05-01") | (table["ts"] > "2025-05-20")]
    done = trained(put(tmp_path / "few", few, text), tmp_path / "a")
    assert not below(done)
    assert any(record.get("drawn_back") for record in done.records.values())


@TEXTS
def test_the_guard_is_inside_the_account(tmp_path: Path, text: str) -> None:
    table = lied()
    config = put(tmp_path / "all", table, text)
    first = train(config)
    api.erase(
        config, Selection("between", client="home 2", between=(pd.Timestamp("2025-05-03"), pd.Timestamp("2025-05-09")))
    )
    told = drain(config)
    gone = (table["home"] == "home 2") & (table["ts"] >= "2025-05-03") & (table["ts"] < "2025-05-09")
    assert told["verified"]
    assert first["state_digest"] != told["state_digest"]
    assert train(put(tmp_path / "never", table[~gone], text))["state_digest"] == told["state_digest"]
