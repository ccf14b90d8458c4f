"""Level 4: how long it takes to learn the erased records again.

Gradient descent on the erased records from each model, to nine tenths of the way from the retrained model's loss to
the original's. A state that kept something is there sooner; one that was damaged, later.
"""

from __future__ import annotations

import numpy as np

from frmu.models.statistics import loss
from frmu.types import Float, Statistics
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, ModelsUnderTest
from frmu.verification.verdict import Verdict

__all__ = ["relearn", "steps_to"]

MOST = 5000  # steps
ENOUGH = 20  # steps from the retrained model
RATES = (1.0, 0.1, 0.01, 0.001)  # of the largest stable one


def relearn(suspects: ModelsUnderTest) -> Verdict:
    """Count steps from every model."""
    heads = {name: head.W for name, head in suspects.heads.items()}
    seen = _seen(suspects)
    forget = seen[RETRAINED]
    losses = {head: loss(W, seen[head]) for head, W in heads.items()}
    goal = losses[ORIGINAL] + 0.1 * (losses[RETRAINED] - losses[ORIGINAL])
    fastest = 1.0 / max(float(np.linalg.eigvalsh(forget.G)[-1]), 1e-300)
    for slower in RATES:  # slow enough to count
        steps = {RETRAINED: steps_to(goal, heads[RETRAINED], forget, fastest * slower)}
        if steps[RETRAINED] >= ENOUGH:
            break
    steps |= {h: steps_to(goal, W, seen[h], fastest * slower) for h, W in heads.items() if h != RETRAINED}
    bar = max(1.0, 0.05 * steps[RETRAINED])
    return Verdict(
        level="L4",
        check="relearn time",
        passed=abs(steps[STATE] - steps[RETRAINED]) <= bar,
        telling=steps[RETRAINED] - steps[ORIGINAL] > bar,
        bar="as many steps of gradient descent as from the retrained model, give or take 5 %, and at least one",
        numbers={f"steps to relearn: {head}": value for head, value in steps.items()}
        | {f"loss on the erased: {head}": value for head, value in losses.items()},
        notes={"records": forget.n},
    )


def _seen(suspects: ModelsUnderTest) -> dict[str, Statistics]:
    """The sums of the erased records, as each head sees them: asked for once for heads on the same features."""
    found: dict[str, Statistics] = {}
    seen = {}
    for name, head in suspects.heads.items():
        key = head.features.key if head.features else ""
        if key not in found:
            found[key] = suspects.part("forget", name)
        seen[name] = found[key]
    return seen


def steps_to(goal: float, W: Float, s: Statistics, rate: float) -> int:
    """Steps of gradient descent from a head until its loss is at a goal; `MOST` where it does not get there."""
    for step in range(MOST):
        if loss(W, s) <= goal * (1 + 1e-12):
            return step
        W = W - rate * (s.G @ W - s.b)
    return MOST
