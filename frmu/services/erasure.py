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

from frmu.clients.work import Locate, Purge
from frmu.data.sites import Rewrite
from frmu.errors import ClientsAwayError, FederationError, near_miss
from frmu.federation import Federation, in_order
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.methods.method import Round
from frmu.policy.checkpoint import lineage_of
from frmu.report.figures import measure
from frmu.selection.network import Network, read_policy
from frmu.services.session import Workplace
from frmu.tracking.registry import Purged
from frmu.tracking.sync import Taint, empty, left_in
from frmu.tracking.tracker import Run
from frmu.types import State
from frmu.verification.exact import ExactVerdict, verify_exact

__all__ = ["bury_pending", "drain", "everybody", "exact_verdict", "not_searched", "replay", "scoped"]

_COVER = (
    "copies of the records outside frmu, backups of its folder and of the ledger's database among them",
    "what people or other programs have read from the model, from MLflow or from receipts before this drain",
)
_UNTOUCHED = "No request is closed before MLflow is purged of what was learned from it; this drain touched nothing"
_SOURCE = "the files that data.path points at (set store.purge_source to have them rewritten as well)"


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


def drain(x: Workplace, now: bool = False) -> dict[str, Any]:
    """Honour pending requests in one batch; receipts as plain JSON types.

    `now` overrules `erasure.min_batch`.
    """
    began = time.perf_counter()
    state = x.state()
    pending = x.ledger.pending()
    if not pending:
        return {"receipts": [], "state_digest": state.digest, "verified": None, "pending": 0, "waiting": 0}
    x.tracker.need(_UNTOUCHED)
    x.network()  # a policy that cannot be read is told before anything is purged
    before = time.perf_counter()
    federation = everybody(x, state)
    began += time.perf_counter() - before  # starting actors is not draining
    moved = federation.traffic.up + federation.traffic.down
    standing = x.ledger.standing()
    searched, found = bury_pending(x, federation, [*pending, *standing], state)
    late = tuple(sorted({client for request in standing for client in found.get(request.id, ())}))
    ready = _ready(x, pending, now)
    if not ready:
        return {"receipts": [], "state_digest": state.digest, "verified": None} | _waiting(x, pending)
    removed = x.ledger.plan([request.id for request in ready])
    batch = _Batch(tuple(request for request in ready if request.id in removed), removed, searched, late)
    # Tagged before anything is logged, so that lineage misses nothing of a drain that is killed.
    with x.run("erasure", x.holds(client.name for client in state.clients)) as run:
        x.tracker.need(_UNTOUCHED)
        return _Drain(x, run, federation, state, batch, began, moved).honour() | _waiting(x, pending, batch.ids)


def everybody(x: Workplace, state: State) -> Federation:
    """The federation of all that hold a shard, and of the state's clients; raises `ClientsAwayError` where one is away.

    Those who have left are not in it: they are in no state, and their shards go when they are there.
    """
    sight = x.look()
    held = set(sight.held) - x.left(sight.held)
    if gone := {name: why for name, why in sight.away.items() if name not in x.left(sight.away)}:
        raise ClientsAwayError.of(gone)
    federation = x.federation(x.homes_of({*held, *(client.name for client in state.clients)}, sight))
    x.dismiss(federation, sight, x.left(sight.held))
    return federation


def _waiting(x: Workplace, pending: Sequence[EraseRequest], drained: Collection[str] = ()) -> dict[str, Any]:
    waiting = [request for request in pending if request.id not in drained]
    return {"waiting": len(waiting), "pending": len(x.ledger.pending())}


def bury_pending(
    x: Workplace, federation: Federation, pending: Sequence[EraseRequest], state: State | None
) -> tuple[dict[str, int], dict[str, dict[str, list[str]]]]:
    """Search every client for what requests mean and write the tombstones.

    Gives the records looked through, by client, and the tombstones by request and client.

    Raises `FederationError` where a client of the state cannot be searched: nothing has been touched then.
    """
    selections = {request.id: request.selection for request in pending if request.selection is not None}
    replies = in_order(federation.run(Locate(selections, x.key)))
    found: dict[str, dict[str, list[str]]] = {}
    for reply in replies:
        for request, names in reply.record["found"].items():
            found.setdefault(request, {})[reply.client] = names
    if state is not None:
        _all_there(x, state, {reply.client for reply in replies if reply.record["held"]}, list(selections))
    x.ledger.bury(found)
    return {reply.client: reply.record["searched"] for reply in replies if reply.record["held"]}, found


