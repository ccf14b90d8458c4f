"""What MLflow could not take: runs that wait on disk, in order, until it can.

<folder>/000001-<key>/run.json         name, tags, parent and start of a run, and its MLflow id once there is one
                      0001.json        what to do with it: parameters, metrics, tags, a file, a state, its end
                      0002/<name>      the file that 0002.json speaks of
         met.json                      the tracking servers that have answered before

A folder a run and a file a step, each written whole or not at all and read back as JSON, so a job that is killed
leaves what it had done. A run without its `run.json` is one that was not begun, or that is being removed: whatever
lies in it is nothing, and is swept away.

What lies here was learned from records like all that is in MLflow: it is purged by the same lineage tags.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frmu.errors import StoreError
from frmu.storage.atomic import write_bytes, write_file

__all__ = ["Op", "Queue", "QueuedRun", "is_key", "key", "unexpected_files"]

_HEADER, _MET = "run.json", "met.json"
_KEY = "outbox-"  # no MLflow id begins like this
_BOX = re.compile(rf"\d{{6}}-{_KEY}[0-9a-f]{{16}}")
_OP = re.compile(r"\d{4,}\.json")


def key() -> str:
    """A name for a run that MLflow has given none yet."""
    return f"{_KEY}{secrets.token_hex(8)}"


def is_key(name: str) -> bool:
    """Whether a run is called by such a name.

    >>> is_key(key()), is_key("9d5a2f")
    (True, False)
    """
    return name.startswith(_KEY)


@dataclass(frozen=True, slots=True)
class Op:
    """One thing to do with a run: its kind, what goes with it as plain JSON types, and the file it is about."""

    kind: str
    body: Mapping[str, Any]
    data: Path | None = None


@dataclass(frozen=True, slots=True)
class QueuedRun:
    """One run that waits.

    `run` is its id in MLflow, where it began there; `parent` the id or the key of the run it is nested in.
    """

    folder: Path
    key: str
    name: str
    tags: Mapping[str, str]
    parent: str | None
    start: int
    run: str | None = None

    def add(self, op: Op) -> None:
        """Append a step; its file is copied first, so that a step that is there has it."""
        number = max((int(file.name.split(".")[0]) for file in self._steps()), default=0) + 1
        if op.data is not None:
            place = self.folder / f"{number:04d}"
            shutil.rmtree(place, ignore_errors=True)  # of a step that was never written
            place.mkdir(mode=0o700)
            _copy(op.data, place / op.data.name)
        _write(self.folder / f"{number:04d}.json", {"kind": op.kind, "body": dict(op.body)})

    def ops(self) -> Iterator[Op]:
        """The steps in order."""
        for step in self._steps():
            found = _read(step)
            files = sorted(step.with_suffix("").glob("*"))
            yield Op(found["kind"], found["body"], files[0] if files else None)

    def lineage(self) -> dict[str, str]:
        """All tags that the run has, or will have when it is delivered."""
        tags = dict(self.tags)
        for op in self.ops():
            tags |= op.body if op.kind == "tags" else {}
        return tags

    def files(self) -> list[str]:
        """Names of the files that its steps are about, those of half a step among them."""
        return [file.name for file in sorted(self.folder.rglob("*")) if file.is_file() and file.parent != self.folder]

    def states(self) -> list[str]:
        """Digests of the states that it would register."""
        return [op.body["state"] for op in self.ops() if op.kind == "model"]

    def drop(self, *kinds: str) -> int:
        """Take away the steps of some kinds, each before its file; how many files went."""
        before = len(self.files())
        for step in self._steps():
            if _read(step)["kind"] in kinds:
                step.unlink()
        self.tidy()
        return before - len(self.files())

    def tidy(self) -> None:
        """Take away what belongs to no step: it was being written, or being dropped."""
        steps = {step.stem for step in self._steps()}
        for place in list(self.folder.iterdir()):
            if place.is_dir() and place.name not in steps:
                shutil.rmtree(place)
            elif place.suffix == ".partial":
                place.unlink()

    def began(self, run: str) -> QueuedRun:
        """The same, with its id in MLflow written down."""
        box = QueuedRun(self.folder, self.key, self.name, self.tags, self.parent, self.start, run)
        box._keep()
        return box

    def remove(self) -> None:
        """Remove it whole: without its header it is nothing, wherever this is interrupted."""
        (self.folder / _HEADER).unlink()
        shutil.rmtree(self.folder)

    def _steps(self) -> list[Path]:
        files = [file for file in self.folder.iterdir() if _OP.fullmatch(file.name)]
        return sorted(files, key=lambda file: int(file.stem))

    def _keep(self) -> None:
        header = {name: getattr(self, name) for name in ("key", "name", "parent", "start", "run")}
        _write(self.folder / _HEADER, header | {"tags": dict(self.tags)})


@dataclass(frozen=True, slots=True)
class Queue:
    """The folder of runs that wait. For the holder of the store's lock."""

    folder: Path

    def waiting(self) -> list[QueuedRun]:
        """The runs that wait, in the order in which they began."""
        if not self.folder.is_dir():
            return []
        places = sorted(place for place in self.folder.iterdir() if _BOX.fullmatch(place.name))
        return [_box(place) for place in places if (place / _HEADER).exists()]

    def count(self) -> int:
        """How many runs wait; also while another job is at work there."""
        return len(list(self.folder.glob(f"*-{_KEY}*/{_HEADER}")))

    def begin(
        self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int, run: str | None
    ) -> QueuedRun:
        """Make room for a run, after those that wait already."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        last = max((int(box.folder.name.split("-")[0]) for box in self.waiting()), default=0)
        place = self.folder / f"{last + 1:06d}-{key}"
        place.mkdir(mode=0o700)
        box = QueuedRun(place, key, name, dict(tags), parent, start, run)
        box._keep()
        return box

    def sweep(self) -> None:
        """Remove what a job that was killed left behind: runs that were not begun or are gone, half of a step."""
        for place in list(self.folder.iterdir()) if self.folder.is_dir() else ():
            if _BOX.fullmatch(place.name) and not (place / _HEADER).exists():
                shutil.rmtree(place)
            elif place.suffix == ".partial":
                place.unlink()
        for box in self.waiting():
            box.tidy()

    def met(self, host: str) -> bool:
        """Whether a tracking server has answered before."""
        return (self.folder / _MET).exists() and host in _read(self.folder / _MET)

    def meet(self, host: str) -> None:
        """Remember that a tracking server has answered."""
        if not self.met(host):
            self.folder.mkdir(mode=0o700, exist_ok=True)
            known = _read(self.folder / _MET) if (self.folder / _MET).exists() else []
            _write(self.folder / _MET, [*known, host])


def unexpected_files(folder: Path) -> list[str]:
    """Files in an outbox that no run accounts for: nobody would deliver or purge them."""
    if not folder.is_dir():
        return []
    boxes = {box.folder: box for box in Queue(folder).waiting()}
    strange = [place.name for place in folder.iterdir() if place not in boxes and place.name != _MET]
    for place, box in boxes.items():
        steps = {step.stem for step in box._steps()}
        strange += [
            f"{place.name}/{file.name}" for file in place.iterdir() if file.name != _HEADER and file.stem not in steps
        ]
    return strange


def _box(place: Path) -> QueuedRun:
    header = _read(place / _HEADER)
    try:
        return QueuedRun(folder=place, **header)
    except TypeError as error:
        raise _broken(place / _HEADER, error) from None


def _write(path: Path, value: Any) -> None:
    write_bytes(path, json.dumps(value).encode())


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as there:
        write_file(target, lambda here: shutil.copyfileobj(there, here))


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
