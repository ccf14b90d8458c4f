"""The parts that commands share: the group, the options, known errors as one line and exit code 2, tables."""

from __future__ import annotations

import json as jsonlib
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from frmu import __version__
from frmu.errors import FrmuError

__all__ = [
    "address_option", "command", "config_argument", "count", "insecure_option", "json_option", "main", "read_config",
    "read_trained", "say", "show", "stop_signal", "table", "ui",
]  # fmt: skip

config_argument = click.argument("config", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
insecure_option = click.option("--insecure", is_flag=True, help="Go into a cluster that demands no token, too.")


def address_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where to run, and if a cluster that lets everybody in will do."""
    where = click.option(
        "--address",
        metavar="local|auto|ADDRESS",
        help="local: in this process, without Ray. auto, HOST:PORT or ray://HOST:PORT: a running cluster. "
        "Default: the cluster that RAY_ADDRESS names, else a private Ray on this machine.",
    )
    return where(insecure_option(function))


SECTIONS = {
    "Learn": {
        "demo": "See it all in a minute: sites, a liar, erasures, a proof.",
        "init": "Propose a config from Parquet files.",
        "train": "Import the records that remain, and train one exact round.",
        "policy": "Train the policy that says what each slice should count; show it.",
        "predict": "Predict for rows of a Parquet file.",
    },
    "Forget": {
        "erase": "Request the erasure of a person, records, a window, a client.",
        "requests": "List requests, the most urgent first.",
        "withdraw": "Take a request back that no drain has begun with.",
        "drain": "Honour what is pending in one batch, and prove it.",
    },
    "Prove": {
        "verify": "Prove the state again, or one receipt, at a level.",
        "receipt": "Show a receipt as JSON or a page; check one without the federation.",
        "ledger": "Show and check the system of record; destroy keys.",
    },
    "Look": {
        "status": "Say where an experiment stands, and what is pending by when.",
        "explain": "Say why each slice counts as it does, and which inputs matter.",
        "bench": "Make the tables of the benchmarks.",
    },
    "Run on a cluster": {
        "plan": "Say which hosts a training would start, and the memory it takes.",
        "submit": "Run a command as a job on a cluster.",
        "client": "List who takes part; let clients join and leave.",
        "deliver": "Deliver to MLflow what was kept while it was away.",
    },
}


class _Group(click.Group):
    """A group that tells what click itself refuses as everything else is told: in one line, and as JSON if asked.

    Its help says of each command what it does, whole; those of the top stand by what they are for.
    """

    group_class = type  # groups in it are of this class, too

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, under headings at the top."""
        if ctx.parent is not None:
            with formatter.section("Commands"):
                formatter.write_dl([(name, _first_sentence(self.commands[name])) for name in self.list_commands(ctx)])
            return
        for section, commands in SECTIONS.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))

    def main(self, *arguments: Any, **options: Any) -> Any:
        given = options.get("args") or (arguments[0] if arguments else None) or sys.argv[1:]
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}) or 0)
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            where = f" (`{context.command_path} --help` lists what there is)" if context is not None else ""
            _fail(f"{error.format_message()}{where}", "UsageError", "--json" in given)
        except click.Abort:
            _interrupted("--json" in given)


def _first_sentence(command: click.Command) -> str:
    """Return what a command does, as the first sentence of its help has it."""
    text = " ".join((command.help or "").split("\n\n")[0].split())
    return f"{text.split('. ')[0].removesuffix('.')}."


def _fail(message: str, kind: str, as_json: bool, code: int = 2) -> NoReturn:
    if as_json:
        print(jsonlib.dumps({"error": message, "kind": kind}))
    click.echo(f"frmu: {message}", err=True)
    sys.exit(code)


def _interrupted(as_json: bool, code: int = 130) -> NoReturn:
    _fail("interrupted; the same command again goes on from here", "Interrupted", as_json, code)


@contextmanager
def _terminable() -> Iterator[Callable[[], int]]:
    """SIGTERM, as `ray job stop` and Kubernetes send it, ends a command as Ctrl-C does; gives the exit code for it.

    What is open is closed on the way out: runs end in MLflow, the lock is let go. Some senders, `timeout` among them,
    repeat themselves at once, which must not break that off.
    """
    came: list[float] = []

    def end(number: int, frame: Any) -> None:
        if not came or time.monotonic() > came[-1] + 1.0:
            came.append(time.monotonic())
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield lambda: 130
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield lambda: 143 if came else 130
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log decisions as they are made.")
def main(verbose: bool) -> None:
    """Federated learning that can forget, and proves it."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


def command(
    group: click.Group, name: str | None = None, **settings: Any
) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command whose known errors become one clear line and exit code 2."""

    def register(function: Callable[..., int | None]) -> click.Command:
        @wraps(function)
        def guarded(**options: Any) -> None:
            as_json = bool(options.get("as_json"))
            with _terminable() as exit_code:
                try:
                    code = function(**options)
                except FrmuError as error:
                    _fail(str(error), type(error).__name__, as_json)
                except OSError as error:  # a disk that is full, a folder that is read-only
                    where = f"{error.filename}: " if error.filename else ""
                    _fail(f"{where}{error.strerror or error}", type(error).__name__, as_json)
                except KeyboardInterrupt:
                    _interrupted(as_json, exit_code())
            sys.exit(code or 0)

        return group.command(name, **settings)(guarded)

    return register


@contextmanager
def stop_signal() -> Iterator[Callable[[], bool]]:
    """Yield a test for Ctrl-C or SIGTERM having come; a second one does what it always does."""
    came: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def first(number: int, frame: Any) -> None:
        came.append(number)
        for each, handler in before.items():
            signal.signal(each, handler)

    for number in before:
        signal.signal(number, first)
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(as_json: bool, result: Any, tell: Callable[[Any], None]) -> None:
    """A result as one JSON line, or told to people."""
    if as_json:
        print(jsonlib.dumps(result), flush=True)
    else:
        tell(result)


def say(*lines: str) -> None:
    """Print lines as they are."""
    from rich.console import Console

    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def count(number: int, noun: str) -> str:
    """A number and its noun.

    >>> count(1, "client"), count(2000, "record")
    ('1 client', '2,000 records')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def read_config(config: Path) -> Any:
    """The config in a file."""
    from frmu.config import load

    return load(config)


def read_trained(config: Path) -> Any:
    """The config of an experiment that was trained before; what was not is told, and no folder is made for it."""
    from frmu.storage.workspace import Workspace

    loaded = read_config(config)
    Workspace.existing(loaded)
    return loaded


def ui(tracking: str) -> str:
    """Print the command that shows the runs."""
    if tracking.startswith("sqlite:"):
        return f"MLflow: mlflow ui --backend-store-uri {tracking}"
    return f"MLflow: {tracking}"
