"""The participants: clients join and leave, also while a job is at work; the next round sees it.

A client takes part from the round after its records appear under data.path, or at its site. One that leaves is in no
state from the next round on, and its shard is removed; its own files stay its own, and nothing is written on a receipt.
To have its records erased, with tombstones that keep them out, is a request (`frmu erase --client`), with or without
leaving. The ledger keeps who left, as a keyed hash.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from frmu.config import Config
from frmu.data.clipping import let_in
from frmu.data.parquet import gather, survey, without_flags
from frmu.data.shard import clients_in
from frmu.errors import ConfigError, DataError, RequestError, near_miss
from frmu.services.requests import ledger_of
from frmu.storage.atomic import write_file
from frmu.storage.checkpoint import load_state
from frmu.storage.workspace import Workspace

__all__ = ["add", "leave", "members", "rejoin"]


def members(config: Config) -> list[dict[str, Any]]:
    """Every client of the last state, or that has left since: records, attention, site, whether it takes part."""
    workspace = Workspace.existing(config)
    state = load_state(workspace.state)
    at, sites_away = workspace.client_sites(), workspace.away()
    known = {client.name: client for client in state.clients} if state is not None else {}
    with ledger_of(config) as ledger:
        left = ledger.history.left()
        away = ledger.history.away(state.digest) if state is not None else frozenset()
        names = sorted({*known, *at, *clients_in(workspace.shards)})
        owners = {name: ledger.owner(name) for name in names}
    return [
        {
            "client": name,
            "site": at.get(name, ""),
            "records": known[name].records if name in known else 0,
            "attention": known[name].attention if name in known else 0.0,
            "standing": _standing(
                owners[name] in left, owners[name] in away, name in known, sites_away.get(at.get(name, ""))
            ),
        }
        for name in names
    ]


def _standing(left: bool, away: bool, known: bool, site: Mapping[str, str] | None) -> str:
    if site is not None and not left:
        return f"away since {site['since']}"
    return "left" if left else "in" if known else "away" if away else "out"


def leave(config: Config, client: str, for_good: bool = False) -> dict[str, Any]:
    """Let a client leave from the next round on; raises `RequestError` for one that nobody knows, or that has left.

    One that left `for_good` cannot join again, so closed requests no longer wait to search it.
    """
    known = [row["client"] for row in members(config)]
    with ledger_of(config) as ledger:
        owner = ledger.owner(client)
        if client not in known and owner not in ledger.history.left():
            raise RequestError(f'no client "{client}"{near_miss(client, known)}')
        if owner in (ledger.history.gone() if for_good else ledger.history.left()):
            raise RequestError(f'client "{client}" has left already{" for good" * for_good}')
        ledger.note("left", {"client": owner} | ({"for_good": True} if for_good else {}))
        ledger.searched(())  # what nobody needs any more is forgotten
    return {"client": client, "standing": "left", "for_good": for_good}


def rejoin(config: Config, client: str) -> dict[str, Any]:
    """Take a client that left in again, from the next round on.

    Raises `RequestError` for one that has not left, or that has left for good.
    """
    with ledger_of(config) as ledger:
        owner = ledger.owner(client)
        if owner in ledger.history.gone():
            raise RequestError(
                f'client "{client}" has left for good: requests were closed without searching it, so it cannot join '
                "again. Give its records another client name"
            )
        if owner not in ledger.history.left():
            raise RequestError(
                f'client "{client}" has not left, so it cannot join again; new ones join by their records'
            )
        ledger.note("joined", {"client": owner})
    return {"client": client, "standing": "in"}


def add(config: Config, files: Sequence[Path]) -> dict[str, Any]:
    """Put Parquet files of new clients under data.path, where the next round finds them.

    All are checked, as a training would check them, before the first is put there. Raises `ConfigError` where data.path
    is one file, and `DataError` for records that do not fit, a client that is there already, and a file whose name is
    taken.
    """
    folder = _folder(config)
    there = set(survey(config).clients)
    found: dict[str, int] = {}
    for file in files:
        own = config.model_copy(update={"data": config.data.model_copy(update={"path": str(file.absolute())})})
        rows = survey(own).rows_by_client
        if twice := sorted({*there, *found} & set(rows)):
            raise DataError(f'{file}: client "{twice[0]}" is in the federation already; a client has one shard')
        if (folder / file.name).exists():
            raise DataError(f"{folder / file.name}: is there already; rename {file.name}")
        for client, records in gather(own, rows).items():
            taken, private = without_flags(records)
            let_in(taken.filter(~private), client, own)
        found |= rows
    for file in files:
        with file.open("rb") as given:
            write_file(folder / file.name, partial(shutil.copyfileobj, given), aside=folder / f".{file.name}.partial")
    return {"clients": {name: found[name] for name in sorted(found)}, "folder": str(folder)}


def _folder(config: Config) -> Path:
    """The folder in which a new file is under data.path."""
    if config.sites:
        raise ConfigError("with [sites] records stay where they are: put the file under the site's own path there")
    source = Path(config.source)
    if source.is_dir():
        return source
    if source.is_file():
        raise ConfigError(f'data.path = "{config.data.path}" is one file; make it a folder or a glob to add clients')
    pattern = source.name
    if source.parent.is_dir() and pattern == "*.parquet":
        return source.parent
    raise ConfigError(f'data.path = "{config.data.path}": frmu adds files to a folder, or to FOLDER/*.parquet')
