"""Hosts add up: however clients are put on hosts, the state is the same, and nothing travels that nobody asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, hosted, put

from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.statistics import ComputeStatistics
from frmu.config import Config
from frmu.methods.analytic import analytic
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped

SIZES = (1, 7, 500)


def many(clients: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    ts = pd.date_range("2025-01-01", "2025-07-31", periods=12).astype("datetime64[us]")
    rows = clients * len(ts)
    angle = rng.uniform(0, 2 * np.pi, rows)
    load = 3 + np.sin(angle) + rng.normal(0, 0.3, rows)
    load[: rows // 10] = rng.permutation(load[: rows // 10])
    return pd.DataFrame(
        {
            "record": [f"r{number}" for number in range(rows)],
            "home": np.repeat([f"home {number:03d}" for number in range(clients)], len(ts)),
            "person": [f"p{number // 5}" for number in range(rows)],
            "ts": np.tile(ts, clients),
            "hour_sin": np.sin(angle), "hour_cos": np.cos(angle),
            "temperature": rng.uniform(-10, 30, rows), "humidity": rng.uniform(20, 80, rows), "load": load,
        }
    )  # fmt: skip


@pytest.fixture(scope="module", params=["size", pytest.param("counterfactual", marks=pytest.mark.cluster)])
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Config:
    # Twelve records a client: what is proposed may well be noise, and is to be applied all the same.
    text = CONFIG + f'\n[policy]\nsignificance = 1.0\n\n[attention]\nrule = "{request.param}"\n'
    config = put(tmp_path_factory.mktemp(request.param) / "homes", many(500), text)
    (config.folder / "shards").mkdir(parents=True)
    federation = LocalFederation(config, sorted(set(pd.read_parquet(config.source)["home"])), config.folder)
    list(federation.run(StageShard({}, b"key")))
    list(federation.run(CommitShard(True)))
    return config


def test_hosts_of_1_7_and_500_clients_give_the_same_state(config: Config) -> None:
    network = read_policy(shipped())
    method = analytic(config)
    found = {}
    for size in SIZES if config.attention.rule == "size" else SIZES[1:]:
        federation = hosted(config, size)
        first = method.apply(federation, method.init(), network).state
        found[size] = (first.digest, first.contents)
        if size == 7:  # with what server and clients know by now
            assert method.apply(federation, method.init(), network).state.contents == first.contents
    assert len(set(found.values())) == 1
    assert any(value < 1.0 for client in first.clients for value in client.influence.values())


def test_a_host_sends_one_sum_where_nobody_asks_for_those_of_clients(config: Config) -> None:
    def sent(size: int) -> tuple[int, int]:
        federation = hosted(config, size)
        replies = list(federation.run(ComputeStatistics(("load",), together=not config.attention.by_client)))
        assert sorted(name for reply in replies for name in reply.record["members"]) == sorted(federation.clients)
        return len([reply for reply in replies if reply.payload is not None]), len(replies)

    one = (1, 500) if config.attention.rule == "size" else (500, 500)
    assert sent(500) == one
    assert sent(7)[0] == (72 if config.attention.rule == "size" else 500)


def test_what_is_erased_at_one_client_leaves_the_state_of_never_had(config: Config) -> None:
    """The sum of its host is let go of, and those of the others are not made again."""
    if config.attention.by_client:
        pytest.skip("sums of single clients are let go of one by one: tests/services/test_erasure.py")
    network, method = read_policy(shipped()), analytic(config)
    federation = hosted(config, 7)
    method.apply(federation, method.init(), network)
    host: Any = federation._dispatcher.handles[2].actor
    client = host.clients(federation._dispatcher.handles[2].names)[3]
    path: Path = client.path
    before = path.read_bytes()
    client.drop(np.arange(len(client.shard)) == 4)
    erased = method.erase(federation, method.init(), network, (client.name,), None)
    assert len(erased.fitted) == 7
    never = hosted(config, 500)
    assert method.apply(never, method.init(), network).state.contents == erased.state.contents
    path.write_bytes(before)
