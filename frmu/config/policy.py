"""[policy]: what selects influences, and how it is trained."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from frmu.config.table import Table

__all__ = ["Policy"]


class Policy(Table):
    """`[policy]`: how influences are chosen, and how the learned policy is trained.

    A policy looks `steps` times at most before a proposal stands; `budget` is the refits that one client may spend on
    a choice. Neither is in seconds: a state must not depend on how fast a machine is. What is proposed must gain
    `margin` of the validation loss, and as much must come from noise alone with a chance of `significance` at most
    (1: no such check). With 2 `passes` the federation also tries what clients would gain if all moved at once
    (`frmu.methods.together`).
    `theta` is the attention score, of an average of 1, below which a slice is shown as one to attenuate.

    `algorithm` is what trains it: "slope" follows the exact slope of the reward, "ppo" compares what it tries.
    `rounds` lets slices arrive between the steps of a task. With `federated`, each client trains a copy of its own
    and the server averages the copies by attention; `beta` is what a client takes of the average (1: all of it).
    """

    selector: Literal["policy", "rules", "keep"] = "policy"
    file: str | None = None
    margin: float = Field(default=0.01, ge=0, lt=1)
    significance: float = Field(default=0.05, gt=0, le=1)
    steps: int = Field(default=3, ge=1, le=16)
    budget: int = Field(default=16, ge=8)
    passes: int = Field(default=1, ge=1, le=2)
    forget_penalty: float = Field(default=0.02, ge=0)
    theta: float = Field(default=0.5, ge=0, le=1)
    algorithm: Literal["slope", "ppo"] = "slope"
    iterations: int = Field(default=20, ge=1)
    samples: int = Field(default=512, ge=64)
    env_runners: int | Literal["auto"] = "auto"
    rounds: int = Field(default=1, ge=1, le=16)
    federated: bool = False
    beta: float = Field(default=1.0, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("algorithm", mode="before")
    @classmethod
    def _known(cls, name: Any) -> Any:
        if name not in ("slope", "ppo"):
            raise ValueError(f'algorithm must be "slope" or "ppo", got {name!r}')
        return name

    @field_validator("env_runners", mode="before")
    @classmethod
    def _some(cls, number: Any) -> Any:
        if number != "auto" and (not isinstance(number, int) or isinstance(number, bool) or number < 0):
            raise ValueError(f'env_runners must be a number from 0 on, or "auto", got {number!r}')
        return number
