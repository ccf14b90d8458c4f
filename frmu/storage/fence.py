"""The fence: a job that was killed may leave hosts at work on other nodes, and what they write comes too late.

The number of a job is higher than that of any before it, and lies beside the folder of shards that it has written to.
(Fencing: Gray and Cheriton, "Leases", SOSP 1989.)
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from frmu.errors import StoreError

__all__ = ["FENCE", "fenced", "next_token"]

FENCE = ".fence"  # beside the folder of the shards: the number of the last job that wrote there


def next_token(folder: Path) -> int:
    """Return a number higher than that of any job before that wrote to `folder`/shards, on this machine or another."""
    path = folder / FENCE
    last = int(path.read_text(encoding="ascii") or 0) if path.exists() else 0
    return max(last + 1, time.time_ns())


@contextlib.contextmanager
def fenced(folder: Path, fencing_token: int) -> Iterator[None]:
    """Hold the shards in a folder for one write; raises `StoreError` where a later job has written there."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder.parent / FENCE).open("a+", encoding="ascii") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        last = int(file.read() or 0)
        if last > fencing_token:
            raise StoreError(f"{folder}: a later job has taken these shards over; this one writes no more")
        if last < fencing_token:
            file.truncate(0)
            file.write(str(fencing_token))
            file.flush()
        yield
