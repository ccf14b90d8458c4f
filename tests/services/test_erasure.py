"""The law: erased is never had. Whatever is asked, in whatever order, in one batch or many."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, WINDOW, drain, homes, put, train

from frmu import api
from frmu.config import Config
from frmu.errors import RequestError, StoreError
from frmu.storage.checkpoint import load_state
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

SELECTIONS: dict[str, tuple[Selection, Callable[[pd.DataFrame], pd.Series]]] = {
    "subject": (Selection("subject", subject="p3"), lambda t: t.person == "p3"),
    "records": (
        Selection("records", records=("h0-0", "h2-17", "h2-300")),
        lambda t: t.record.isin(["h0-0", "h2-17", "h2-300"]),
    ),
    "client": (Selection("client", client="home 1"), lambda t: t.home == "home 1"),
    "between": (Selection("between", between=WINDOW), lambda t: (t.ts >= WINDOW[0]) & (t.ts < WINDOW[1])),
    "where": (
        Selection("where", where="temperature > 12 and person in ('p0', 'p4') or load < 2"),
        lambda t: ((t.temperature > 12) & t.person.isin(["p0", "p4"])) | (t.load < 2),
    ),
    "between at one": (
        Selection("between", client="home 2", between=WINDOW),
        lambda t: (t.home == "home 2") & (t.ts >= WINDOW[0]) & (t.ts < WINDOW[1]),
    ),
}
CLASSIFICATION = CONFIG.replace('target = "load"', 'target = "band"').replace('"regression"', '"classification"')
BY_PERSON = CONFIG.replace('by = "month"', 'by = "subject"\nbuckets = 4')
BY_HASH = CONFIG.split("[split]")[0] + '[model]\nencoder = "relu"\nfeatures = 8\n'


SAID = (
    CONFIG.replace("[data.lags]", 'said = ["said"]\n[data.lags]')
    + 'encoders = { said = "hash", calendar = "linear" }\n[policy]\nselector = "rules"\n'
)
LONG_AGO = ("2025-01", "2025-03")


def said(seed: int = 1) -> pd.DataFrame:
    """Records in which the load follows the words, some lack a modality, and the weather of two months is noise."""
    table, rng = homes(3), np.random.default_rng(seed)
    red, late = rng.random(len(table)) > 0.5, rng.random(len(table)) > 0.5
    table["said"] = np.where(red, "Red", "blue") + pd.Series(np.where(late, " lamp, late", " lamp"))
    table["temperature"] = rng.uniform(-10, 35, len(table))  # no season: the months are alike
    table["load"] = 3 + 2.0 * red - 1.5 * late - 0.05 * table.temperature + rng.normal(0, 0.2, len(table))
    for month in LONG_AGO:
        rows = table.index[(table.ts.dt.strftime("%Y-%m") == month) & (table.home == "home 1")]
        table.loc[rows, "temperature"] = rng.permutation(table.temperature[rows])
    lacks = rng.random((len(table), 2)) < 0.03
    table["said"] = table.said.mask(lacks[:, 0])
    for column in ("temperature", "humidity"):
        table[column] = table[column].mask(lacks[:, 1])
    return table


def test_a_month_of_broken_weather_is_muted_in_that_modality_and_can_be_erased(tmp_path: Path) -> None:
    table, config = said(), put(tmp_path / "all", said(), SAID)
    with api.Experiment(config, "local") as experiment:
        trained = experiment.train()
    before = load_state(config.folder / "state.safetensors")
    assert before is not None
    muted = {client.name: dict(client.modalities) for client in before.clients if client.modalities}
    assert set(muted) == {"home 1"}
    assert set(muted["home 1"]) <= set(LONG_AGO)
    assert {name for of in muted["home 1"].values() for name in of} == {"weather"}
    assert trained["metrics"]["test_rmse"] < trained["metrics"]["keep_test_rmse"]
    gone = table.person == "p3"
    api.erase(config, Selection("subject", subject="p3"))
    drained = drain(config)
    assert drained["state_digest"] == train(put(tmp_path / "never", table[~gone], SAID))["state_digest"]
    assert [r["level"] for r in drained["receipts"]] == ["L5"]


TEXTS = {"month": CONFIG, "classes": CLASSIFICATION, "person": BY_PERSON, "hash": BY_HASH}


def pairs() -> Iterator[Any]:
    """Each selection and each kind of slices by default, every pair of them with `pytest -m long`."""
    for selection in SELECTIONS:
        for text in TEXTS:
            brief = text == "month" or selection == "subject"
            yield pytest.param(
                selection, TEXTS[text], id=f"{selection}-{text}", marks=[] if brief else pytest.mark.long
            )


@pytest.mark.parametrize(("name", "text"), list(pairs()))
def test_erased_is_never_had(tmp_path: Path, table: pd.DataFrame, name: str, text: str) -> None:
    selection, gone = SELECTIONS[name]
    config = put(tmp_path / "all", table, text)
    before = train(config)
    request = api.erase(config, selection)
    assert request["records"] == int(gone(table).sum())
    drained = drain(config)
    never = train(put(tmp_path / "never", table[~gone(table)], text))
    assert drained["state_digest"] == never["state_digest"] != before["state_digest"]
    assert [r["level"] for r in drained["receipts"]] == ["L5"]
    assert (drained["pending"], drained["waiting"]) == (0, 0)
    assert sum(drained["receipts"][0]["removed"].values()) == int(gone(table).sum())


@pytest.mark.parametrize("order", [["subject", "client", "records"], ["records", "subject", "client"]])
@pytest.mark.parametrize("batched", [True, False])
def test_order_and_batches_do_not_matter(tmp_path: Path, table: pd.DataFrame, order: list[str], batched: bool) -> None:
    config = put(tmp_path / "all", table)
    train(config)
    drained = {}
    for name in order:
        api.erase(config, SELECTIONS[name][0])
        if not batched:
            drained = drain(config)
    if batched:
        drained = drain(config)
    gone = pd.concat([SELECTIONS[name][1](table) for name in order], axis=1).any(axis=1)
    never = train(put(tmp_path / "never", table[~gone]))
    assert drained["state_digest"] == never["state_digest"]


def test_a_slice_goes_by_its_key(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", table)
    train(config)
    api.erase(config, Selection("slice", client="home 3", slice="2025-02"))
    gone = (table.home == "home 3") & (table.ts.dt.month == 2)
    never = put(tmp_path / "never", table[~gone])
    assert drain(config)["state_digest"] == train(never)["state_digest"]


def test_the_order_of_the_file_does_not_matter(tmp_path: Path, table: pd.DataFrame) -> None:
    shuffled = table.sample(frac=1.0, random_state=1)
    assert train(put(tmp_path / "a", table))["state_digest"] == train(put(tmp_path / "b", shuffled))["state_digest"]


def test_a_folder_of_files_is_one_data_set(tmp_path: Path, table: pd.DataFrame) -> None:
    one = train(put(tmp_path / "one", table))
    config = put(tmp_path / "many", table, CONFIG.replace("homes.parquet", "parts"))
    (tmp_path / "many" / "parts").mkdir()
    for home, part in table.groupby("home"):
        part.to_parquet(tmp_path / "many" / "parts" / f"{home}.parquet")
    assert train(config)["state_digest"] == one["state_digest"]


def test_erased_records_are_refused_when_they_come_back(config: Config) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="p1"))
    drained = drain(config)
    again = train(config)  # the source still holds them
    assert again["refused"] == sum(drained["receipts"][0]["removed"].values()) > 0
    assert again["state_digest"] == drained["state_digest"]


def test_an_erased_value_leaves_the_lags_of_its_neighbours(tmp_path: Path, table: pd.DataFrame) -> None:
    poisoned = table.copy()
    poisoned.loc[poisoned.record == "h0-100", "load"] = 19.0
    digests = []
    for name, data in {"true": table, "poisoned": poisoned}.items():
        config = put(tmp_path / name, data)
        train(config)
        api.erase(config, Selection("records", records=("h0-100",)))
        digests.append(drain(config)["state_digest"])
    assert digests[0] == digests[1]


def test_everything_can_go(config: Config, table: pd.DataFrame) -> None:
    train(config)
    for home in sorted(set(table.home)):
        api.erase(config, Selection("client", client=home))
    drained = drain(config)
    assert drained["verified"]
    assert not list((config.folder / "shards").iterdir())
    with pytest.raises(StoreError, match="every record there has been erased"):
        train(config)


def test_nothing_of_the_erased_is_left_in_the_folder(config: Config, table: pd.DataFrame) -> None:
    train(config)
    api.erase(config, Selection("subject", subject="p2"))
    drain(config)
    with api.Experiment(config, "local") as experiment:
        lines = json.dumps([line.body for line in experiment.session.ledger.lines()])
    assert '"p2"' not in lines
    for shard in (config.folder / "shards").iterdir():
        assert "p2" not in set(pd.read_parquet(shard)["#subject"])
    assert b'"p2"' not in (config.folder / "ledger.db").read_bytes()


def test_an_empty_queue_drains_to_nothing(config: Config) -> None:
    digest = train(config)["state_digest"]
    nothing = {"receipts": [], "state_digest": digest, "verified": None, "pending": 0, "waiting": 0}
    assert drain(config).items() >= nothing.items()


@pytest.mark.parametrize("stage", ["purged", "refitted", "verified", "closed"])
def test_a_crash_between_two_stages_is_resumed(
    config: Config, table: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from frmu.ledger.ledger import Ledger

    train(config)
    api.erase(config, Selection("subject", subject="p3"))
    original, close = Ledger.advance, Ledger.close_requests

    def crash(self: Ledger, requests: object, reached: str, body: object) -> None:
        if reached == stage:
            raise KeyboardInterrupt
        original(self, requests, reached, body)  # type: ignore[arg-type]

    def crash_closing(self: Ledger, receipts: object, unsearched: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "advance", crash)
    if stage == "closed":
        monkeypatch.setattr(Ledger, "close_requests", crash_closing)
    with pytest.raises(KeyboardInterrupt):
        drain(config)
    monkeypatch.setattr(Ledger, "advance", original)
    monkeypatch.setattr(Ledger, "close_requests", close)
    drained = drain(config)
    gone = table.person == "p3"
    assert drained["receipts"][0]["removed"] == table[gone].groupby("home").size().to_dict()
    assert drained["state_digest"] == train(put(tmp_path / "never", table[~gone]))["state_digest"]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection("client", client="home 9"), 'no client "home 9".*did you mean "home'),
        (Selection("records", records=("h0-0", "")), "'' cannot be a record id: it is empty"),
        (Selection("records", records=("h0-0", "a\0")), "control character"),
        (Selection("subject", subject="\ud800"), "not Unicode"),
        (Selection("where", where="wattage > 3"), 'no column "wattage"|wattage'),
        (Selection("between", between=(WINDOW[1], WINDOW[0])), "FROM before TO"),
    ],
)
def test_a_request_that_means_nothing_is_refused(config: Config, selection: Selection, message: str) -> None:
    train(config)
    with pytest.raises(RequestError, match=message):
        api.erase(config, selection)
    assert api.status(config)["pending"] == []


def test_another_job_in_the_same_folder_is_told(config: Config) -> None:
    with api.Experiment(config, "local"), pytest.raises(StoreError, match="another job"):
        train(config)


def test_a_request_may_come_while_a_job_runs(config: Config) -> None:
    train(config)
    with api.Experiment(config, "local") as experiment:
        api.erase(config, Selection("subject", subject="p0"))
        assert [receipt["level"] for receipt in experiment.drain()["receipts"]] == ["L5"]


def test_a_new_client_joins_and_an_old_one_leaves(tmp_path: Path) -> None:
    five = homes(5)
    config = put(tmp_path / "grown", five[five.home != "home 4"])
    train(config)
    config = put(tmp_path / "grown", five[five.home != "home 0"])
    never = put(tmp_path / "never", five[five.home != "home 0"])
    assert train(config)["state_digest"] == train(never)["state_digest"]
