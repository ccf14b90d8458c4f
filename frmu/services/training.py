"""Training: every client imports the records that remain, one exact round is run, measured, logged and registered."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.errors import ClientsUnavailableError, ConfigError, FederationError, FrmuError, StoreError
from frmu.federation import Federation, Reply, in_order
from frmu.ledger.request import EraseRequest
from frmu.methods.method import Round
from frmu.models.features import described
from frmu.report.figures import forgotten, measure
from frmu.selection.network import Network
from frmu.services import erasure
from frmu.services.integrity import note_shards
from frmu.services.requests import DECLARED
from frmu.services.session import Session
from frmu.services.sites import Inventory
from frmu.storage.checkpoint import config_of
from frmu.tracking.tracker import Run, public
from frmu.types import Selection

__all__ = ["train"]

_log = logging.getLogger(__name__)
T = TypeVar("T")


def train(session: Session, until: dt.date | None = None) -> dict[str, Any]:
    """Import the records, run one round, measure it, log it; the summary as plain JSON types.

    `until` is the day that the split is counted back from where the config says "today"; the UTC day by default.
    Raises `ConfigError` where it is given and the config says otherwise.
    """
    if until is not None and not session.declared.split.rolling:
        raise ConfigError(
            f"{session.declared.file}: the split does not roll, so no day can be given for it; declare split.until = "
            '"today" and durations for validation, later and test'
        )
    session.move(until or dt.datetime.now(dt.UTC).date())
    session.sites.connect()
    network = session.network()  # a policy that cannot be read is told before anything is written
    _same_names(session, _names(session))
    inventory = session.sites.look(source=True)
    expected = _expected(session, inventory)
    there = [client for client in expected if client in inventory.rows]
    federation = session.sites.federation(
        session.sites.locations_of({*there, *(set(inventory.held) - session.sites.left(inventory.held))}, inventory),
        inventory.rows,
    )
    federation.away.update({client: why for client, why in inventory.away.items() if client in expected})
    if federation.away:
        _without(session, federation.away, expected)
    session.deliver()  # not before: MLflow is being imported while hosts start
    with session.run(
        "train", session.holds(expected)
    ) as run:  # tagged before anything is logged: lineage misses nothing
        summary = _round(session, run, federation, inventory, network, there, expected)
    return summary | session.waiting()


def _round(
    session: Session, run: Run, federation: Federation, inventory: Inventory, network: Network, there: Sequence[str],
    expected: Sequence[str],
) -> dict[str, Any]:  # fmt: skip
    """Import, fit, measure and log with those who are there."""
    began = time.perf_counter()  # starting actors is not training
    before = (federation.traffic.up, federation.traffic.down)
    names = _names(session)
    taken = _stage(session, federation, inventory, there, expected)
    initial = session.method.init()
    done = _attended(session, federation, expected, lambda: session.method.apply(federation, initial, network))
    session.checkpoint(done.state)
    seconds = time.perf_counter() - began
    summary = {
        "state_digest": done.state.digest,
        "metrics": _measured(session, federation, done),
        "rounds": len(done.history) or 1,
        "split_until": str(session.config.split.until) if session.declared.split.rolling else None,
        "seconds": round(seconds, 4),
        "bytes_up": federation.traffic.up - before[0],
        "bytes_down": federation.traffic.down - before[1],
        "clients": len(done.state.clients),
        "summed": len(done.fitted),
        "away": dict(sorted(federation.away.items())),
        "records": sum(client.records for client in done.state.clients),
        **taken,
        "policy": done.state.policy,
        "features": described(done.state),
        "forgotten": forgotten(done.state),
        "run_id": run.id,
        "tracking": public(session.tracker.uri),
    }
    learned_from = {"run": run.id, "clients": session.owners(client.name for client in done.state.clients)}
    out = set(federation.away) - {client.name for client in done.state.clients}
    told = {"state": done.state.digest, "contents": done.state.contents, "records": summary["records"], **learned_from}
    told |= session.rounds_of(done)
    session.ledger.note("trained", names | told | ({"away": sorted(map(session.ledger.owner, out))} if out else {}))
    _log_train(session, run, done, summary)
    summary["version"] = session.register_or_wait(run, done.state)
    return summary


def _names(session: Session) -> dict[str, str]:
    """The columns by which a tombstone knows a record."""
    return {"client": session.config.data.client, "record": session.config.data.record}


def _expected(session: Session, inventory: Inventory) -> list[str]:
    """The clients that a training is to have: of the user's files, and of sites that are away; who left is out."""
    known = {*inventory.rows, *inventory.away}
    if not known and inventory.gone:
        told = "; ".join(f'site "{site}": {why}' for site, why in sorted(inventory.gone.items()))
        raise FederationError(f"every site is away. {told}")
    return sorted(known - session.sites.left(known))


