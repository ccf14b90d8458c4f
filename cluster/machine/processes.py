"""Starting processes that outlive us, and stopping those and no others.

A process is known by its id together with when it started, so an id that the kernel gave to somebody else is left
alone. Everything it starts in turn carries its mark in the environment: Ray puts its workers into process groups of
their own, and a node is gone only when they are.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine.errors import ClusterError

__all__ = ["Process", "await_", "family", "kill", "start", "stop"]

_MARK = "FRMU_CLUSTER_PROCESS"


@dataclass(frozen=True, slots=True)
class Process:
    """One long-lived process of ours; `mark` is in the environment of all that it starts."""

    name: str
    pid: int
    started: int  # in clock ticks since boot
    mark: str
    log: str
    signal: int = signal.SIGTERM

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return _started(self.pid) == self.started


def start(
    name: str,
    command: list[str],
    environment: Mapping[str, str],
    log: Path,
    mark: str,
    stop_by: int = signal.SIGTERM,
    **started_as: Any,
) -> Process:
    """Start a process in a session of its own, that writes to a log of its own."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env={**environment, _MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            **started_as,
        )
    process.returncode = 0  # it is to outlive us: no warning that it still runs
    return Process(name, process.pid, _started(process.pid) or 0, mark, str(log), stop_by)


def await_(process: Process, answers: Callable[[], bool], patience: float, knob: str) -> None:
    """Wait until it answers; raise `ClusterError` with the end of its log where it ends first or takes too long."""
    until = time.monotonic() + patience
    while not answers():
        ended = not process.alive
        if ended or time.monotonic() > until:
            what = "ended" if ended else f"did not answer within {patience:g} s"
            raise ClusterError(f"{process.name} {what}; {knob}. The end of {process.log}:\n{_tail(process.log)}")
        time.sleep(0.1)


def stop(processes: Iterable[Process], patience: float = 20.0) -> list[str]:
    """End them together, each the way it wants, then all that they left; the names of those that ran."""
    running = [process for process in processes if process.alive]
    for process in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, process.signal)
    until = time.monotonic() + patience
    while any(process.alive for process in running) and time.monotonic() < until:
        time.sleep(0.05)
    for process in processes:
        kill(process)
    return [process.name for process in running]


def kill(process: Process) -> int:
    """End at once, with -9, the process and all that carry its mark; how many there were."""
    killed: set[int] = set()
    while pids := [pid for pid in family(process) if pid not in killed]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed.add(pid)
    while any(_started(pid) for pid in killed):
        time.sleep(0.02)
    return len(killed)


def family(process: Process) -> list[int]:
    """The ids of the process and of all that it started, and those started, that still run.

    They are in its session, or carry its mark, or have one of these as parent: a Ray worker that shows a title has
    written it over its environment, and one whose parent died has another parent.
    """
    wanted = f"{_MARK}={process.mark}".encode()
    parents: dict[int, int] = {}
    found = {process.pid} if process.alive else set()
    for pid, parent, session in _all():
        parents[pid] = parent
        if session == process.pid or _carries(pid, wanted):
            found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return sorted(found - {os.getpid()})


def _all() -> Iterator[tuple[int, int, int]]:
    """The id, the parent and the session of everything that runs."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and (fields := _stat(int(folder.name))) and fields[0] not in "ZX":
            yield int(folder.name), int(fields[1]), int(fields[3])


def _carries(pid: int, mark: bytes) -> bool:
    with contextlib.suppress(OSError):
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return False


def _stat(pid: int) -> list[str] | None:
    """What the kernel says of a process, from its state on; None where there is none."""
    try:
        # The name in parentheses may hold anything, so what counts begins behind the last one.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process started, in ticks since boot; None where there is none, or only what a parent has yet to read."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def _tail(log: str, lines: int = 15) -> str:
    text = Path(log).read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in text[-lines:])
