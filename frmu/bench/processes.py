"""The cost of a command as a whole: seconds, processor seconds of all its processes, and the memory that they take."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import psutil

from frmu.errors import FrmuError

__all__ = ["Usage", "used_by"]

LOOK = 0.25  # seconds between two looks at the processes


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of a command: seconds on the clock, processor seconds, and the most memory at one time in bytes.

    Memory is the sum of proportional set sizes (PSS): a page that several processes share is counted once.
    """

    seconds: float
    cpu: float
    memory: int


def used_by(arguments: Sequence[str]) -> tuple[Usage, dict[str, Any]]:
    """Run `frmu ARGUMENTS --json` in processes of its own; what it took, and what it said.

    Raises `FrmuError` where it failed. Processor seconds of a process that ended between two looks are those of the
    look before.
    """
    began = time.perf_counter()
    command = [sys.executable, "-m", "frmu", *arguments, "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    told: list[tuple[str, str]] = []
    reader = threading.Thread(target=lambda: told.append(process.communicate()))
    reader.start()
    cpu: dict[int, float] = {}
    memory = 0
    while reader.is_alive():
        memory = max(memory, _look(process.pid, cpu))
        reader.join(LOOK)
    usage = Usage(time.perf_counter() - began, sum(cpu.values()), memory)
    output, errors = told[0]
    if process.returncode:
        raise FrmuError(f"frmu {' '.join(arguments)} ended with {process.returncode}: {errors.strip()[-500:]}")
    said: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return usage, said


def _look(pid: int, cpu: dict[int, float]) -> int:
    """Note the processor seconds of a process and all below it; the bytes that they take now."""
    memory = 0
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for one in [root, *root.children(recursive=True)]:
            with suppress(psutil.Error):
                times = one.cpu_times()
                cpu[one.pid] = times.user + times.system
                memory += one.memory_full_info().pss
    return memory
