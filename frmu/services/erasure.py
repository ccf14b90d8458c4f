"""The drain: pending requests are located, planned, purged, refitted, verified and closed, in one batch.

Every stage is a line of the ledger before the next begins, and every step does nothing when it is done twice, so a
drain that was killed anywhere is gone on with by the next. Until a request is planned nothing has been touched: a
client that does not answer leaves it as it was.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from frmu.clients.tasks.erasure import LocateRecords, PurgeShard
from frmu.data.sites import RewriteFiles
from frmu.errors import ClientsUnavailableError, FederationError, near_miss
from frmu.federation import Federation, in_order
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.methods.method import Round
from frmu.models.features import what_moved
from frmu.report.figures import measure
from frmu.services.integrity import check_shards, note_shards
from frmu.services.proof import exact_verdict, standing_verdict
from frmu.services.purge import purge_runs, retire
from frmu.services.receipts import new_receipt, not_covered, not_searched, open_part, scoped, unsearched
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.tracking.tracker import Run
from frmu.types import State
from frmu.verification.exact import ExactVerdict

__all__ = ["UNTOUCHED", "drain", "locate_pending"]

UNTOUCHED = "No request is closed before MLflow is purged of what was learned from it; this drain touched nothing"


VERIFIERS = frozenset({"exact"})  # guarantees whose check may close a request: `exact_verdict`


@dataclass(frozen=True, slots=True)
class _Batch:
    """One drain's batch: requests, and by request the records found, by client."""

    requests: tuple[EraseRequest, ...]
    removed: Mapping[str, Mapping[str, int]]
    searched: Mapping[str, int]
    late: tuple[str, ...] = ()  # clients where a standing request found something

    @property
    def ids(self) -> list[str]:
        return [request.id for request in self.requests if request.id in self.removed]

    @property
    def touched(self) -> tuple[str, ...]:
        return tuple(sorted({client for counts in self.removed.values() for client in counts} | set(self.late)))

    @property
    def records(self) -> int:
        return sum(sum(counts.values()) for counts in self.removed.values())


# -- before anything is touched -------------------------------------------------------------------------------


def drain(session: Session, now: bool = False) -> dict[str, Any]:
    """Honour pending requests in one batch; receipts as plain JSON types.

    `now` overrules `erasure.min_batch`.
    """
    result = _drain(session, now)
    session.deliver()  # not before: the drain purges what waits
    return result | session.waiting()


def _drain(session: Session, now: bool) -> dict[str, Any]:
    state = session.state()
    pending = session.ledger.pending()
    if not pending:
        return {"receipts": [], "state_digest": state.digest, "verified": None, "pending": 0, "waiting": 0}
    held = bool(session.ledger.holding([request.id for request in pending]))  # as far as was known when it was asked
    if held:
        session.sites.connect()
    session.tracker.need(UNTOUCHED)
    began = time.perf_counter()
    session.network()  # a policy that cannot be read is told before anything is purged
    inventory = _present(session)
    resting = session.sites.on_ray and not session.sites.live and not held
    before = time.perf_counter()
    searching = session.sites.at_rest(inventory) if resting else _everybody(session, state, inventory)
    starting = time.perf_counter() - before  # starting actors is not draining
    moved = searching.traffic.up + searching.traffic.down
    standing = session.ledger.standing()
    searched, found = locate_pending(session, searching, [*pending, *standing], state)
    late = tuple(sorted({client for request in standing for client in found.get(request.id, ())}))
    ready = _ready(session, pending, now)
    if not ready:
        return {"receipts": [], "state_digest": state.digest, "verified": None} | _waiting(session, pending)
    federation = searching
    if resting and (late or _something_to_do(session, state, inventory, ready)):
        before = time.perf_counter()
        federation = _everybody(session, state, inventory)
        federation.traffic.up, federation.traffic.down = searching.traffic.up, searching.traffic.down
        starting += time.perf_counter() - before
    removed = session.ledger.plan([request.id for request in ready])
    batch = _Batch(tuple(request for request in ready if request.id in removed), removed, searched, late)
    # Tagged before anything is logged, so that lineage misses nothing of a drain that is killed.
    with session.run("erasure", session.holds(client.name for client in state.clients)) as run:
        session.tracker.need(UNTOUCHED)
        drain = _Drain(session, run, federation, inventory, state, batch, began + starting, moved)
        return drain.honour() | _waiting(session, pending, batch.ids)


