"""Training the policy at home on federations unlike those that it learned on: the way of a user, and the account."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from frmu.bench import home as benching
from frmu.bench.home import bench_home
from frmu.bench.home_federations import FEDERATIONS, declared
from frmu.cli import main


@pytest.mark.parametrize("name", sorted(FEDERATIONS))
def test_a_seed_makes_the_same_federation_and_init_declares_it(tmp_path: Path, name: str) -> None:
    tables = []
    for which, seed in (("one", 3), ("same", 3), ("other", 4)):
        (tmp_path / which).mkdir()
        config = declared(name, seed, tmp_path / which)
        tables.append(pd.read_parquet(config.source))
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])
    assert config.slices.by == "month"


def test_labels_creep_at_two_desks_until_judging_begins(tmp_path: Path) -> None:
    config = declared("desks", 0, tmp_path)
    assert config.data.task == "classification"
    table = pd.read_parquet(config.source)
    urgent = table.assign(urgent=table.level == "urgent", quarter=table.ts.dt.to_period("Q"))
    share = urgent.pivot_table(index="quarter", columns="desk", values="urgent")
    fell = share.iloc[0] - share.iloc[-1]
    assert sorted(fell > 0.2).count(True) == 2
    assert np.abs(np.sort(fell)[:3]).max() < 0.1


def test_huts_count_nothing_in_winter_and_their_guests_are_learned_as_log1p(tmp_path: Path) -> None:
    config = declared("huts", 0, tmp_path)
    assert config.data.transforms == {"guests": "log1p"}
    table = pd.read_parquet(config.source)
    month = table.ts.dt.month
    assert table.guests[month.isin([12, 1, 2])].max() == 0.0
    assert (table.guests[month.isin([6, 7, 8])] > 0.0).mean() > 0.9


@pytest.mark.cluster
def test_the_command_trains_at_home_and_goes_on_from_its_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FEDERATIONS, "huts", lambda rng: _small(rng))  # type: ignore[index]
    out = tmp_path / "home.jsonl"
    command = ["bench", "home", "--federation", "huts", "--seeds", "1", "--iterations", "1", "--out", str(out)]
    run = CliRunner().invoke(main, [*command, "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.strip().splitlines()[-1])
    assert [row["split"] for row in result["rows"]] == ["later", "test"]
    (line,) = result["lines"]
    later = result["rows"][0]
    assert later["home"]["mean"] - later["shipped"]["mean"] == pytest.approx(later["difference"]["mean"])
    assert line["rehearsals"]["later"]["in_force"] != line["rehearsals"]["test"]["in_force"]
    assert line["kept"] == (line["rehearsals"]["later"]["chance"] <= 5.0 and later["rehearsals"]["mean"] > 0.0)
    monkeypatch.setattr(benching, "_measured", None)  # nothing is measured again
    again = bench_home(["huts"], 1, 1, out, lambda line: None)
    assert again["lines"] == [json.loads(out.read_text())]


def _small(rng: np.random.Generator) -> pd.DataFrame:
    """Two small huts, closed in every other month."""
    ts = pd.date_range("2025-01-01", "2025-11-01", freq="12h").astype("datetime64[us]")
    parts = []
    for number in range(2):
        sun = rng.random(len(ts))
        guests = rng.poisson(np.where(ts.month % 2 == 0, 0.0, 3.0 + 20.0 * sun)).astype(np.float64)
        named = {"hut": f"hut {number}", "record": [f"{number}-{at}" for at in range(len(ts))], "ts": ts}
        parts.append(pd.DataFrame({**named, "sun": sun, "guests": guests}))
    return pd.concat(parts)
