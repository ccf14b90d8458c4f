"""Training again whenever the data have grown: one round after another, until told to stop.

Between rounds nothing is held - no lock, no federation - so requests may be made, drained and withdrawn by others
meanwhile. Each round is a `train` like any other: it starts from the records that are there, so the state after the
last is the one that a single training on the same files would give. What changed is told by the files' names, sizes
and times, never by their content; the config is read anew for each look.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frmu.config import Config, load
from frmu.data.sites import ListFiles, site_locations
from frmu.errors import ClientsUnavailableError, FrmuError
from frmu.ledger.request import OPEN
from frmu.services.erasure import drain
from frmu.services.requests import ledger_of, requests
from frmu.services.session import Session
from frmu.services.training import train
from frmu.storage.workspace import Workspace
from frmu.tracking.queue import Queue

__all__ = ["Follow", "kept"]

_AGAIN = 60.0  # seconds between two tries to deliver what waits for MLflow
_PAUSES = (30.0, 600.0)  # seconds before clients that did not answer are asked again: at first, and at most
_BLINK = 0.1  # seconds between two looks at whether to stop

SourceState = tuple[Any, ...]


def kept(config: Config, address: str | None, insecure: bool = False) -> AbstractContextManager[None]:
    """Be connected to Ray for all rounds, so that a private one is started once; nothing in process.

    To be entered before handlers of signals are set: Ray sets its own when it connects.
    """
    named = address if address is not None else config.ray.address
    if named == "local":
        return nullcontext()
    from frmu.runtime.connect import cluster

    return cluster(named, insecure)


@dataclass(frozen=True, slots=True)
class Follow:
    """The pace at which to follow the data of a config: looks are `every` so long; `rounds` None is without end.

    `until` is the day of every round where the split rolls; with None each round's own day counts. With `drain`
    pending requests are drained between rounds, as `erasure.min_batch` lets them.
    """

    file: Path
    address: str | None = None
    every: dt.timedelta = dt.timedelta(minutes=1)
    rounds: int | None = None
    until: dt.date | None = None
    drain: bool = False
    insecure: bool = False

    def run(self, stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Yield what each round gave, what each drain gave, and what went wrong, until `stopped` says so.

        The first round raises what is wrong; later ones yield it once, under "error", and try again: a file may be
        half written, another job at work. A round that the rules would end for want of clients is not begun: it waits,
        without the lock, until a site is back. An entry has `round`, counted from 1, and `kind`, "train", "drain",
        "deliver", "away" (the sites that are away changed) or "error".
        """
        seen: SourceState | None = None
        tried: tuple[Any, ...] = ()
        number, trouble, tried_at = 0, "", time.monotonic()
        away: dict[str, dict[str, str]] = {}
        late = _Late()
        while not stopped() and (self.rounds is None or number < self.rounds):
            try:
                config = load(self.file)
                source, gone = self._source_state(config)
                waits = self._waits_for(config, gone)
                if gone != away:
                    yield self._tell_away(config, number, gone, away, waits)
                    away = gone
                if source != seen and not (waits and number) and late.may_try(source):
                    result = self._train(config)
                    seen, number, trouble, late = source, number + 1, "", _Late()
                    yield {"kind": "train", "round": number, **result}
                if self.drain and (waiting := self._waiting(config)) and waiting != tried:
                    result = self._drain(config)
                    tried = self._waiting(config)
                    yield {"kind": "drain", "round": number, **result}
                if time.monotonic() - tried_at > _AGAIN and Queue(config.folder / "outbox").count():
                    delivered, tried_at = self._deliver(config), time.monotonic()
                    if delivered["delivered"]:
                        yield {"kind": "deliver", "round": number, **delivered}
            except (FrmuError, OSError) as error:
                if seen is None:
                    raise
                if isinstance(error, ClientsUnavailableError):
                    late.failed(source)
                if str(error) != trouble:
                    trouble = str(error)
                    yield {"kind": "error", "round": number, "error": trouble}
            if self.rounds is None or number < self.rounds:
                self._pause(stopped)

    def _train(self, config: Config) -> dict[str, Any]:
        with Session(config, self.address, self.insecure) as session:
            result = train(session, self.until)
            return result | {"pending": len(session.ledger.pending())}

    def _drain(self, config: Config) -> dict[str, Any]:
        with Session(config, self.address, self.insecure) as session:
            return drain(session)

    def _deliver(self, config: Config) -> dict[str, Any]:
        with Session(config, self.address) as session:
            return {"delivered": session.deliver().runs, **session.waiting()}

    def _source_state(self, config: Config) -> tuple[SourceState, dict[str, dict[str, str]]]:
        """Return what tells one state of the source from another, without opening a file of records; and who is
        away."""
        day = (self.until or dt.datetime.now(dt.UTC).date()) if config.split.rolling else None
        own = sorted(Workspace(config.folder, config.key_file).policies.glob("*.safetensors"))
        policies = [config.policy_file] if config.policy_file is not None else []
        stats = [(file, file.stat()) for file in policies + own]
        sizes = [(str(file), stat.st_mtime_ns, stat.st_size, stat.st_ino) for file, stat in stats]
        entries, gone = self._records(config)
        sizes += entries
        workspace = Workspace(config.folder, config.key_file)
        noted = workspace.note_away(gone) if config.sites and workspace.state.exists() else {}
        declared = config if day is None else config.at(day)
        return (declared.fingerprint(), config.data.private, self._left(config), *sizes), noted

    def _records(self, config: Config) -> tuple[list[Any], dict[str, str]]:
        """The users' files at every place, and why a site is away: another state than one that is there."""
        named = self.address if self.address is not None else config.ray.address
        if not config.sites or named == "local":
            return [entry for place in site_locations(config) for entry in ListFiles().perform(place)], {}
        from frmu.runtime.connect import cluster
        from frmu.runtime.nodes import run_at_sites

        with cluster(named, self.insecure):
            found, away = run_at_sites(ListFiles(), site_locations(config.bare()), 0.0, config.rules.deadline)
        entries = [(site, *entry) for site, listed in sorted(found.items()) for entry in listed]
        return [*entries, *sorted(away)], away

    def _waits_for(self, config: Config, gone: Collection[str]) -> str:
        """Name the rule a round would break for want of the clients of sites that are away; empty where none."""
        if not gone:
            return ""
        locations = Workspace(config.folder, config.key_file).client_sites()
        with ledger_of(config) as ledger:
            left = ledger.history.left()
            clients = [client for client in locations if ledger.owner(client) not in left]
        from frmu.runtime.rules import unmet

        return unmet([client for client in clients if locations[client] in gone], clients, config.rules)

    def _tell_away(
        self, config: Config, number: int, gone: Mapping[str, Mapping[str, str]],
        before: Mapping[str, Mapping[str, str]], waits: str,
    ) -> dict[str, Any]:  # fmt: skip
        """Say which sites are away since when, which are back, and whether rounds wait for them."""
        locations = Workspace(config.folder, config.key_file).client_sites()
        sites = {
            site: {**told, "clients": sorted(client for client, at in locations.items() if at == site)}
            for site, told in gone.items()
        }
        back = sorted(set(before) - set(gone))
        return {"kind": "away", "round": number, "away": sites, "back": back, "waits": waits}

    def _left(self, config: Config) -> tuple[str, ...]:
        """Return who has left: that changes who takes part, and no file of records."""
        if not Workspace(config.folder, config.key_file).state.exists():
            return ()
        with ledger_of(config) as ledger:
            return tuple(sorted(ledger.history.left()))

    def _waiting(self, config: Config) -> tuple[Any, ...]:
        """The open requests; with the day, for a deadline may have come near."""
        names = [row["request"] for row in requests(config, OPEN)]
        return (dt.datetime.now(dt.UTC).date(), *sorted(names)) if names else ()

    def _pause(self, stopped: Callable[[], bool]) -> None:
        end = time.monotonic() + self.every.total_seconds()
        while not stopped() and (left := end - time.monotonic()) > 0:
            time.sleep(min(_BLINK, left))


class _Late:
    """Clients that did not answer a round: asked again when something changed, or after a pause that grows."""

    def __init__(self) -> None:
        self._failed_at: SourceState | None = None
        self._pause, self._again = _PAUSES[0], 0.0

    def failed(self, source: SourceState) -> None:
        """Note that a round ended for want of clients."""
        self._again, self._failed_at = time.monotonic() + self._pause, source
        self._pause = min(_PAUSES[1], 2 * self._pause)

    def may_try(self, source: SourceState) -> bool:
        """Return whether a round may be tried."""
        return source != self._failed_at or time.monotonic() >= self._again
