"""The bench of drains measures drains that were proven."""

from __future__ import annotations

from frmu.bench.drain import bench_drain


def test_one_and_many() -> None:
    result = bench_drain(clients=4, requests=10, repeats=2, address="local")
    assert result["proven"]
    assert result["batch"]["requests"] == 10
    assert result["batch"]["records"] > result["one"]["records"] > 0
    assert result["ratio"] > 0
