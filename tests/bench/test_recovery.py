"""The bench of recovery kills for real, and says so where a state differs."""

from __future__ import annotations

from frmu.bench.recovery import bench_recovery


def test_host_server_and_joiner() -> None:
    result = bench_recovery(clients=2, repeats=1, address=None)
    assert result["equal"]
    assert result["joined"]["clients"] == 3
    assert 0 < result["host"]["median"] <= result["host"]["worst"]
