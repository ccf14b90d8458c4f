"""A pipeline on the seam: what a client sends is encoded step by step, and decoded in the opposite order.

Compression, masks and noise are steps here and not cases in a method: what computes never sees them. Bytes are counted
as they leave the client, after the last step. (The shape of it is that of the postprocessors of pfl-research: Granqvist
et al., NeurIPS 2024.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from frmu.federation import Payload

__all__ = ["IDENTITY", "Pipeline", "Step"]


class Step(Protocol):
    """One step, frozen and picklable; `decode` undoes `encode`, but for what a lossy step gives away."""

    def encode(self, payload: Payload) -> Payload:
        """Return the arrays as they travel on, at the client."""

    def decode(self, payload: Payload) -> Payload:
        """Return the arrays as they were given to `encode`, at the server."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Steps in the order in which a client takes them.

    >>> import numpy as np
    >>> Pipeline().encode({"b": np.ones(2)})
    {'b': array([1., 1.])}
    """

    steps: tuple[Step, ...] = ()

    def encode(self, payload: Payload | None) -> Payload | None:
        """Return arrays by name as they leave the client; None stays None."""
        if payload is None:
            return None
        for step in self.steps:
            payload = step.encode(payload)
        return payload

    def decode(self, payload: Payload | None) -> Payload | None:
        """Return arrays by name as the server works with them; None stays None."""
        if payload is None:
            return None
        for step in reversed(self.steps):
            payload = step.decode(payload)
        return payload


IDENTITY = Pipeline()
