"""Requests come in from anywhere, are listed, withdrawn, and answered even where nobody holds anything."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, TRACKING, WINDOW, drain, put, train

from frmu import api
from frmu.config import Config, load
from frmu.errors import FederationError, LedgerError, RequestError, StoreError
from frmu.ledger.ledger import Ledger
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PERSON = Selection("subject", subject="p3")


@pytest.fixture
def trained(config: Config) -> Config:
    train(config)
    return config


def with_table(config: Config, text: str) -> Config:
    """The config with one more table."""
    config.file.write_text(f"{config.file.read_text()}\n{text}\n")
    return load(config.file)


@pytest.mark.parametrize(
    "selection",
    [
        Selection("subject", subject="nobody"),
        Selection("records", records=("x-1", "x-2")),
        Selection("between", between=(dt.datetime(1999, 1, 1), dt.datetime(1999, 2, 1))),
        Selection("slice", slice="1999-01"),
        Selection("where", where="load > 19.5"),
    ],
    ids=lambda selection: selection.kind,
)
def test_what_nobody_holds_is_searched_and_answered(trained: Config, selection: Selection) -> None:
    before = api.status(trained)["state_digest"]
    assert api.erase(trained, selection)["records"] == 0
    receipt = drain(trained)["receipts"][0]
    assert (receipt["outcome"], receipt["removed"], receipt["verified"]) == ("nothing held", {}, True)
    assert receipt["searched"] == {f"home {n}": 424 for n in range(4)}
    assert receipt["state_digest"] == before == api.status(trained)["state_digest"]
    assert api.status(trained)["state_is_clean"]


def test_ids_that_nobody_holds_are_named_and_the_others_go(trained: Config) -> None:
    answer = api.erase(trained, Selection("records", records=("h0-0", "h9-9", "h1-3")))
    assert (answer["records"], answer["not_held"]) == (2, ["h9-9"])
    assert drain(trained)["receipts"][0]["removed"] == {"home 0": 1, "home 1": 1}


def test_a_request_keeps_who_asked_why_and_by_when(trained: Config) -> None:
    first = api.erase(trained, PERSON, "objection", 40, "A. Clerk")["request"]
    second = api.erase(trained, Selection("client", client="home 1"), "contract over", 3)["request"]
    rows = api.requests(trained)
    assert [row["request"] for row in rows] == [second, first]
    assert [row["days_left"] for row in rows] == [3, 40]
    assert (rows[1]["requester"], rows[1]["reason"], rows[1]["stage"]) == ("A. Clerk", "objection", "received")
    assert [row["request"] for row in api.requests(trained, due_within=7)] == [second]
    receipts = {receipt["request"]: receipt for receipt in drain(trained)["receipts"]}
    assert (receipts[first]["requester"], receipts[first]["reason"]) == ("A. Clerk", "objection")
    assert api.requests(trained, ["received"]) == []
    assert {row["stage"] for row in api.requests(trained)} == {"closed"}


def test_a_default_deadline_can_be_set(trained: Config) -> None:
    config = with_table(trained, "[erasure]\ndue = 10")
    api.erase(config, PERSON)
    assert api.requests(config)[0]["days_left"] == 10


def test_a_withdrawn_request_leaves_everything_as_it_was(trained: Config) -> None:
    digest = api.status(trained)["state_digest"]
    request = api.erase(trained, PERSON)["request"]
    assert train(trained)["refused"] > 0  # refused from the moment of the request
    assert api.withdraw(trained, request) == {"request": request, "stage": "withdrawn"}
    again = train(trained)
    assert (again["refused"], again["state_digest"]) == (0, digest)
    assert drain(trained)["receipts"] == []
    with pytest.raises(RequestError, match=f"{request} has no receipt that could be read: it was withdrawn"):
        api.receipt_of(trained, request)


def test_what_was_asked_while_records_were_away_is_refused_when_they_come(tmp_path: Path, table: pd.DataFrame) -> None:
    early = table[table.ts < "2025-04-01"]
    config = put(tmp_path / "late", early)
    train(config)
    api.erase(config, PERSON)
    put(tmp_path / "late", table)  # more of the same person arrives before the drain
    assert train(config)["refused"] == int((table.person == "p3").sum())
    assert sum(drain(config)["receipts"][0]["removed"].values()) == int((table.person == "p3").sum())


def test_a_client_that_is_away_leaves_the_request_open(trained: Config, tmp_path: Path) -> None:
    api.erase(trained, PERSON)
    shard = trained.folder / "shards" / "home%202.parquet"
    shard.rename(tmp_path / "away")
    before = {file.name: file.read_bytes() for file in (trained.folder / "shards").iterdir()}
    with pytest.raises(FederationError, match=r'client "home 2" cannot be searched.*requests stay open'):
        drain(trained)
    assert {file.name: file.read_bytes() for file in (trained.folder / "shards").iterdir()} == before
    assert api.requests(trained)[0]["stage"] == "received"
    (tmp_path / "away").rename(shard)
    assert drain(trained)["receipts"][0]["verified"]


def test_a_config_that_changes_before_the_drain_hides_nothing(trained: Config, table: pd.DataFrame) -> None:
    api.erase(trained, PERSON)
    table["wind"] = 1.0
    text = trained.file.read_text().replace('"humidity", "yesterday"', '"humidity", "wind", "yesterday"')
    text = text.replace("[data.ranges]", "[data.ranges]\nwind = [0, 2]")
    config = put(trained.file.parent, table[table.home != "home 1"])
    config.file.write_text(text)
    config = load(config.file)
    train(config)
    assert sum(drain(config)["receipts"][0]["removed"].values()) == int((table.person == "p3").sum())
    table.to_parquet(config.source, index=False)
    assert train(config)["refused"] == int((table.person == "p3").sum())


@pytest.mark.parametrize(
    ("selection", "change"),
    [
        (Selection("where", where="humidity > 50"), ('"humidity", "yesterday"', '"yesterday"')),
        (Selection("slice", slice="2025-02"), ('by = "month"', 'by = "subject"')),
    ],
    ids=["where", "slice"],
)
def test_a_request_that_a_config_gives_no_meaning_to_is_named(
    trained: Config, selection: Selection, change: tuple[str, str]
) -> None:
    request = api.erase(trained, selection)["request"]
    text = trained.file.read_text()
    changed = text.replace(*change)
    trained.file.write_text(changed if '"humidity"' in changed else changed.replace("humidity = [0, 100]\n", ""))
    with pytest.raises(RequestError, match=f"request {request} means nothing under this config any more.*withdraw"):
        train(load(trained.file))
    trained.file.write_text(text)
    assert drain(load(trained.file))["verified"]


# -- batches --------------------------------------------------------------------------------------------------


def test_a_drain_waits_until_there_are_enough_requests(trained: Config) -> None:
    config = with_table(trained, "[erasure]\nmin_batch = 2")
    api.erase(config, PERSON)
    api.erase(config, Selection("subject", subject="nobody"))
    first = drain(config)
    assert [(receipt["outcome"], receipt["verified"]) for receipt in first["receipts"]] == [("nothing held", True)]
    assert (first["waiting"], first["pending"]) == (1, 1)
    assert drain(config)["receipts"] == []
    api.erase(config, Selection("client", client="home 1"))
    assert api.withdraw(config, api.erase(config, Selection("subject", subject="p4"))["request"])
    assert [receipt["requests_in_batch"] for receipt in drain(config)["receipts"]] == [2, 2]


def test_a_drain_does_not_wait_for_long(trained: Config) -> None:
    config = with_table(trained, "[erasure]\nmin_batch = 5\nurgent = 3")
    api.erase(config, PERSON, due_days=5)
    assert drain(config)["waiting"] == 1
    api.erase(config, Selection("subject", subject="p1"), due_days=3)
    assert len(drain(config)["receipts"]) == 2


def test_a_drain_can_be_told_not_to_wait(trained: Config) -> None:
    config = with_table(trained, "[erasure]\nmin_batch = 5")
    api.erase(config, PERSON)
    with api.Experiment(config, "local") as experiment:
        assert len(experiment.drain(now=True)["receipts"]) == 1


def test_what_a_killed_drain_began_does_not_wait(trained: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    api.erase(trained, PERSON)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "advance", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            drain(trained)
    assert len(drain(with_table(trained, "[erasure]\nmin_batch = 5"))["receipts"]) == 1


def test_one_refit_for_many_requests(trained: Config) -> None:
    for number in range(40):
        api.erase(trained, Selection("records", records=(f"h0-{number}", f"h1-{number}")))
    receipts = drain(trained)["receipts"]
    assert len(receipts) == 40
    with api.ledger_of(trained) as ledger:
        states = {line.body["state"] for line in ledger.lines(["refitted"])}
    assert states == {receipts[0]["state_digest"]}


def test_five_drains_in_a_row_do_not_drift(trained: Config, table: pd.DataFrame, tmp_path: Path) -> None:
    for person in ("p0", "p1", "p2", "p3"):
        api.erase(trained, Selection("subject", subject=person))
        drain(trained)
    api.erase(trained, Selection("between", between=WINDOW))
    last = drain(trained)["state_digest"]
    left = table[(table.person == "p4") & ~((table.ts >= WINDOW[0]) & (table.ts < WINDOW[1]))]
    assert train(put(tmp_path / "never", left))["state_digest"] == last


# -- from elsewhere -------------------------------------------------------------------------------------------

ASK = """
import sys
from frmu import api
from frmu.config import load
from frmu.types import Selection

