"""A verdict: one level, whether it holds, and the numbers that say so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Verdict"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The finding of one check.

    `passed` is whether its bar was met. `telling` is whether the check can tell at all here: whether the state that
    still has the records, which must fail, does fail. A check that passes and is not telling proves nothing. `numbers`
    are named "measure: model", with the models original, retrained, fine-tuned and this state.
    """

    level: str
    check: str
    passed: bool
    telling: bool
    bar: str
    numbers: Mapping[str, float]
    seeds: tuple[int, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "level": self.level,
            "check": self.check,
            "passed": self.passed,
            "telling": self.telling,
            "bar": self.bar,
            "seeds": list(self.seeds),
            "numbers": {name: round(float(value), 12) for name, value in self.numbers.items()},
            **self.notes,
        }