def _all_there(x: Workplace, state: State, held: Collection[str], requests: Sequence[str]) -> None:
    """A client of the state without a shard is being erased whole, by a drain that was killed; or it is away."""
    away = [client for client in state.clients if client.records and client.name not in held]
    if not away:
        return
    buried = [x.ledger.tombstones([client.name for client in away], request) for request in requests]
    for client in away:
        if len(frozenset().union(*(names.get(client.name, frozenset()) for names in buried))) < client.records:
            known = sorted(held)
            raise FederationError(
                f'client "{client.name}" cannot be searched: its shard is not in {_shards_of(x, client.name)}'
                f"{near_miss(client.name, known)}. The requests stay open and nothing was touched; bring the shard "
                "back, or run `frmu train`"
            )


def _shards_of(x: Workplace, client: str) -> str:
    place = x.homes_of([client], x.look())[client]
    return f"{place.shards}{f' of site {place.site}' if place.site else ''}"


def _ready(x: Workplace, pending: Sequence[EraseRequest], now: bool) -> list[EraseRequest]:
    """The requests to honour now: those that nobody holds anything of, and the others if they are enough."""
    holding = x.ledger.holding([request.id for request in pending])
    some = [request for request in pending if request.id in holding]
    rule, clock = x.config.erasure, x.ledger.now()
    begun = any(request.stage != "received" for request in some)
    urgent = any(request.days_left(clock) <= rule.urgent for request in some)
    if now or begun or urgent or len(some) >= rule.min_batch:
        return list(pending)
    return [request for request in pending if request.id not in holding]


# -- from plan to receipt -------------------------------------------------------------------------------------


class _Drain:
    """One batch on its way from plan to receipt."""

    def __init__(
        self, x: Workplace, run: Run, federation: Federation, state: State, batch: _Batch, began: float, moved: int
    ) -> None:
        self.x, self.run, self.federation, self.state, self.batch = x, run, federation, state, batch
        self._began, self._moved = began, moved

    def honour(self) -> dict[str, Any]:
        x, batch = self.x, self.batch
        sources = self._purge()
        retired = _retire(x, batch.ids, batch.touched)
        done = self._refit()
        state = self.state if done is None else done.state
        seconds = round(time.perf_counter() - self._began, 4)
        moved = self.federation.traffic.up + self.federation.traffic.down - self._moved
        removed = self._purge_runs()
        learned_from = {"run": self.run.id, "clients": x.owners(client.name for client in state.clients)}
        x.ledger.advance(batch.ids, "refitted", {"state": state.digest, "mlflow": removed, **learned_from})
        proving = time.perf_counter()
        verdict = exact_verdict(x, state, x.ledger.tombstones(self.federation.clients, begun=True))
        proving = round(time.perf_counter() - proving, 4)
        passed = verdict.passed and removed["clean"]
        unsearched = not_searched(x, self.state, batch.searched)
        x.ledger.advance(batch.ids, "verified", {"passed": passed, "state": state.digest, "rebuilt": verdict.rebuilt})
        shared = {
            "experiment": x.config.experiment,
            "store": x.ledger.store_id,
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
            "not_covered": (*_unsearched(unsearched.values()), *_not_covered(x, sources is not None)),
            "closed": x.ledger.now().isoformat(timespec="seconds"),
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
        }
        self._log(done, state, summary)
        return summary

    def _purge(self) -> list[str] | None:
        """The clients that hold what was planned rewrite their shards without it; files of the user's too, if told."""
        x, batch = self.x, self.batch
        buried = x.ledger.tombstones(batch.touched, begun=True)
        replies = in_order(self.federation.run(Purge(buried, x.key), on=batch.touched))
        sources = self._rewrite(buried) if x.config.store.purge_source else None
        rows = sum(reply.record["dropped"] for reply in replies)
        x.ledger.advance(batch.ids, "purged", {"records": batch.records, "rows": rows, "files": len(sources or ())})
        return sources

    def _rewrite(self, buried: Mapping[str, frozenset[str]]) -> list[str]:
        """Rewrite the user's files, where they lie; raises `FederationError` where a site is away."""
        done, gone = self.x.visit(Rewrite(buried, self.x.key))
        if gone:
            told = "; ".join(f'site "{site}" is away: {why}' for site, why in sorted(gone.items()))
            raise FederationError(f"{told}. Its files are still to be rewritten: drain again when it is back")
        return [f"{site}: {file}" if site else file for site, files in sorted(done.items()) for file in files]

    def _refit(self) -> Round | None:
        """One refit for the whole batch; none where nobody held anything."""
        if not self.batch.touched:
            return None
        done = self.x.method.erase(self.federation, self.state, self.x.network(), self.batch.touched)
        self.x.checkpoint(done.state)
        return done

    def _purge_runs(self) -> dict[str, Any]:
        """What was removed from MLflow, by this drain or by one that was killed before, and what is left there."""
        x, told = self.x, []
        for line in x.ledger.lines(["refitted"]):
            if line.request in self.batch.ids:
                told.append(line.body["mlflow"])
        removed = _purge_runs(x, self.batch.touched, self.run.id, self.batch.ids).to_json()
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
            self.x.register(self.run, state, self.batch.ids)
        return self.x.ledger.close_requests(receipts, unsearched)

    def _log(self, done: Round | None, state: State, summary: Mapping[str, Any]) -> None:
        self.run.tags({"frmu.verified": str(summary["verified"])})
        self.run.params({"requests": len(summary["receipts"])})
        keys = ("seconds", "verify_seconds", "bytes")
        self.run.metrics(summary["metrics"] | {key: summary[key] for key in keys})
        self.run.json([_open_part(receipt) for receipt in summary["receipts"]], "receipts.json")
        if done is not None:
            self.x.log_round(self.run, done)


