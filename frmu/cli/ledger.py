"""receipt, ledger."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path

import click

from frmu.cli.shell import (
    command,
    config_argument,
    json_option,
    main,
    read_config,
    say,
    show,
    table,
)  # fmt: skip


@main.group()
def receipt() -> None:
    """Show what became of a request, signed."""


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
