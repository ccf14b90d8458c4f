"""The server's part in an audit: it adds sums up and solves, and lets go of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from frmu.federation import Payload
from frmu.models.ridge import solve
from frmu.models.statistics import unpack
from frmu.server.server import Server
from frmu.types import Float, Statistics

__all__ = ["SolveMany", "SumSubsets"]


@dataclass(frozen=True, slots=True)
class SumSubsets:
    """The sums of one part of the records over all clients."""

    afresh: ClassVar[bool] = True
    d: int
    outputs: int
    n: int

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Statistics:
        """Folded in the order of client names."""
        parts = (
            Statistics(0, unpack(payloads[name]["H"], self.d), payloads[name]["b"], float(payloads[name]["c"][0]))
            for name in sorted(payloads)
        )
        total = Statistics.total(parts, self.d, self.outputs)
        return Statistics(self.n, total.G, total.b, total.c)


@dataclass(frozen=True, slots=True)
class SolveMany:
    """The heads of shadow models, (seeds, d, outputs), from sums that hold one row a seed."""

    afresh: ClassVar[bool] = True
    d: int
    ridge: float

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Float:
        """One solve a seed."""
        names = sorted(payloads)
        heads = []
        for at in range(len(payloads[names[0]]["b"])):
            H = sum((payloads[name]["H"][at] for name in names[1:]), payloads[names[0]]["H"][at])
            b = sum((payloads[name]["b"][at] for name in names[1:]), payloads[names[0]]["b"][at])
            heads.append(solve(unpack(H, self.d), b, self.ridge))
        return np.stack(heads)