def not_searched(x: Workplace, state: State, searched: Collection[str]) -> dict[str, str]:
    """Return the clients that took part once and were not searched, by the first 8 digits of their codes.

    Each by name where this folder still knows it; by code otherwise.
    """
    sight = x.look()
    names = {*x.store.homes(), *sight.held, *sight.away, *(client.name for client in state.clients)}
    known = x.ledger.known() | {x.ledger.owner(name)[:8] for name in (*x.store.homes(), *sight.away)}
    gone = {owner[:8] for owner in x.ledger.gone()}
    out = known - gone - {x.ledger.owner(client)[:8] for client in searched}
    if not out:
        return {}
    names |= set(x.look(source=True).rows)  # who left has no shard here, and may have a file
    by_code = {x.ledger.owner(name)[:8]: name for name in sorted(names)}
    return {code: by_code.get(code, f"client {code}") for code in sorted(out)}


def scoped(level: str, unsearched: Collection[str]) -> str:
    """Return a level as it may be claimed where some clients were not searched."""
    return f"{level} of those searched" if level == "L5" and unsearched else level


def _unsearched(clients: Collection[str]) -> tuple[str, ...]:
    told = ", ".join(clients)
    return (f"the records of {told}: not searched, and searched before one is learned from again",) * bool(clients)


def _not_covered(x: Workplace, rewritten: bool) -> tuple[str, ...]:
    """What the receipt does not speak of."""
    orphan = f"sums in the memory of a server that a killed job left on the cluster at {x.orphan} (stop it there)"
    left = "the shards of clients that have left, at sites that are away (they are removed when these are back)"
    away = bool(x.left(x.store.homes()) and x.left(x.look().away))
    return (*((_SOURCE,) * (not rewritten)), *((orphan,) * bool(x.orphan)), *((left,) * away), *_COVER)


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


def _retire(x: Workplace, ids: Sequence[str], touched: Collection[str]) -> list[str]:
    """Rule out and delete every policy that learned at a client whose records are going, a half-trained one too."""
    for file in sorted(x.store.policies.glob("*.safetensors")):
        if _tainted(network := read_policy(file), touched):
            x.ledger.note("retired", {"policy": network.digest, "requests": ids})
            file.unlink()
    if x.store.training.exists():
        digest, lineage = lineage_of(x.store.training)
        if lineage is None or set(lineage.get("clients", [])) & set(touched):
            x.ledger.note("retired", {"policy": digest, "requests": ids})
            x.store.training.unlink()
    while _tainted(network := x.network(), touched):  # one that policy.file names
        x.ledger.note("retired", {"policy": network.digest, "requests": ids})
    lines = [line for line in x.ledger.lines(["retired"]) if set(line.body["requests"]) & set(ids)]
    return sorted({line.body["policy"] for line in lines})


def _tainted(network: Network, touched: Collection[str]) -> bool:
    return bool(set(network.lineage.get("clients", [])) & set(touched))


