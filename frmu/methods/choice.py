"""The choice of the method that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frmu.config import Config
from frmu.methods.analytic import analytic
from frmu.methods.finetune import finetune
from frmu.methods.method import Method
from frmu.methods.rounds import rounds
from frmu.storage.rounds import Checkpoints

__all__ = ["method_of"]

_METHODS: Mapping[str, Callable[[Config], Method]] = {"analytic": analytic, "finetune": finetune}


def method_of(config: Config, kept: Checkpoints | None = None) -> Method:
    """Build the method that `model.kind` and `model.method` name.

    One that trains by rounds goes on from checkpoints where some are `kept`; without, it begins from nothing, as a
    federation that proves a state must.
    """
    if config.model.by_rounds:
        return rounds(config, kept)
    return _METHODS[config.model.method](config)
