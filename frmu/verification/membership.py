"""Level 3, membership: tell from a model, if one can, that it was fitted on the erased records.

Shadow models are fitted on random halves of the records, some in a world that never had the erased ones. What a model
makes of an erased record is ranked among what those shadows make of the very same record, in the direction in which
models go that were fitted on it. The score is the chance to look more like a member than a model that never had the
record (AUC), and is reported as a gap to the retrained model, whose own AUC can be off one half. A record is compared
with itself alone: likelihood ratios of different records, as in the original attack, compare kinds of records where
those erased are odd, and then saturate and miss leftovers. (U-LiRA: Hayes et al., "Inexact unlearning needs more
careful evaluations", 2024, after Carlini et al., "Membership inference attacks from first principles", S&P 2022.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from frmu.clients.tasks.audit import Pairs, Shadow
from frmu.federation import Reply, in_order
from frmu.server.audit import SolveMany
from frmu.types import Float
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, ModelsUnderTest
from frmu.verification.verdict import Verdict

__all__ = ["BAR", "auc", "membership", "shadow_heads"]

BAR = 0.03  # of AUC
TOGETHER = 8  # shadow models a dispatch


def membership(suspects: ModelsUnderTest, shadows: int, seed: int, ridge: float) -> Verdict:
    """Try all models; `shadows` models are fitted for it, in parallel where clients are."""
    seeds = tuple(range(seed * 1000, seed * 1000 + shadows))
    fitted = shadow_heads(suspects, seeds, ridge)
    features = suspects.heads[STATE].features
    work = Pairs(suspects.heads, fitted, seeds, suspects.outputs, suspects.tombstones, suspects.key, features)
    found = auc(in_order(suspects.federation.run(work)))
    errors = suspects.errors()["test"]
    utility = errors[STATE].error - errors[RETRAINED].error
    return Verdict(
        level="L3",
        check="membership (U-LiRA)",
        passed=abs(found[STATE] - found[RETRAINED]) <= BAR and useful(utility, errors[RETRAINED].error),
        telling=found[ORIGINAL] - found[RETRAINED] > BAR,
        bar=f"the attack's AUC is within {BAR} of the retrained model's, and the test error is not worse by 1 %",
        numbers={f"membership AUC: {head}": value for head, value in found.items()}
        | {f"test error: {head}": one.error for head, one in errors.items()},
        seeds=(seed,),
        notes={"shadow_models": shadows},
    )


def useful(worse: float, error: float) -> bool:
    """Return whether a state that forgot is still of use: one that forgot everything passes every attack."""
    return worse <= 0.01 * error + 1e-12


def shadow_heads(suspects: ModelsUnderTest, seeds: Sequence[int], ridge: float) -> Float:
    """The heads of shadow models, (seeds, d, outputs), a few a dispatch so that sums of many do not fill the memory."""
    federation, outputs, head = suspects.federation, suspects.outputs, suspects.heads[STATE]
    parts = []
    for at in range(0, len(seeds), TOGETHER):
        work = Shadow(tuple(seeds[at : at + TOGETHER]), outputs, suspects.tombstones, suspects.key, head.features)
        parts.append(federation.serve(SolveMany(len(head.W), ridge), in_order(federation.run(work))))
    return np.concatenate(parts)


def auc(replies: Sequence[Reply]) -> dict[str, float]:
    """The share of pairs won by head, over all clients; one half where there is no pair."""
    pairs = sum(reply.record["pairs"] for reply in replies)
    won: dict[str, float] = {}
    for reply in replies:
        counts: Mapping[str, float] = reply.record["won"]
        for head, count in counts.items():
            won[head] = won.get(head, 0.0) + count
    return {head: count / pairs if pairs else 0.5 for head, count in won.items()}
