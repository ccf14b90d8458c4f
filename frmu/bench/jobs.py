"""Jobs of a benchmark in processes of their own, and the files of what they found."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_processes", "write_rows"]

Job = TypeVar("Job")
Found = TypeVar("Found")


def in_processes(work: Callable[[Job], Found], jobs: Sequence[Job], processes: int) -> list[Found]:
    """Return what comes of all jobs, in their order; a single process is this one.

    >>> in_processes(len, ["a", "bc"], processes=1)
    [1, 2]
    """
    if processes == 1:
        return [work(job) for job in jobs]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        return list(pool.map(work, jobs))


def write_rows(result: Mapping[str, Any], found: Sequence[Mapping[str, Any]], out: Path, name: str) -> None:
    """Write `name`.json, the result, and `name`.csv, the single rows it was made of, to a folder."""
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    with (out / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(found[0]))
        writer.writeheader()
        writer.writerows(found)
