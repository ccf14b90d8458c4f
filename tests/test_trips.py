"""How often the clients are asked: a trip costs a line's round trip to the slowest of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from conftest import train

from frmu import api
from frmu.config import Config
from frmu.runtime.local import LocalFederation
from frmu.services.sites import SiteDirectory
from frmu.types import Selection


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Trips over the clients and over the sites, by the task that was taken along."""
    seen: Counter[str] = Counter()
    run, visit = LocalFederation.run, SiteDirectory.visit

    def counted(self: LocalFederation, task: Any, on: Any = None) -> Any:
        if on is None or tuple(on):
            seen[type(task).__name__] += 1
        return run(self, task, on)

    def visited(self: SiteDirectory, task: Any) -> Any:
        seen[type(task).__name__] += 1
        return visit(self, task)

    monkeypatch.setattr(LocalFederation, "run", counted)
    monkeypatch.setattr(SiteDirectory, "visit", visited)
    return seen


def test_a_steady_round_takes_two_trips(config: Config, trips: Counter[str]) -> None:
    """Nothing imported and nothing measured: what is there, and what each client makes of it."""
    train(config)
    with api.Experiment(config, "local") as experiment:
        session = experiment.session
        state, network = session.state(), session.network()
        federation = session.sites.federation(session.sites.look().locations)
        session.method.apply(federation, state, network)
        trips.clear()
        assert session.method.apply(federation, state, network).state.digest == state.digest
    assert trips == {"DescribeShard": 1, "SelectInfluences": 1}


def test_a_drain_takes_one_inventory_before_its_proof(config: Config, trips: Counter[str]) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="p2"))
    with api.Experiment(config, "local") as experiment:
        trips.clear()
        assert experiment.drain()["verified"]
    assert trips["LocateRecords"] == trips["PurgeShard"] == 1
    assert trips["TakeInventory"] <= 2  # one to drain, one of the proof, which trusts nothing that was known before
