"""The four models of every audit, over a federation in which the erased records are back.

original    fitted with the records: it must fail every check
this state  the state under test
retrained   fitted from nothing without them: what this state has to equal
fine-tuned  the original, trained on a little without them: what forgetting by forgetting to look gives
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from frmu.clients.tasks.audit import Gauge, Part
from frmu.federation import Federation, in_order
from frmu.models.features import Head
from frmu.models.ridge import descend, stable_rate
from frmu.server.audit import SumSubsets
from frmu.types import Float, Statistics

__all__ = ["ORIGINAL", "RETRAINED", "STATE", "TUNED", "Errors", "ModelsUnderTest", "fine_tune"]

ORIGINAL, STATE, RETRAINED, TUNED = "original", "this state", "retrained", "fine-tuned"
TUNING = 10  # steps of gradient descent


@dataclass(frozen=True, slots=True)
class ModelsUnderTest:
    """Heads by name, and where to try them."""

    heads: Mapping[str, Head]
    outputs: tuple[str, ...]
    federation: Federation = field(repr=False)
    tombstones: Mapping[str, frozenset[str]] = field(repr=False)
    key: bytes = field(repr=False)

    def part(self, part: str, head: str) -> Statistics:
        """The sums of the fitted records that were erased ("forget"), or the others ("retain"), as a head sees them."""
        work = Part(part, self.outputs, self.tombstones, self.key, self.heads[head].features)  # type: ignore[arg-type]
        replies = in_order(self.federation.run(work))
        d = len(self.heads[head].W)
        rows = sum(reply.record["rows"] for reply in replies)
        return self.federation.serve(SumSubsets(d, len(self.outputs), rows), replies)

    def errors(self, heads: Mapping[str, Head] | None = None) -> dict[str, dict[str, Errors]]:
        """Return how heads (all by default) do, by set ("forget", "retain", "test") and head."""
        tried = self.heads if heads is None else heads
        reference = RETRAINED if RETRAINED in tried else next(iter(tried))
        work = Gauge(tried, reference, self.outputs, self.tombstones, self.key)
        sums: dict[str, dict[str, dict[str, float]]] = {}
        for reply in in_order(self.federation.run(work)):
            for name, by_head in reply.record.items():
                for head, counts in by_head.items():
                    total = sums.setdefault(name, {}).setdefault(head, dict.fromkeys(counts, 0.0))
                    for key, value in counts.items():
                        total[key] += value
        return {name: {head: Errors.of(total) for head, total in by.items()} for name, by in sums.items()}


@dataclass(frozen=True, slots=True)
class Errors:
    """The error of a head on a set: RMSE, or the share of wrong classes; and its outputs' distance to the retrained's.

    `gap` is relative: the root of the summed squared differences over that of the retrained's outputs.
    """

    n: int
    error: float
    gap: float

    @staticmethod
    def of(total: Mapping[str, float]) -> Errors:
        """From sums over records."""
        n = int(total["n"])
        if n == 0:
            return Errors(0, 0.0, 0.0)
        error = 1.0 - total["correct"] / n if "correct" in total else float(np.sqrt(total["square"] / n))
        return Errors(n, error, float(np.sqrt(total["gap"] / max(total["scale"], 1e-300))))


def fine_tune(W: Float, retain: Statistics, steps: int = TUNING) -> Float:
    """Gradient descent from a head on what remains, at the largest stable step."""
    return descend(W, retain, stable_rate(retain.G), steps)
