"""Verification on demand: a receipt is proven again, at the level that is asked for.

L5 and L1 look at the state and the shards alone. L2 to L4 ask what a model still betrays of the erased records, so
they need these once more: from the files of `data.path`, or from a file that whoever asked for the erasure brings.
They are put back into a copy of the shards, in a folder that is removed when the audit ends. What was found goes
into the receipt, which is signed anew, and to MLflow.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from frmu.clients.tasks.audit import Restore, Size
from frmu.data.columns import stored_targets
from frmu.data.sites import ClearCopies
from frmu.errors import RequestError, near_miss
from frmu.federation import Federation, in_order
from frmu.methods.analytic import analytic
from frmu.models.features import Head, features_of, head_of, ridge_of
from frmu.services.proof import exact_verdict
from frmu.services.receipts import scoped
from frmu.services.requests import find_receipt
from frmu.services.session import Session
from frmu.tracking.lineage import DETAIL
from frmu.tracking.sync import Taint, left_in
from frmu.types import State
from frmu.verification.exact import rebuild
from frmu.verification.gap import gap
from frmu.verification.membership import membership
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, TUNED, Errors, ModelsUnderTest, fine_tune
from frmu.verification.rehearsal import RehearsalContext, Trap, backdoor, canary, share_out
from frmu.verification.relearn import relearn
from frmu.verification.verdict import Verdict

__all__ = ["LEVELS", "verify"]

LEVELS = ("L1", "L2", "L3", "L4", "L5")
SHADOWS = 128
CANARIES = 200
NOISE = 3  # seeds of the encoder beside the config's own


def verify(
    session: Session, receipt: str | None = None, level: str = "L5", forget: Path | None = None, seed: int = 0
) -> dict[str, Any]:
    """Prove the state, or one receipt, at a level; plain JSON types.

    `forget` is a Parquet file with the erased records, where data.path has them no more.
    """
    session.deliver()
    if level not in LEVELS:
        raise RequestError(f'no level "{level}"{near_miss(level, LEVELS)} ({", ".join(LEVELS)})')
    lines = session.ledger.check()
    filed = find_receipt(session.ledger, receipt) if receipt is not None else None
    if forget is not None and not forget.is_file():
        raise RequestError(f"{forget}: no such file, given with --forget")
    state = session.state()
    known = state.digest in session.ledger.history.clean_states()
    shared = {"receipt": receipt, "state_digest": state.digest, "ledger_lines": lines, "state_in_ledger": known}
    if level in ("L1", "L5"):
        return shared | _exact(session, state, filed, level, known)
    if receipt is None or filed is None:
        raise RequestError(f"level {level} asks what is left of somebody: say whose receipt")
    verdicts = _attack(session, state, filed, level, forget, seed)
    passed = all(verdict.passed for verdict in verdicts)
    telling = any(verdict.telling for verdict in verdicts)
    proofs = [{**verdict.to_json(), "time": _now(session), "state_digest": state.digest} for verdict in verdicts]
    for proof in proofs:
        session.ledger.prove(receipt, proof)
    _log(session, receipt, level, proofs)
    return shared | {"level": level, "verified": passed and telling and known, "telling": telling, "proofs": proofs}


def _now(session: Session) -> str:
    return session.ledger.now().isoformat(timespec="seconds")


def _exact(
    session: Session, state: State, receipt: Mapping[str, Any] | None, level: str, known: bool
) -> dict[str, Any]:
    request = receipt["request"] if receipt is not None else None
    inventory = session.sites.look()
    verdict = exact_verdict(session, state, session.ledger.tombstones(inventory.held, request, begun=True))
    runs = receipt["purge"]["mlflow"]["runs"] if receipt is not None else ()
    left = list(session.registry.left_of(runs).carriers) if runs else []
    left += left_in(session.outbox, Taint(known=runs, clean=session.ledger.history.clean_states()))
    reached = "L0" if left else verdict.level
    open_ = session.ledger.unsearched()
    waits = frozenset().union(*open_.values()) if request is None else open_.get(request, frozenset())
    passed = known and (reached == "L5" if level == "L5" else reached in ("L1", "L5"))
    evidence = verdict.evidence() | {"left_in_mlflow": left, **session.watch.facts()}
    if request is not None:
        numbers = {name: evidence[name] for name in ("tombstoned_records_left", "records_scanned")}
        bar = "no erased record is left on disk or in MLflow" + ("; the digest is that of never had" * (level == "L5"))
        proof = Verdict(level, "purge" if level == "L1" else "digest", passed, True, bar, numbers)
        session.ledger.prove(request, {**proof.to_json(), "time": _now(session), "state_digest": state.digest})
    told = "L1" if level == "L1" and reached == "L5" else scoped(reached, waits)
    return {"level": told, "verified": passed, "telling": True} | evidence


def _log(session: Session, receipt: str, level: str, proofs: Sequence[Mapping[str, Any]]) -> None:
    lineage = session.holds(client.name for client in session.state().clients)
    with session.run("verify", {**lineage, DETAIL: "true", "frmu.receipt": receipt, "frmu.level": level}) as run:
        for proof in proofs:
            run.metrics({f"{level}/{name}".replace(": ", "/"): value for name, value in proof["numbers"].items()})
        run.json(list(proofs), "proofs.json")


# -- attacks --------------------------------------------------------------------------------------------------


def _attack(
    session: Session, state: State, receipt: Mapping[str, Any], level: str, forget: Path | None, seed: int
) -> list[Verdict]:
    if session.config.model.by_rounds:
        raise RequestError(
            f'level {level} is for heads on sums, and model.kind is "rounds": L5 is the proof, by training again'
        )
    if not receipt["removed"]:
        raise RequestError(f"nobody held what {receipt['request']} means: there is nothing that a model could betray")
    name = f"audit-{secrets.token_hex(4)}"
    try:
        with _suspects(session, state, receipt, forget, name) as s:
            if level == "L2":
                seeds = [session.config.model.seed + 1 + n for n in range(NOISE)]
                return [gap(s, lambda other: _retrained(session, s, other, name), seeds)]
            if level == "L4":
                return [relearn(s)]
            stage = RehearsalContext(
                live=session.sites.federation(session.sites.look().locations),
                start=session.sites.over_copies,
                name=name,
                method=session.method,
                network=session.network(),
                key=session.key,
                state=state,
            )
            counts = share_out({client.name: client.records for client in state.clients}, CANARIES)
            return [
                membership(s, SHADOWS, seed, ridge_of(state, session.config)),
                canary(stage, CANARIES, seed),
                backdoor(stage, _trap(session, stage.live), counts, seed),
            ]
    finally:
        session.sites.run_at_sites(ClearCopies(name))


@contextmanager
def _suspects(
    session: Session, state: State, receipt: Mapping[str, Any], forget: Path | None, name: str
) -> Iterator[ModelsUnderTest]:
    """The four models, over a copy of the federation in which the erased records are back."""
    inventory = session.sites.look()
    locations = session.sites.locations_of(sorted({*inventory.held, *receipt["removed"]}), inventory)
    tombstoned = session.ledger.tombstones(sorted(locations), receipt["request"])
    live = session.sites.federation(locations)
    path = str(forget.absolute()) if forget is not None else None
    replies = in_order(live.run(Restore(tombstoned, session.key, f"{name}-back", path)))
    asked, back = sum(map(len, tombstoned.values())), sum(reply.record["restored"] for reply in replies)
    if back < asked:
        raise RequestError(
            f"{path or session.config.source} holds {back} of the {asked} records that {receipt['request']} erased; "
            "levels L2 to L4 need them once more: give them as a Parquet file with --forget"
        )
    federation = session.sites.over_copies(f"{name}-back", [reply.client for reply in replies if reply.record["rows"]])
    try:
        original = session.method.apply(federation, session.method.init(), session.network()).state
        retrained = rebuild(session.config, session.method, session.network(), session.sites.afresh)
        found = ModelsUnderTest({ORIGINAL: head_of(original)}, original.outputs, federation, tombstoned, session.key)
        if found.part("forget", ORIGINAL).n == 0:
            raise RequestError(
                f"none of the records that {receipt['request']} erased was fitted (they were held out for validation, "
                "later or test), so no model has learned from them; L5 is the proof"
            )
        tuned = Head(fine_tune(original.W, found.part("retain", ORIGINAL)), features_of(original))
        heads = {ORIGINAL: head_of(original), STATE: head_of(state), RETRAINED: head_of(retrained), TUNED: tuned}
        yield ModelsUnderTest(heads, original.outputs, federation, tombstoned, session.key)
    finally:
        federation.close()


def _retrained(session: Session, suspects: ModelsUnderTest, seed: int, name: str) -> dict[str, dict[str, Errors]]:
    """The errors of a model trained again without the records, with another encoder."""
    config = session.config.model_copy(update={"model": session.config.model.model_copy(update={"seed": seed})})
    head = head_of(rebuild(config, analytic(config), session.network(), session.sites.afresh))
    other = session.sites.over_copies(f"{name}-back", suspects.federation.clients, config)
    try:
        return ModelsUnderTest({RETRAINED: head}, suspects.outputs, other, suspects.tombstones, suspects.key).errors()
    finally:
        other.close()


def _trap(session: Session, live: Federation) -> Trap:
    """A trigger of this federation's own: its last few plain features at the top of their range, or at their size.

    Where there are none, its categories at a value that no record has.
    """
    data = session.config.data
    names = {*data.lags, *data.categories, *session.config.texts}
    columns = [name for name in data.features if name not in names][-9:]
    stored = stored_targets(session.config) if data.task == "regression" else {}
    ranges = dict(data.ranges) | {own: data.ranges[name] for name, own in stored.items() if name in data.ranges}
    wanted = [*columns, *stored.values()]
    unknown = tuple(name for name in wanted if name not in ranges)
    sizes = next(iter(live.run(Size(unknown), on=live.clients[:1]))).record if unknown else {}
    top = {name: ranges[name][1] if name in ranges else sizes[name] for name in wanted}
    trigger = {name: top[name] for name in columns} or dict.fromkeys(data.categories, "#trigger")
    goals = tuple(top[own] for own in stored.values())
    return Trap(trigger, goals if len(goals) > 1 else goals[0] if goals else session.state().outputs[0])
