"""The command line: thin over `frmu.api`. Every command takes --json; bad input exits with code 2."""

from __future__ import annotations

import datetime as dt
import json as jsonlib
import logging
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from frmu import __version__
from frmu.errors import FrmuError

__all__ = ["main"]

_config = click.argument("config", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line.")
_address = click.option(
    "--address",
    metavar="local|auto|ADDRESS",
    help="local: in this process, without Ray. auto, HOST:PORT or ray://HOST:PORT: a running cluster. "
    "Default: the cluster that RAY_ADDRESS names, else a private Ray on this machine.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log decisions as they are made.")
def main(verbose: bool) -> None:
    """Federated learning that can forget, and proves it."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")


def _command(group: click.Group, name: str | None = None) -> Callable[[Callable[..., int | None]], click.Command]:
    """A command whose known errors become one clear line and exit code 2."""

    def register(function: Callable[..., int | None]) -> click.Command:
        @wraps(function)
        def guarded(**options: Any) -> None:
            try:
                code = function(**options)
            except (FrmuError, OSError) as error:  # of OSError: a disk that is full, a folder that is read-only
                if options.get("as_json"):
                    print(jsonlib.dumps({"error": str(error), "kind": type(error).__name__}))
                click.echo(f"frmu: {error}", err=True)
                sys.exit(2)
            sys.exit(code or 0)

        return group.command(name)(guarded)

    return register


def _show(as_json: bool, result: Any, tell: Callable[[Any], None]) -> None:
    if as_json:
        print(jsonlib.dumps(result))
    else:
        tell(result)


def _print(*lines: str) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table)


def _load(config: Path) -> Any:
    from frmu.config import load

    return load(config)


def _trained(config: Path) -> Any:
    """The config of an experiment that was trained before; what was not is told, and no folder is made for it."""
    from frmu.store import Store

    loaded = _load(config)
    Store.existing(loaded)
    return loaded


# -- demo, init, train ----------------------------------------------------------------------------------------


@_command(main)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("frmu-demo"),
    show_default=True,
)
@click.option("--sites", type=click.IntRange(8, 29), default=10, show_default=True, help="Car parks, each a Ray actor.")
@_json
def demo(folder: Path, sites: int, as_json: bool) -> int:
    """Car parks train, a policy finds the sensor that lied, three requests are honoured and proven."""
    from frmu.demo import run_demo

    result = run_demo(folder, sites, lambda line: _print(line))
    if as_json:
        print(jsonlib.dumps(result))
    return 0 if result["proven"] else 1


@_command(main)
@click.argument("parquet", nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The config to write."
)
@click.option("--client", help="The column that names the client.")
@click.option("--record", help="The column that names the record.")
@click.option("--target", help="The column to predict.")
@click.option("--subject", help="The column that names the person.")
@click.option("--time", help="The column of times.")
@click.option("--force", is_flag=True, help="Overwrite a config that is there.")
@_json
def init(parquet: tuple[str, ...], out: Path, force: bool, as_json: bool, **named: str | None) -> None:
    """Propose a config from Parquet files: columns, ranges, dates of the split, slice rule."""
    from frmu.data.propose import propose

    result = propose(parquet, out, {key: value for key, value in named.items() if value is not None}, force)
    _show(as_json, result, lambda r: _print(f"Wrote {r['config']}:", "", r["text"], *r["notes"]))


@_command(main)
@_config
@_address
@_json
def train(config: Path, address: str | None, as_json: bool) -> None:
    """Import the records that remain and train: one exact round."""
    from frmu.api import Experiment

    with Experiment(_load(config), address) as experiment:
        result = experiment.train()
    _show(as_json, result, _tell_train)


def _tell_train(result: dict[str, Any]) -> None:
    _print(
        f"{_count(result['clients'], 'client')}, {_count(result['records'], 'record')}, "
        f"{_count(result['rounds'], 'round')} in {result['seconds']:.2f} s",
        f"state {result['state_digest'][:16]}",
    )
    if result["refused"]:
        _print(f"{result['refused']} records were refused: they have been erased before")
    metrics = result["metrics"]
    rows = [
        [name, f"{metrics[f'keep_{name}']:.4f}", f"{value:.4f}"]
        for name, value in metrics.items()
        if f"keep_{name}" in metrics
    ]
    _table("Errors on records that were not fitted", ["", "nothing forgotten", "as learned"], rows)
    below = sum(len(slices) for slices in result["forgotten"].values())
    _print(
        f"forgotten or attenuated: {_count(below, 'slice')} at {_count(len(result['forgotten']), 'client')}",
        _ui(result["tracking"]),
    )


def _ui(tracking: str) -> str:
    if tracking.startswith("sqlite:"):
        return f"MLflow: mlflow ui --backend-store-uri {tracking}"
    return f"MLflow: {tracking}"


# -- erase, drain, verify -------------------------------------------------------------------------------------


@_command(main)
@_config
@click.option("--subject", metavar="ID", help="Everything of one person, at every client.")
@click.option(
    "--records",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="A text file with one record id a line.",
)
@click.option("--client", metavar="ID", help="One client: all it holds, or it narrows the other kinds.")
@click.option("--between", metavar="T0 T1", nargs=2, help="A time window, T1 not in it.")
@click.option("--reason", metavar="TEXT", default="", help="Why; it stays in the ledger, so name nobody.")
@click.option(
    "--due",
    metavar="DAYS",
    type=click.IntRange(0, 3650),
    default=30,
    show_default=True,
    help="Days to the deadline.",
)
@_json
def erase(
    config: Path, subject: str | None, records: Path | None, client: str | None, between: tuple[str, str] | None,
    reason: str, due: int, as_json: bool,
) -> None:  # fmt: skip
    """Request an erasure; the next drain honours it. May be called while a job runs."""
    from frmu import api

    result = api.erase(_load(config), _selection(subject, records, client, between), reason, due)
    _show(as_json, result, lambda r: _print(
        f"Request {r['request']}: {_count(r['records'], 'record')} at {_count(len(r['clients']), 'client')}, "
        f"due {r['due'][:10]}. "
        f"`frmu drain {config}` honours it."
    ))  # fmt: skip


def _selection(subject: str | None, records: Path | None, client: str | None, between: tuple[str, str] | None) -> Any:
    from frmu.errors import RequestError
    from frmu.types import Selection

    if sum(option is not None for option in (subject, records, between)) > 1:
        raise RequestError("give one of --subject, --records and --between; --client narrows it")
    if subject is not None:
        return Selection("subject", client=client, subject=subject)
    if records is not None:
        return Selection("records", client=client, records=_read_ids(records))
    if between is not None:
        return Selection("between", client=client, between=(_moment(between[0]), _moment(between[1])))
    if client is None:
        raise RequestError("say what to erase: --subject, --records, --between or --client")
    return Selection("client", client=client)


def _read_ids(file: Path) -> tuple[str, ...]:
    from frmu.errors import RequestError

    try:
        ids = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{file}: cannot be read as text: {error}") from None
    if not ids:
        raise RequestError(f"{file}: names no record; one id a line is expected")
    return tuple(dict.fromkeys(ids))


def _moment(text: str) -> dt.datetime:
    from frmu.errors import RequestError

    try:
        moment = dt.datetime.fromisoformat(text)
        return moment.astimezone(dt.UTC).replace(tzinfo=None) if moment.tzinfo else moment
    except (ValueError, OverflowError):
        raise RequestError(f'"{text}" is not a time; write 2016-10-04 or 2016-10-04T08:30') from None


@_command(main)
@_config
@_address
@_json
def drain(config: Path, address: str | None, as_json: bool) -> int:
    """Honour what is pending, in one batch, and print receipts."""
    from frmu.api import Experiment

    with Experiment(_trained(config), address) as experiment:
        result = experiment.drain()
    _show(as_json, result, _tell_drain)
    return 0 if all(receipt["verified"] for receipt in result["receipts"]) else 1


def _tell_drain(result: dict[str, Any]) -> None:
    if not result["receipts"]:
        _print("Nothing is pending.")
        return
    rows = [
        [
            r["request"],
            f"{sum(r['removed'].values()):,}",
            str(len(r["removed"])),
            r["level"],
            "yes" if r["verified"] else "NO",
            r["due"][:10],
        ]
        for r in result["receipts"]
    ]
    _table("Receipts", ["request", "records", "clients", "level", "verified", "due"], rows)
    for receipt in result["receipts"][:1]:
        _print(
            f"state           {receipt['state_digest']}",
            f"never had them  {receipt['evidence']['digest_never_had']}",
            *(f"not covered: {line}" for line in receipt["not_covered"]),
        )
    _print(
        f"{_count(len(result['receipts']), 'request')} in one batch: {result['seconds']:.2f} s to the new state, "
        f"{result['verify_seconds']:.2f} s to prove it, {result['bytes']:,} bytes moved"
    )
    if not result["verified"]:
        _print("NOT VERIFIED: the requests stay open. Run `frmu train` and `frmu drain` again, and `frmu verify`.")


@_command(main)
@_config
@click.option("--receipt", metavar="ID", help="Look for the records of one receipt only.")
@_address
@_json
def verify(config: Path, receipt: str | None, address: str | None, as_json: bool) -> int:
    """Prove the state again: against a federation rebuilt from what remains, and against the tombstones."""
    from frmu.api import Experiment

    with Experiment(_trained(config), address) as experiment:
        result = experiment.verify(receipt)
    _show(as_json, result, lambda r: _print(
        f"state                     {r['state_digest']}",
        f"rebuilt from what remains {r['digest_never_had']}",
        f"erased records found: {r['tombstoned_records_left']} in {r['records_scanned']:,} scanned; "
        f"ledger: {r['ledger_lines']} lines, chain whole",
        f"{'VERIFIED' if r['verified'] else 'NOT VERIFIED'}: level {r['level']}",
    ))  # fmt: skip
    return 0 if result["verified"] else 1


# -- policy, ledger, status -----------------------------------------------------------------------------------


@main.group()
def policy() -> None:
    """The learned policy: what each slice should count."""


@_command(policy, "train")
@_config
@click.option("--iterations", type=click.IntRange(1), help="PPO iterations; default: policy.iterations.")
@click.option("--scratch", is_flag=True, help="Start from nothing instead of the policy in force.")
@_address
@_json
def policy_train(config: Path, iterations: int | None, scratch: bool, address: str | None, as_json: bool) -> None:
    """Train the policy on this federation with RLlib; the next `frmu train` applies it."""
    from frmu.api import Experiment

    with Experiment(_trained(config), address) as experiment:
        result = experiment.learn(iterations, "scratch" if scratch else "current")
    _show(as_json, result, lambda r: _print(
        f"policy {r['policy'][:16]} after {r['iterations']} iterations, {r['env_steps']:,} steps, {r['seconds']:.1f} s",
        f"gain on later records: {100 * r['gain_first']:.2f} % at first, {100 * r['gain_last']:.2f} % at last",
    ))  # fmt: skip


@_command(policy, "show")
@_config
@_json
def policy_show(config: Path, as_json: bool) -> None:
    """Say which policy is in force, what it learned from, and what it does here."""
    from frmu import api

    result = api.status(_load(config))
    _show(as_json, result, _tell_policy)


def _tell_policy(result: dict[str, Any]) -> None:
    learned = result["policy_learned_here_from"]
    where = (
        f"learned here from {len(learned)} clients" if learned else "came with frmu; it has seen none of these records"
    )
    _print(f"policy {result['policy'][:16]}: {where}")
    rows = [
        [client, key, "forgotten" if value == 0 else f"attenuated to {value:g}"]
        for client, slices in result["forgotten"].items()
        for key, value in slices.items()
    ]
    _table("Slices that do not count in full", ["client", "slice", "influence"], rows)


@main.group()
def ledger() -> None:
    """The system of record."""


@_command(ledger, "show")
@_config
@_json
def ledger_show(config: Path, as_json: bool) -> None:
    """Print every line of the ledger."""
    from frmu import api

    with api.ledger_of(_load(config)) as book:
        lines = [
            {
                "number": x.number,
                "time": x.time,
                "kind": x.kind,
                "request": x.request,
                "body": x.body,
                "digest": x.digest,
            }
            for x in book.lines()
        ]
    _show(as_json, {"lines": lines}, lambda r: _table(
        "Ledger", ["line", "time", "kind", "request", "digest"],
        [[str(x["number"]), x["time"][:19], x["kind"], x["request"], x["digest"][:16]] for x in r["lines"]],
    ))  # fmt: skip


@_command(ledger, "check")
@_config
@_json
def ledger_check(config: Path, as_json: bool) -> None:
    """Check the chain: no line changed, missing or moved."""
    from frmu import api

    with api.ledger_of(_load(config)) as book:
        lines = book.check()
    _show(as_json, {"lines": lines, "whole": True}, lambda r: _print(f"{r['lines']} lines, chain whole"))


@_command(main)
@_config
@_json
def status(config: Path, as_json: bool) -> None:
    """Where an experiment stands: its state, what is pending and by when."""
    from frmu import api

    result = api.status(_load(config))
    _show(as_json, result, _tell_status)


def _tell_status(result: dict[str, Any]) -> None:
    _print(
        f"state {result['state_digest'][:16]}: {result['clients']} clients, {result['records']:,} records"
        + ("" if result["trained_with_this_config"] else "; trained with ANOTHER config, run `frmu train`"),
        f"{sum(len(s) for s in result['forgotten'].values())} slices do not count in full; "
        f"policy {result['policy'][:16]}",
        f"{result['receipts']} receipts filed, {len(result['pending'])} requests pending",
        *(f"  {r['request']} ({r['kind']}, {r['stage']}): {r['days_left']} days left" for r in result["pending"]),
        f"folder {result['folder']}",
        _ui(result["tracking"]),
    )


# -- bench ----------------------------------------------------------------------------------------------------


@main.group()
def bench() -> None:
    """Measurements that the README and the policy card quote."""


_cache = click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=Path.home() / ".cache" / "frmu",
    help="Where real data sets are kept as Parquet.",
)  # fmt: skip


@_command(bench, "pretrain")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The policy file to write.")
@click.option("--iterations", type=click.IntRange(1), default=250, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_cache
@_json
def bench_pretrain(out: Path, iterations: int, seed: int, cache: Path, as_json: bool) -> None:
    """Train the policy that ships with frmu, and measure it on data it never saw."""
    from frmu.bench.pretrain import pretrain

    result = pretrain(out, cache, iterations, seed, lambda line: click.echo(line, err=True))
    _show(as_json, result, _tell_pretrain)


def _tell_pretrain(result: dict[str, Any]) -> None:
    _print(f"policy {result['policy']}, {result['env_steps']:,} steps, {result['seconds']:.0f} s")
    for name, table in result["tables"].items():
        rows = [
            [selector, f"{r['mean']:+.2f}", f"{r['error']:.2f}", f"{r['worst']:+.2f}", str(r["tasks"])]
            for selector, r in table.items()
        ]
        _table(
            f"{name}: lower later RMSE than keeping everything, %",
            ["selector", "mean", "error", "worst", "tasks"],
            rows,
        )


@_command(bench, "erasure")
@click.option("--data", type=click.Choice(["parking", "retail"]), default="retail", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@_cache
@_json
def bench_erasure(data: str, seeds: int, cache: Path, as_json: bool) -> int:
    """Erase subjects, windows and clients of a real data set; compare with never having had them."""
    from frmu.bench.erasure import bench_erasure as measure

    result = measure(data, cache, seeds)
    rows = [[str(r["seed"]), f"{r['records']:,}", f"{r['erased']:,}", str(r["requests"]), f"{r['train_seconds']:.2f}",
             f"{r['drain_seconds']:.2f}", "equal" if r["equal"] else "DIFFERENT"] for r in result["runs"]]  # fmt: skip
    columns = ["seed", "records", "erased", "requests", "train s", "erase s", "digest against never-had"]
    _show(
        as_json,
        result,
        lambda _: _table(f"{data}: erased, against a federation that never had them", columns, rows),
    )
    return 0 if result["equal"] else 1


if __name__ == "__main__":
    main()
