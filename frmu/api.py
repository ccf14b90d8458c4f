"""What a job, a notebook or the command line calls: one experiment, its federation, its ledger, its runs.

with Experiment(load("homes.toml")) as experiment:
    experiment.train()
    experiment.drain()
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from frmu.aggregation.checkpoint import load_state
from frmu.client.client import tombstone
from frmu.client.work import Commit, Discard, Import, Locate, Purge
from frmu.config import Config
from frmu.data.shard import clients_in, sweep
from frmu.data.source import survey
from frmu.errors import ConfigError, FrmuError, LedgerError, RequestError, StoreError, near_miss
from frmu.federation import Federation, in_order
from frmu.influence.network import Network, current_policy, read_policy, write_policy
from frmu.influence.observation import FEATURES
from frmu.ledger.ledger import Ledger
from frmu.ledger.receipt import Receipt
from frmu.ledger.request import EraseRequest
from frmu.methods.analytic import analytic
from frmu.methods.method import Round
from frmu.report.figures import explain, forgotten, measure
from frmu.report.picture import draw_influence
from frmu.runtime.local import LocalFederation
from frmu.store import Store
from frmu.tracking import Run, Tracker, public
from frmu.types import Selection, State
from frmu.verify.exact import ExactVerdict, verify_exact

__all__ = ["Experiment", "erase", "ledger_of", "status"]

_COVER = (
    "copies of the records outside frmu, the files that data.path points at among them",
    "scalars (metrics, counts) in MLflow runs from before this drain",
)


class Experiment:
    """A config at work: its store is locked, its ledger and tracker are open, its federation starts on first use.

    `address` overrides `[ray] address`: "local" is in process, without Ray; None is the cluster that RAY_ADDRESS
    names, else a private Ray; anything else is a cluster to attach to. Raises what the store, the ledger and the
    tracker raise.
    """

    def __init__(self, config: Config, address: str | None = None) -> None:
        self.config = config
        self.address = address if address is not None else config.ray.address
        self._stack = ExitStack()
        self._federation: Federation | None = None

    def __enter__(self) -> Experiment:
        with ExitStack() as stack:
            self.store = Store.of(self.config)
            self.tracker = Tracker(
                Store(self.config.folder).tracking_uri(self.config),
                self.config.experiment,
                self.config.folder.absolute() / "mlartifacts",
            )
            stack.enter_context(self.store.lock())
            self.key = self.store.key()
            self.ledger = Ledger(self.store.ledger_url(self.config), self.key)
            stack.callback(self.ledger.close)
            if not self.ledger.check() and self.store.state.exists():
                raise LedgerError(
                    f"{self.store.folder}: there is a state but no line of its ledger; restore the ledger"
                )
            sweep(self.store.shards)
            sweep(self.store.policies)
            self.method = analytic(self.config)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    # -- the federation ---------------------------------------------------------------------------------------

    def federation(self, clients: Sequence[str]) -> Federation:
        """The live federation; started once, and again only when a client is new."""
        if self._federation is not None and set(clients) <= set(self._federation.clients):
            return self._federation
        if self._federation is not None:
            self._federation.close()
        if self.address == "local":
            self._federation = LocalFederation(self.config, clients, self.store.folder.absolute())
        else:
            from frmu.runtime.remote import RayFederation, cluster

            self._stack.enter_context(cluster(self.address))
            remote = RayFederation(self.config, clients, self.store.folder.absolute())
            self._stack.callback(remote.close)
            self._federation = remote
        return self._federation

    def network(self) -> Network:
        """The policy in force."""
        return current_policy(self.config.policy_file, self.store.policies, self.ledger.retired())

    # -- train ------------------------------------------------------------------------------------------------

    def train(self) -> dict[str, Any]:
        """Import the records, run one round, measure it, log it; the summary as plain JSON types."""
        with self.tracker.run("train") as run:
            return self._train(run)

    def _train(self, run: Run) -> dict[str, Any]:
        network = self.network()  # a policy that cannot be read is told before anything is written
        names = {"client": self.config.data.client, "record": self.config.data.record}
        self._same_names(names)
        source = survey(self.config)
        federation = self.federation(sorted({*source.clients, *clients_in(self.store.shards)}))
        began = time.perf_counter()  # starting actors is not training
        before = (federation.traffic.up, federation.traffic.down)
        imported = self._import(federation, source.clients)
        done = self.method.erase(federation, self.method.init(), network, federation.clients)
        seconds = time.perf_counter() - began
        summary = {
            "state_digest": done.state.digest,
            "metrics": measure(federation, done),
            "rounds": 1,
            "seconds": round(seconds, 4),
            "bytes_up": federation.traffic.up - before[0],
            "bytes_down": federation.traffic.down - before[1],
            "clients": len(done.state.clients),
            "records": sum(client.records for client in done.state.clients),
            "refused": imported,
            "policy": done.state.policy,
            "forgotten": forgotten(done.state),
            "run_id": run.id,
            "tracking": public(self.tracker.uri),
        }
        self.ledger.note("trained", names | {"state": done.state.digest, "records": summary["records"]})
        self._log_round(run, done, summary)
        return summary

    def _same_names(self, names: Mapping[str, str]) -> None:
        """A tombstone knows a record by its client and id: once there are some, the columns must stay."""
        if not self.ledger.holders():
            return
        before = next((line.body for line in self.ledger.lines() if line.kind == "trained"), names)
        for role, column in names.items():
            if before[role] != column:
                raise ConfigError(
                    f'{self.config.file}: data.{role} = "{column}" was "{before[role]}" when records were erased here; '
                    "they could not be told any more. Set another store.folder"
                )

    def _import(self, federation: Federation, clients: Sequence[str]) -> int:
        """Every client reads its own records; all take them over, or none. Gives how many were refused."""
        tombstones = self.ledger.tombstones(clients)
        try:
            replies = list(federation.run(Import(tombstones, self.key), on=clients))
        except FrmuError:
            with suppress(FrmuError):  # the error under way is the one to tell
                list(federation.run(Commit(False), on=clients))
            raise
        list(federation.run(Commit(True), on=clients))
        list(federation.run(Discard(), on=sorted(set(clients_in(self.store.shards)) - set(clients))))
        if not any(reply.record["rows"] for reply in replies):
            raise StoreError(f"{self.config.source}: every record there has been erased; there is nothing to train on")
        return sum(reply.record["refused"] for reply in replies)

    def _log_round(self, run: Run, done: Round, summary: Mapping[str, Any]) -> None:
        run.params({"config": self.config.file.name, "fingerprint": self.config.fingerprint(), **_flat(self.config)})
        run.tags({"frmu.state_digest": done.state.digest, "frmu.policy": done.state.policy})
        metrics = {**summary["metrics"], "seconds": summary["seconds"], "bytes_up": summary["bytes_up"]}
        for client in done.state.clients:
            metrics[f"attention/{client.name}"] = client.attention
            metrics |= {f"influence/{client.name}/{key}": value for key, value in client.influence.items()}
            for key, seen in done.records[client.name]["slices"].items():
                metrics[f"gain/{client.name}/{key}"] = seen["features"][FEATURES.index("gain")]
        run.metrics(metrics)
        run.json(explain(done), "slices.json")
        run.json(dict(summary), "summary.json")
        self._picture(run, done.state)

    def _picture(self, run: Run, state: State) -> None:
        if not state.clients:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "influence.png"
            draw_influence(state, path)
            run.picture(path)

    # -- policy -----------------------------------------------------------------------------------------------

    def learn(self, iterations: int | None = None, start: str = "current") -> dict[str, Any]:
        """Train the slice policy with RLlib on this federation's clients, and put it in force here.

        `start` is "current" (go on from the policy in force) or "scratch".
        """
        from frmu.policy.learn import board_of, train_policy

        if self.address == "local":
            raise RequestError("a policy is trained by RLlib on Ray; leave out --address local")
        state = self.state()
        federation = self.federation([client.name for client in state.clients])
        parent = self.network() if start == "current" else None
        with self.tracker.run("policy") as run:
            learned = train_policy(
                self.config.policy, [board_of(self.config, federation)], parent, iterations,
                on_iteration=lambda number, metrics: run.metrics(metrics, number),
            )  # fmt: skip
            names = {client.name for client in state.clients}
            inherited = parent.lineage.get("clients", []) if parent is not None else []
            lineage = {
                "clients": sorted(names | set(inherited)),
                "parent": parent.digest if parent is not None else None,
                "iterations": learned.iterations,
                "seed": self.config.policy.seed,
            }
            network = write_policy(learned.weights, lineage, self._next_policy())
            summary = {
                "policy": network.digest,
                "parent": lineage["parent"],
                "iterations": learned.iterations,
                "env_steps": learned.env_steps,
                "gain_first": learned.history[0]["gain"],
                "gain_last": learned.history[-1]["gain"],
                "td_error": learned.history[-1]["td_error"],
                "seconds": round(learned.seconds, 3),
                "run_id": run.id,
            }
            run.params({"parent": str(lineage["parent"]), "seed": self.config.policy.seed})
            run.json(summary, "summary.json")
            run.json(learned.scores, "scores.json")
        return summary | {"scores": learned.scores}

    def _next_policy(self) -> Path:
        there = [int(file.name.split("-")[0]) for file in self.store.policies.glob("*.safetensors")]
        return self.store.policies / f"{max(there, default=0) + 1:05d}-policy.safetensors"

    # -- erase ------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """The state as last checkpointed, or a `StoreError` where nothing was trained."""
        state = load_state(Store.existing(self.config).state)
        if state is None:
            raise StoreError(f"{self.store.state}: no checkpoint; run `frmu train` first")
        if state.config != self.config.fingerprint():
            raise StoreError(f"{self.store.state}: trained with another config; run `frmu train` first")
        return state

    def drain(self) -> dict[str, Any]:
        """Honour every pending request in one batch; receipts as plain JSON types."""
        state = self.state()
        pending = self.ledger.pending()
        if not pending:
            return {"receipts": [], "state_digest": state.digest, "pending": 0}
        with self.tracker.run("erasure") as run:
            return self._drain(run, state, pending)

    def _drain(self, run: Run, state: State, pending: list[EraseRequest]) -> dict[str, Any]:
        self.network()  # a policy that cannot be read is told before anything is purged
        federation = self.federation(sorted({*(c.name for c in state.clients), *clients_in(self.store.shards)}))
        began = time.perf_counter()
        moved = federation.traffic.up + federation.traffic.down
        ids = [request.id for request in pending]
        plans, searched = self._plan(federation, pending)
        touched = tuple(sorted({client for plan in plans.values() for client in plan}))
        self._purge(federation, ids, touched)
        retired = self._retire(ids, touched)
        done = self.method.erase(federation, state, self.network(), touched)
        self.ledger.advance(ids, "refitted", {"state": done.state.digest})
        seconds = round(time.perf_counter() - began, 4)
        moved = federation.traffic.up + federation.traffic.down - moved
        verdict = self._verdict(done.state, self.ledger.tombstones(federation.clients))
        self.ledger.advance(ids, "verified", {"passed": verdict.passed, "rebuilt": verdict.rebuilt})
        shared = {
            "level": verdict.level,
            "verified": verdict.passed,
            "state_digest": done.state.digest,
            "before_digest": state.digest,
            "seconds": seconds,
            "bytes": moved,
            "searched": searched,
            "evidence": verdict.evidence()
            | {"requests_in_batch": len(ids), "policies_retired": retired, "policy": done.state.policy},
            "not_covered": _COVER,
            "closed": self.ledger.now().isoformat(timespec="seconds"),
        }
        receipts = [_receipt(request, plans[request.id], shared) for request in pending]
        if verdict.passed:
            self.ledger.close_requests(receipts)
        summary = {
            "receipts": [receipt.to_json() for receipt in receipts],
            "state_digest": done.state.digest,
            "verified": verdict.passed,
            "seconds": seconds,
            "verify_seconds": round(time.perf_counter() - began - seconds, 4),
            "bytes": moved,
            "metrics": measure(federation, done),
            "pending": 0 if verdict.passed else len(pending),
            "run_id": run.id,
        }
        self._log_drain(run, done, summary)
        return summary

    def _purge(self, federation: Federation, ids: list[str], touched: tuple[str, ...]) -> None:
        """The clients that hold what was planned rewrite their shards without it."""
        replies = in_order(federation.run(Purge(self.ledger.tombstones(touched), self.key), on=touched))
        self.ledger.advance(ids, "purged", {"rows": {reply.client: reply.record["rows"] for reply in replies}})

    def _verdict(self, state: State, tombstones: dict[str, frozenset[str]]) -> ExactVerdict:
        return verify_exact(self.config, self.method, self.network(), self.store.shards, state, tombstones, self.key)

    def _plan(
        self, federation: Federation, pending: list[EraseRequest]
    ) -> tuple[dict[str, dict[str, int]], dict[str, int]]:
        """Find what each request means, write the tombstones and the plan; by request, records by client.

        What was found when the request was received, or before a crash, has its tombstones and counts as well: it
        may be gone already.
        """
        replies = in_order(federation.run(Locate({request.id: request.selection for request in pending}, self.key)))
        found: dict[str, dict[str, list[str]]] = {request.id: {} for request in pending}
        for reply in replies:
            for request, hit in reply.record["found"].items():
                found[request][reply.client] = hit["tombstones"]
        self.ledger.bury(found)
        clients = {*federation.clients, *self.ledger.holders([request.id for request in pending])}
        plans = {}
        for request in found:
            buried = self.ledger.tombstones(sorted(clients), request)
            plans[request] = {client: len(names) for client, names in buried.items()}
            self.ledger.plan(request, plans[request])
        return plans, {reply.client: reply.record["searched"] for reply in replies}

    def _retire(self, ids: list[str], touched: tuple[str, ...]) -> list[str]:
        """Rule out and delete every policy that learned at a client whose records are going."""
        for file in sorted(self.store.policies.glob("*.safetensors")):
            if self._tainted(network := read_policy(file), touched):
                self.ledger.note("retired", {"policy": network.digest, "requests": ids})
                file.unlink()
        while self._tainted(network := self.network(), touched):  # one that policy.file names
            self.ledger.note("retired", {"policy": network.digest, "requests": ids})
        lines = [line for line in self.ledger.lines() if line.kind == "retired"]
        return sorted({line.body["policy"] for line in lines if set(line.body["requests"]) & set(ids)})

    def _tainted(self, network: Network, touched: tuple[str, ...]) -> bool:
        return bool(set(network.lineage.get("clients", [])) & set(touched))

    def _log_drain(self, run: Run, done: Round, summary: Mapping[str, Any]) -> None:
        run.tags({"frmu.state_digest": done.state.digest, "frmu.verified": str(summary["verified"])})
        run.params({"requests": ", ".join(receipt["request"] for receipt in summary["receipts"])})
        keys = ("seconds", "verify_seconds", "bytes")
        run.metrics(summary["metrics"] | {key: summary[key] for key in keys})
        run.json(summary["receipts"], "receipts.json")
        run.json(explain(done), "slices.json")
        self._picture(run, done.state)

    # -- verify -----------------------------------------------------------------------------------------------

    def verify(self, receipt: str | None = None) -> dict[str, Any]:
        """Hold the state against a federation rebuilt from the shards, and the shards against the tombstones."""
        lines = self.ledger.check()
        receipts = {entry["request"]: entry for entry in self.ledger.receipts()}
        if receipt is not None and receipt not in receipts:
            raise RequestError(f'no receipt "{receipt}"{near_miss(receipt, receipts)}')
        state = self.state()
        everyone = sorted({*clients_in(self.store.shards), *self.ledger.holders()})
        tombstones = self.ledger.tombstones(everyone, receipt)
        verdict = self._verdict(state, tombstones)
        checked = {"receipt": receipt, "verified": verdict.passed, "level": verdict.level}
        return checked | {"state_digest": state.digest, "ledger_lines": lines} | verdict.evidence()


def _receipt(request: EraseRequest, removed: Mapping[str, int], shared: Mapping[str, Any]) -> Receipt:
    """One request's receipt: what is its own, and what it shares with its batch."""
    return Receipt(
        request=request.id,
        removed=removed,
        reason=request.reason,
        received=request.received.isoformat(timespec="seconds"),
        due=request.due.isoformat(timespec="seconds"),
        **shared,
    )


