"""The price of the grid is measured on real data, and stays below three parts in a thousand."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from frmu.cli import main


def test_rounding_costs_next_to_nothing() -> None:
    run = CliRunner().invoke(main, ["bench", "rounding", "--set", "medical", "--set", "parking", "--json"])
    assert run.exit_code == 0, run.output
    told = json.loads(run.stdout.splitlines()[-1])
    assert [row["set"] for row in told["rows"]] == ["medical", "parking"]
    assert told["worst"] <= 0.3
    assert all(row["grid"] != row["float64"] for row in told["rows"])


def test_a_set_that_is_not_there_is_told(tmp_path: Path) -> None:
    wrong = CliRunner().invoke(main, ["bench", "rounding", "--set", "medcal", "--cache", str(tmp_path)])
    assert (wrong.exit_code, "no set medcal" in wrong.output) == (2, True)
