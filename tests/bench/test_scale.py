"""Quality against the number of slices at a fixed time: everybody gets the time, and what was done is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from frmu.bench import scale
from frmu.bench.scale import bench_scale
from frmu.datasets import cached
from frmu.errors import DataError
from frmu.selection.disturbance import KINDS

CACHE = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))


def test_selectors_meet_the_same_tasks_and_only_searches_use_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        cached(scale.UNSEEN, CACHE)
    except DataError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(str(error))
    monkeypatch.setattr(scale, "SLICES", (24,))
    rows = {row["selector"]: row for row in bench_scale(CACHE, 0.1, 1, 1, tmp_path)["rows"]}
    assert {row["tasks"] for row in rows.values()} == {len(KINDS)}
    assert 1 < rows["learned, 3 steps"]["refits"] <= 4  # fewer where a busy machine leaves no time for them
    assert rows["learned, 3 steps"]["refits"] < rows["best rule"]["refits"] <= 58
    assert all(rows[name]["seconds"] >= 0.1 for name in ("gradient", "DVRL", "learned + search"))
    assert rows["learned, 3 steps"]["mean"] > 0.0
    assert (tmp_path / "scale.png").stat().st_size > 0
