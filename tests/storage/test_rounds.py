"""Checkpoints of rounds: whole or gone, and of the records as they stand or gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frmu.storage.rounds import Checkpoint, Checkpoints


def key(rounds: int) -> str:
    return f"{rounds:064x}"


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    kept = Checkpoints(tmp_path / "rounds")
    for rounds in (1, 2, 3):
        kept.keep(key(rounds), Checkpoint(rounds, {"weights.a": np.full(4, rounds, np.float32)}, {"history": [rounds]}))
    return kept


def test_the_latest_comes_back_as_it_was(kept: Checkpoints) -> None:
    found = kept.latest(9)
    assert found is not None
    assert (found.rounds, found.arrays["weights.a"].tolist(), found.told) == (3, [3.0] * 4, {"history": [3]})
    assert kept.latest(2).rounds == 2
    assert Checkpoints(kept.folder / "none").latest(9) is None


def test_what_is_not_of_the_records_as_they_stand_is_removed_and_counted(kept: Checkpoints) -> None:
    assert kept.unexpected_files(key) == []
    size = kept.nbytes // 3
    assert kept.purge(lambda rounds: key(rounds) if rounds < 2 else key(99)) == (2, 2 * size)
    assert (len(kept), kept.nbytes) == (1, size)
    (kept.folder / "note.txt").write_text("")
    assert kept.unexpected_files(key) == ["note.txt"]
    assert kept.clear()[0] == 1


@pytest.mark.parametrize("at", [-1, 200])
def test_one_that_was_changed_is_not_gone_on_from(kept: Checkpoints, at: int) -> None:
    path = max(kept.folder.iterdir())
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    assert kept.latest(9).rounds == 2
    assert not path.exists()