print(api.erase(load(sys.argv[1]), Selection("subject", subject=sys.argv[2]), requester="elsewhere")["searched_here"])
"""


def test_requests_come_from_another_machine(tmp_path: Path, table: pd.DataFrame, postgres_database: str) -> None:
    store = f'ledger = "{postgres_database}"\nkey = "frmu.key"\n'
    here = put(tmp_path / "here", table)
    here.file.write_text(f"{here.file.read_text()}{store}")
    here = load(here.file)
    train(here)
    there = tmp_path / "there"
    there.mkdir()
    (there / "homes.toml").write_text(f'{CONFIG}\n[store]\ntracking = "{TRACKING}"\n{store}')
    with pytest.raises(StoreError, match=r"no key there.*check store\.key"):
        api.erase(load(there / "homes.toml"), PERSON)
    os.link(here.key_file, there / "frmu.key")
    with api.Experiment(here, "local") as experiment:  # while a job runs
        processes = [
            subprocess.Popen([sys.executable, "-c", ASK, there / "homes.toml", person], stdout=subprocess.PIPE)
            for person in ("p1", "p2", "nobody")
        ]
        assert [process.communicate()[0] for process in processes] == [b"False\n"] * 3
        receipts = experiment.drain()["receipts"]
    assert sorted(receipt["outcome"] for receipt in receipts) == ["erased", "erased", "nothing held"]
    assert not (there / "homes.frmu").exists()


@pytest.mark.parametrize("what", ["folder", "key"])
def test_a_store_that_cannot_be_read_is_told(trained: Config, what: str) -> None:
    if what == "key":
        trained.key_file.write_bytes(b"short")
        with pytest.raises(StoreError, match="not a key of 32 bytes"):
            api.erase(trained, PERSON)
        trained.key_file.write_bytes(b"x" * 32)
        with pytest.raises(LedgerError, match="another key"):
            api.erase(trained, PERSON)
    else:
        (trained.folder / "state.safetensors").unlink()
        with pytest.raises(StoreError, match="nothing trained here yet"):
            api.erase(trained, PERSON)


# -- a file of ids --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [100_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_many_ids_of_which_some_are_malformed(trained: Config, tmp_path: Path, number: int) -> None:
    from click.testing import CliRunner

    from frmu.cli import main

    lines = [f"x-{each}".encode() for each in range(number)]
    lines[10], lines[11], lines[50_000], lines[70_000] = b"a\x00b", b"c\x01", b"\xff\xfe", b"y" * 2000
    lines[20] = b"h0-7"
    file = tmp_path / "ids.txt"
    file.write_bytes(b"\n".join(lines))
    command = ["erase", str(trained.file), "--records", str(file), "--json"]
    refused = CliRunner().invoke(main, command)
    assert refused.exit_code == 2
    message = json.loads(refused.stdout.splitlines()[0])["error"]
    for part in ("lines 11-12 cannot", "line 50001 cannot", "line 70001 cannot", "Nothing was requested; --partial"):
        assert part in message
    assert api.requests(trained) == []
    taken = json.loads(CliRunner().invoke(main, [*command, "--partial"]).stdout.splitlines()[-1])
    assert (taken["records"], len(taken["skipped"]), len(taken["not_held"])) == (1, 3, number - 5)
    assert drain(trained)["receipts"][0]["removed"] == {"home 0": 1}