def _without(session: Session, away: Mapping[str, str], expected: Sequence[str]) -> None:
    """Go on without some clients, if the rules let us."""
    from frmu.runtime.rules import go_on_without

    _log.warning("%s", go_on_without(away, expected, session.config.rules))


def _attended(session: Session, federation: Federation, expected: Sequence[str], step: Callable[[], T]) -> T:
    """Do a step, again without those who turn out to be away, as long as the rules let us go on."""
    while True:
        try:
            return step()
        except ClientsUnavailableError as gone:
            if set(gone.reasons) <= set(federation.away):  # nobody new: the same step would end the same way
                raise
            federation.away.update(gone.reasons)
            _without(session, federation.away, expected)


def _measured(session: Session, federation: Federation, done: Round) -> dict[str, float]:
    """Errors over the records of those who are still there; the state stands, whoever went after it."""
    while True:
        try:
            return measure(federation, done)
        except ClientsUnavailableError as gone:
            if set(gone.reasons) <= set(federation.away):
                raise
            federation.away.update(gone.reasons)
            _log.warning("Measured without %s", ", ".join(sorted(gone.reasons)))


def _same_names(session: Session, names: Mapping[str, str]) -> None:
    """A tombstone knows a record by its client and id: once there are some, the columns must stay."""
    if not session.ledger.has_tombstones():
        return
    trained = [line.body for line in session.ledger.lines(["trained"])]
    before = trained[-1] if trained else names
    for role, column in names.items():
        if before[role] != column:
            raise ConfigError(
                f'{session.config.file}: data.{role} = "{column}" was "{before[role]}" when records were erased here; '
                "they could not be told any more. Set another store.folder"
            )


def _stage(
    session: Session, federation: Federation, inventory: Inventory, clients: Sequence[str], expected: Sequence[str]
) -> dict[str, Any]:
    """Every client reads its own records; all who are there take them over, or none.

    Gives how many were refused, how many are private, the requests by which private ones that were held go, and how
    many values are clipped.
    What an open or a standing request means is refused as well, and has its tombstones from now on.
    """
    pending = session.ledger.pending() + session.ledger.standing()
    if pending and inventory.held:
        before = _as_they_are(session, federation)
        _attended(session, federation, expected, lambda: _add_tombstones(session, before, federation.away, pending))
    open_requests = {request.id: request.selection for request in pending if request.selection is not None}
    work = StageShard(session.ledger.tombstones(clients), session.key, open_requests)
    try:
        replies = _attended(session, federation, expected, lambda: list(federation.run(work, on=clients)))
    except FrmuError:
        with suppress(FrmuError):  # the error under way is the one to tell
            list(federation.run(CommitShard(False), on=clients))
        raise
    found: dict[str, dict[str, list[str]]] = {}
    for reply in replies:
        for request, names in reply.record["found"].items():
            found.setdefault(request, {})[reply.client] = names
    session.ledger.add_tombstones(found)
    asked = _ask_for_private(session, {reply.client: reply.record["must_go"] for reply in in_order(replies)})
    digests = {reply.client: reply.record["digest"] for reply in replies if reply.record["rows"]}
    note_shards(session, digests, staged=True)
    _attended(session, federation, expected, lambda: list(federation.run(CommitShard(True), on=clients)))
    note_shards(session, {client: digest for client, digest in digests.items() if client not in federation.away})
    session.ledger.searched(reply.client for reply in replies)
    if nothing := session.owners(sorted(reply.client for reply in replies if not reply.record["rows"])):
        session.ledger.note("empty", {"clients": nothing})
    session.sites.dismiss(federation, inventory, set(inventory.held) - set(clients))
    rows, refused, private = (sum(reply.record[key] for reply in replies) for key in ("rows", "refused", "private"))
    if not rows:
        raise StoreError(_nothing_left(session, refused, private, asked))
    return {"refused": refused, "private": private, "private_requests": asked, **_clipped(replies)}


