"""The bench of recovery kills for real, and says so where a state differs."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from frmu.cli import main


@pytest.mark.cluster
def test_host_server_and_joiner() -> None:
    run = CliRunner().invoke(main, ["bench", "recovery", "--clients", "2", "--repeats", "1", "--json"])
    assert run.exit_code == 0, run.output
    result = json.loads(run.output.splitlines()[-1])
    assert result["equal"]
    assert result["joined"]["clients"] == 3
    assert 0 < result["host"]["median"] <= result["host"]["worst"]
