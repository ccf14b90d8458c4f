"""One shared policy against the average of the sites': the same steps for both, measured on the same tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from frmu.bench.federate import bench_federate


@pytest.mark.long
def test_both_take_the_same_steps_and_are_measured(tmp_path: Path) -> None:
    told: list[str] = []
    cache = Path.home() / ".cache" / "frmu"
    result = bench_federate(cache, ["air"], 2, 2, env_steps=1920, tasks=20, scratch=True, tell=told.append)
    assert len(told) == len(result["runs"]) == 4
    assert {run["env_steps"] for run in result["runs"]} == {1920}
    assert set(result["rows"]) == {"air", "parking"}
    for row in result["rows"].values():
        assert row["difference"]["mean"] == pytest.approx(row["federated"]["mean"] - row["shared"]["mean"], abs=0.011)
