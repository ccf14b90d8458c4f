"""The benchmark of rounds, at a size that everybody can afford."""

from __future__ import annotations

from frmu.bench.rounds import bench_replay, bench_rounds


def test_a_round_is_measured_beside_torch() -> None:
    found = bench_rounds([3], 2, "local")
    assert [row["way"] for row in found["rows"]] == [
        "frmu, in process", "torch.func, one process", "loop of torch, one process",
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["cpu"] > 0 for row in found["rows"])


def test_replay_trains_less_and_gives_the_same() -> None:
    for row in bench_replay(12, 10)["rows"]:
        assert row["equal"]
        assert row["tried"]
        assert 0 < row["mean"] < 1
