"""The drain: pending requests are located, planned, purged, refitted, verified and closed, in one batch.

Every stage is a line of the ledger before the next begins, and every step does nothing when it is done twice, so a
drain that was killed anywhere is gone on with by the next. Until a request is planned nothing has been touched: a
client that does not answer leaves it as it was.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from frmu.clients.tasks.erasure import LocateRecords, PurgeShard
from frmu.data.sites import RewriteFiles
from frmu.errors import ClientsUnavailableError, FederationError, near_miss
from frmu.federation import Federation, in_order
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.methods.method import Round
from frmu.policy.checkpoint import lineage_of
from frmu.report.figures import measure
from frmu.selection.network import Network, read_policy
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.tracking.lineage import Purged
from frmu.tracking.sync import Taint, empty, left_in
from frmu.tracking.tracker import Run
from frmu.types import State
from frmu.verification.exact import ExactVerdict, verify_exact

__all__ = ["drain", "everybody", "exact_verdict", "locate_pending", "not_searched", "replay", "scoped"]

_COVER = (
    "copies of the records outside frmu, backups of its folder and of the ledger's database among them",
    "what people or other programs have read from the model, from MLflow or from receipts before this drain",
)
_UNTOUCHED = "No request is closed before MLflow is purged of what was learned from it; this drain touched nothing"
_SOURCE = "the files that data.path points at (set store.purge_source to have them rewritten as well)"


VERIFIERS = frozenset({"exact"})  # guarantees whose check may close a request: `exact_verdict`


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one drain honours: requests, and by request the records found, by client."""

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
    began = time.perf_counter()
    state = session.state()
    pending = session.ledger.pending()
    if not pending:
        return {"receipts": [], "state_digest": state.digest, "verified": None, "pending": 0, "waiting": 0}
    session.tracker.need(_UNTOUCHED)
    session.network()  # a policy that cannot be read is told before anything is purged
    before = time.perf_counter()
    federation, inventory = everybody(session, state)
    began += time.perf_counter() - before  # starting actors is not draining
    moved = federation.traffic.up + federation.traffic.down
    standing = session.ledger.standing()
    searched, found = locate_pending(session, federation, [*pending, *standing], state)
    late = tuple(sorted({client for request in standing for client in found.get(request.id, ())}))
    ready = _ready(session, pending, now)
    if not ready:
        return {"receipts": [], "state_digest": state.digest, "verified": None} | _waiting(session, pending)
    removed = session.ledger.plan([request.id for request in ready])
    batch = _Batch(tuple(request for request in ready if request.id in removed), removed, searched, late)
    # Tagged before anything is logged, so that lineage misses nothing of a drain that is killed.
    with session.run("erasure", session.holds(client.name for client in state.clients)) as run:
        session.tracker.need(_UNTOUCHED)
        return _Drain(session, run, federation, inventory, state, batch, began, moved).honour() | _waiting(
            session, pending, batch.ids
        )


def everybody(session: Session, state: State) -> tuple[Federation, Inventory]:
    """Return the federation of all that hold a shard, and of the state's clients, and who was found where.

    Raises `ClientsUnavailableError` where one is away. Those who have left are not in it: they are in no state, and
    their shards go when they are there.
    """
    inventory = session.sites.look()
    held = set(inventory.held) - session.sites.left(inventory.held)
    if gone := {name: why for name, why in inventory.away.items() if name not in session.sites.left(inventory.away)}:
        raise ClientsUnavailableError.of(gone)
    federation = session.sites.federation(
        session.sites.locations_of({*held, *(client.name for client in state.clients)}, inventory)
    )
    session.sites.dismiss(federation, inventory, session.sites.left(inventory.held))
    return federation, inventory


def _waiting(session: Session, pending: Sequence[EraseRequest], drained: Collection[str] = ()) -> dict[str, Any]:
    waiting = [request for request in pending if request.id not in drained]
    return {"waiting": len(waiting), "pending": len(session.ledger.pending())}


def locate_pending(
    session: Session, federation: Federation, pending: Sequence[EraseRequest], state: State | None
) -> tuple[dict[str, int], dict[str, dict[str, list[str]]]]:
    """Search every client for what requests mean and write the tombstones.

    Gives the records looked through, by client, and the tombstones by request and client.

    Raises `FederationError` where a client of the state cannot be searched: nothing has been touched then.
    """
    selections = {request.id: request.selection for request in pending if request.selection is not None}
    replies = in_order(federation.run(LocateRecords(selections, session.key)))
    found: dict[str, dict[str, list[str]]] = {}
    for reply in replies:
        for request, names in reply.record["found"].items():
            found.setdefault(request, {})[reply.client] = names
    if state is not None:
        _all_there(session, state, {reply.client for reply in replies if reply.record["held"]}, list(selections))
    session.ledger.add_tombstones(found)
    return {reply.client: reply.record["searched"] for reply in replies if reply.record["held"]}, found


