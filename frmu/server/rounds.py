"""The server's part in a round of training: it averages what clients learned, and steps.

Updates are whole numbers of steps, so the order in which they are added, and who added some of them up before, cannot
matter. FedAvg: McMahan et al., "Communication-efficient learning of deep networks from decentralized data", AISTATS
2017. FedAdam: Reddi et al., "Adaptive federated optimization", ICLR 2021, with its constants.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from frmu.errors import FederationError
from frmu.federation import Payload
from frmu.models.grid import WEIGHTS
from frmu.models.weights import Weights, flat, initial, named
from frmu.modules.spec import STEPS, ModuleSpec
from frmu.server.server import Server
from frmu.types import Float

__all__ = ["DrawWeights", "LeaveOut", "Moments", "SayNumerics", "StepWeights"]

_MOST = 2**63 - 1
_FIRST, _SECOND, _TAU = 0.9, 0.99, 1e-3


@dataclass(frozen=True, slots=True)
class Moments:
    """The memory of a server that steps by Adam: means of updates and of their squares, (weights,) each."""

    first: Float = field(repr=False)
    second: Float = field(repr=False)


@dataclass(frozen=True, slots=True)
class DrawWeights:
    """The weights that a training begins with; raises `ConfigError` where the module cannot be trained exactly."""

    afresh: ClassVar[bool] = True
    spec: ModuleSpec
    outputs: tuple[str, ...]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Weights:
        """Drawn from the seed."""
        return Weights(initial(self.spec), self.outputs)


@dataclass(frozen=True, slots=True)
class SayNumerics:
    """Ask what the last bits of weights depend on, where they are computed."""

    afresh: ClassVar[bool] = True

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> str:
        """As `State.numerics` has it."""
        from frmu.modules.build import numerics  # torch comes with it

        return numerics()


@dataclass(frozen=True, slots=True)
class StepWeights:
    """Average the updates, each client's weighed by its records and its attention, and step from the weights.

    `counts` are the records of each payload's client, None where a host sent a sum with its own; `attention` is in
    whole steps of 1 / 64, by client. With `adam` (its rate, and the moments of before) the mean is a gradient to step
    by.
    """

    afresh: ClassVar[bool] = True
    weights: Weights
    counts: Mapping[str, int] | None
    attention: Mapping[str, int]
    adam: tuple[float, Moments | None] | None = None

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> tuple[Weights, Moments | None]:
        """The next weights, and moments where there are some."""
        steps = {name: payload["steps"] for name, payload in payloads.items()}
        if self.counts is None:
            shares, n = dict.fromkeys(steps, 1), sum(int(payload["n"][0]) for payload in payloads.values())
        else:
            shares = {name: self.counts[name] * self.attention.get(name, WEIGHTS) for name in steps}
            n = sum(shares.values())
        mean = _total(steps, shares).astype(np.float64) * (1.0 / STEPS / n)
        moments = None
        if self.adam is not None:
            rate, before = self.adam
            before = before or Moments(np.zeros_like(mean), np.zeros_like(mean))
            first = _FIRST * before.first + (1.0 - _FIRST) * mean
            second = _SECOND * before.second + (1.0 - _SECOND) * mean * mean
            moments, mean = Moments(first, second), rate * first / (np.sqrt(second) + _TAU)
        parameters = named(flat(self.weights.parameters) + mean, self.weights.parameters)
        return Weights(parameters, self.weights.outputs), moments


@dataclass(frozen=True, slots=True)
class LeaveOut:
    """The weights after the mean of all updates, and those without each client's, (1 + clients, weights)."""

    afresh: ClassVar[bool] = True
    weights: Weights
    counts: Mapping[str, int]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> Float:
        """In the order of the clients' names."""
        steps = {name: payloads[name]["steps"] for name in sorted(payloads)}
        whole, n = _total(steps, self.counts), sum(self.counts[name] for name in steps)
        start = flat(self.weights.parameters)
        models = [start + whole.astype(np.float64) / STEPS / n]
        for name, own in steps.items():
            rest, left = whole - own * self.counts[name], n - self.counts[name]
            models.append(start + rest.astype(np.float64) / STEPS / max(1, left))
        return np.stack(models)


def _total(steps: Mapping[str, NDArray[Any]], shares: Mapping[str, int]) -> NDArray[np.int64]:
    """The sum of whole steps, each weighed; raises `FederationError` where it could be too great a number."""
    reach = sum(int(np.max(np.abs(one), initial=0)) * shares[name] for name, one in steps.items())
    if reach > _MOST:
        raise FederationError("the updates of a round are too great to be added up exactly; lower model.lr")
    whole = np.zeros_like(next(iter(steps.values())))
    for name, one in steps.items():
        whole += one * shares[name]
    return whole
