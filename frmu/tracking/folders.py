"""The outbox as it was before it was a database: a folder a run, a JSON file a step. It is taken over, once.

<folder>/000001-<key>/run.json         name, tags, parent and start of a run, and its MLflow id once there is one
                      0001.json        a step
                      0002/<name>      the file that 0002.json speaks of
         met.json                      the tracking servers that have answered before

A run without its `run.json` was not begun, or was being removed; a file without its step was being written. Neither is
taken over.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from frmu.errors import StoreError
from frmu.tracking.database import changing, insert_host, insert_run, insert_step
from frmu.tracking.queue import Queue

__all__ = ["take_over"]

_HEADER, _MET = "run.json", "met.json"
_BOX = re.compile(r"\d{6}-outbox-[0-9a-f]{16}")
_OP = re.compile(r"\d{4,}\.json")


def take_over(outbox: Queue) -> None:
    """Bring what waits in folders into the database, in one transaction, and remove them. For the lock's holder.

    A run that is in the database already was brought there by a job that was killed before it removed the folder.
    """
    there = sorted(outbox.folder.iterdir()) if outbox.folder.is_dir() else []
    boxes, met = [place for place in there if _BOX.fullmatch(place.name)], outbox.folder / _MET
    if not boxes and not met.exists():
        return
    with changing(outbox.file) as change:
        for host in _read(met) if met.exists() else ():
            insert_host(change, host)
        for place in boxes:
            if (place / _HEADER).exists():
                _bring(change, place)
    for place in boxes:
        (place / _HEADER).unlink(missing_ok=True)  # first: what is left of a folder without it is nothing
        shutil.rmtree(place)
    for file in (met, met.with_name(f"{_MET}.partial")):
        file.unlink(missing_ok=True)


def _bring(change: sqlite3.Connection, place: Path) -> None:
    header, steps = _read(place / _HEADER), [file for file in place.iterdir() if _OP.fullmatch(file.name)]
    try:
        if not insert_run(change, **header):
            return
        for step in sorted(steps, key=lambda file: int(file.stem)):
            found, files = _read(step), sorted(step.with_suffix("").glob("*"))
            insert_step(change, header["key"], found["kind"], found["body"], files[0] if files else None)
    except (TypeError, KeyError, ValueError) as error:
        raise _broken(place, error) from None


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"{path}: cannot be read: {error}; a run that waits for MLflow is not whole: restore it, or remove its folder "
        "to give it up"
    )
