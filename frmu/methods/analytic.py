"""The exact method: additive slice statistics under influences and attention, and one solve.

A round is a few dispatches: clients send the sums of their records; given the federation's total they propose
influences for their slices; what is proposed is guarded in the model that is used (`frmu.methods.guard`); the server
weighs clients and solves. Erasure is the same round over the records that remain, where only the clients that lost some
sum again.

(Analytic federated learning: He et al., "AFL", CVPR 2025; slices: Bourtoule et al.,
"Machine unlearning", S&P 2021.)
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from frmu.clients.tasks.importing import DescribeShard
from frmu.clients.tasks.residuals import CountResiduals
from frmu.clients.tasks.selection import LoadPolicy, SelectInfluences
from frmu.clients.tasks.statistics import ComputeStatistics
from frmu.config import Config, share_of
from frmu.errors import RoundLostError
from frmu.federation import Federation, Reply, in_order
from frmu.methods.features import learn_features
from frmu.methods.guard import Fitting, Records, attended, below, settle
from frmu.methods.method import Method, Round, nothing_kept
from frmu.methods.together import together
from frmu.models.encoders import width
from frmu.models.features import model_of
from frmu.models.residuals import ENOUGH, LEAST
from frmu.models.statistics import basis_of
from frmu.selection.network import Network
from frmu.server.server import HeldClients, SumStatistics
from frmu.types import HEAD, RESIDUALS, State, Sums

__all__ = ["FederationSums", "analytic", "digests_of", "outputs_of", "sums_of", "with_residuals"]

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
    fitted, judging = (sum(reply.record["splits"][part] for reply in held) for part in ("fit", "validation"))
    share = config.model.share(fitted)
    sums = sums_of(config, fingerprint, federation, names, outputs, digests_of(held), share)
    total, missing = sums.total, sums.missing
    replies = in_order(federation.run(SelectInfluences(outputs, sums.cohort, share), on=names))
    records: Records = {reply.client: reply.record for reply in replies}
    changed = [reply for reply in replies if reply.payload is not None]
    fitting = Fitting(config, federation, policy, outputs, total, config.model.frozen_ridge)
    if config.learns:
        one = learn_features(config, federation, names, outputs, fitted, judging)
        fitting = replace(
            fitting, total=one.total, ridge=one.ridge, features=one.features, learned=one.header, metrics=one.metrics
        )
    asked = any(map(below, records.values()))
    now, records = settle(fitting, records)
    if config.policy.passes > 1 and asked and len(names) > 1:
        now, records, changed = together(fitting, SelectInfluences(outputs, sums.cohort, share), now, records, changed)
    folded = attended(fitting, records, now, changed)
    validation = {reply.client: reply.record["splits"]["validation"] for reply in held}
    state = with_residuals(config, federation, folded.state, validation)
    refits = sum(record["refits"] for record in records.values())
    return Round(state, folded.keep, folded.scores, records, missing, refits)


def with_residuals(config: Config, federation: Federation, state: State, judging: Mapping[str, int]) -> State:
    """The state with counts of what its model misses, for intervals of predictions; where enough records judge.

    `judging` is how many records judge at each client.
    """
    records = sum(judging.values())
    if config.data.task != "regression" or records < LEAST:
        return state
    on = sorted(name for name, own in judging.items() if own)
    replies = in_order(federation.run(CountResiduals(model_of(state), share_of(records, ENOUGH)), on=on))
    counts = sum(np.array(reply.record["counts"]) for reply in replies if reply.record)
    return replace(state, parameters={**state.parameters, RESIDUALS: np.asarray(counts, dtype=np.float64)})


def digests_of(described: Iterable[Reply]) -> dict[str, str]:
    """The digests of shards, by client, from answers to `DescribeShard`."""
    return {reply.client: reply.record["digest"] for reply in described}


@dataclass(frozen=True, slots=True)
class FederationSums:
    """The sums of a federation at full influence: of all records to fit, and of those in its cohort.

    `missing` had to compute for it.
    """

    total: Sums
    cohort: Sums
    missing: tuple[str, ...]


def sums_of(
    config: Config,
    fingerprint: str,
    federation: Federation,
    names: tuple[str, ...],
    outputs: tuple[str, ...],
    digests: Mapping[str, str] | None = None,
    share: int = 0,
) -> FederationSums:
    """The federation's sums at full influence, and those of its cohort of one record in 2^share.

    `digests` of the shards, by client, tell which of the sums that the server has are still those of the records;
    without them all are, as in a federation that began with this call.
    """
    drawn = [f"cohort {share}"] if share else []
    spec = hashlib.sha256("\n".join([fingerprint, *outputs, *drawn]).encode()).hexdigest()
    there = set(federation.serve(HeldClients(spec, digests)))
    missing = tuple(name for name in names if name not in there)
    work = ComputeStatistics(outputs, not config.attention.by_client, share)
    sums = in_order(federation.run(work, on=missing))
    carriers = [reply for reply in sums if reply.payload is not None]
    members = {reply.client: tuple(reply.record["members"]) for reply in carriers}
    total, cohort = federation.serve(SumStatistics(members, basis_of(config, outputs).D, digests), carriers)
    return FederationSums(total, cohort, missing)
