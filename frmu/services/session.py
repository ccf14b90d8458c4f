"""A config at work: its store is locked, its ledger and tracker are open, its federation starts on first use."""

from __future__ import annotations

import datetime as dt
import logging
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from frmu.config import Config
from frmu.data.shard import sweep
from frmu.data.sites import SweepSite
from frmu.errors import LedgerError, StoreError, TrackingUnavailableError
from frmu.ledger.ledger import Ledger
from frmu.methods.choice import method_of
from frmu.methods.method import Method, Round
from frmu.models.files import check_files
from frmu.report.figures import account_of_slices, summed_up
from frmu.report.plots import plot_influence, ready
from frmu.runtime import job
from frmu.selection.network import Network, current_policy
from frmu.services.requests import check_anchor
from frmu.services.sites import SiteDirectory
from frmu.services.witness import Watch, tracker_of
from frmu.storage.checkpoint import load_state, save_state, settled
from frmu.storage.workspace import Anchor, Workspace
from frmu.tracking.backend import ModelRegistry
from frmu.tracking.folders import take_over
from frmu.tracking.lineage import held, holds_tags
from frmu.tracking.queue import Queue, QueuedRun
from frmu.tracking.sync import Delivered, deliver
from frmu.tracking.tracker import Run, Tracker, public
from frmu.types import State

__all__ = ["SLICES", "Session"]

SLICES = "slices.json"  # the table of a round, a row a slice
_log = logging.getLogger(__name__)


