"""erase, withdraw, requests, drain, verify, receipt, ledger."""

from __future__ import annotations

import datetime as dt
import json as jsonlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from frmu.cli.outbox import waiting as unsent
from frmu.cli.shell import (
    address_option,
    command,
    config_argument,
    count,
    json_option,
    main,
    read_config,
    read_trained,
    say,
    show,
    table,
)  # fmt: skip

# -- requests -------------------------------------------------------------------------------------------------


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


# -- drain, verify --------------------------------------------------------------------------------------------


@command(main)
@config_argument
@click.option("--now", is_flag=True, help="Do not wait for erasure.min_batch requests.")
@click.option("--replay", is_flag=True, help="Remove again what came back with a backup that was restored.")
@address_option
@json_option
def drain(config: Path, now: bool, replay: bool, address: str | None, insecure: bool, as_json: bool) -> int:
    """Honour what is pending, in one batch, and print receipts."""
    from frmu.api import Experiment

    with Experiment(read_trained(config), address, insecure) as experiment:
        result = experiment.replay() if replay else experiment.drain(now)
    show(as_json, result, _tell_replay if replay else _tell_drain)
    return 1 if result["verified"] is False else 0


def _tell_replay(result: dict[str, Any]) -> None:
    back = sum(result["came_back"].values())
    say(
        f"{count(back, 'erased record')} had come back and {'is' if back == 1 else 'are'} gone again",
        f"state {result['state_digest']}",
        f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}",
    )


def _tell_drain(result: dict[str, Any]) -> None:
    waiting = f"{count(result['waiting'], 'request')} waiting for erasure.min_batch to be reached; --now overrules it"
    if not result["receipts"]:
        say(waiting if result["waiting"] else "Nothing is pending.")
        return
    rows = [
        [
            r["request"],
            f"{sum(r['removed'].values()):,}" if r["removed"] else "nothing held",
            str(len(r["removed"])),
            f"{sum(r['searched'].values()):,}",
            r["level"],
            "yes" if r["verified"] else "NO",
            r["due"][:10],
        ]
        for r in result["receipts"]
    ]
    table("Receipts", ["request", "records", "clients", "searched", "level", "verified", "due"], rows)
    first = result["receipts"][0]
    survivors = first["purge"]["mlflow"]["survivors"]
    say(
        f"state           {first['state_digest']}",
        f"never had them  {first['evidence']['digest_never_had']}",
        *(f"not covered: {line}" for line in first["not_covered"]),
        *(f"left in MLflow: {line}" for line in survivors[:5]),
        *([f"left in MLflow: {len(survivors) - 5} more; the receipt lists all"] if len(survivors) > 5 else []),
        f"{count(len(result['receipts']), 'request')} in one batch: {result['seconds']:.2f} s to the new state, "
        f"{result['verify_seconds']:.2f} s to prove it, {result['bytes']:,} bytes moved",
        *([waiting] if result["waiting"] else []),
        *unsent(result["outbox"]),
    )
    if not result["verified"]:
        again = "the requests stay open. Run `frmu train` and `frmu drain` again, and `frmu verify`."
        say(f"NOT VERIFIED: {result.get('why_open') or again}")


@command(main)
@config_argument
@click.argument("receipt", required=False)
@click.option(
    "--level",
    default="L5",
    show_default=True,
    metavar="L1|L2|L3|L4|L5",
    help="L1 purge, L2 gap to retraining, L3 attacks, L4 relearn time, L5 bit-identical to never had.",
)
@click.option(
    "--forget",
    metavar="PARQUET",
    type=click.Path(path_type=Path),
    help="The erased records, for L2 to L4, where data.path holds them no more.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of shadow models and rehearsals.")
