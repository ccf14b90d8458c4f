"""The command that made the shipped policy.

    frmu bench pretrain --out policy.safetensors

It learns from tasks cut out of three public series, of which it sees the first part, and from nothing else;
`frmu bench policy` measures it on the other part and on series that it never saw.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from frmu.bench.pretraining_tasks import SEEN, pretraining_task, series_of
from frmu.selection.network import write_policy

__all__ = ["pretrain"]

BATCH = 32
TOLD = 50  # iterations between two lines


def pretrain(out: Path, cache: Path, iterations: int, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Train from scratch and write the policy to `out`; its digest, the seconds, the reward by the iteration."""
    from frmu.policy.pretraining import pretrain

    series = series_of(cache)
    began = time.perf_counter()
    rewards: list[float] = []

    def heard(number: int, value: float) -> None:
        rewards.append(value)
        if len(rewards) % TOLD == 0:
            tell(f"{number + 1:5d}  reward {np.mean(rewards[-TOLD:]):.4f}  {time.perf_counter() - began:.0f} s")

    weights = pretrain(lambda rng: pretraining_task(series, rng), iterations, BATCH, seed, None, heard)
    lineage = {"clients": [], "parent": None, "sets": list(SEEN), "seed": seed, "iterations": iterations}
    network = write_policy(weights, lineage, out)
    return {
        "policy": network.digest,
        "seconds": round(time.perf_counter() - began, 1),
        "tasks": iterations * BATCH,
        "rewards": [round(float(np.mean(rewards[at : at + TOLD])), 4) for at in range(0, len(rewards), TOLD)],
    }
