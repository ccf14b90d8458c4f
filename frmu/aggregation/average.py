"""The server's mean of policies that sites have trained, weighed by attention: FRAMU's line 16 for the policy.

W <- sum_k a_k n_k w_k / sum_k a_k n_k, in float64 and in the order of the sites' names. (McMahan et al.,
"Communication-efficient learning of deep networks", AISTATS 2017, is the case of equal attention.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.federation import Payload

__all__ = ["Average"]

Weights = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Average:
    """Average policies, by site, each a mapping of float32 arrays by name; `shares` (>= 0) are the a_k n_k.

    Where all shares are zero the sites count alike.

    >>> one = {"w": np.zeros(2, np.float32)}
    >>> other = {"w": np.ones(2, np.float32)}
    >>> Average({"a": one, "b": other}, {"a": 1.0, "b": 3.0}).perform(None, {})["w"].tolist()
    [0.75, 0.75]
    """

    policies: Mapping[str, Weights] = field(repr=False)
    shares: Mapping[str, float]

    def perform(self, server: Any, payloads: Mapping[str, Payload]) -> dict[str, NDArray[np.float32]]:
        """The mean, by name."""
        sites = sorted(self.policies)
        whole = sum(self.shares[site] for site in sites)
        weights = [self.shares[site] / whole if whole else 1.0 / len(sites) for site in sites]
        mean = {}
        for name in sorted(self.policies[sites[0]]):
            parts = [a * self.policies[site][name].astype(np.float64) for a, site in zip(weights, sites, strict=True)]
            mean[name] = np.sum(parts, axis=0).astype(np.float32)
        return mean
