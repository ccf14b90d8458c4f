"""Disturbances of many sites at once: who is hit, with what, and that a federation is judged as one."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import homes, put

from frmu.bench.many import APPLIED, KINDS, ROWS, bench_many, shared_fault
from frmu.cli import main


def test_a_firmware_reads_with_one_gain_or_offset_from_a_date_on(tmp_path: Path) -> None:
    table, config = homes(6), put(tmp_path, homes(6))
    found, hit = shared_fault(table, config, "firmware", np.random.Generator(np.random.PCG64(1)))
    sites = table.loc[hit, "home"].unique()
    assert 0.3 * 6 - 1 <= len(sites) <= 0.7 * 6 + 1
    assert table.loc[hit, "ts"].max().date() < config.split.validation_from
    before, after = (of.loc[hit, "load"].to_numpy() for of in (table, found))
    within = (after > -5.0) & (after < 20.0)  # the meter shows no more
    ratio, offset = after[within] / before[within], after[within] - before[within]
    assert min(np.ptp(ratio), np.ptp(offset)) < 1e-9
    assert (after != before).all()
    assert found[~hit].equals(table[~hit])


@pytest.mark.parametrize(("kind", "share"), [("supplier", 0.5), ("season", 1.0), ("none", 0.0)])
def test_a_kind_hits_its_share_of_the_sites_in_one_stretch_of_time(tmp_path: Path, kind: str, share: float) -> None:
    table, config = homes(6), put(tmp_path, homes(6))
    found, hit = shared_fault(table, config, kind, np.random.Generator(np.random.PCG64(2)))
    assert table.loc[hit, "home"].nunique() == share * 6
    times = [tuple(of["ts"]) for _, of in table[hit].groupby("home")]
    assert len(set(times)) == (1 if share else 0)
    assert found[~hit].equals(table[~hit])
    changed = found.loc[hit, "load"] != table.loc[hit, "load"]
    assert changed.mean() > 0.9 if share else not hit.any()


def test_every_row_is_one_head_for_all_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "homes"
    config = put(folder, homes(2))
    homes(2).to_parquet(folder / "data.parquet")
    (folder / "slots.toml").write_text(config.file.read_text().replace("homes.parquet", "data.parquet"))
    monkeypatch.setattr("frmu.bench.many.cached", lambda name, cache: folder)
    result = bench_many(tmp_path, 1, ["homes"], 1, tmp_path / "out")
    by = {(row["selector"], row["kind"]): row for row in result["rows"]}
    assert set(by) == {(name, kind) for name in (*ROWS, *APPLIED) for kind in KINDS}
    assert all(by["keep all", kind]["mean"] == 0.0 for kind in KINDS)
    assert by["oracle", "none"]["mean"] == 0.0
    assert by["oracle", "season"]["mean"] > 1.0
    assert {row["tasks"] for row in result["ahead"]} == {len(KINDS) - 1}
    single = {(row["selector"], row["kind"]): row["gain"] for row in _rows(tmp_path / "out" / "many.csv")}
    ahead = np.mean([float(single["as applied", kind]) - float(single["best rule", kind]) for kind in KINDS[:-1]])
    said = next(row for row in result["ahead"] if (row["selector"], row["rival"]) == ("as applied", "best rule"))
    assert said["difference"] == pytest.approx(ahead, abs=0.006)


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_federation_of_ones_own_is_not_for_it() -> None:
    run = CliRunner().invoke(main, ["bench", "policy", "--many", "--framu"])
    assert run.exit_code == 2
    assert "--many measures our own sets alone" in run.output
