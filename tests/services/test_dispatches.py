"""How often the clients are asked: a dispatch costs a line's round trip to the slowest of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import homes, put, train

from frmu import api
from frmu.config import Config
from frmu.runtime.local import LocalFederation
from frmu.services import erasure
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


def test_a_steady_round_takes_a_few_dispatches(tmp_path: Path, dispatches: Counter[str]) -> None:
    """Nothing imported and nothing measured: what is there, what each client proposes, and what the head misses.

    Here nobody proposes anything; who does is asked by the guard as well.
    """
    config = put(tmp_path / "quiet", homes(seed=3))
    train(config)
    with api.Experiment(config, "local") as experiment:
        session = experiment.session
        state, network = session.state(), session.network()
        federation = session.sites.federation(session.sites.look().locations)
        session.method.apply(federation, state, network)
        dispatches.clear()
        assert session.method.apply(federation, state, network).state.digest == state.digest
    assert dispatches == {"DescribeShard": 1, "SelectInfluences": 1, "CountResiduals": 1}


def test_a_drain_takes_one_inventory_before_its_proof(config: Config, dispatches: Counter[str]) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="p2"))
    with api.Experiment(config, "local") as experiment:
        dispatches.clear()
        assert experiment.drain()["verified"]
    assert dispatches["LocateRecords"] == dispatches["PurgeShard"] == 1
    assert dispatches["TakeInventory"] <= 2  # one to drain, one of the proof, which trusts nothing known before


def test_a_request_that_nobody_holds_is_answered_without_a_federation(
    config: Config, dispatches: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is anything fitted: the shards are searched where they lie, and the state stands as it was."""
    digest = train(config)["state_digest"]
    api.erase(config, Selection("subject", subject="nobody"))
    monkeypatch.setattr(SiteDirectory, "on_ray", property(lambda self: True))
    monkeypatch.setattr(SiteDirectory, "federation", lambda *_: pytest.fail("a federation was started"))
    dispatches.clear()
    with api.Experiment(config) as experiment:
        receipt = experiment.drain()["receipts"][0]
    assert (receipt["outcome"], receipt["level"], receipt["state_digest"]) == ("nothing held", "L5", digest)
    assert receipt["evidence"]["proof"] == "unchanged: nobody held anything"
    assert receipt["evidence"]["records_scanned"] == sum(receipt["searched"].values()) == 1696
    assert set(dispatches) == {"TakeInventory", "SweepSite", "AskShards"}


def test_an_empty_answer_is_not_given_over_a_shard_that_was_changed_meanwhile(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="nobody"))
    monkeypatch.setattr(SiteDirectory, "on_ray", property(lambda self: True))
    shard = config.folder / "shards" / "home 1.parquet".replace(" ", "%20")
    before = erasure.standing_verdict

    def tampered(*of: Any) -> Any:
        shard.write_bytes((config.folder / "shards" / "home%202.parquet").read_bytes())
        return before(*of)

    monkeypatch.setattr(erasure, "standing_verdict", tampered)
    with api.Experiment(config) as experiment:
        receipt = experiment.drain()["receipts"][0]
    assert (receipt["verified"], receipt["level"]) == (False, "L0")
    assert any("is not as it was written" in name for name in receipt["evidence"]["files_that_are_no_shards"])


def test_who_has_left_is_not_asked_at_rest(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config)
    with api.Experiment(config, "local") as experiment:
        sites = experiment.session.sites
        monkeypatch.setattr(sites, "left", lambda clients: {"home 1"} & set(clients))
        assert sites.at_rest(sites.look()).clients == ("home 0", "home 2", "home 3")


def test_the_standing_check_starts_no_federation(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config)
    monkeypatch.setattr(SiteDirectory, "on_ray", property(lambda self: True))
    monkeypatch.setattr(SiteDirectory, "federation", lambda *_: pytest.fail("a federation was started"))
    with api.Experiment(config) as experiment:
        assert experiment.standing_check()["verified"]
