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
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

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
        """Return whether this very process still runs."""
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
    killed: set[psutil.Process] = set()
    while found := [one for one in _family(process) if one not in killed]:
        for one in found:
            with contextlib.suppress(psutil.Error):
                one.kill()
            killed.add(one)
    while any(_started(one.pid) for one in killed if one.is_running()):
        time.sleep(0.02)
    return len(killed)


def family(process: Process) -> list[int]:
    """The ids of the process and of all that it started, and those started, that still run."""
    return sorted(one.pid for one in _family(process))


def _family(process: Process) -> set[psutil.Process]:
    """Find those that are in its session, or carry its mark, or have one of these as parent.

    A Ray worker that shows a title has written it over its environment, and one whose parent died has another parent.
    """
    running = {one.pid: one for one in psutil.process_iter() if one.pid != os.getpid()}
    parents = {pid: _parent(one) for pid, one in running.items()}
    found = {pid for pid, one in running.items() if _is_ours(one, process)}
    if process.alive:
        found.add(process.pid)
    while more := {pid for pid in running if parents.get(pid) in found and pid not in found}:
        found |= more
    return {running[pid] for pid in found if pid in running and _started(pid) is not None}


def _parent(one: psutil.Process) -> int:
    try:
        return one.ppid()
    except psutil.Error:
        return 0


def _is_ours(one: psutil.Process, process: Process) -> bool:
    """Return whether a process is in the session of ours, or carries its mark."""
    with contextlib.suppress(OSError):
        if os.getsid(one.pid) == process.pid:
            return True
    # Not `environ()`, which ends at the first empty entry: a worker that shows a title may leave one before the mark.
    with contextlib.suppress(OSError):
        mark = f"{_MARK}={process.mark}".encode()
        return mark in Path(f"/proc/{one.pid}/environ").read_bytes().split(b"\0")
    return False


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None where there is none, or only what a parent must read.

    Since boot, not since 1970: a clock that is set meanwhile moves the one and not the other.
    """
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    try:
        one = psutil.Process(pid)
        if one.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD):
            return None
        return round((one.create_time() - psutil.boot_time()) * os.sysconf("SC_CLK_TCK"))
    except psutil.Error:
        return None


def _tail(log: str, lines: int = 15) -> str:
    text = Path(log).read_text(errors="replace").splitlines()
    return "\n".join(f"  {line}" for line in text[-lines:])
