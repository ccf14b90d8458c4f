"""erase, withdraw, requests."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from frmu.cli.shell import (
    command,
    config_argument,
    count,
    json_option,
    main,
    read_config,
    say,
    show,
    table,
)  # fmt: skip


@command(main)
@config_argument
@click.option("--subject", metavar="ID", help="Everything of one person, at every client.")
@click.option(
    "--records", metavar="FILE", type=click.Path(path_type=Path), help="A text file with one record id a line."
)
@click.option("--client", metavar="ID", help="One client: all it holds, or it narrows the other kinds.")
@click.option("--between", metavar="T0 T1", nargs=2, help="A time window in UTC, T1 not in it.")
@click.option("--slice", "slice_", metavar="KEY", help="One slice, as `frmu policy show` and MLflow name it.")
@click.option(
    "--where", metavar="FILTER", help="A filter on declared columns, as in SQL: \"age > 70 and subject in ('a', 'b')\"."
)
@click.option("--reason", metavar="TEXT", default="", help="Why; sealed in the ledger, and on the receipt.")
@click.option("--requester", metavar="NAME", default="", help="Who asks; sealed in the ledger, and on the receipt.")
@click.option(
    "--due", metavar="DAYS", type=click.IntRange(0, 36500), help="Days to the deadline; default: erasure.due, 30."
)
@click.option("--partial", is_flag=True, help="Request what is well-formed in FILE, although other lines are not.")
@json_option
def erase(
    config: Path, subject: str | None, records: Path | None, client: str | None, between: tuple[str, str] | None,
    slice_: str | None, where: str | None, reason: str, requester: str, due: int | None, partial: bool, as_json: bool,
) -> None:  # fmt: skip
    """Request an erasure; the next drain honours it. May be called while a job runs."""
    from frmu import api
    from frmu.types import Selection

    loaded = read_config(config)
    kinds: dict[str, Any] = {"subject": subject, "records": records, "between": between, "slice": slice_}
    kind, value = _one_kind(kinds | {"where": where}, client)
    skipped: list[str] = []
    if kind == "records":
        value, skipped = _read_ids(value, partial)
    elif kind == "between":
        value = (_moment(value[0]), _moment(value[1]))
    selection = Selection(kind, **({"client": client} | ({kind: value} if kind != "client" else {})))
    result = api.erase(loaded, selection, reason, due, requester) | {"skipped": skipped}
    show(as_json, result, lambda r: _tell_request(r, config))


def _one_kind(kinds: dict[str, Any], client: str | None) -> tuple[Any, Any]:
    from frmu.errors import RequestError

    given = [(kind, value) for kind, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise RequestError(f"give one of --{', --'.join(kinds)}; --client narrows it")
    if not given and client is None:
        raise RequestError(f"say what to erase: --{', --'.join(kinds)} or --client")
    return given[0] if given else ("client", client)


def _tell_request(result: dict[str, Any], config: Path) -> None:
    held = f"{count(result['records'], 'record')} at {count(len(result['clients']), 'client')} now"
    if not result["searched_here"]:
        held = "no shard lies on this machine, so the drain will search"
    elif not result["records"]:
        held = "nobody holds such records now; the drain will search again and answer"
    say(f"Request {result['request']}: {held}. Due {result['due'][:10]}. `frmu drain {config}` honours it.")
    if unknown := result["not_held"]:
        more = f" and {len(unknown) - 10:,} more" if len(unknown) > 10 else ""
        say(f"nobody holds {count(len(unknown), 'of these record id')}: {', '.join(unknown[:10])}{more}")
    for line in result["skipped"]:
        say(f"left out: {line}")


def _read_ids(file: Path, partial: bool) -> tuple[tuple[str, ...], list[str]]:
    """The record ids in a file, each once, and what was wrong with other lines; all of these are named."""
    from frmu.errors import RequestError
    from frmu.services.requests import malformed

    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise RequestError(f"{file}: cannot be read: {error.strerror}") from None
    ids: dict[str, None] = {}
    wrong: dict[str, list[int]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            text = line.decode().strip()
            problem = malformed(text) if text else ""
        except UnicodeDecodeError:
            text, problem = "", "it is not UTF-8"
        if problem:
            wrong.setdefault(problem, []).append(number)
        elif text:
            ids[text] = None
    told = [f"{_lines(numbers)} cannot be a record id: {problem}" for problem, numbers in wrong.items()]
    if told and not partial:
        raise RequestError(f"{file}: {'; '.join(told)}. Nothing was requested; --partial requests the other lines")
    if not ids:
        raise RequestError(f"{file}: names no record; one id a line is expected")
    return tuple(ids), told


def _lines(numbers: Iterable[int]) -> str:
    """Line numbers, runs of them as a range."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
    return f"line{'' if shown.isdigit() else 's'} {shown}"


def _moment(text: str) -> dt.datetime:
    from frmu.errors import RequestError

    try:
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise RequestError(f'"{text}" is not a time; write 2016-10-04 or 2016-10-04T08:30') from None


@command(main)
@config_argument
@click.argument("request")
@json_option
def withdraw(config: Path, request: str, as_json: bool) -> None:
    """Take a request back that no drain has begun with."""
    from frmu import api

    result = api.withdraw(read_config(config), request)
    show(as_json, result, lambda r: say(f"Request {r['request']} is withdrawn; `frmu train` takes its records again."))


@command(main)
@config_argument
@click.option("--state", "stages", multiple=True, metavar="STAGE", help="Only these stages; may be repeated.")
@click.option("--due-within", type=int, metavar="DAYS", help="Only open requests that are due by then.")
@json_option
def requests(config: Path, stages: tuple[str, ...], due_within: int | None, as_json: bool) -> None:
    """List requests, the most urgent first."""
    from typing import get_args

    from frmu import api
    from frmu.errors import RequestError, near_miss
    from frmu.ledger.request import Stage

    known: tuple[str, ...] = get_args(Stage)
    if wrong := set(stages) - set(known):
        name = min(wrong)
        raise RequestError(f'no stage "{name}"{near_miss(name, known)} ({", ".join(known)})')
    rows = api.requests(read_config(config), stages or known, due_within)
    show(as_json, {"requests": rows}, lambda _: table(
        "Requests", ["request", "kind", "stage", "due", "days left", "requester", "reason"],
        [[r["request"], r["kind"], r["stage"], r["due"][:10], str(r["days_left"]), r["requester"], r["reason"]]
         for r in rows],
    ))  # fmt: skip
