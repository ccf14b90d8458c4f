"""How often the clients are asked: a dispatch costs a line's round trip to the slowest of them."""

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

pytestmark = pytest.mark.usefixtures("memory_tracking")


@pytest.fixture
def dispatches(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Dispatches to the clients and to the sites, by their task."""
    seen: Counter[str] = Counter()
    run, run_at_sites = LocalFederation.run, SiteDirectory.run_at_sites

    def counted(self: LocalFederation, task: Any, on: Any = None) -> Any:
        if on is None or tuple(on):
            seen[type(task).__name__] += 1
        return run(self, task, on)

    def counted_at_sites(self: SiteDirectory, task: Any) -> Any:
        seen[type(task).__name__] += 1
        return run_at_sites(self, task)

    monkeypatch.setattr(LocalFederation, "run", counted)
    monkeypatch.setattr(SiteDirectory, "run_at_sites", counted_at_sites)
    return seen


def test_a_steady_round_takes_two_dispatches(config: Config, dispatches: Counter[str]) -> None:
    """Nothing imported and nothing measured: what is there, and what each client makes of it."""
    train(config)
    with api.Experiment(config, "local") as experiment:
        session = experiment.session
        state, network = session.state(), session.network()
        federation = session.sites.federation(session.sites.look().locations)
        session.method.apply(federation, state, network)
        dispatches.clear()
        assert session.method.apply(federation, state, network).state.digest == state.digest
    assert dispatches == {"DescribeShard": 1, "SelectInfluences": 1}


def test_a_drain_takes_one_inventory_before_its_proof(config: Config, dispatches: Counter[str]) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="p2"))
    with api.Experiment(config, "local") as experiment:
        dispatches.clear()
        assert experiment.drain()["verified"]
    assert dispatches["LocateRecords"] == dispatches["PurgeShard"] == 1
    assert dispatches["TakeInventory"] <= 2  # one to drain, one of the proof, which trusts nothing known before
