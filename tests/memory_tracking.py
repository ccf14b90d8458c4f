"""A tracking store in memory, for tests that are not about MLflow: the same lineage, purged by the same tags.

What it is told it keeps for as long as the tests run, by experiment, as a database would from one job to the next.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from frmu.tracking.lineage import DETAIL, Left, Purged, Version, held
from frmu.tracking.queue import Op


@dataclass
class MemoryRun:
    """One run, whole."""

    number: str
    name: str
    start: int
    tags: dict[str, str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    status: str = "RUNNING"


class MemoryBackend:
    """One experiment, with its model registry."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.models: dict[int, tuple[Version, bytes]] = {}
        self.number, self.alias, self.name = 0, "", ""
        self.tags: dict[str, str] = {}

    @classmethod
    def connect(cls, uri: str, experiment: str, artifacts: Path, known: bool = True) -> MemoryBackend:
        return _KEPT.setdefault(experiment, cls())

    # -- runs ------------------------------------------------------------------------------------------------

    def create(self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int) -> str:
        self.number += 1
        run = MemoryRun(f"run{self.number}", name, start, dict(tags))
        self.runs[run.number] = run
        return run.number

    def apply(self, run: str, op: Op) -> None:
        told = self.runs[run]
        if op.kind == "params":
            told.params |= op.body
        elif op.kind == "metrics":
            told.metrics |= {key: value for key, value, _, _ in op.body["entries"]}
        elif op.kind == "tags":
            told.tags |= op.body
        elif op.kind == "file":
            assert op.data is not None
            told.files[op.data.name] = op.data.read_bytes()
        elif op.kind == "end":
            told.status = op.body["status"]

    def find(self, key: str) -> str | None:
        return None  # nothing ever waits: memory is never away

    def alive(self, run: str) -> bool:
        return run in self.runs

    def documents(self, names: Collection[str], artifact: str, most: int) -> list[tuple[str, Any]]:
        found: list[MemoryRun] = []
        for name in names:
            done = [run for run in self.runs.values() if (run.name, run.status) == (name, "FINISHED")]
            found += [run for run in done[-most:] if artifact in run.files]
        ordered = sorted(found, key=lambda run: run.start)
        return [(_time(run.start), json.loads(run.files[artifact])) for run in ordered]

    def experiment_tag(self, name: str) -> str | None:
        return self.tags.get(name)

    def tag_experiment(self, name: str, text: str) -> None:
        self.tags[name] = text

    # -- models, and the purge -------------------------------------------------------------------------------

    def registry(self, name: str) -> MemoryBackend:
        self.name = name
        return self

    def register(self, run_id: str, state_file: Path, tags: Mapping[str, str]) -> str:
        number = max(self.models, default=0) + 1
        self.models[number] = Version(str(number), run_id, dict(tags)), state_file.read_bytes()
        return str(number)

    def promote(self, number: str) -> None:
        self.alias = number

    def champion(self) -> Version | None:
        return self.models[int(self.alias)][0] if self.alias and int(self.alias) in self.models else None

    def versions(self) -> list[Version]:
        return [version for version, _ in self.models.values()]

    def fetch(self, number: str, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "state.safetensors").write_bytes(self.models[int(number)][1])
        return folder / "state.safetensors"

    def purge(
        self,
        owners: Collection[str],
        keep: Collection[str] = (),
        delete_runs: bool = False,
        known: Collection[str] = (),
    ) -> Purged:
        runs, numbers = self._found(owners, keep, known)
        for number in numbers:
            del self.models[number]
        files = sum(len(run.files) for run in runs)
        for run in runs:
            run.files.clear()
            if delete_runs or DETAIL in run.tags:
                del self.runs[run.number]
        names = tuple(f"{self.name}/{number}" for number in numbers)
        return Purged(tuple(run.number for run in runs), files, names, self._left(owners, keep, known))

    def scan(self, owners: Collection[str], keep: Collection[str] = ()) -> Left:
        return self._left(owners, keep, ())

    def left_of(self, runs: Collection[str]) -> Left:
        return self._left((), (), runs)

    def _left(self, owners: Collection[str], keep: Collection[str], known: Collection[str]) -> Left:
        runs, numbers = self._found(owners, keep, known)
        carriers = [f"model version {self.name}/{number}" for number in numbers]
        carriers += [f"files of run {run.number}" for run in runs if run.files]
        return Left(tuple(carriers), tuple(f"run {run.number} keeps its tags" for run in runs))

    def _found(
        self, owners: Collection[str], keep: Collection[str], known: Collection[str]
    ) -> tuple[list[MemoryRun], list[int]]:
        runs = [
            run
            for run in self.runs.values()
            if run.number not in keep and (held(run.tags) & set(owners) or run.number in known)
        ]
        ids = {run.number for run in runs}
        numbers = [
            number
            for number, (version, _) in self.models.items()
            if version.run_id in ids or (held(version.tags) & set(owners) and version.run_id not in keep)
        ]
        return runs, numbers


_KEPT: dict[str, MemoryBackend] = {}


def _time(milliseconds: int) -> str:
    return dt.datetime.fromtimestamp(milliseconds / 1000, dt.UTC).isoformat()
