"""The choice of the method that a config asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from frmu.config import Config
from frmu.methods.analytic import analytic
from frmu.methods.finetune import finetune
from frmu.methods.method import Method

__all__ = ["method_of"]

_METHODS: Mapping[str, Callable[[Config], Method]] = {"analytic": analytic, "finetune": finetune}


def method_of(config: Config) -> Method:
    """Build the method that `model.method` names."""
    return _METHODS[config.model.method](config)