class Session:
    """The resources of every service: config, workspace, ledger, tracker, method and a directory of sites.

    `address` overrides `[ray] address`: "local" is in process, without Ray; None is the cluster that RAY_ADDRESS
    names, else a private Ray; anything else is a cluster to attach to, which must demand a token unless `insecure`.
    Raises `ConfigError` where an encoder's file is not as the config says, and what the store, the ledger and the
    tracker raise.
    """

    def __init__(self, config: Config, address: str | None = None, insecure: bool = False) -> None:
        self.declared = config
        self.config = settled(config, Workspace(config.folder, config.key_file).state)
        self.address = address if address is not None else config.ray.address
        self.insecure = insecure
        check_files(self.config)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if job.in_upload(self.config.folder):
            raise StoreError(
                f"{self.config.folder}: lies in the copy of the working folder that Ray made for this job, and would "
                "go with it; give CONFIG by an absolute path that the cluster sees, or set store.folder to one"
            )
        with ExitStack() as stack:
            self.workspace = Workspace.of(self.config)
            stack.enter_context(self.workspace.lock())
            self.workspace.sweep()
            self.outbox = Queue(self.workspace.outbox, self.workspace.scratch)
            take_over(self.outbox)
            self._opening = self._open_tracker(stack)
            stack.callback(self.workspace.sweep)
            anchor = self.workspace.anchor()
            self.key = self.workspace.key()
            self.ledger = Ledger(self.workspace.ledger_url(self.config), self.key, make=anchor is None)
            stack.callback(self.ledger.close)
            self.ledger.check()
            self.watch = Watch(self.config, self.ledger, lambda: self.tracker)
            self.watch.check()
            self._home = self._at_home(anchor)
            self._note_witness()
            self._drop_anchor()
            stack.callback(self._drop_anchor)
            sweep(self.workspace.policies)
            self.config = settled(self.declared, self.workspace.state)  # again: now nobody else trains
            self.method = self._method()
            self.sites = stack.enter_context(
                SiteDirectory(
                    self.config, self.address, self.insecure, self.workspace, self.ledger, self._home,
                    self.workspace.next_fencing_token(),
                )
            )  # fmt: skip
            self.sites.run_at_sites(SweepSite())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open_tracker(self, stack: ExitStack) -> Future[Tracker]:
        """Open the tracking store; with Ray in a thread of its own, for importing MLflow and starting Ray take seconds.

        What goes wrong there is raised where the tracker is first asked for.
        """
        if self.address == "local":
            done: Future[Tracker] = Future()
            done.set_result(tracker_of(self.config, self.outbox))
            return done
        import ray  # noqa: F401 - here, so that two threads do not import what both need

        pool = stack.enter_context(ThreadPoolExecutor(1))
        opening = pool.submit(tracker_of, self.config, self.outbox)
        pool.submit(ready)
        return opening

    @property
    def tracker(self) -> Tracker:
        """The tracking store; raises what opening it raised."""
        return self._opening.result()

    def _at_home(self, anchor: Anchor | None) -> str:
        """Return the folder that the ledger belongs to; raises `LedgerError` where it is another, or an old ledger."""
        opened = [line.body["home"] for line in self.ledger.lines(["opened"])]
        if anchor is None and not opened:
            home = secrets.token_hex(8)
            self.ledger.note("opened", {"home": home})
            return home
        if anchor is None or opened != [anchor.home]:
            raise LedgerError(
                f"the ledger belongs to another working folder than {self.workspace.folder}, and two must not share "
                "one. Set another store.ledger, or ask for erasures there with `frmu erase`"
            )
        check_anchor(self.ledger, anchor)
        return anchor.home

    def _note_witness(self) -> None:
        if self.watch.changed():
            self._drop_anchor()
            self.watch.note()

    def _drop_anchor(self) -> None:
        anchor = Anchor(self._home, *self.ledger.head())
        self.workspace.drop_anchor(anchor)
        self.watch.show(anchor)

    def move(self, until: dt.date) -> None:
        """Count the split of a config whose until is "today" back from a day."""
        moved = self.declared.at(until)
        if moved.fingerprint() == self.config.fingerprint():
            return
        self.config = moved
        self.method = self._method()
        self.sites.move(moved)

    def _method(self) -> Method:
        if not self.config.model.by_rounds:
            self.workspace.rounds.clear()  # of a config of before: nobody would purge them
        return method_of(self.config.bare(), self.workspace.rounds)

    @property
    def from_nothing(self) -> Method:
        """The method without anything that was kept of a training: what proves a state must know nothing of it."""
        return method_of(self.config.bare())

    # -- what is in force -------------------------------------------------------------------------------------

    @contextmanager
    def run(self, name: str, tags: Mapping[str, str] | None = None) -> Iterator[Run]:
        """A run in MLflow that names the Ray job it is of, if it is of one; the job's metadata name the run."""
        with self.tracker.run(name, {**(tags or {}), **job.tags()}) as run:
            where = {"frmu.experiment": self.config.experiment, "frmu.tracking": public(self.tracker.uri)}
            job.announce(run.id, where)
            yield run

    def network(self) -> Network:
        """The policy in force."""
        return current_policy(self.config.policy_file, self.workspace.policies, self.ledger.history.retired())

    def state(self) -> State:
        """The state as last checkpointed, or a `StoreError` where nothing was trained."""
        state = load_state(Workspace.existing(self.config).state)
        if state is None:
            raise StoreError(f"{self.workspace.state}: no checkpoint; run `frmu train` first")
        if state.config != self.config.fingerprint():
            raise StoreError(f"{self.workspace.state}: trained with another config; run `frmu train` first")
        return state

    def checkpoint(self, state: State) -> None:
        """Keep a state; it is the driver that writes it, for the server may be on another machine, or be gone."""
        save_state(state, self.config, self.workspace.state)

    @property
    def registry(self) -> ModelRegistry:
        """The model registry; raises `TrackingUnavailableError` while MLflow is away."""
        return self.tracker.registry(self.config.experiment)

    def register(self, run: Run, state: State, requests: Sequence[str] = ()) -> str:
        """Make a state the champion of the model registry, unless it is; its version there.

        `requests` are those that it honours beside the closed ones.
        """
        champion = self.registry.champion()
        if champion is not None and champion.digest == state.digest:
            return champion.number
        version = self.registry.register(run.id, self.workspace.state, self._version_tags(state, requests))
        self.registry.promote(version)
        return version

    def register_or_wait(self, run: Run, state: State) -> str | None:
        """Register a state on which no erasure rests: while MLflow is away it waits in the outbox, with no version."""
        try:
            return self.register(run, state)
        except TrackingUnavailableError as error:
            self.tracker.leave(error)
            run.model(self.workspace.state, state.digest, self._version_tags(state))
            return None

    def _version_tags(self, state: State, requests: Sequence[str] = ()) -> dict[str, str]:
        receipts = [receipt["request"] for receipt in self.ledger.receipts()] + list(requests)
        return {
            "frmu.state_digest": state.digest,
            "frmu.store": self.ledger.store_id,
            "frmu.receipts": ",".join(receipts)[-4000:],
            **self.holds(client.name for client in state.clients),
        }

    def deliver(self) -> Delivered:
        """Deliver what waits in the outbox, as far as MLflow takes it.

        Nothing while a drain is unfinished: it has yet to purge what waits.
        """
        before = self.outbox.count()
        if self.tracker.away or not before or any(request.stage != "received" for request in self.ledger.pending()):
            return Delivered()
        clean = self.ledger.history.clean_states()
        lines = self.ledger.lines(["trained", "verified", "replayed"])
        made = {line.body["state"]: line.number for line in lines if line.body["state"] in clean}
        try:
            told = deliver(self.tracker, self.registry, self.outbox, made, self._began)
        except TrackingUnavailableError as error:
            self.tracker.leave(error)
            return Delivered(before - self.outbox.count())
        for line in told.refused:
            _log.warning("%s", line)
        return told

    def _began(self, box: QueuedRun, run: str) -> None:
        """The ledger learns what MLflow calls a run, for lineage does not rest on tags."""
        self.ledger.note("delivered", {"outbox": box.key, "run": run, "clients": sorted(held(box.lineage()))})

    def waiting(self) -> dict[str, Any]:
        """Return what waits in the outbox, where, and why MLflow is away if it is; plain JSON types."""
        where = {"runs": self.outbox.count(), "folder": str(self.outbox.folder), "away": self.tracker.away or None}
        return {"outbox": where}

    def owners(self, clients: Iterable[str]) -> list[str]:
        """Codes of clients, 8 digits each, as they stand in lineage tags and in the ledger."""
        return [self.ledger.owner(client)[:8] for client in clients]

    def rounds_of(self, done: Round) -> dict[str, Any]:
        """The lineage of a training by rounds, for the ledger: who took part in which; nothing of other methods.

        By the code of each client a number in hexadecimal digits, whose bit t says whether it took part in round t.
        """
        if not done.history:
            return {}
        took_part = {self.ledger.owner(name)[:8]: turns for name, turns in sorted(done.took_part.items())}
        kept = self.workspace.rounds
        told = {"done": len(done.history), "from": done.begun, "took_part": took_part}
        return {"rounds": told | {"checkpoints": len(kept), "checkpoint_bytes": kept.nbytes}}

    def holds(self, clients: Iterable[str]) -> dict[str, str]:
        """Lineage tags of what is learned from some clients: to be set before anything else is logged."""
        return holds_tags(self.owners(clients))

    def log_round(self, run: Run, done: Round) -> None:
        """Log what a round gave: its digest and lineage, why each slice counts as it does, and a picture of it.

        Numbers of single slices are one table, an artifact: an erasure removes it whole.
        """
        names = [client.name for client in done.state.clients]
        run.tags({"frmu.state_digest": done.state.digest, "frmu.policy": done.state.policy, **self.holds(names)})
        run.metrics(summed_up(done.state))
        for number, figures in enumerate(done.history):
            run.metrics({f"round/{name}": value for name, value in figures.items()}, step=number)
        run.table(account_of_slices(done), SLICES)
        if not done.state.clients:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "influence.png"
            plot_influence(done.state, self.config.slice_by, path)
            run.picture(path)