def _present(session: Session) -> Inventory:
    """Return who is where; raises `ClientsUnavailableError` where anybody but those who have left is away."""
    inventory = session.sites.look()
    if gone := {name: why for name, why in inventory.away.items() if name not in session.sites.left(inventory.away)}:
        raise ClientsUnavailableError.of(gone)
    return inventory


def _everybody(session: Session, state: State, inventory: Inventory) -> Federation:
    """Return the federation of all that hold a shard, and of the state's clients.

    Those who have left are not in it: they are in no state, and their shards go when they are there.
    """
    held = set(inventory.held) - session.sites.left(inventory.held)
    federation = session.sites.federation(
        session.sites.locations_of({*held, *(client.name for client in state.clients)}, inventory)
    )
    session.sites.dismiss(federation, inventory, session.sites.left(inventory.held))
    return federation


def _something_to_do(session: Session, state: State, inventory: Inventory, ready: Sequence[EraseRequest]) -> bool:
    """Return whether a drain has more to do than to answer: then, and only then, hosts are started for it.

    Somebody holds what goes, or has left; or the state is not one that the ledger knows as clean, with its bits.
    """
    left = session.sites.left({*inventory.held, *(client.name for client in state.clients)})
    known = state.contents in session.ledger.history.clean_contents()
    return bool(left or not known or session.ledger.holding([request.id for request in ready]))


def _waiting(session: Session, pending: Sequence[EraseRequest], drained: Collection[str] = ()) -> dict[str, Any]:
    waiting = [request for request in pending if request.id not in drained]
    return {"waiting": len(waiting), "pending": len(session.ledger.pending())}


def locate_pending(
    session: Session, federation: Federation, pending: Sequence[EraseRequest], state: State | None
) -> tuple[dict[str, int], dict[str, dict[str, list[str]]]]:
    """Search every client for what requests mean and write the tombstones.

    Gives the records looked through, by client, and the tombstones by request and client.

    Raises `FederationError` where a client of the state cannot be searched, or a shard is not as it was written:
    nothing has been touched then.
    """
    selections = {request.id: request.selection for request in pending if request.selection is not None}
    replies = in_order(federation.run(LocateRecords(selections, session.key)))
    found: dict[str, dict[str, list[str]]] = {}
    for reply in replies:
        for request, names in reply.record["found"].items():
            found.setdefault(request, {})[reply.client] = names
    if state is not None:
        check_shards(session, {reply.client: reply.record["digest"] for reply in replies if reply.record["held"]})
        _all_there(session, state, {reply.client for reply in replies if reply.record["held"]}, list(selections))
    session.ledger.add_tombstones(found)
    return {reply.client: reply.record["searched"] for reply in replies if reply.record["held"]}, found


def _all_there(session: Session, state: State, held: Collection[str], requests: Sequence[str]) -> None:
    """A client of the state without a shard is being erased whole by a drain that was killed, has left, or is away."""
    there = {*held, *session.sites.left(client.name for client in state.clients)}
    away = [client for client in state.clients if client.records and client.name not in there]
    if not away:
        return
    tombstoned = [session.ledger.tombstones([client.name for client in away], request) for request in requests]
    for client in away:
        if len(frozenset().union(*(names.get(client.name, frozenset()) for names in tombstoned))) < client.records:
            known = sorted(held)
            raise FederationError(
                f'client "{client.name}" cannot be searched: its shard is not in {_shards_of(session, client.name)}'
                f"{near_miss(client.name, known)}. The requests stay open and nothing was touched; bring the shard "
                "back, or run `frmu train`"
            )


def _shards_of(session: Session, client: str) -> str:
    place = session.sites.locations_of([client], session.sites.look())[client]
    return f"{place.shards}{f' of site {place.site}' if place.site else ''}"


