"""Records that the data declare private are never learned from, and go with a receipt where they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.cli import main
from frmu.config import Config, load
from frmu.errors import ConfigError, DataError, RequestError, StoreError
from frmu.services import training
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

PRIVATE = CONFIG.replace('target = "load"', 'target = "load"\nprivate = "mine"')


def flagged(table: pd.DataFrame, records: set[str]) -> pd.DataFrame:
    return table.assign(mine=table["record"].isin(records))


def write(config: Config, table: pd.DataFrame) -> None:
    table.to_parquet(config.file.parent / "homes.parquet", index=False)


SOME = {f"h0-{i}" for i in range(30, 60)} | {"h2-5", "h2-300"}


def test_what_is_private_is_as_if_it_was_never_there(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", flagged(table, SOME), PRIVATE)
    summary = train(config)
    assert (summary["private"], summary["refused"], summary["private_requests"]) == (32, 0, [])
    assert summary["records"] == len(table) - 32
    never = train(put(tmp_path / "never", table[~table["record"].isin(SOME)]))
    assert summary["state_digest"] == never["state_digest"]
    assert api.requests(config) == []


def test_a_flag_that_appears_becomes_a_request_with_a_receipt(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", flagged(table, set()), PRIVATE)
    before = train(config)
    assert before["private"] == 0
    write(config, flagged(table, SOME))
    after = train(config)
    assert after["private_requests"] == ["r1", "r2"]
    assert [(row["requester"], row["kind"]) for row in api.requests(config)] == [
        ("declared in data.private", "records")
    ] * 2
    assert "mine" in api.requests(config)[0]["reason"]
    assert api.status(config)["private_to_go"] == 32
    again = train(config)  # what asks already asks once
    assert (again["private"], again["private_requests"]) == (32, [])
    done = drain(config)
    assert [(r["removed"], r["level"], r["verified"]) for r in done["receipts"]] == [
        ({"home 0": 30}, "L5", True),
        ({"home 2": 2}, "L5", True),
    ]
    assert done["receipts"][0]["purge"]["mlflow"]["clean"]
    never = train(put(tmp_path / "never", table[~table["record"].isin(SOME)]))
    assert done["state_digest"] == never["state_digest"] == after["state_digest"] != before["state_digest"]
    assert api.status(config)["private_to_go"] == 0
    write(config, table.assign(mine=False))  # the flag is gone, the tombstones are not
    assert train(config)["refused"] == 32
    with api.Experiment(config, "local") as experiment:
        assert experiment.verify("r1", "L2")["proofs"]


def test_a_column_declared_later_asks_as_well(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", flagged(table, SOME))
    train(config)
    config.file.write_text(config.file.read_text().replace(CONFIG, PRIVATE))
    assert train(load(config.file))["private_requests"] == ["r1", "r2"]
    assert all(receipt["verified"] for receipt in drain(load(config.file))["receipts"])


def test_a_job_that_died_before_it_took_over_asks_once(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = put(tmp_path / "all", flagged(table, set()), PRIVATE)
    train(config)
    write(config, flagged(table, SOME))
    with monkeypatch.context() as patch:
        patch.setattr(training, "CommitShard", None)  # what would take the new shards over is not there
        with pytest.raises(TypeError):
            train(config)
    assert len(api.requests(config)) == 2
    assert train(config)["private_requests"] == []
    assert {r["level"] for r in drain(config)["receipts"]} == {"L5"}


def test_what_somebody_asked_for_already_is_asked_for_by_the_column_too(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", flagged(table, set()), PRIVATE)
    train(config)
    api.erase(config, Selection("records", records=("h2-5",)))
    write(config, flagged(table, SOME))
    assert train(config)["private_requests"] == ["r2", "r3"]
    api.withdraw(config, "r1")  # a private record stays out all the same
    assert train(config)["records"] == len(table) - 32
    assert [r["removed"] for r in drain(config)["receipts"]] == [{"home 0": 30}, {"home 2": 2}]


def test_a_client_that_is_private_as_a_whole_leaves(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "all", flagged(table, set()), PRIVATE)
    train(config)
    home = table[table["home"] == "home 1"]
    write(config, flagged(table, set(home["record"])))
    assert train(config)["clients"] == 3
    receipt = drain(config)["receipts"][0]
    assert (receipt["removed"], receipt["level"]) == ({"home 1": len(home)}, "L5")


def test_nothing_but_private_records_is_told(tmp_path: Path, table: pd.DataFrame) -> None:
    everything = set(table["record"])
    with pytest.raises(StoreError, match=r'every record there is private by "mine".*nothing to train on$'):
        train(put(tmp_path / "new", flagged(table, everything), PRIVATE))
    config = put(tmp_path / "old", flagged(table, set()), PRIVATE)
    train(config)
    write(config, flagged(table, everything))
    with pytest.raises(StoreError, match=r"r1, r2, r3, r4 asked for what was held: `frmu drain` honours it"):
        train(config)
    assert {receipt["verified"] for receipt in drain(config)["receipts"]} == {True}


@pytest.mark.parametrize("kind", ["int8", "float64", "bool"])
def test_a_flag_may_be_a_number(kind: str, broken: Callable[..., Config]) -> None:
    config = broken(lambda t: t.assign(mine=t["record"].isin(SOME).astype(kind)), PRIVATE)
    assert train(config)["private"] == 32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t, r'no column "mine"'),
        (lambda t: t.assign(mine="yes"), r'column "mine" \(private\) must be boolean, or 0 and 1, got'),
        (lambda t: t.assign(mine=0.5), r'column "mine" \(private\) must be boolean.*0.5 at client "home 0", row 0'),
        (lambda t: t.assign(mine=[None, *[False] * (len(t) - 1)]), r'column "mine" \(private\) is null.*row 0'),
    ],
    ids=["missing", "text", "half", "null"],
)
def test_a_column_that_cannot_be_read_stops_before_anything(
    change: Callable[..., pd.DataFrame], message: str, broken: Callable[..., Config]
) -> None:
    with pytest.raises(DataError, match=message):
        train(broken(change, PRIVATE))


@pytest.mark.parametrize("column", ["temperature", "load", "home", "record", "ts", "person"])
def test_a_column_that_has_another_use_is_refused(column: str, config: Config) -> None:
    config.file.write_text(PRIVATE.replace('"mine"', f'"{column}"'))
    with pytest.raises(ConfigError, match=f'private "{column}" must be a column of its own'):
        load(config.file)


def test_slices_are_not_cut_by_it(config: Config) -> None:
    config.file.write_text(PRIVATE.replace('by = "month"', 'by = "mine"'))
    with pytest.raises(ConfigError, match=r"data\.private"):
        load(config.file)


def test_no_filter_can_ask_which_records_are_private(tmp_path: Path) -> None:
    config = put(tmp_path / "all", flagged(homes(), SOME), PRIVATE)
    train(config)
    with pytest.raises(RequestError, match="mine"):
        api.erase(config, Selection("where", where="mine = true"))


def test_at_the_desk(tmp_path: Path, table: pd.DataFrame) -> None:
    flagged(table, set()).rename(columns={"mine": "private"}).to_parquet(tmp_path / "homes.parquet", index=False)
    file = tmp_path / "homes.toml"

    def frmu(*arguments: str) -> str:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 0, result.output
        return result.output

    frmu("init", str(tmp_path / "homes.parquet"), "-o", str(file), "--target", "load")
    assert load(file).data.private == "private"
    assert "private" not in load(file).data.features
    frmu("train", str(file), "--address", "local")
    flagged(table, SOME).rename(columns={"mine": "private"}).to_parquet(tmp_path / "homes.parquet", index=False)
    told = frmu("train", str(file), "--address", "local")
    assert "32 private records" in told
    assert "request r1 was filed" in told
    assert "by which 32 private records must go" in frmu("status", str(file))
    assert json.loads(frmu("status", str(file), "--json"))["private_to_go"] == 32
