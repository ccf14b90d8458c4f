"""What a job, a notebook or the command line calls: one experiment, its federation, its ledger, its runs.

with Experiment(load("homes.toml")) as experiment:
    experiment.train()
    experiment.drain()
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from frmu.clients.work import CommitShard, StageShard
from frmu.config import Config
from frmu.errors import ClientsUnavailableError, ConfigError, FederationError, FrmuError, StoreError
from frmu.federation import Federation, in_order
from frmu.ledger.request import EraseRequest
from frmu.methods.method import Round
from frmu.report.figures import forgotten, measure
from frmu.selection.network import Network
from frmu.services import erasure, explanation, policy_training, verification
from frmu.services.requests import DECLARED, erase, ledger_of, receipt_of, requests, status, withdraw
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.storage.checkpoint import config_of
from frmu.tracking.tracker import Run, public
from frmu.types import Selection

__all__ = ["Experiment", "erase", "ledger_of", "receipt_of", "requests", "status", "withdraw"]


_log = logging.getLogger(__name__)
T = TypeVar("T")


class Experiment(Session):
    """A config at work; see `Session` for how it opens."""

    # -- train ------------------------------------------------------------------------------------------------

    def train(self, until: dt.date | None = None) -> dict[str, Any]:
        """Import the records, run one round, measure it, log it; the summary as plain JSON types.

        `until` is the day that the split is counted back from where the config says "today"; the UTC day by default.
        Raises `ConfigError` where it is given and the config says otherwise.
        """
        if until is not None and not self.declared.split.rolling:
            raise ConfigError(
                f"{self.declared.file}: the split does not roll, so no day can be given for it; declare split.until = "
                '"today" and durations for validation, later and test'
            )
        self.move(until or dt.datetime.now(dt.UTC).date())
        self.deliver()
        network = self.network()  # a policy that cannot be read is told before anything is written
        self._same_names(self._names())
        inventory = self.look(source=True)
        expected = self._expected(inventory)
        there = [client for client in expected if client in inventory.rows]
        federation = self.federation(
            self.locations_of({*there, *(set(inventory.held) - self.left(inventory.held))}, inventory), inventory.rows
        )
        federation.away.update({client: why for client, why in inventory.away.items() if client in expected})
        if federation.away:
            self._without(federation.away, expected)
        with self.run("train", self.holds(expected)) as run:  # tagged before anything is logged: lineage misses nothing
            summary = self._round(run, federation, inventory, network, there, expected)
        return summary | self.waiting()

    def _round(
        self, run: Run, federation: Federation, inventory: Inventory, network: Network, there: Sequence[str],
        expected: Sequence[str],
    ) -> dict[str, Any]:  # fmt: skip
        """Import, fit, measure and log with those who are there."""
        began = time.perf_counter()  # starting actors is not training
        before = (federation.traffic.up, federation.traffic.down)
        names = self._names()
        taken = self._import(federation, inventory, there, expected)
        initial = self.method.init()
        done = self._attended(federation, expected, lambda: self.method.apply(federation, initial, network))
        self.checkpoint(done.state)
        seconds = time.perf_counter() - began
        summary = {
            "state_digest": done.state.digest,
            "metrics": self._measured(federation, done),
            "rounds": 1,
            "split_until": str(self.config.split.until) if self.declared.split.rolling else None,
            "seconds": round(seconds, 4),
            "bytes_up": federation.traffic.up - before[0],
            "bytes_down": federation.traffic.down - before[1],
            "clients": len(done.state.clients),
            "summed": len(done.fitted),
            "away": dict(sorted(federation.away.items())),
            "records": sum(client.records for client in done.state.clients),
            **taken,
            "policy": done.state.policy,
            "forgotten": forgotten(done.state),
            "run_id": run.id,
            "tracking": public(self.tracker.uri),
        }
        learned_from = {"run": run.id, "clients": self.owners(client.name for client in done.state.clients)}
        out = set(federation.away) - {client.name for client in done.state.clients}
        told = {"state": done.state.digest, "records": summary["records"], **learned_from}
        self.ledger.note("trained", names | told | ({"away": sorted(map(self.ledger.owner, out))} if out else {}))
        self._log_train(run, done, summary)
        summary["version"] = self.register_or_wait(run, done.state)
        return summary

    def _names(self) -> dict[str, str]:
        """The columns by which a tombstone knows a record."""
        return {"client": self.config.data.client, "record": self.config.data.record}

    def _expected(self, inventory: Inventory) -> list[str]:
        """The clients that a training is to have: of the user's files, and of sites that are away; who left is out."""
        known = {*inventory.rows, *inventory.away}
        if not known and inventory.gone:
            told = "; ".join(f'site "{site}": {why}' for site, why in sorted(inventory.gone.items()))
            raise FederationError(f"every site is away. {told}")
        return sorted(known - self.left(known))

    def _without(self, away: Mapping[str, str], expected: Sequence[str]) -> None:
        """Go on without some clients, if the rules let us."""
        from frmu.runtime.rules import go_on_without

        _log.warning("%s", go_on_without(away, expected, self.config.rules))

    def _attended(self, federation: Federation, expected: Sequence[str], step: Callable[[], T]) -> T:
        """Do a step, again without those who turn out to be away, as long as the rules let us go on."""
        while True:
            try:
                return step()
            except ClientsUnavailableError as gone:
                if set(gone.reasons) <= set(federation.away):  # nobody new: the same step would end the same way
                    raise
                federation.away.update(gone.reasons)
                self._without(federation.away, expected)

    def _measured(self, federation: Federation, done: Round) -> dict[str, float]:
        """Errors over the records of those who are still there; the state stands, whoever went after it."""
        while True:
            try:
                return measure(federation, done)
            except ClientsUnavailableError as gone:
                if set(gone.reasons) <= set(federation.away):
                    raise
                federation.away.update(gone.reasons)
                _log.warning("Measured without %s", ", ".join(sorted(gone.reasons)))

    def _same_names(self, names: Mapping[str, str]) -> None:
        """A tombstone knows a record by its client and id: once there are some, the columns must stay."""
        if not self.ledger.has_tombstones():
            return
        trained = [line.body for line in self.ledger.lines(["trained"])]
        before = trained[-1] if trained else names
        for role, column in names.items():
            if before[role] != column:
                raise ConfigError(
                    f'{self.config.file}: data.{role} = "{column}" was "{before[role]}" when records were erased here; '
                    "they could not be told any more. Set another store.folder"
                )

    def _import(
        self, federation: Federation, inventory: Inventory, clients: Sequence[str], expected: Sequence[str]
    ) -> dict[str, Any]:
        """Every client reads its own records; all who are there take them over, or none.

        Gives how many were refused, how many are private, and the requests by which private ones that were held go.
        What an open or a standing request means is refused as well, and has its tombstones from now on.
        """
        pending = self.ledger.pending() + self.ledger.standing()
        if pending and inventory.held:
            before = self._as_they_are(federation)
            self._attended(federation, expected, lambda: self._add_tombstones(before, federation.away, pending))
        open_requests = {request.id: request.selection for request in pending if request.selection is not None}
        work = StageShard(self.ledger.tombstones(clients), self.key, open_requests)
        try:
            replies = self._attended(federation, expected, lambda: list(federation.run(work, on=clients)))
        except FrmuError:
            with suppress(FrmuError):  # the error under way is the one to tell
                list(federation.run(CommitShard(False), on=clients))
            raise
        found: dict[str, dict[str, list[str]]] = {}
        for reply in replies:
            for request, names in reply.record["found"].items():
                found.setdefault(request, {})[reply.client] = names
        self.ledger.add_tombstones(found)
        asked = self._ask_for_private({reply.client: reply.record["must_go"] for reply in in_order(replies)})
        self._attended(federation, expected, lambda: list(federation.run(CommitShard(True), on=clients)))
        self.ledger.searched(reply.client for reply in replies)
        if nothing := self.owners(sorted(reply.client for reply in replies if not reply.record["rows"])):
            self.ledger.note("empty", {"clients": nothing})
        self.dismiss(federation, inventory, set(inventory.held) - set(clients))
        rows, refused, private = (sum(reply.record[key] for reply in replies) for key in ("rows", "refused", "private"))
        if not rows:
            raise StoreError(self._nothing_left(refused, private, asked))
        return {"refused": refused, "private": private, "private_requests": asked}

    def _nothing_left(self, refused: int, private: int, asked: Sequence[str]) -> str:
        column = f'"{self.config.data.private}" (data.private)'
        why = "has been erased" if not private else f"is private by {column}" if not refused else (
            f"has been erased or is private by {column}"
        )  # fmt: skip
        drain = f". {', '.join(asked)} asked for what was held: `frmu drain` honours it" if asked else ""
        return f"{self.config.source}: every record there {why}; there is nothing to train on{drain}"

    def _ask_for_private(self, held: Mapping[str, Sequence[str]]) -> list[str]:
        """File a request for private records that were held and learned from; before the import drops them.

        Mandatory: no policy is asked. One a client, and none for what such a request asks for already. Record ids
        stay with the client: what the request means is its tombstones.
        """
        mine = [request.id for request in self.ledger.pending() if request.requester == DECLARED]
        asked = []
        for client, names in held.items():
            open_ = [self.ledger.tombstones([client], request).get(client, frozenset()) for request in mine]
            new = sorted(set(names) - frozenset().union(*open_))
            if new:
                selection = Selection("records", client=client)
                reason = f'column "{self.config.data.private}" says that they are private'
                request = self.ledger.receive(selection, reason, self.config.erasure.due, DECLARED, {client: new})
                asked.append(request.id)
        return asked

    def _add_tombstones(self, before: Federation, away: Mapping[str, str], pending: Sequence[EraseRequest]) -> None:
        before.away.update(away)
        erasure.locate_pending(self, before, pending, None)

    def _as_they_are(self, federation: Federation) -> Federation:
        """The shards as the config reads them that wrote them: its columns may not be those of today."""
        before = config_of(self.workspace.state) if self.workspace.state.exists() else self.config
        if before.fingerprint() == self.config.fingerprint():
            return federation
        return self.under(before)

    def _log_train(self, run: Run, done: Round, summary: Mapping[str, Any]) -> None:
        run.params({"config": self.config.file.name, "fingerprint": self.config.fingerprint(), **_flat(self.config)})
        run.metrics({**summary["metrics"], "seconds": summary["seconds"], "bytes_up": summary["bytes_up"]})
        run.json(dict(summary), "summary.json")
        self.log_round(run, done)

    # -- policy -----------------------------------------------------------------------------------------------

    def learn(
        self, iterations: int | None = None, start: str = "current", resume: bool | None = None, adopt: str = "better"
    ) -> dict[str, Any]:
        """Train the slice policy with RLlib on this federation's clients; see `frmu.services.policy_training.learn`."""
        return policy_training.learn(self, iterations, start, resume, adopt)

    def explain(
        self, client: str | None = None, slice_: str | None = None, picture: Path | None = None
    ) -> dict[str, Any]:
        """Say why slices count as they do; see `frmu.services.explanation.explain`."""
        return explanation.explain(self, client, slice_, picture)

    # -- erase ------------------------------------------------------------------------------------------------

    def drain(self, now: bool = False) -> dict[str, Any]:
        """Honour pending requests in one batch; see `frmu.services.erasure.drain`."""
        result = erasure.drain(self, now)
        self.deliver()  # not before: the drain purges what waits
        return result | self.waiting()

    def replay(self) -> dict[str, Any]:
        """Remove again whatever has a tombstone; see `frmu.services.erasure.replay`."""
        result = erasure.replay(self)
        self.deliver()
        return result | self.waiting()

    def verify(
        self, receipt: str | None = None, level: str = "L5", forget: Path | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Prove the state, or one receipt, at a level; see `frmu.services.verification.verify`."""
        self.deliver()
        return verification.verify(self, receipt, level, forget, seed)


def _flat(config: Config) -> dict[str, Any]:
    tables = config.model_dump(mode="json", exclude={"store", "ray"})
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