@address_option
@json_option
def verify(
    config: Path, receipt: str | None, level: str, forget: Path | None, seed: int, address: str | None, insecure: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Prove the state again, or one receipt: what is found is added to the receipt."""
    from frmu.api import Experiment

    with Experiment(read_trained(config), address, insecure) as experiment:
        result = experiment.verify(receipt, level, forget, seed)
    show(as_json, result, _tell_attacks if "proofs" in result else _tell_exact)
    return 0 if result["verified"] else 1


def _tell_exact(result: dict[str, Any]) -> None:
    strange = "no line of the ledger says that this state was made and proven: run `frmu train`, or finish the drain"
    say(
        f"state                     {result['state_digest']}",
        f"rebuilt from what remains {result['digest_never_had']}",
        f"erased records found: {result['tombstoned_records_left']} in {result['records_scanned']:,} scanned; "
        f"ledger: {result['ledger_lines']} lines, chain whole",
        *(f"left in the folder: {name}" for name in result["files_that_are_no_shards"]),
        *(f"left in MLflow: {line}" for line in result["left_in_mlflow"]),
        *([] if result["state_in_ledger"] else [strange]),
        f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}",
    )


def _tell_attacks(result: dict[str, Any]) -> None:
    for proof in result["proofs"]:
        models = ["original", "fine-tuned", "this state", "retrained"]
        measures = list(dict.fromkeys(name.split(": ")[0] for name in proof["numbers"]))
        spread = "spread of retraining"
        if any(name.endswith(spread) for name in proof["numbers"]):
            models.append(spread)
        rows = [
            [measure, *(_number(proof["numbers"].get(f"{measure}: {model}")) for model in models)]
            for measure in measures
        ]
        outcome = "passed" if proof["passed"] else "FAILED"
        telling = "" if proof["telling"] else "; it says nothing here: the original passes as well"
        table(f"{proof['level']} {proof['check']}: {outcome}{telling}", ["", *models], rows)
        say(f"the bar: {proof['bar']}", "")
    by = [proof["check"] for proof in result["proofs"] if proof["telling"]]
    why = f", by {', '.join(by)}" if by else ": nothing here tells the original from a retrained model"
    say(f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}{why}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.4g}"


# -- receipt --------------------------------------------------------------------------------------------------


@main.group()
def receipt() -> None:
    """What became of a request, signed."""


@command(receipt, "show")
@config_argument
@click.argument("request")
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="Write it: .json is the signed receipt, .html a page to print and file.",
)  # fmt: skip
@json_option
def receipt_show(config: Path, request: str, out: Path | None, as_json: bool) -> None:
    """Show a receipt, or write it to a file."""
    from frmu import api
    from frmu.report.receipt_html import write_receipt

    found = api.receipt_of(read_config(config), request)
    if out is not None:
        write_receipt(found, out)
    text = jsonlib.dumps(found, indent=2, ensure_ascii=False)
    show(as_json, found, lambda _: say(f"Wrote {out}" if out is not None else text))


@command(receipt, "check")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--public-key", metavar="HEX", help="The key that the federation is known by; `frmu status` names it.")
@json_option
def receipt_check(file: Path, public_key: str | None, as_json: bool) -> None:
    """Check a receipt's signature; needs the JSON file alone."""
    from frmu.errors import LedgerError
    from frmu.ledger.receipt import check_receipt, read_receipt

    try:
        read = read_receipt(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LedgerError(f"{file}: cannot be read as a receipt: {error}") from None
    check_receipt(read, public_key)
    who = "by this key" if public_key else f"by the key {read['public_key']}; compare it with the one they publish"
    result = {name: read[name] for name in ("request", "outcome", "level", "verified", "closed", "public_key")}
    show(as_json, result | {"whole": True}, lambda r: say(
        f"The receipt of {r['request']} is whole and was signed {who}",
        f"{r['outcome']}, {'verified' if r['verified'] else 'NOT VERIFIED'} at {r['level']}, closed {r['closed']}",
    ))  # fmt: skip


# -- ledger ---------------------------------------------------------------------------------------------------


@main.group()
def ledger() -> None:
    """The system of record."""


@command(ledger, "show")
@config_argument
@json_option
def ledger_show(config: Path, as_json: bool) -> None:
    """Print every line of the ledger."""
    from frmu import api

    with api.ledger_of(read_config(config)) as book:
        lines = [
            {"number": x.number, "time": x.time, "kind": x.kind, "request": x.request}
            | {"body": dict(x.body), "digest": x.digest}
            for x in book.lines()
        ]
    show(as_json, {"lines": lines}, lambda r: table(
        "Ledger", ["line", "time", "kind", "request", "digest"],
        [[str(x["number"]), x["time"][:19], x["kind"], x["request"], x["digest"][:16]] for x in r["lines"]],
    ))  # fmt: skip


@command(ledger, "check")
@config_argument
@json_option
def ledger_check(config: Path, as_json: bool) -> None:
    """Check the chain: no line changed, missing or moved."""
    from frmu import api

    with api.ledger_of(read_config(config)) as book:
        lines = book.check()
    show(as_json, {"lines": lines, "whole": True}, lambda r: say(f"{r['lines']} lines, chain whole"))


@command(ledger, "shred")
@config_argument
@click.option("--subject", metavar="ID", help="Every closed request of one person.")
@click.option("--request", metavar="ID", help="One closed request.")
@json_option
def ledger_shred(config: Path, subject: str | None, request: str | None, as_json: bool) -> None:
    """Destroy the keys of closed requests: who asked, why, and the receipt cannot be read again."""
    from frmu import api
    from frmu.errors import RequestError

    if (subject is None) == (request is None):
        raise RequestError("say whose keys to destroy: --subject or --request")
    with api.ledger_of(read_config(config)) as book:
        gone = book.shred(request, subject)
    show(as_json, {"shredded": gone}, lambda _: say(
        f"The keys of {', '.join(gone)} are destroyed; the chain still checks, and the records stay refused."
    ))  # fmt: skip
