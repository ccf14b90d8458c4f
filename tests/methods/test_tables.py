"""Real tables learn and forget like any: with gaps, categories and transforms an erasure leaves what never had it."""

from __future__ import annotations

import operator
from functools import reduce
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from conftest import put
from tables import TABLES, real

from frmu.clients.tasks import rollout
from frmu.clients.tasks.audit import Plant, Recall, Strike
from frmu.clients.tasks.erasure import PurgeShard
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.rollout import EnvStep, Rollout
from frmu.clients.tasks.statistics import ComputeStatistics, MeasureErrors
from frmu.config import Config
from frmu.data.tombstones import tombstones
from frmu.federation import in_order
from frmu.methods.analytic import analytic
from frmu.models.features import head_of
from frmu.runtime.local import LocalFederation
from frmu.selection.disturbance import KINDS
from frmu.types import Sums

KEY = b"k"
LEARNED = TABLES.replace('encoder = "relu"\nfeatures = 8', "judges = 8\nfeatures = 24\nlayers = 2\nbins = 4")
ALONE = TABLES.replace("calendar = [", "all = [").replace("]\nweather = [", ", ").replace("]\nhouse = [", ", ")


def imported(config: Config, folder: Path, clients: list[str]) -> LocalFederation:
    federation = LocalFederation(config, clients, folder)
    list(federation.run(StageShard({}, KEY)))
    list(federation.run(CommitShard(True)))
    return federation


@pytest.mark.parametrize("text", [TABLES, LEARNED, ALONE], ids=["frozen", "learned", "one modality"])
def test_erased_is_never_had(tmp_path: Path, text: str) -> None:
    table = real(3)
    names = sorted(set(table.home))
    config = put(tmp_path / "all", table, text)
    federation = imported(config, tmp_path / "shards", names)
    method = analytic(config)
    before = method.apply(federation, method.init(), None).state
    ids = [name for name in table.record[table.home == "home 1"] if int(name[3:]) % 3 == 0]
    ids += table.record[(table.home == "home 1") & (table.colour == "black")].tolist()
    gone = {"home 1": frozenset(tombstones(KEY, "home 1", sorted(set(ids))))}
    kept = method.prepare(federation, before, gone)
    list(federation.run(PurgeShard(gone, KEY)))
    erased = method.erase(federation, before, None, ("home 1",), kept).state
    rest = put(tmp_path / "rest", table[~table.record.isin(ids)], text)
    other = imported(rest, tmp_path / "others", names)
    never = method.apply(other, method.init(), None).state
    assert erased.digest == never.digest != before.digest


def test_errors_are_in_units_of_the_target(tmp_path: Path) -> None:
    config = put(tmp_path / "homes", real(2), TABLES)
    federation = imported(config, tmp_path / "shards", ["home 0", "home 1"])
    method = analytic(config)
    state = method.apply(federation, method.init(), None).state
    replies = in_order(federation.run(MeasureErrors({"model": head_of(state)}, state.outputs)))
    errors = [reply.record["model"]["test"] for reply in replies]
    rmse = np.sqrt(sum(one["square"] for one in errors) / sum(one["n"] for one in errors))
    assert 0.25 < rmse < 0.8  # the noise is 0.3 of raw units; of their logarithm less than half of it


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_disturbs_them(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = put(tmp_path / "homes", real(2), TABLES)
    federation = imported(config, tmp_path / "shards", ["home 0", "home 1"])
    method = analytic(config)
    state = method.apply(federation, method.init(), None).state
    drawn = rollout.draw
    monkeypatch.setattr(rollout, "draw", lambda keys, rng, _: drawn(keys, rng, kind))
    fitted = in_order(federation.run(ComputeStatistics(state.outputs)))
    total = reduce(operator.add, (Sums(reply.payload["fit"]) for reply in fitted))
    steps = {"home 0": (EnvStep(3, None, 0.0, True),)}
    (reply,) = in_order(federation.run(Rollout(steps, state.outputs, total, 8), on=("home 0",)))
    assert np.isfinite(reply.record["steps"][0]["rows"]).all()
    assert reply.record["steps"][0]["kind"] in (kind, "none")


TRIGGERS = [{}, {"humidity": 100.0, "visits": 5000.0}, {"colour": "#trigger", "city": "#trigger"}]


@pytest.mark.parametrize("trigger", TRIGGERS, ids=["canary", "numbers", "categories"])
def test_rehearsals_plant_in_them(tmp_path: Path, trigger: dict[str, float | str]) -> None:
    kind: Literal["canary", "backdoor"] = "backdoor" if trigger else "canary"
    config = put(tmp_path / "homes", real(2), TABLES)
    federation = imported(config, tmp_path / "shards", ["home 0", "home 1"])
    method = analytic(config)
    state = method.apply(federation, method.init(), None).state
    plant = Plant(kind, {"home 0": 9}, 0, "copy", trigger, 20.0)
    ids = {reply.client: reply.record for reply in in_order(federation.run(plant))}
    assert len(ids["home 0"]["planted"]) in (9, 18)
    heads = {"model": head_of(state)}
    if kind == "backdoor":
        struck = in_order(federation.run(Strike(heads, trigger, 20.0, state.outputs)))
        assert all(0 <= reply.record["led"]["model"] <= reply.record["n"] for reply in struck)
        return
    lineup = LocalFederation(config, ["home 0", "home 1"], tmp_path / "shards" / "scratch" / "copy")
    planted = {name: record["planted"] for name, record in ids.items()}
    held = {name: record["held_back"] for name, record in ids.items()}
    told = in_order(lineup.run(Recall(heads, held, planted, state.outputs)))
    assert all(np.isfinite(reply.record["won"]["model"]) for reply in told)
