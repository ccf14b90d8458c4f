"""The second pass: taken where records that had no say confirm it, exact on erasure, the same whoever hosts whom."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, homes, hosted, put, train

from frmu import api
from frmu.bench.many import shared_fault
from frmu.config import Config
from frmu.methods.analytic import analytic
from frmu.methods.method import Round
from frmu.report.figures import measure
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")
WEEKS = CONFIG.replace('by = "month"', 'by = "week"').replace("later_from = 2025-06-01", "later_from = 2025-05-23")
TEXT = WEEKS + "\n[policy]\npasses = "


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Six homes that had a season in which every label told a relation that does not hold."""
    declared = put(tmp_path_factory.mktemp("declared"), homes(6), TEXT + "1\n")
    return shared_fault(homes(6), declared, "season", np.random.Generator(np.random.PCG64(0)))[0]


def applied(config: Config, federation: LocalFederation) -> Round:
    method = analytic(config)
    return method.apply(federation, method.init(), read_policy(shipped()))


def test_all_move_together_where_alone_some_do_not(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it takes: one dispatch to ask, two to try a step by each half, and two where one is taken."""
    errors, taken, asked = [], [], Counter[str]()
    run = LocalFederation.run

    def counted(self: LocalFederation, task: Any, on: Any = None) -> Any:
        asked[type(task).__name__] += 1
        return run(self, task, on)

    for passes in (1, 2):
        config = put(tmp_path / str(passes), table, f"{TEXT}{passes}\n")
        train(config)
        federation = hosted(config, 6)
        monkeypatch.setattr(LocalFederation, "run", counted)
        asked.clear()
        done = applied(config, federation)
        monkeypatch.setattr(LocalFederation, "run", run)
        chosen = {client.chosen_by for client in done.state.clients}
        assert chosen == ({"policy", "keep"} if passes == 1 else {"together"})
        errors.append(measure(federation, done)["test_rmse"])
        taken.append(Counter(asked))
    second = {"CrossFitInfluences": 1, "AddChanges": 5, "CompareHeads": 4, "SendWeighted": 1}
    assert taken[1] - taken[0] == second
    assert errors[1] < 0.99 * errors[0]


def test_hosts_of_1_and_all_clients_take_the_same_step(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, TEXT + "2\n")
    digest = train(config)["state_digest"]
    for size in (1, 4):
        assert applied(config, hosted(config, size)).state.digest == digest


def test_a_drain_leaves_the_state_of_never_had(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", table, TEXT + "2\n")
    with api.Experiment(config, "local") as experiment:
        experiment.train()
        api.erase(config, Selection("subject", subject="p2"))
        told = experiment.drain()
    assert told["verified"]
    never = put(tmp_path / "never", table[table["person"] != "p2"], TEXT + "2\n")
    assert train(never)["state_digest"] == told["state_digest"]
    chosen = {client.chosen_by for client in applied(never, hosted(never, 6)).state.clients}
    assert chosen == {"together"}


def test_without_a_fault_nothing_moves(tmp_path: Path) -> None:
    """The digest is that of a single pass, but for the config, which says how many there are."""
    sums = set()
    for passes in (1, 2):
        config = put(tmp_path / str(passes), homes(6, seed=1), f"{TEXT}{passes}\n")
        train(config)
        sums.add(applied(config, hosted(config, 6)).state.sums)
    assert len(sums) == 1