# -- without a federation -------------------------------------------------------------------------------------


@contextmanager
def ledger_of(config: Config) -> Iterator[Ledger]:
    """The ledger of a config that was trained before."""
    store = Store.existing(config)
    ledger = Ledger(store.ledger_url(config), store.key())
    try:
        yield ledger
    finally:
        ledger.close()


def erase(config: Config, selection: Selection, reason: str = "", due_days: int = 30) -> dict[str, Any]:
    """Write an erase request into the ledger, where the next drain finds it; the request as plain JSON types.

    May be called while a job is at work on the same store. Raises `RequestError` for a column that the config
    does not declare, a client or subject that nobody holds, and record ids that nobody holds (all named).
    """
    _check_columns(config, selection)
    with ledger_of(config) as ledger:
        store = Store(config.folder)
        found = _search(config, store, selection, ledger)
        # From now on the records are refused, so that a new import before the drain cannot hide them from it.
        counts = {client: len(names) for client, names in found.items()}
        request = ledger.receive(selection, reason, due_days, found, counts)
    return {
        "request": request.id,
        "kind": selection.kind,
        "records": sum(counts.values()),
        "clients": counts,
        "due": request.due.isoformat(timespec="seconds"),
        "stage": request.stage,
    }


def _check_columns(config: Config, selection: Selection) -> None:
    if selection.kind == "subject" and config.data.subject is None:
        raise RequestError("a request by subject needs data.subject in the config")
    if selection.kind == "between":
        if config.data.time is None:
            raise RequestError("a request by time window needs data.time in the config")
        if selection.between is None or not selection.between[0] < selection.between[1]:
            raise RequestError("a time window must be FROM TO with FROM before TO (TO itself is not in it)")