def _all_there(session: Session, state: State, held: Collection[str], requests: Sequence[str]) -> None:
    """A client of the state without a shard is being erased whole, by a drain that was killed; or it is away."""
    away = [client for client in state.clients if client.records and client.name not in held]
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
        retired = _retire(session, batch.ids, batch.touched)
        done = self._refit(kept)
        state = self.state if done is None else done.state
        seconds = round(time.perf_counter() - self._began, 4)
        moved = self.federation.traffic.up + self.federation.traffic.down - self._moved
        removed = self._purge_runs()
        learned_from = {"run": self.run.id, "clients": session.owners(client.name for client in state.clients)}
        session.ledger.advance(batch.ids, "refitted", {"state": state.digest, "mlflow": removed, **learned_from})
        proving = time.perf_counter()
        verdict = exact_verdict(session, state, session.ledger.tombstones(self.federation.clients, begun=True))
        proving = round(time.perf_counter() - proving, 4)
        why_open = _no_guarantee(session)
        passed = verdict.passed and removed["clean"] and not why_open
        unsearched = not_searched(session, self.inventory, self.state, batch.searched)
        session.ledger.advance(
            batch.ids, "verified", {"passed": passed, "state": state.digest, "rebuilt": verdict.rebuilt}
        )
        shared = {
            "experiment": session.config.experiment,
            "store": session.ledger.store_id,
            "searched": batch.searched,
            "level": scoped(verdict.level, unsearched) if removed["clean"] else "L0",
            "not_searched": tuple(unsearched.values()),
            "verified": passed,
            "before_digest": self.state.digest,
            "state_digest": state.digest,
            "seconds": seconds,
            "bytes": moved,
            "requests_in_batch": len(batch.ids),
            "evidence": verdict.evidence() | {"policies_retired": retired, "policy": state.policy},
            "not_covered": (
                *_unsearched(unsearched.values()),
                *_not_covered(session, self.inventory, sources is not None),
            ),
            "closed": session.ledger.now().isoformat(timespec="seconds"),
        }
        receipts = [
            _receipt(request, batch.removed[request.id], shared, self._purged(request, sources, removed))
            for request in batch.requests
        ]
        filed = self._close(receipts, state, unsearched) if passed else [receipt.to_json() for receipt in receipts]
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

    def _purge(self, tombstoned: Mapping[str, frozenset[str]]) -> list[str] | None:
        """The clients that hold what was planned rewrite their shards without it; files of the user's too, if told."""
        session, batch = self.session, self.batch
        replies = in_order(self.federation.run(PurgeShard(tombstoned, session.key), on=batch.touched))
        sources = self._rewrite(tombstoned) if session.config.store.purge_source else None
        rows = sum(reply.record["dropped"] for reply in replies)
        session.ledger.advance(
            batch.ids, "purged", {"records": batch.records, "rows": rows, "files": len(sources or ())}
        )
        return sources

    def _rewrite(self, tombstoned: Mapping[str, frozenset[str]]) -> list[str]:
        """Rewrite the user's files, where they lie; raises `FederationError` where a site is away."""
        done, gone = self.session.sites.visit(RewriteFiles(tombstoned, self.session.key))
        if gone:
            told = "; ".join(f'site "{site}" is away: {why}' for site, why in sorted(gone.items()))
            raise FederationError(f"{told}. Its files are still to be rewritten: drain again when it is back")
        return [f"{site}: {file}" if site else file for site, files in sorted(done.items()) for file in files]

    def _refit(self, kept: Any) -> Round | None:
        """One refit for the whole batch; none where nobody held anything."""
        if not self.batch.touched:
            return None
        done = self.session.method.erase(self.federation, self.state, self.session.network(), self.batch.touched, kept)
        self.session.checkpoint(done.state)
        return done

    def _purge_runs(self) -> dict[str, Any]:
        """What was removed from MLflow, by this drain or by one that was killed before, and what is left there."""
        session, told = self.session, []
        for line in session.ledger.lines(["refitted"]):
            if line.request in self.batch.ids:
                told.append(line.body["mlflow"])
        removed = _purge_runs(session, self.batch.touched, self.run.id, self.batch.ids).to_json()
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

    def _close(self, receipts: Sequence[Receipt], state: State, unsearched: Collection[str]) -> list[dict[str, Any]]:
        """The clean version is the champion before a request is closed."""
        if state.clients:
            self.session.register(self.run, state, self.batch.ids)
        return self.session.ledger.close_requests(receipts, unsearched)

    def _log(self, done: Round | None, state: State, summary: Mapping[str, Any]) -> None:
        self.run.tags({"frmu.verified": str(summary["verified"])})
        self.run.params({"requests": len(summary["receipts"])})
        keys = ("seconds", "verify_seconds", "bytes")
        self.run.metrics(summary["metrics"] | {key: summary[key] for key in keys})
        self.run.json([_open_part(receipt) for receipt in summary["receipts"]], "receipts.json")
        if done is not None:
            self.session.log_round(self.run, done)


