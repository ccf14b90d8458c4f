"""client list, add, leave, join; plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

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


@main.group()
def client() -> None:
    """Let clients join and leave, also while a job runs."""


@command(client, "list")
@config_argument
@json_option
def list_clients(config: Path, as_json: bool) -> None:
    """Every client: its site, records, attention, and whether it takes part."""
    from frmu.services.participants import members

    show(as_json, members(read_trained(config)), _tell_members)


def _tell_members(rows: list[dict[str, Any]]) -> None:
    columns = ["client", "site", "records", "attention", ""]
    told = [[r["client"], r["site"], f"{r['records']:,}", f"{r['attention']:.2f}", r["standing"]] for r in rows]
    table(count(len(rows), "client"), columns, told)


@command(client)
@config_argument
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def add(config: Path, files: tuple[Path, ...], as_json: bool) -> None:
    """Put Parquet files of new clients under data.path; they take part from the next round on."""
    from frmu.services.participants import add as put

    show(as_json, put(read_config(config), files), _tell_added)


def _tell_added(result: dict[str, Any]) -> None:
    told = ", ".join(f"{name} ({count(rows, 'record')})" for name, rows in result["clients"].items())
    say(f"{told}: now in {result['folder']}, and in the federation from the next round on")


@command(client)
@config_argument
@click.argument("name")
@click.option("--for-good", is_flag=True, help="It cannot join again, and closed requests no longer wait to search it.")
@json_option
def leave(config: Path, name: str, for_good: bool, as_json: bool) -> None:
    """Let a client leave: it is in no state from the next round on, and its shard is removed. Erases nothing else."""
    from frmu.services.participants import leave as go

    show(as_json, go(read_trained(config), name, for_good), lambda r: say(
        f"{r['client']} is out from the next round on{', for good' * for_good}. To have its records erased as well: "
        f"frmu erase {config} --client {r['client']!r}"
    ))  # fmt: skip


@command(client)
@config_argument
@click.argument("name")
@json_option
def join(config: Path, name: str, as_json: bool) -> None:
    """Take a client that left in again, from the next round on."""
    from frmu.services.participants import rejoin

    show(as_json, rejoin(read_trained(config), name), lambda r: say(f"{r['client']} is in from the next round on"))


@command(main)
@config_argument
@address_option
@json_option
def plan(config: Path, address: str | None, insecure: bool, as_json: bool) -> None:
    """Show the hosts a training would start on this cluster, and their memory; nothing is started or written."""
    from frmu.runtime.forecast import forecast

    show(as_json, forecast(read_config(config), address, insecure), _tell_plan)


def _tell_plan(result: dict[str, Any]) -> None:
    rows = [
        [site, str(one["hosts"]), str(one["clients"]), f"{one['planned_mib']:,}"]
        for site, one in result["sites"].items()
    ]
    table("Hosts", ["site", "hosts", "clients", "MiB"], rows)
    say(
        f"{result['planned_mib']:,} MiB of {result['offered_mib']:,} that the nodes offer; "
        f"a process is reckoned with {result['process_mib']:,} MiB"
    )
    for site, why in result["away"].items():
        say(f"site {site} is away: {why}")