def _search(config: Config, store: Store, selection: Selection, ledger: Ledger) -> dict[str, list[str]]:
    """The tombstones of what a request means, by client; somebody must hold something.

    A list of record ids may name some that have been erased before.
    """
    clients = clients_in(store.shards)
    if selection.client is not None and selection.client not in clients:
        raise RequestError(f'no client "{selection.client}" holds a shard{near_miss(selection.client, clients)}')
    federation, key = LocalFederation(config, clients, store.folder), store.key()
    hits = {
        reply.client: reply.record["found"][""]["tombstones"]
        for reply in in_order(federation.run(Locate({"": selection}, key)))
        if reply.record["found"]
    }
    gone = _erased_before(selection, ledger, key, clients)
    if missing := [name for name in selection.records if name not in gone and not any(_hit(key, name, hits))]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise RequestError(f"no client holds the record ids {shown}; nothing was requested")
    if not hits and gone:
        raise RequestError("every one of these records has been erased before; nothing was requested")
    if not hits:
        what = f'subject "{selection.subject}"' if selection.kind == "subject" else "what was asked for"
        raise RequestError(f"no client holds a record of {what}; nothing was requested")
    return hits


def _erased_before(selection: Selection, ledger: Ledger, key: bytes, clients: Sequence[str]) -> set[str]:
    """Those of the record ids asked for that have a tombstone."""
    if not selection.records:
        return set()
    buried = ledger.tombstones({*clients, *ledger.holders()})
    return {
        record
        for record in selection.records
        for client, names in buried.items()
        if tombstone(key, client, record) in names
    }