def _ready(session: Session, pending: Sequence[EraseRequest], now: bool) -> list[EraseRequest]:
    """The requests to honour now: those that nobody holds anything of, and the others if they are enough."""
    holding = session.ledger.holding([request.id for request in pending])
    some = [request for request in pending if request.id in holding]
    rule, clock = session.config.erasure, session.ledger.now()
    begun = any(request.stage != "received" for request in some)
    urgent = any(request.days_left(clock) <= rule.urgent for request in some)
    if now or begun or urgent or len(some) >= rule.min_batch:
        return list(pending)
    return [request for request in pending if request.id not in holding]


# -- from plan to receipt -------------------------------------------------------------------------------------


class _Drain:
    """One batch on its way from plan to receipt."""

    def __init__(
        self, session: Session, run: Run, federation: Federation, inventory: Inventory, state: State, batch: _Batch,
        began: float, moved: int,
    ) -> None:  # fmt: skip
        self.session, self.run, self.federation, self.inventory = session, run, federation, inventory
        self.state, self.batch = state, batch
        self._began, self._moved = began, moved

    def honour(self) -> dict[str, Any]:
        session, batch = self.session, self.batch
        forget_set = session.ledger.tombstones(batch.touched, begun=True)
        kept = session.method.prepare(self.federation, self.state, forget_set) if batch.touched else None
        sources = self._purge(forget_set)
        retired = retire(session, batch.ids, batch.touched)
        done = self._refit(kept)
        state = self.state if done is None else done.state
        seconds = round(time.perf_counter() - self._began, 4)
        moved = self.federation.traffic.up + self.federation.traffic.down - self._moved
        removed = self._purge_runs()
        learned_from = {"run": self.run.id, "clients": session.owners(client.name for client in state.clients)}
        told = what_moved(self.state, state)
        learned_from |= {"features": told} if told else {}
        learned_from |= session.rounds_of(done) if done is not None else {}
        session.ledger.advance(batch.ids, "refitted", {"state": state.digest, "mlflow": removed, **learned_from})
        proving = time.perf_counter()
        verdict = self._proven(state, untouched=done is None)
        proving = round(time.perf_counter() - proving, 4)
        why_open = _no_guarantee(session)
        passed = verdict.passed and removed["clean"] and not why_open
        missed = not_searched(session, self.inventory, self.state, batch.searched)
        session.ledger.advance(
            batch.ids,
            "verified",
            {"passed": passed, "state": state.digest, "contents": state.contents, "rebuilt": verdict.rebuilt},
        )
        shared = {
            "experiment": session.config.experiment,
            "store": session.ledger.store_id,
            "searched": batch.searched,
            "level": scoped(verdict.level, missed) if removed["clean"] else "L0",
            "not_searched": tuple(missed.values()),
            "verified": passed,
            "before_digest": self.state.digest,
            "state_digest": state.digest,
            "seconds": seconds,
            "bytes": moved,
            "requests_in_batch": len(batch.ids),
            "evidence": verdict.evidence()
            | {"policies_retired": retired, "policy": state.policy, "witness": session.watch.kind}
            | ({"features": told} if told else {}),
            "not_covered": (
                *unsearched(missed.values()),
                *not_covered(session, self.inventory, sources is not None),
            ),
            "closed": session.ledger.now().isoformat(timespec="seconds"),
        }
        receipts = [
            new_receipt(request, batch.removed[request.id], shared, self._purged(request, sources, removed))
            for request in batch.requests
        ]
        filed = self._close(receipts, state, missed) if passed else [receipt.to_json() for receipt in receipts]
        summary = {
            "receipts": filed,
            "state_digest": state.digest,
            "verified": passed,
            "seconds": seconds,
            "verify_seconds": proving,
            "bytes": moved,
            "metrics": measure(self.federation, done) if done is not None else {},
            "run_id": self.run.id,
        } | ({"why_open": why_open} if why_open else {})
        self._log(done, state, summary)
        return summary

    def _proven(self, state: State, untouched: bool) -> ExactVerdict:
        """The proof of the state; one that stands as it was proven, over shards that do, is not proven again."""
        session = self.session
        tombstoned = session.ledger.tombstones(self.federation.clients, begun=True)
        if untouched and state.contents in session.ledger.history.clean_contents():
            return standing_verdict(session, state, tombstoned)
        return exact_verdict(session, state, tombstoned)

    def _purge(self, tombstoned: Mapping[str, frozenset[str]]) -> list[str] | None:
        """The clients that hold what was planned rewrite their shards without it; files of the user's too, if told."""
        session, batch = self.session, self.batch
        replies = in_order(self.federation.run(PurgeShard(tombstoned, session.key), on=batch.touched))
        sources = self._rewrite(tombstoned) if session.config.store.purge_source else None
        note_shards(session, {reply.client: reply.record["digest"] for reply in replies if reply.record["rows"]})
        rows = sum(reply.record["dropped"] for reply in replies)
        session.ledger.advance(
            batch.ids, "purged", {"records": batch.records, "rows": rows, "files": len(sources or ())}
        )
        return sources

    def _rewrite(self, tombstoned: Mapping[str, frozenset[str]]) -> list[str]:
        """Rewrite the user's files, where they lie; raises `FederationError` where a site is away."""
        done, gone = self.session.sites.run_at_sites(RewriteFiles(tombstoned, self.session.key))
        if gone:
            told = "; ".join(f'site "{site}" is away: {why}' for site, why in sorted(gone.items()))
            raise FederationError(f"{told}. Its files are still to be rewritten: drain again when it is back")
        return [f"{site}: {file}" if site else file for site, files in sorted(done.items()) for file in files]

    def _refit(self, kept: Any) -> Round | None:
        """One refit for the whole batch; none where nobody held anything, and nobody who is in the state has left."""
        if not self.batch.touched and not self.session.sites.left(client.name for client in self.state.clients):
            return None
        done = self.session.method.erase(self.federation, self.state, self.session.network(), self.batch.touched, kept)
        self.session.checkpoint(done.state)
        return done

    def _purge_runs(self) -> dict[str, Any]:
        """Say what was removed from MLflow, by this drain or by one that was killed before, and what is left there."""
        session, told = self.session, []
        for line in session.ledger.lines(["refitted"]):
            if line.request in self.batch.ids:
                told.append(line.body["mlflow"])
        removed = purge_runs(session, self.batch.touched, self.run.id, self.batch.ids).to_json()
        for before in told:
            for name in ("runs", "versions"):
                removed[name] = sorted({*removed[name], *before[name]})
            removed["artifacts"] = max(removed["artifacts"], before["artifacts"])
        return removed

    def _purged(self, request: EraseRequest, sources: list[str] | None, removed: dict[str, Any]) -> dict[str, Any]:
        return {
            "clients": sorted(self.batch.removed[request.id]),
            "source": "out of scope" if sources is None else "rewritten",
            "source_files": sources or [],
            "mlflow": removed,
        }

    def _close(self, receipts: Sequence[Receipt], state: State, missed: Collection[str]) -> list[dict[str, Any]]:
        """The clean version is the champion before a request is closed."""
        if state.clients:
            self.session.register(self.run, state, self.batch.ids)
        return self.session.ledger.close_requests(receipts, missed)

    def _log(self, done: Round | None, state: State, summary: Mapping[str, Any]) -> None:
        self.run.tags({"frmu.verified": str(summary["verified"])})
        self.run.params({"requests": len(summary["receipts"])})
        keys = ("seconds", "verify_seconds", "bytes")
        self.run.metrics(summary["metrics"] | {key: summary[key] for key in keys})
        self.run.json([open_part(receipt) for receipt in summary["receipts"]], "receipts.json")
        if done is not None:
            self.session.log_round(self.run, done)


def _no_guarantee(session: Session) -> str:
    """Return why the method in force can close no request; empty where its verifier can."""
    method = session.method
    if method.guarantee in VERIFIERS:
        return ""
    exact = "replay" if session.config.model.by_rounds else "analytic"
    return (
        f'the method "{method.name}" guarantees nothing that could close a request, so the requests stay open: set '
        f'model.method = "{exact}", train, and drain again'
    )
