"""From the outbox to MLflow, and out of it when it is purged.

A run is delivered step by step and leaves the outbox when all of it is there. Every step done twice is done once - a
run that was made is found again by the name it had before, MLflow knows a number that it has, a file replaces itself,
a state has one version a run - so a delivery that was killed is gone on with from its first step.

A state is registered only if no erasure has overtaken it since, and becomes the champion only if none that was made
later is: what waited long does not come before what did not wait. A purge treats runs that wait as it treats those in
MLflow: they lose what a state could be read from, and are removed whole where those would be deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass

from frmu.errors import RequestError, TrackingError, TrackingUnavailableError, near_miss
from frmu.tracking.backend import ModelRegistry
from frmu.tracking.lineage import DETAIL, held
from frmu.tracking.queue import Op, Queue, QueuedRun, is_key
from frmu.tracking.tracker import Tracker

__all__ = ["Delivered", "Emptied", "Taint", "deliver", "empty", "give_up", "left_in"]


@dataclass(frozen=True, slots=True)
class Delivered:
    """The number of runs that were delivered, and why others were not, as sentences."""

    runs: int = 0
    refused: tuple[str, ...] = ()


def deliver(
    tracker: Tracker,
    registry: ModelRegistry,
    outbox: Queue,
    made: Mapping[str, int],
    note: Callable[[QueuedRun, str], None],
) -> Delivered:
    """Deliver the runs that wait, in order; `TrackingUnavailableError` where MLflow is away again.

    `made` are the states that no erasure has overtaken, with numbers that grow in the order in which they were made.
    `note` is told what a run that began in the outbox is called in MLflow, before anything but its tags is there.
    """
    done, refused = 0, []
    for box in outbox.waiting():
        try:
            run = _run(tracker, box, note)
            if run:
                _send(tracker, registry, box, run, made)
        except TrackingUnavailableError:
            raise
        except TrackingError as error:
            refused.append(f"{box} is refused: {error}; to give it up: `frmu deliver CONFIG --give-up {box.key}`")
            continue
        box.remove()
        done += 1
    return Delivered(done, tuple(refused))


def _run(tracker: Tracker, box: QueuedRun, note: Callable[[QueuedRun, str], None]) -> str | None:
    """The run in MLflow that a box is for, made where there is none yet; None where somebody deleted it."""
    run = box.run or tracker.backend.find(box.key)
    if run is None:
        parent = tracker.backend.find(box.parent) if box.parent and is_key(box.parent) else box.parent
        run = tracker.create(box.key, box.name, box.tags, parent, box.start)
        tracker.need()
    if run and box.run is None:
        note(box, run)
        box.began(run)
    return run if run and tracker.backend.alive(run) else None


def _send(tracker: Tracker, registry: ModelRegistry, box: QueuedRun, run: str, made: Mapping[str, int]) -> None:
    with closing(box.ops()) as ops:
        for op in ops:
            if op.kind == "model":
                _offer(registry, run, op, made)
            else:
                tracker.backend.apply(run, op)


def _offer(registry: ModelRegistry, run: str, op: Op, made: Mapping[str, int]) -> None:
    """Register a state, once, and promote it, unless a later one is the champion."""
    state, champion = op.body["state"], registry.champion()
    if op.data is None or state not in made or (champion is not None and champion.digest == state):
        return
    there = [version.number for version in registry.versions() if (version.run_id, version.digest) == (run, state)]
    number = there[-1] if there else registry.register(run, op.data, op.body["tags"])
    if champion is None or made.get(champion.digest, 0) <= made[state]:
        registry.promote(number)


def give_up(outbox: Queue, key: str) -> QueuedRun:
    """Remove a run that waits, delivered in part or not; raises `RequestError` where none is called so."""
    boxes = {box.key: box for box in outbox.waiting()}
    if key not in boxes:
        raise RequestError(f'no run "{key}" waits in {outbox.file}{near_miss(key, boxes)}')
    boxes[key].remove()
    return boxes[key]


# -- purged ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Emptied:
    """Runs in the outbox that lost their files, or went whole; and how many files."""

    runs: tuple[str, ...] = ()
    files: int = 0


@dataclass(frozen=True, slots=True)
class Taint:
    """The taint that must not wait: runs with these owners or names but for some, and states no longer clean."""

    owners: Collection[str] = ()
    known: Collection[str] = ()
    keep: Collection[str] = ()
    clean: Collection[str] = ()

    def has(self, box: QueuedRun) -> bool:
        """Return whether a run carries something learned from the owners."""
        names = {box.key, box.run}
        return not names & set(self.keep) and bool(held(box.lineage()) & set(self.owners) or names & set(self.known))

    def overtaken(self, box: QueuedRun) -> bool:
        """Return whether a run carries a state that an erasure has overtaken."""
        return not {box.key, box.run} & set(self.keep) and bool(set(box.states()) - set(self.clean))


def empty(outbox: Queue, taint: Taint, delete_runs: bool) -> Emptied:
    """Purge the outbox as `Registry.purge` purges MLflow, and leave no copy in its file.

    That is scrubbed even where nothing is found: a purge may have been killed before it did, and a run that was
    delivered leaves copies as well.
    """
    runs, files = [], 0
    for box in outbox.waiting():
        if taint.has(box):
            runs.append(box.run or box.key)
            files += len(box.files())
            if delete_runs or DETAIL in box.lineage():
                box.remove()
            else:
                box.drop("file", "model")
        elif taint.overtaken(box):
            files += box.drop("model")
    outbox.scrub()
    return Emptied(tuple(runs), files)


def left_in(outbox: Queue, taint: Taint) -> list[str]:
    """Return what waits although it must not, as sentences."""
    said = []
    for box in outbox.waiting():
        if taint.has(box) and (files := box.files()):
            said.append(f"{', '.join(files)} of {box}, which waits")
        elif taint.overtaken(box):
            said.append(f"a state that an erasure has overtaken, of {box}, which waits")
    return said