def _hit(key: bytes, record: str, hits: Mapping[str, Sequence[str]]) -> Iterator[bool]:
    return (tombstone(key, client, record) in names for client, names in hits.items())


def status(config: Config) -> dict[str, Any]:
    """Where an experiment stands: its state, its clients, what is pending and by when."""
    store = Store.existing(config)
    state = load_state(store.state)
    if state is None:
        raise StoreError(f"{store.state}: no checkpoint; run `frmu train` first")
    with ledger_of(config) as ledger:
        now = ledger.now()
        pending = [
            {"request": r.id, "kind": r.selection.kind, "stage": r.stage, "days_left": r.days_left(now)}
            for r in ledger.pending()
        ]
        closed = len(ledger.receipts())
        policy = current_policy(config.policy_file, store.policies, ledger.retired())
    return {
        "state_digest": state.digest,
        "trained_with_this_config": state.config == config.fingerprint(),
        "clients": len(state.clients),
        "records": sum(client.records for client in state.clients),
        "forgotten": forgotten(state),
        "policy": policy.digest,
        "policy_learned_here_from": list(policy.lineage.get("clients", [])),
        "pending": pending,
        "receipts": closed,
        "folder": str(store.folder),
        "tracking": public(store.tracking_uri(config)),
    }


def _flat(config: Config) -> dict[str, Any]:
    tables = config.model_dump(mode="json", exclude={"store", "ray"})
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