def _clipped(replies: Sequence[Reply]) -> dict[str, dict[str, int]]:
    """The values beyond their range, by its name, and at how many clients: sums, which name nobody."""
    values: Counter[str] = Counter()
    at: Counter[str] = Counter()
    for reply in replies:
        values.update(reply.record["clipped"])
        at.update(reply.record["clipped"].keys())
    return {"clipped": dict(sorted(values.items())), "clipped_at": dict(sorted(at.items()))}


def _nothing_left(session: Session, refused: int, private: int, asked: Sequence[str]) -> str:
    column = f'"{session.config.data.private}" (data.private)'
    why = "has been erased" if not private else f"is private by {column}" if not refused else (
        f"has been erased or is private by {column}"
    )  # fmt: skip
    drain = f". {', '.join(asked)} asked for what was held: `frmu drain` honours it" if asked else ""
    return f"{session.config.source}: every record there {why}; there is nothing to train on{drain}"


def _ask_for_private(session: Session, held: Mapping[str, Sequence[str]]) -> list[str]:
    """File a request for private records that were held and learned from; before the import drops them.

    Mandatory: no policy is asked. One a client, and none for what such a request asks for already. Record ids
    stay with the client: what the request means is its tombstones.
    """
    mine = [request.id for request in session.ledger.pending() if request.requester == DECLARED]
    asked = []
    for client, names in held.items():
        open_ = [session.ledger.tombstones([client], request).get(client, frozenset()) for request in mine]
        new = sorted(set(names) - frozenset().union(*open_))
        if new:
            selection = Selection("records", client=client)
            reason = f'column "{session.config.data.private}" says that they are private'
            request = session.ledger.receive(selection, reason, session.config.erasure.due, DECLARED, {client: new})
            asked.append(request.id)
    return asked


def _add_tombstones(
    session: Session, before: Federation, away: Mapping[str, str], pending: Sequence[EraseRequest]
) -> None:
    before.away.update(away)
    erasure.locate_pending(session, before, pending, None)


def _as_they_are(session: Session, federation: Federation) -> Federation:
    """The shards as the config reads them that wrote them: its columns may not be those of today."""
    before = config_of(session.workspace.state) if session.workspace.state.exists() else session.config
    if before.fingerprint() == session.config.fingerprint():
        return federation
    return session.sites.under(before)


def _log_train(session: Session, run: Run, done: Round, summary: Mapping[str, Any]) -> None:
    run.params(
        {"config": session.config.file.name, "fingerprint": session.config.fingerprint(), **_flat(session.config)}
    )
    run.metrics({**summary["metrics"], "seconds": summary["seconds"], "bytes_up": summary["bytes_up"]})
    run.json(dict(summary), "summary.json")
    session.log_round(run, done)


def _flat(config: Config) -> dict[str, Any]:
    tables = config.model_dump(mode="json", exclude={"store", "ray"})
    return {f"{table}.{key}": value for table, values in tables.items() for key, value in values.items()}