def _no_guarantee(session: Session) -> str:
    """Return why the method in force can close no request; empty where its verifier can."""
    method = session.method
    if method.guarantee in VERIFIERS:
        return ""
    return (
        f'the method "{method.name}" guarantees nothing that could close a request, so the requests stay open: set '
        'model.method = "analytic", train, and drain again'
    )


def not_searched(session: Session, inventory: Inventory, state: State, searched: Collection[str]) -> dict[str, str]:
    """Return the clients that took part once and were not searched, by the first 8 digits of their codes.

    Each by name where this folder still knows it; by code otherwise.
    """
    names = {
        *session.workspace.client_sites(),
        *inventory.held,
        *inventory.away,
        *(client.name for client in state.clients),
    }
    known = session.ledger.known() | {
        session.ledger.owner(name)[:8] for name in (*session.workspace.client_sites(), *inventory.away)
    }
    gone = {owner[:8] for owner in session.ledger.gone()}
    out = known - gone - {session.ledger.owner(client)[:8] for client in searched}
    if not out:
        return {}
    names |= set(session.sites.look(source=True).rows)  # who left has no shard here, and may have a file
    by_code = {session.ledger.owner(name)[:8]: name for name in sorted(names)}
    return {code: by_code.get(code, f"client {code}") for code in sorted(out)}


def scoped(level: str, unsearched: Collection[str]) -> str:
    """Return a level as it may be claimed where some clients were not searched."""
    return f"{level} of those searched" if level == "L5" and unsearched else level


def _unsearched(clients: Collection[str]) -> tuple[str, ...]:
    told = ", ".join(clients)
    return (f"the records of {told}: not searched, and searched before one is learned from again",) * bool(clients)


def _not_covered(session: Session, inventory: Inventory, rewritten: bool) -> tuple[str, ...]:
    """What the receipt does not speak of."""
    orphan = f"sums in the memory of a server that a killed job left at {session.sites.orphaned_server} (stop it there)"
    left = "the shards of clients that have left, at sites that are away (they are removed when these are back)"
    away = bool(session.sites.left(session.workspace.client_sites()) and session.sites.left(inventory.away))
    return (
        *((_SOURCE,) * (not rewritten)),
        *((orphan,) * bool(session.sites.orphaned_server)),
        *((left,) * away),
        *_COVER,
    )


