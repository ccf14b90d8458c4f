"""The directory of clients and sites, and federations over them: what a session needs before it touches records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from frmu.clients.tasks.importing import DiscardShard
from frmu.clients.tasks.task import AskShards
from frmu.config import Config
from frmu.data.sites import SiteLocation, SiteTask, TakeInventory, client_locations, site_locations
from frmu.errors import ClientsUnavailableError
from frmu.federation import ClientTask, Federation, Reply, ServerTask, Traffic
from frmu.ledger.ledger import Ledger
from frmu.runtime.local import LocalFederation
from frmu.storage.checkpoint import load_state
from frmu.storage.workspace import Workspace

if TYPE_CHECKING:
    from frmu.runtime.nodes import SiteWorkers

__all__ = ["Inventory", "SiteDirectory"]


@dataclass(frozen=True, slots=True)
class Inventory:
    """The inventory of clients: places by client, rows in the user's files, clients with a shard, unexpected files.

    `away` names clients of sites that did not answer, and `gone` those sites, each with why.
    """

    locations: Mapping[str, SiteLocation]
    rows: Mapping[str, int]
    held: tuple[str, ...]
    unexpected_files: tuple[str, ...]
    away: Mapping[str, str]
    gone: Mapping[str, str]


class SiteDirectory:
    """The clients of a config, wherever they are, and federations over them; a context manager that ends these.

    `address` None or an address is Ray's, "local" in process. `home` names the federation's server on a cluster, and
    hosts of a job with a lower `fencing_token` can write no shard any more.
    """

    def __init__(
        self, config: Config, address: str | None, insecure: bool, workspace: Workspace, ledger: Ledger, home: str,
        fencing_token: int,
    ) -> None:  # fmt: skip
        self.config, self.address, self.insecure = config, address, insecure
        self.workspace, self.ledger = workspace, ledger
        self.orphaned_server = workspace.orphaned_server()  # where a killed job left its server, until we are there
        self._home, self._fencing_token = home, fencing_token
        self._federation: Federation | None = None
        self._site_workers: SiteWorkers | None = None
        self._connected = False
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def move(self, config: Config) -> None:
        """Go on under another config of the same clients; the live federation ends."""
        self.config = config
        self._close()

    # -- who is where -----------------------------------------------------------------------------------------

    @property
    def site_locations(self) -> tuple[SiteLocation, ...]:
        """Return the places of records and shards: the working folder, or the sites."""
        return site_locations(self.config.bare(), self.workspace.folder)

    @property
    def on_ray(self) -> bool:
        """Return whether the federation runs on Ray."""
        return self.address != "local"

    def connect(self) -> None:
        """Be connected to Ray from now on, if the federation runs there."""
        if self.on_ray and not self._connected:
            from frmu.runtime.connect import cluster

            self._stack.enter_context(cluster(self.address, self.insecure))
            self._connected = True

    def run_at_sites(self, task: SiteTask) -> tuple[dict[str, Any], dict[str, str]]:
        """Do a task at every place, where its disk is: results by site, and why a site is away."""
        if not self.config.sites or not self.on_ray:
            return {place.site: task.perform(place) for place in self.site_locations}, {}
        self.connect()
        if self._site_workers is None:
            from frmu.runtime.nodes import SiteWorkers

            self._site_workers = SiteWorkers(self.config.placement.patience, self.config.rules.deadline)
            self._stack.callback(self._site_workers.close)
        return self._site_workers.run_at_sites(task, self.site_locations)

    def look(self, source: bool = False) -> Inventory:
        """Return who is where: with `source` by the user's files as well as by the shards.

        Clients of a site that is away are known from before.
        """
        found, gone = self.run_at_sites(TakeInventory(source))
        located = client_locations(found, self.site_locations)
        sites = {place.site for place in self.site_locations}
        before = self.workspace.client_sites()
        if self.config.sites and self.on_ray:
            self.workspace.note_away(gone)
        lost = {client: gone[site] for client, site in before.items() if site in gone and client not in located}
        if self.config.sites:
            now = {client: place.site for client, place in located.items()}
            kept = {client: site for client, site in before.items() if site in sites} | now
            if kept != before:
                self.workspace.keep_client_sites(kept)
        rows = {client: number for holdings in found.values() for client, number in holdings.rows.items()}
        held = sorted(client for holdings in found.values() for client in holdings.held)
        unexpected_files = [
            f"{site}/{name}" if site else name for site, holdings in found.items() for name in holdings.unexpected_files
        ]
        return Inventory(located, rows, tuple(held), tuple(unexpected_files), lost, gone)

    def locations_of(self, clients: Iterable[str], inventory: Inventory) -> dict[str, SiteLocation]:
        """Return the locations of clients, as seen, or as last seen.

        Raises `ClientsUnavailableError` for one whose site is away.
        """
        names = set(clients)
        if lost := {client: reason for client, reason in inventory.away.items() if client in names}:
            raise ClientsUnavailableError.of(lost)
        by_site, before = {place.site: place for place in self.site_locations}, self.workspace.client_sites()
        somewhere = self.site_locations[0]
        return {
            name: inventory.locations.get(name) or by_site.get(before.get(name, ""), somewhere)
            for name in sorted(names)
        }

    def dismiss(self, federation: Federation, inventory: Inventory, clients: Iterable[str]) -> None:
        """Have the shards of clients removed that have left, or that the user's files no longer have."""
        at = sorted(set(clients) & set(inventory.held))
        if at:
            federation.admit(self.locations_of(at, inventory), {})
            list(federation.run(DiscardShard(), on=at))

    def left(self, clients: Iterable[str]) -> set[str]:
        """Return those of some clients that have left the federation."""
        gone = self.ledger.history.left()
        return {client for client in clients if self.ledger.owner(client) in gone} if gone else set()

    # -- federations ------------------------------------------------------------------------------------------

    @property
    def live(self) -> bool:
        """Return whether a federation runs."""
        return self._federation is not None

    def at_rest(self, inventory: Inventory) -> Federation:
        """The clients that hold a shard and have not left, asked where it lies: no host runs, and no server."""
        return _AtRest(self, set(inventory.held) - self.left(inventory.held))

    def federation(self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int] | None = None) -> Federation:
        """The live federation, which takes in clients that are new; nobody is away of it at first."""
        if self._federation is None:
            self._federation = self._start(locations, rows or {}, f"server-{self._home}")
            self._stack.callback(self._close)
        self._federation.admit(locations, rows or {})
        self._federation.away.clear()
        return self._federation

    def _close(self) -> None:
        """End the live federation, and its server with it."""
        if self._federation is not None:
            self._federation.close()
            self._federation = None
            if not self.orphaned_server:
                self.workspace.note_server("")

    def _start(
        self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int], name: str | None = None
    ) -> Federation:
        """A federation; on a cluster that goes on without us, one of a name has a server that does so too."""
        if not self.on_ray:
            return LocalFederation(self.config, locations, self.workspace.folder, self._fencing_token)
        from frmu.runtime.ray import RayFederation

        self.connect()
        federation = RayFederation(self.config, locations, rows, name, self._fencing_token)
        if name is not None:
            self.orphaned_server = "" if self.orphaned_server == federation.outlives else self.orphaned_server
            if federation.outlives and not self.orphaned_server:
                self.workspace.note_server(federation.outlives)
        return federation

    def over_copies(self, copy: str, clients: Sequence[str], config: Config | None = None) -> Federation:
        """A federation over copies of shards that an audit made, where this one runs; whoever asks closes it."""
        inventory = self.look()
        at = {
            client: self._as(place, config).copy(copy)
            for client, place in self.locations_of(clients, inventory).items()
        }
        return self._start(at, {})

    def under(self, config: Config) -> Federation:
        """A federation over the same shards as another config reads them; it ends with the job."""
        inventory = self.look()
        federation = self._start({name: self._as(inventory.locations[name], config) for name in inventory.held}, {})
        self._stack.callback(federation.close)
        return federation

    @contextmanager
    def afresh(self, config: Config | None = None, inventory: Inventory | None = None) -> Iterator[Federation]:
        """Another federation over the same shards, which shares nothing with the live one, for a while.

        It is on the processes of the live one, if that runs on Ray: every site rebuilds its own part, all at once. Else
        it is in process where the shards lie on this machine. Without clients who have left, or who were away when the
        state in force was trained: nothing is known of them. `inventory` is one that was taken a moment ago.
        """
        inventory = inventory or self.look()
        away = self.ledger.history.away(self._in_force())
        everybody = {*inventory.held, *inventory.away}
        out = self.left(everybody) | {client for client in everybody if self.ledger.owner(client) in away}
        at = {name: self._as(inventory.locations[name], config) for name in inventory.held if name not in out}
        if inventory.away and (missing := {name: why for name, why in inventory.away.items() if name not in out}):
            raise ClientsUnavailableError.of(missing)
        federation = self._anew(config or self.config, at)
        try:
            yield federation
        finally:
            federation.close()

    def _anew(self, config: Config, at: Mapping[str, SiteLocation]) -> Federation:
        """A federation that begins from nothing over some shards, where that is cheapest."""
        if not self.on_ray:
            return LocalFederation(config, at, self.workspace.folder)
        from frmu.runtime.ray import RayFederation

        live = self._federation
        if isinstance(live, RayFederation) and config == self.config and set(at) <= set(live.clients):
            return live.anew(at)
        return self._start(at, {}) if self.config.sites else LocalFederation(config, at, self.workspace.folder)

    def _in_force(self) -> str:
        """The digest of the state that is checkpointed; empty where none is."""
        state = load_state(self.workspace.state)
        return state.digest if state is not None else ""

    def _as(self, place: SiteLocation, config: Config | None) -> SiteLocation:
        """A place under another config: what says where things lie stays."""
        if config is None:
            return place
        own = place.config
        data = config.data.model_copy(update={"path": own.data.path})
        return replace(place, config=config.model_copy(update={"data": data, "store": own.store, "file": own.file}))


class _AtRest:
    """Clients whose shards are read where they lie, for as long as one task takes."""

    def __init__(self, sites: SiteDirectory, clients: Iterable[str]) -> None:
        self.traffic = Traffic()
        self.away: dict[str, str] = {}
        self.clients = tuple(sorted(clients))
        self._sites = sites

    def admit(self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int]) -> None:
        """Nobody is let in."""

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        names = tuple(sorted(set(self.clients if on is None else on) & set(self.clients)))
        if not names:
            return
        self.traffic.sent(work, len(names))
        done, gone = self._sites.run_at_sites(AskShards(work, names))
        if gone:
            raise ClientsUnavailableError.of(gone)
        for answer in (answer for answers in done.values() for answer in answers):
            self.traffic.up += answer.nbytes
            yield Reply(answer.client, answer.record, None, answer.nbytes)

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """There is no server."""
        raise AssertionError("a federation at rest has no server")

    def close(self) -> None:
        """Nothing to let go of."""