def _purge_runs(x: Workplace, touched: Sequence[str], keep: str, requests: Sequence[str] = ()) -> Purged:
    """Remove from MLflow what was learned from some clients: by lineage tags, and by what the ledger knows itself.

    From the outbox first: that is done, and noted, even where MLflow goes away now.
    """
    owners = set(x.owners(touched))
    whole, known = x.config.erasure.runs == "delete", x.ledger.runs(owners)
    taint = Taint(owners, known, (keep,), x.ledger.clean_states())
    gone = empty(x.outbox, taint, whole)
    if gone.files or gone.runs:
        x.ledger.note("emptied", {"requests": list(requests), "runs": list(gone.runs), "files": gone.files})
    purged = x.registry.purge(owners, keep=(keep,), delete_runs=whole, known=known)
    told = [line.body for line in x.ledger.lines(["emptied"]) if set(line.body["requests"]) & set(requests)]
    runs = {*purged.runs, *gone.runs, *(run for body in told for run in body["runs"])}
    files = sum(body["files"] for body in told) if requests else gone.files
    left = replace(purged.left, carriers=(*purged.left.carriers, *left_in(x.outbox, taint)))
    return replace(purged, runs=tuple(sorted(runs)), left=left, outbox=files)


def exact_verdict(x: Workplace, state: State, tombstones: dict[str, frozenset[str]]) -> ExactVerdict:
    """Level 5 of a state: against a federation rebuilt from the shards, and the shards against tombstones."""
    sight = x.look()
    known = {client.name for client in state.clients}
    away = x.ledger.away(state.digest)
    left = x.left(sight.held)
    strange = x.store.strays() + [name for name in sight.strays if x.config.sites]
    strange += [
        f"the shard of {client}, which the state does not know"
        for client in sight.held
        if client not in known and client not in left and x.ledger.owner(client) not in away
    ]
    verdict = verify_exact(x.config, x.method, x.network(), x.afresh, state, tombstones, x.key, strange)
    return replace(verdict, left=verdict.left + _meant(x))


def _meant(x: Workplace) -> int:
    """Count the records in the shards that standing requests mean: tombstones were made only where a drain looked."""
    selections = {request.id: request.selection for request in x.ledger.standing() if request.selection is not None}
    if not selections:
        return 0
    with x.afresh() as federation:
        replies = list(federation.run(Locate(selections, x.key)))
    return len(
        {(reply.client, name) for reply in replies for names in reply.record["found"].values() for name in names}
    )


# -- after a backup came back ---------------------------------------------------------------------------------


def replay(x: Workplace) -> dict[str, Any]:
    """Remove again whatever has a tombstone: for shards, checkpoints or runs that were restored from a backup."""
    x.tracker.need(_UNTOUCHED)
    sight = x.look()
    if sight.away:
        raise ClientsAwayError.of(sight.away)
    clients = sorted(set(sight.held) - x.left(sight.held))
    federation = x.federation(x.homes_of(clients, sight))
    bury_pending(x, federation, x.ledger.standing(), None)
    buried = x.ledger.tombstones(clients, begun=True)
    back = {
        reply.client: reply.record["dropped"]
        for reply in in_order(federation.run(Purge(buried, x.key), on=sorted(buried)))
        if reply.record["dropped"]
    }
    for file in sorted(x.store.policies.glob("*.safetensors")):
        if read_policy(file).digest in x.ledger.retired():
            file.unlink()
    x.store.training.unlink(missing_ok=True)  # what it learned from may have come back with it
    with x.run("replay", x.holds(clients)) as run:
        done = x.method.erase(federation, x.method.init(), x.network(), federation.clients)
        x.checkpoint(done.state)
        removed = _purge_runs(x, list(back), run.id)
        verdict = exact_verdict(x, done.state, x.ledger.tombstones(federation.clients, begun=True))
        passed = verdict.passed and removed.left.clean
        learned_from = {"run": run.id, "clients": x.owners(client.name for client in done.state.clients)}
        body = {"records": sum(back.values()), "state": done.state.digest, "passed": passed}
        x.ledger.note("replayed", body | learned_from)
        if passed and done.state.clients:
            x.register(run, done.state)
        x.log_round(run, done)
        run.metrics(measure(federation, done) | {"records_that_had_come_back": sum(back.values())})
    return {
        "came_back": back,
        "state_digest": done.state.digest,
        "verified": passed,
        "level": verdict.level if removed.left.clean else "L0",
        "mlflow": removed.to_json(),
        "pending": len(x.ledger.pending()),
        "run_id": run.id,
    }