def _open_part(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """A receipt without what may name somebody: MLflow is no place that the ledger can shred."""
    named = ("reason", "requester", "signature", "removed", "searched", "purge", "not_searched", "not_covered")
    counts = {name: sum(receipt[name].values()) for name in ("removed", "searched")}
    return {name: value for name, value in receipt.items() if name not in named} | counts


def _receipt(
    request: EraseRequest, removed: Mapping[str, int], shared: Mapping[str, Any], purge: Mapping[str, Any]
) -> Receipt:
    """One request's receipt: what is its own, and what it shares with its batch."""
    return Receipt(
        request=request.id,
        kind=request.kind,
        outcome="erased" if removed else "nothing held",
        requester=request.requester,
        reason=request.reason,
        received=request.received.isoformat(timespec="seconds"),
        due=request.due.isoformat(timespec="seconds"),
        removed=removed,
        purge=purge,
        **shared,
    )


def _retire(session: Session, ids: Sequence[str], touched: Collection[str]) -> list[str]:
    """Rule out and delete every policy that learned at a client whose records are going, a half-trained one too."""
    for file in sorted(session.workspace.policies.glob("*.safetensors")):
        if _tainted(network := read_policy(file), touched):
            session.ledger.note("retired", {"policy": network.digest, "requests": ids})
            file.unlink()
    if session.workspace.training.exists():
        digest, lineage = lineage_of(session.workspace.training)
        if lineage is None or set(lineage.get("clients", [])) & set(touched):
            session.ledger.note("retired", {"policy": digest, "requests": ids})
            session.workspace.training.unlink()
    while _tainted(network := session.network(), touched):  # one that policy.file names
        session.ledger.note("retired", {"policy": network.digest, "requests": ids})
    lines = [line for line in session.ledger.lines(["retired"]) if set(line.body["requests"]) & set(ids)]
    return sorted({line.body["policy"] for line in lines})


def _tainted(network: Network, touched: Collection[str]) -> bool:
    return bool(set(network.lineage.get("clients", [])) & set(touched))


def _purge_runs(session: Session, touched: Sequence[str], keep: str, requests: Sequence[str] = ()) -> Purged:
    """Remove from MLflow what was learned from some clients: by lineage tags, and by what the ledger knows itself.

    From the outbox first: that is done, and noted, even where MLflow goes away now.
    """
    owners = set(session.owners(touched))
    whole, known = session.config.erasure.runs == "delete", session.ledger.runs(owners)
    taint = Taint(owners, known, (keep,), session.ledger.clean_states())
    gone = empty(session.outbox, taint, whole)
    if gone.files or gone.runs:
        session.ledger.note("emptied", {"requests": list(requests), "runs": list(gone.runs), "files": gone.files})
    purged = session.registry.purge(owners, keep=(keep,), delete_runs=whole, known=known)
    told = [line.body for line in session.ledger.lines(["emptied"]) if set(line.body["requests"]) & set(requests)]
    runs = {*purged.runs, *gone.runs, *(run for body in told for run in body["runs"])}
    files = sum(body["files"] for body in told) if requests else gone.files
    left = replace(purged.left, carriers=(*purged.left.carriers, *left_in(session.outbox, taint)))
    return replace(purged, runs=tuple(sorted(runs)), left=left, outbox=files)


def exact_verdict(session: Session, state: State, tombstones: dict[str, frozenset[str]]) -> ExactVerdict:
    """Level 5 of a state: against a federation rebuilt from the shards, and the shards against tombstones."""
    inventory = session.sites.look()
    known = {client.name for client in state.clients}
    away = session.ledger.away(state.digest)
    left = session.sites.left(inventory.held)
    strange = session.workspace.unexpected_files() + [
        name for name in inventory.unexpected_files if session.config.sites
    ]
    strange += [
        f"the shard of {client}, which the state does not know"
        for client in inventory.held
        if client not in known and client not in left and session.ledger.owner(client) not in away
    ]
    verdict = verify_exact(
        session.config, session.method, session.network(),
        lambda config: session.sites.afresh(config, inventory), state, tombstones, session.key, strange,
    )  # fmt: skip
    return replace(verdict, left=verdict.left + _meant(session, inventory))


def _meant(session: Session, inventory: Inventory) -> int:
    """Count the records in the shards that standing requests mean: tombstones were made only where a drain looked."""
    selections = {
        request.id: request.selection for request in session.ledger.standing() if request.selection is not None
    }
    if not selections:
        return 0
    with session.sites.afresh(inventory=inventory) as federation:
        replies = list(federation.run(LocateRecords(selections, session.key)))
    return len(
        {(reply.client, name) for reply in replies for names in reply.record["found"].values() for name in names}
    )


# -- after a backup came back ---------------------------------------------------------------------------------


def replay(session: Session) -> dict[str, Any]:
    """Remove again whatever has a tombstone: for shards, checkpoints or runs that were restored from a backup."""
    result = _replay(session)
    session.deliver()
    return result | session.waiting()


def _replay(session: Session) -> dict[str, Any]:
    session.tracker.need(_UNTOUCHED)
    inventory = session.sites.look()
    if inventory.away:
        raise ClientsUnavailableError.of(inventory.away)
    clients = sorted(set(inventory.held) - session.sites.left(inventory.held))
    federation = session.sites.federation(session.sites.locations_of(clients, inventory))
    locate_pending(session, federation, session.ledger.standing(), None)
    tombstoned = session.ledger.tombstones(clients, begun=True)
    back = {
        reply.client: reply.record["dropped"]
        for reply in in_order(federation.run(PurgeShard(tombstoned, session.key), on=sorted(tombstoned)))
        if reply.record["dropped"]
    }
    for file in sorted(session.workspace.policies.glob("*.safetensors")):
        if read_policy(file).digest in session.ledger.retired():
            file.unlink()
    session.workspace.training.unlink(missing_ok=True)  # what it learned from may have come back with it
    with session.run("replay", session.holds(clients)) as run:
        done = session.method.apply(federation, session.method.init(), session.network())
        session.checkpoint(done.state)
        removed = _purge_runs(session, list(back), run.id)
        verdict = exact_verdict(session, done.state, session.ledger.tombstones(federation.clients, begun=True))
        passed = verdict.passed and removed.left.clean
        learned_from = {"run": run.id, "clients": session.owners(client.name for client in done.state.clients)}
        body = {"records": sum(back.values()), "state": done.state.digest, "passed": passed}
        session.ledger.note("replayed", body | learned_from)
        if passed and done.state.clients:
            session.register(run, done.state)
        session.log_round(run, done)
        run.metrics(measure(federation, done) | {"records_that_had_come_back": sum(back.values())})
    return {
        "came_back": back,
        "state_digest": done.state.digest,
        "verified": passed,
        "level": verdict.level if removed.left.clean else "L0",
        "mlflow": removed.to_json(),
        "pending": len(session.ledger.pending()),
        "run_id": run.id,
    }
