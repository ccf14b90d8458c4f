"""Progress of long work, on standard error: a line that moves in a terminal, lines now and then in a log."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

__all__ = ["steps", "working"]

PATIENCE = 10.0  # seconds after which a log is told what is still being done


@contextmanager
def working() -> Iterator[None]:
    """Show what is being done on standard error: in a terminal at once, in a log what takes longer than ten seconds."""
    from rich.console import Console

    from frmu.federation import PROGRESS

    console, logger = Console(stderr=True), logging.getLogger(PROGRESS)
    began = time.monotonic()
    timers: list[threading.Timer] = []

    def late(line: str) -> None:
        click.echo(f"{time.monotonic() - began:4.0f} s  still {line}", err=True)

    class Told(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            stop()
            if spinner is not None:
                spinner.update(record.getMessage())
                return
            timers.append(threading.Timer(PATIENCE, late, [record.getMessage()]))
            timers[-1].daemon = True
            timers[-1].start()

    def stop() -> None:
        while timers:
            timers.pop().cancel()

    handler, spinner = Told(), None
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        if console.is_terminal:
            with console.status("starting") as spinner:
                yield
        else:
            yield
    finally:
        stop()
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


@contextmanager
def steps(total: int) -> Iterator[Callable[[str], None]]:
    """Show the progress of long work on standard error: a bar in a terminal, else a line a step.

    Gives what is told of each step; a line that is indented belongs to the step before.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: click.echo(line, err=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=total)

        def tell(line: str) -> None:
            bar.console.print(line, highlight=False)
            if not line.startswith(" "):
                bar.update(task, description=line, advance=1)

        yield tell
