"""Speed: what is timed is what users run; growth is fitted; the picture can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from frmu.bench.speed import bench_product, federation_of_sensors, growth
from frmu.cli import main
from frmu.data.parquet import survey


@given(st.floats(0.0, 50.0), st.floats(1e-4, 10.0), st.sampled_from([0.5, 1.0, 1.5, 2.0]))
def test_growth_finds_what_grew(base: float, unit: float, exponent: float) -> None:
    sizes = [10, 100, 300, 1000, 10_000]
    found = growth(sizes, [base + unit * size**exponent for size in sizes])
    fitted = np.array([found["base"] + found["unit"] * size ** found["exponent"] for size in sizes])
    assert fitted == pytest.approx([base + unit * size**exponent for size in sizes], rel=0.02)


def test_the_bare_product_is_timed_both_ways() -> None:
    found = bench_product(2048, 64, 1)
    assert found["rows"] == 2048
    assert found["d"] == 64
    assert min(found[name] for name in ("float64", "sums", "features_and_sums")) > 0.0


def test_the_federation_of_sensors_has_as_many_as_were_asked_for(tmp_path: Path) -> None:
    assert survey(federation_of_sensors(tmp_path, 3, 50)).rows_by_client == {f"site {n:05d}": 50 for n in range(3)}


@pytest.mark.cluster
def test_speed_from_cold_and_warm(tmp_path: Path) -> None:
    arguments = ["--sites", "3", "--sites", "4", "--sites", "6", "--each", "60", "--records", "5000", "--rows", "4096"]
    run = CliRunner().invoke(main, ["bench", "speed", *arguments, "--repeats", "1", "--out", str(tmp_path), "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    assert [row["sites"] for row in told["sites"]] == [3, 4, 6]
    assert all(row["proven"] for row in told["sites"] + told["records"])
    assert {"train", "drain", "verify", "warm_drain", "train_memory"} <= set(told["growth"]["sites"])
    assert (tmp_path / "speed.png").read_bytes()[:4] == b"\x89PNG"
