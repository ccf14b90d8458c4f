"""Nets whose graph ships, for weights in safetensors: a file of numbers and names, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch.nn import functional

from frmu.config.files import Net
from frmu.errors import ConfigError
from frmu.nets.aten import call_of
from frmu.nets.net import Call
from frmu.nets.pt2 import shown

__all__ = ["cnn", "read"]


def cnn(weights: Mapping[str, Any], x: Any) -> Any:
    """Run a small convolutional net over images (n, channels, height, width).

    Layers `conv1`, `conv2`, ... of 3 x 3, each with a relu and the greatest of 2 x 2; then `out`, with a relu.
    """
    for at in range(1, _layers(weights) + 1):
        x = functional.conv2d(x, weights[f"conv{at}.weight"], weights[f"conv{at}.bias"], padding=1)
        x = functional.max_pool2d(functional.relu(x), 2)
    return functional.relu(functional.linear(torch.flatten(x, 1), weights["out.weight"], weights["out.bias"]))


def read(net: Net) -> Call:
    """Read a `.safetensors` file; raises `ConfigError` where it is not whole or has other weights than the net."""
    try:
        weights = load(net.raw)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{net.name}: is not a whole safetensors file ({' '.join(str(error).split())[:120]}); save it again"
        ) from None
    wanted = {f"{layer}.{part}" for layer in _names(_layers(weights)) for part in ("weight", "bias")}
    if strange := sorted(wanted ^ set(weights)):
        what = "lacks" if strange[0] in wanted else "has a strange"
        raise ConfigError(
            f'{net.name}: {what} weight {shown(strange[0])}; {net.knob}.architecture "cnn" has '
            "conv1.weight, conv1.bias, ..., out.weight, out.bias"
        )
    if odd := [name for name, one in weights.items() if one.dtype != torch.float32]:
        raise ConfigError(f"{net.name}: its weight {shown(odd[0])} is not float32; save it as that")
    return call_of(net, {name: one.clone() for name, one in weights.items()}, cnn)


def _layers(weights: Mapping[str, Any]) -> int:
    return sum(bool(re.fullmatch(r"conv[1-9]\d?\.weight", name)) for name in weights)


def _names(layers: int) -> list[str]:
    return [*(f"conv{at}" for at in range(1, layers + 1)), "out"]
