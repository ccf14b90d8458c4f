"""Level 2: utility and outputs on erased, retained and test records, against a model trained again without them.

Beside the gap stands what training again itself leaves open: the spread of the retrained model's error over seeds of
the encoder. An exact state has to close the gap in all but rounding; one that has forgotten too much fails as well.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, Errors, ModelsUnderTest
from frmu.verification.verdict import Verdict

__all__ = ["ROUNDING", "gap"]

ROUNDING = 1e-9  # relative; what an exact method may leave


def gap(
    suspects: ModelsUnderTest, retrain: Callable[[int], dict[str, dict[str, Errors]]], seeds: Sequence[int]
) -> Verdict:
    """Compare this state with the retrained one; `retrain` gives the errors of one trained with another seed."""
    errors = suspects.errors()
    others = [retrain(seed) for seed in seeds]
    numbers: dict[str, float] = {}
    for name, by in errors.items():
        for head, one in by.items():
            if one.n:
                numbers |= {f"error on {name}: {head}": one.error, f"output gap on {name}: {head}": one.gap}
        if by[STATE].n and others:
            numbers[f"error on {name}: spread of retraining"] = _spread([o[name][RETRAINED].error for o in others])
    worst = {head: max(by[head].gap for by in errors.values()) for head in suspects.heads}
    return Verdict(
        level="L2",
        check="gap to retraining",
        passed=worst[STATE] <= ROUNDING,
        telling=worst[ORIGINAL] > ROUNDING,
        bar=f"the outputs differ from the retrained model's by at most {ROUNDING:g}, relatively, on every set",
        numbers=numbers,
        seeds=tuple(seeds),
        notes={"records": {name: by[RETRAINED].n for name, by in errors.items()}},
    )


def _spread(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
