"""The queue of what MLflow could not take: runs that wait on disk, in order, until it can.

<folder>/queue.db     the runs: name, tags, parent and start, and the MLflow id once there is one;
                      their steps: parameters, metrics, tags, a state, an end, a file with its bytes;
                      the tracking servers that have answered before

Each change is one transaction, so a job that is killed leaves what it had done. `frmu.tracking.database` is the file.

What lies here was learned from records like all that is in MLflow: it is purged by the same lineage tags, and nothing
of it is left in the file once that was scrubbed.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from frmu.tracking import database

__all__ = ["Op", "Queue", "QueuedRun", "is_key", "key", "unexpected_files"]

_FILE = "queue.db"
_KEY = "outbox-"  # no MLflow id begins like this


def key() -> str:
    """A name for a run that MLflow has given none yet."""
    return f"{_KEY}{secrets.token_hex(8)}"


def is_key(name: str) -> bool:
    """Return whether a run is called by such a name.

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

    queue: Queue
    key: str
    name: str
    tags: Mapping[str, str]
    parent: str | None
    start: int
    run: str | None = None

    def add(self, op: Op) -> None:
        """Append a step, with a copy of its file."""
        with database.changing(self.queue.file) as change:
            database.insert_step(change, self.key, op.kind, op.body, op.data)

    def ops(self) -> Generator[Op, None, None]:
        """Yield the steps in order; the file of one is there, under its own name, until the next is asked for.

        Close what is not gone through to its end.
        """
        for (number,) in self._rows("SELECT number FROM steps WHERE key = ? ORDER BY number"):
            found = self._rows("SELECT kind, body, file, content FROM steps WHERE key = ? AND number = ?", number)
            for kind, body, name, content in found:
                with self.queue.laid_out(name, content) as data:
                    yield Op(kind, self._parsed(body), data)

    def lineage(self) -> dict[str, str]:
        """All tags that the run has, or will have when it is delivered."""
        tags = dict(self.tags)
        for body in self._bodies("tags"):
            tags |= body
        return tags

    def files(self) -> list[str]:
        """Names of the files that its steps are about."""
        found = self._rows("SELECT file FROM steps WHERE key = ? AND file IS NOT NULL ORDER BY number")
        return [name for (name,) in found]

    def states(self) -> list[str]:
        """Digests of the states that it would register."""
        return [body["state"] for body in self._bodies("model")]

    def drop(self, *kinds: str) -> int:
        """Take away the steps of some kinds; how many files went."""
        before = len(self.files())
        with database.changing(self.queue.file) as change:
            change.executemany("DELETE FROM steps WHERE key = ? AND kind = ?", [(self.key, kind) for kind in kinds])
        return before - len(self.files())

    def began(self, run: str) -> QueuedRun:
        """Write down its id in MLflow; returns the run with it."""
        with database.changing(self.queue.file) as change:
            change.execute("UPDATE runs SET run = ? WHERE key = ?", (run, self.key))
        return replace(self, run=run)

    def remove(self) -> None:
        """Remove it whole, its steps with it."""
        with database.changing(self.queue.file) as change:
            change.execute("DELETE FROM runs WHERE key = ?", (self.key,))

    def __str__(self) -> str:
        return f'run "{self.name}" ({self.key}) in {self.queue.file}'

    def _rows(self, query: str, *more: Any) -> list[Any]:
        return database.rows(self.queue.file, query, self.key, *more)

    def _bodies(self, kind: str) -> list[dict[str, Any]]:
        found = self._rows("SELECT body FROM steps WHERE key = ? AND kind = ? ORDER BY number", kind)
        return [self._parsed(body) for (body,) in found]

    def _parsed(self, text: Any) -> dict[str, Any]:
        return database.parsed(self.queue.file, text)


@dataclass(frozen=True, slots=True)
class Queue:
    """The runs that wait, in a folder of their own. For the holder of the store's lock.

    `scratch` is where the files of steps lie while they are delivered: a folder that the next job empties, where this
    one is killed. By default the system's.
    """

    folder: Path
    scratch: Path | None = None

    @property
    def file(self) -> Path:
        """The database."""
        return self.folder / _FILE

    def waiting(self) -> list[QueuedRun]:
        """The runs that wait, in the order in which they began."""
        found = database.rows(self.file, "SELECT key, name, tags, parent, start, run FROM runs ORDER BY number")
        return [QueuedRun(self, key, name, database.parsed(self.file, tags), *more) for key, name, tags, *more in found]

    def count(self) -> int:
        """Count the runs that wait; also while another job is at work there."""
        return len(database.rows(self.file, "SELECT number FROM runs"))

    def begin(
        self, key: str, name: str, tags: Mapping[str, str], parent: str | None, start: int, run: str | None
    ) -> QueuedRun:
        """Make room for a run, after those that wait already."""
        with database.changing(self.file) as change:
            database.insert_run(change, key, name, tags, parent, start, run)
        return QueuedRun(self, key, name, dict(tags), parent, start, run)

    def scrub(self) -> None:
        """Leave nothing in the file of what was removed from it."""
        database.scrub(self.file)

    def met(self, host: str) -> bool:
        """Return whether a tracking server has answered before."""
        return bool(database.rows(self.file, "SELECT host FROM hosts WHERE host = ?", host))

    def meet(self, host: str) -> None:
        """Remember that a tracking server has answered."""
        if not self.met(host):
            with database.changing(self.file) as change:
                database.insert_host(change, host)

    @contextmanager
    def laid_out(self, name: str | None, content: bytes | None) -> Iterator[Path | None]:
        """Lay a step's file out under its name, for as long as the step is applied; None where it has none."""
        if name is None or content is None:
            yield None
            return
        with tempfile.TemporaryDirectory(prefix="frmu-", dir=self.scratch) as folder:
            path = Path(folder) / Path(name).name
            path.write_bytes(content)
            yield path


def unexpected_files(folder: Path) -> list[str]:
    """Files in an outbox that frmu did not put there: nobody would deliver or purge them."""
    if not folder.is_dir():
        return []
    return [place.name for place in folder.iterdir() if place.name not in (_FILE, f"{_FILE}-journal")]
