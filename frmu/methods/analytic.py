"""The exact method: additive slice statistics under influences and attention, and one solve.

A round is two dispatches: clients send the sums of their records; given the federation's total they choose influences
for their slices and send the weighted sums where those differ; the server weighs clients and solves. Erasure is
the same round over the records that remain, where only the clients that lost some sum again.

(Analytic federated learning: He et al., "AFL", CVPR 2025; slices: Bourtoule et al.,
"Machine unlearning", S&P 2021.)
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from frmu.clients.tasks.importing import DescribeShard
from frmu.clients.tasks.layers import AddChanges, GuardInfluences, Influences
from frmu.clients.tasks.residuals import CountResiduals
from frmu.clients.tasks.selection import LoadPolicy, SelectInfluences
from frmu.clients.tasks.statistics import ComputeStatistics
from frmu.config import Config
from frmu.errors import RoundLostError
from frmu.federation import Federation, Reply, in_order
from frmu.methods.features import LearnedFeatures, learn_features
from frmu.methods.method import Method, Round, nothing_kept
from frmu.models.encoders import width
from frmu.models.features import head_of
from frmu.models.grid import WEIGHTS
from frmu.models.residuals import ENOUGH, LEAST
from frmu.models.statistics import basis_of
from frmu.selection.network import Network
from frmu.server.layers import SolveFeatures
from frmu.server.server import AggregateByAttention, Aggregated, AttendClients, HeldClients, SumStatistics, states_of
from frmu.types import HEAD, RESIDUALS, State, Sums

__all__ = ["analytic", "digests_of", "outputs_of", "total_of"]

_log = logging.getLogger(__name__)


def analytic(config: Config) -> Method:
    """Build the exact method for a config."""
    fingerprint = config.fingerprint()

    def init() -> State:
        return State(fingerprint, "", (), (), {HEAD: np.zeros((width(config), 0))})

    def apply(federation: Federation, state: State, network: Network | None) -> Round:
        return _round(config, fingerprint, federation, network)

    def erase(
        federation: Federation, state: State, network: Network | None, clients: tuple[str, ...], kept: None
    ) -> Round:
        # The server lets go of sums that were made of another shard: it is told the digest of each.
        return _round(config, fingerprint, federation, network)

    return Method("analytic", "exact", init, apply, nothing_kept, erase)


def outputs_of(config: Config, classes: set[str]) -> tuple[str, ...]:
    """The names of the outputs: the targets of a regression; the classes, as declared or as held, otherwise."""
    if config.data.task == "regression":
        return config.data.targets
    return tuple(config.data.classes or sorted(classes)) or ("",)


def _round(config: Config, fingerprint: str, federation: Federation, network: Network | None) -> Round:
    """One round, from the beginning again where the server was lost in it: a round leaves nothing half done."""
    for _ in range(config.rules.attempts - 1):
        try:
            return _attempt(config, fingerprint, federation, network)
        except RoundLostError as lost:
            _log.info("The round begins again: %s", lost)
    return _attempt(config, fingerprint, federation, network)


def _attempt(config: Config, fingerprint: str, federation: Federation, network: Network | None) -> Round:
    used = network if config.policy.selector == "policy" else None
    policy = used.digest if used is not None else ""
    held = [reply for reply in in_order(federation.run(DescribeShard())) if reply.record["rows"]]
    names = tuple(reply.client for reply in held)
    outputs = outputs_of(config, {label for reply in held for label in reply.record["classes"]})
    if used is not None:
        new = [reply.client for reply in held if reply.record["policy"] != policy]
        list(federation.run(LoadPolicy(used), on=new))
    total, missing = total_of(config, fingerprint, federation, names, outputs, digests_of(held))
    work = SelectInfluences(outputs, total, together=not config.attention.by_client)
    replies = in_order(federation.run(work, on=names))
    records = {reply.client: reply.record for reply in replies}
    changed = [reply for reply in replies if reply.payload is not None]
    if config.learns:
        fitted, judging = (sum(reply.record["splits"][part] for reply in held) for part in ("fit", "validation"))
        learned = learn_features(config, federation, names, outputs, fitted, judging)
        folded = _fitted(config, federation, policy, outputs, records, changed, learned)
    else:
        folded = federation.serve(AggregateByAttention(records, config, policy, outputs), changed)
    state = _with_residuals(
        config, federation, folded.state, {r.client: r.record["splits"]["validation"] for r in held}
    )
    refits = sum(record["refits"] for record in records.values())
    return Round(state, folded.keep, folded.scores, records, missing, refits)


def _fitted(
    config: Config, federation: Federation, policy: str, outputs: tuple[str, ...],
    records: dict[str, Mapping[str, Any]], changed: Sequence[Reply], learned: LearnedFeatures,
) -> Aggregated:  # fmt: skip
    """The state over learned features: what was proposed is guarded in them, clients are weighed, and all is solved.

    `records` are brought up to date where a proposal is drawn back.
    """
    features, ridge, total = learned.features, learned.ridge, learned.total
    proposed = {name: _influences(record) for name, record in records.items() if _below(record)}
    guard = GuardInfluences(features, outputs, total, ridge, proposed)
    for reply in in_order(federation.run(guard, on=sorted(proposed))) if proposed else ():
        record = {**records[reply.client], "model_losses": reply.record["losses"]}
        records[reply.client] = record if reply.record["accepted"] else record | _kept(record)
    standing = [reply for reply in changed if _below(records[reply.client])]
    scores, attention = federation.serve(AttendClients(records, config, outputs), standing)
    steps = {name: round(a * WEIGHTS) for name, a in attention.items()}
    common = max(steps.values(), default=WEIGHTS)
    moved = {name: _influences(record) for name, record in records.items() if _below(record) or steps[name] != common}
    work = AddChanges(features, outputs, moved, {name: steps[name] for name in moved}, common)
    replies = in_order(federation.run(work, on=sorted(moved))) if moved else []
    solving = SolveFeatures(
        config, policy, outputs, states_of(records, attention), features, ridge, total, common, learned.header,
        learned.metrics, scores,
    )  # fmt: skip
    return federation.serve(solving, [reply for reply in replies if reply.payload is not None])


def _with_residuals(config: Config, federation: Federation, state: State, judging: Mapping[str, int]) -> State:
    """The state with counts of what its head misses, for intervals of predictions; where enough records judge."""
    records = sum(judging.values())
    if config.data.task != "regression" or records < LEAST:
        return state
    share = max(0, math.ceil(math.log2(records / ENOUGH)))
    on = sorted(name for name, own in judging.items() if own)
    replies = in_order(federation.run(CountResiduals(head_of(state), share), on=on))
    counts = sum(np.array(reply.record["counts"]) for reply in replies if reply.record)
    return replace(state, parameters={**state.parameters, RESIDUALS: np.asarray(counts, dtype=np.float64)})


def _influences(record: Mapping[str, Any]) -> Influences:
    return record["influence"], record["modalities"]


def _below(record: Mapping[str, Any]) -> bool:
    """Return whether anything of a client counts less than in full."""
    return bool(record["modalities"]) or any(value != 1.0 for value in record["influence"].values())


def _kept(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what becomes of a client's answer whose proposal was drawn back."""
    return {"influence": dict.fromkeys(record["influence"], 1.0), "modalities": {}, "chosen_by": "keep"}


def digests_of(described: Iterable[Reply]) -> dict[str, str]:
    """The digests of shards, by client, from answers to `DescribeShard`."""
    return {reply.client: reply.record["digest"] for reply in described}


def total_of(
    config: Config,
    fingerprint: str,
    federation: Federation,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    digests: Mapping[str, str] | None = None,
) -> tuple[Sums, tuple[str, ...]]:
    """The federation's sums at full influence, and which clients had to compute for it.

    `digests` of the shards, by client, tell which of the sums that the server has are still those of the records;
    without them all are, as in a federation that began with this call.
    """
    spec = hashlib.sha256("\n".join([fingerprint, *outputs]).encode()).hexdigest()
    there = set(federation.serve(HeldClients(spec, digests)))
    missing = tuple(name for name in names if name not in there)
    sums = in_order(federation.run(ComputeStatistics(outputs, not config.attention.by_client), on=missing))
    carriers = [reply for reply in sums if reply.payload is not None]
    members = {reply.client: tuple(reply.record["members"]) for reply in carriers}
    return federation.serve(SumStatistics(members, basis_of(config, outputs).D, digests), carriers), missing
