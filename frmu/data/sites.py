"""The places of records and shards: one folder for all clients, or each site's own disk.

Without `[sites]` there is one place, the working folder, which every node sees. With them each site is a place: what
is asked of it (a `SiteTask`) is done there, and only counts and names of clients come back.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from frmu.config import Config
from frmu.data.parquet import files_of, survey
from frmu.data.shard import clients_in, sweep, unexpected_files
from frmu.data.tombstones import purge_files
from frmu.errors import ConfigError, DataError

__all__ = [
    "ClearCopies",
    "Holdings",
    "ListFiles",
    "RewriteFiles",
    "SiteLocation",
    "SiteTask",
    "SweepSite",
    "TakeInventory",
    "client_locations",
    "copy_of",
    "site_locations",
]


@dataclass(frozen=True, slots=True)
class SiteLocation:
    """A folder of shards and the files that they are imported from; `site` is empty where there are no sites.

    `clients` are those that may be here, None for any. `label` is what the nodes that see the place are labelled
    with, None where any node does.
    """

    site: str
    config: Config
    folder: Path
    clients: tuple[str, ...] | None = None
    label: str | None = None

    @property
    def shards(self) -> Path:
        """The folder of the shards."""
        return self.folder / "shards"

    @property
    def scratch(self) -> Path:
        """The folder of what lasts no longer than a job."""
        return self.folder / "scratch"

    def copy(self, name: str) -> SiteLocation:
        """The place of a copy of these shards, which an audit changes; it lasts no longer than the job."""
        return replace(self, folder=copy_of(self.folder, name))


def copy_of(folder: Path, name: str) -> Path:
    """The folder of a copy of the shards under a folder."""
    return folder / "scratch" / name


def site_locations(config: Config, folder: Path | None = None) -> tuple[SiteLocation, ...]:
    """The places of a config, in the order of their names; `folder` stands for the working folder.

    >>> from frmu.config import parse
    >>> data = {"path": "x", "client": "c", "record": "r", "target": "y", "task": "regression"}
    >>> raw = {"data": data | {"modalities": {"m": ["a"]}}, "sites": {"lyon": {"path": "/data/lyon"}}}
    >>> config = parse(raw, Path("a.toml"))
    >>> [(place.site, place.label, place.config.source) for place in site_locations(config)]
    [('lyon', 'lyon', '/data/lyon')]
    """
    working = (folder or config.folder).absolute()
    if not config.sites:
        return (SiteLocation("", config, working),)
    found = []
    for name, site in sorted(config.sites.items()):
        # A folder of a site may serve several experiments: each has one of its own in it.
        at = working if site.folder is None else config.file.parent / site.folder / f"{config.file.stem}.frmu"
        data = config.data.model_copy(update={"path": site.path or config.data.path})
        store = config.store.model_copy(update={"folder": str(at)})
        own = config.model_copy(update={"data": data, "store": store})
        clients = tuple(sorted(site.clients)) if site.clients is not None else None
        found.append(SiteLocation(name, own, at.absolute(), clients, site.label or name))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Holdings:
    """The contents of a place: rows by client in the files, clients with a shard, files that are no shards."""

    rows: Mapping[str, int] = field(default_factory=dict)
    held: tuple[str, ...] = ()
    unexpected_files: tuple[str, ...] = ()


class SiteTask(Protocol):
    """Something to be done at a place, where its disk is; frozen, and doing it twice is doing it once."""

    def perform(self, place: SiteLocation) -> Any:
        """The result that goes back: names of clients, counts."""


@dataclass(frozen=True, slots=True)
class TakeInventory:
    """Take stock of a place; with `source` the user's files are looked at as well."""

    source: bool

    def perform(self, place: SiteLocation) -> Holdings:
        """Raises `DataError` as `survey`, and where a client that the site must have is not in its files."""
        held = tuple(name for name in clients_in(place.shards) if _mine(place, name))
        unexpected = tuple(unexpected_files(place.shards)) if place.shards.is_dir() else ()
        if not self.source:
            return Holdings({}, held, unexpected)
        try:
            found = survey(place.config)
        except DataError as error:
            raise DataError(f"{error}{_seen_from(place)}") from None
        rows = {name: number for name, number in found.rows_by_client.items() if _mine(place, name)}
        if missing := sorted(set(place.clients or ()) - set(rows)):
            raise DataError(f'{place.config.source}: site "{place.site}" has no record of its client "{missing[0]}"')
        return Holdings(rows, held, unexpected)


@dataclass(frozen=True, slots=True)
class ListFiles:
    """List the user's files by name, time and size, which tell one state of them from another without opening one."""

    def perform(self, place: SiteLocation) -> list[tuple[str, int, int, int]]:
        """One entry a file."""
        stats = [(file, Path(file).stat()) for file in files_of(place.config)]
        return [(file, stat.st_mtime_ns, stat.st_size, stat.st_ino) for file, stat in stats]


def _mine(place: SiteLocation, client: str) -> bool:
    return place.clients is None or client in place.clients


def _seen_from(place: SiteLocation) -> str:
    if not place.site:
        return ""
    return f'; looked for on the node of site "{place.site}" (label site={place.label}): check sites.{place.site}.path'


@dataclass(frozen=True, slots=True)
class SweepSite:
    """Remove what a job that was killed left half-done; for the holder of the lock."""

    def perform(self, place: SiteLocation) -> None:
        """Half-written shards, and copies that an audit made."""
        place.shards.mkdir(parents=True, exist_ok=True, mode=0o700)
        sweep(place.shards)
        if place.site:
            shutil.rmtree(place.scratch, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class ClearCopies:
    """Remove the copies of an audit whose names begin with some text."""

    name: str

    def perform(self, place: SiteLocation) -> None:
        """They hold erased records, for as long as the audit takes."""
        for copy in place.scratch.glob(f"{self.name}*"):
            shutil.rmtree(copy, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class RewriteFiles:
    """Rewrite the user's files without the records that have a tombstone; the files that changed."""

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)

    def perform(self, place: SiteLocation) -> list[str]:
        """See `purge_files`."""
        return purge_files(place.config, dict(self.tombstones), self.key)


def client_locations(found: Mapping[str, Holdings], at: Iterable[SiteLocation]) -> dict[str, SiteLocation]:
    """The place of every client; raises `ConfigError` where a client is at two."""
    by: dict[str, SiteLocation] = {}
    for place in at:
        holdings = found.get(place.site, Holdings())
        for client in sorted({*holdings.rows, *holdings.held}):
            if (other := by.setdefault(client, place)) is not place:
                raise ConfigError(
                    f'client "{client}" is at site "{other.site}" and at site "{place.site}"; say whose it is by '
                    f"sites.{place.site}.clients"
                )
    return by
