"""Slices are judged beside a cohort of the federation: whom an erasure does not touch, chooses nothing anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, hosted, put
from methods.test_adding_up import many

from frmu.clients.client import Client
from frmu.clients.tasks import selection
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.data.shard import SPLITS
from frmu.errors import FrmuError
from frmu.methods.analytic import analytic
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped

HOMES = 60  # of twelve records: 411 to fit, so that one in two is in the cohort


@pytest.fixture(params=["size", "counterfactual"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    more = f'\n[policy]\nsignificance = 1.0\n\n[attention]\nrule = "{request.param}"\n'
    text = CONFIG.replace("[model]", "[model]\ncohort = 256")
    assert "cohort" in text
    config = put(tmp_path / "homes", many(HOMES), text + more)
    (config.folder / "shards").mkdir(parents=True)
    federation = LocalFederation(config, sorted(set(pd.read_parquet(config.source)["home"])), config.folder)
    list(federation.run(StageShard({}, b"key")))
    list(federation.run(CommitShard(True)))
    return config


def clients(federation: Any) -> list[Client]:
    return [client for handle in federation._dispatcher.handles for client in handle.actor.clients(handle.names)]


def first_row(client: Client, drawn: bool) -> int | None:
    rows = np.flatnonzero(client.shard.split == SPLITS.index("fit"))
    found = rows[client.shard.drawn(rows, 1) == drawn]
    return int(found[0]) if len(found) else None


@pytest.mark.parametrize("drawn", [False, True])
def test_only_an_erasure_in_the_cohort_makes_others_choose_again(
    config: Config, drawn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    decide = selection.decide_all

    def counting(tasks: Sequence[Any], *others: Any) -> Any:
        judged.append(len(tasks))
        return decide(tasks, *others)

    monkeypatch.setattr(selection, "decide_all", counting)
    network, method = read_policy(shipped()), analytic(config)
    federation = hosted(config, 7)
    before = method.apply(federation, method.init(), network).state
    assert config.model.share(sum(int((one.shard.split == 0).sum()) for one in clients(federation))) == 1
    assert sum(judged) == HOMES
    judged.clear()
    client = next(one for one in clients(federation) if first_row(one, drawn) is not None)
    client.drop(np.arange(len(client.shard)) == first_row(client, drawn))
    erased = method.erase(federation, method.init(), network, (client.name,), None).state
    assert sum(judged) == (HOMES if drawn else 1)
    never = method.apply(hosted(config, 500), method.init(), network).state
    assert erased.contents == never.contents != before.contents
    assert any(value < 1.0 for one in erased.clients for value in one.influence.values())


def test_what_ended_in_an_error_was_not_decided(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    network, method = read_policy(shipped()), analytic(config)
    federation, never = hosted(config, 7), hosted(config, 500)

    def fail(*_: Any) -> Any:
        raise FrmuError("the sums are not positive definite")

    with monkeypatch.context() as broken:
        broken.setattr(selection, "decide_all", fail)
        with pytest.raises(FrmuError, match="positive definite"):
            method.apply(federation, method.init(), network)
    found = method.apply(federation, method.init(), network).state
    assert any(value < 1.0 for one in found.clients for value in one.influence.values())
    assert found.contents == method.apply(never, method.init(), network).state.contents


def test_the_cohort_says_of_the_others_what_all_say(config: Config) -> None:
    federation = hosted(config, 500)
    one, *others = clients(federation)
    outputs = ("load",)
    drawn = sum((each.cohort_sums(1, outputs) for each in others), start=one.cohort_sums(1, outputs))
    task = one.problem(drawn, outputs, share=1)
    fitted = sum(each.split_sums("fit", outputs).n for each in others)
    assert task.rest.n == 2 * sum(each.cohort_sums(1, outputs).n for each in others)
    assert abs(task.rest.n / fitted - 1.0) < 0.2
