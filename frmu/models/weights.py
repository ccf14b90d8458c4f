"""The weights of a module that is trained by rounds, and how records go into it.

What a module is given are the columns that frozen features are made of too: scaled by their declared ranges, with gaps,
lags and categories as the config says. Text is hashed by the frozen encoder of words. A regression's targets are given
in [-1, 1] of their declared ranges; what a module says is turned into the units of a head, so that whoever asks need
not know what kind of model predicts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.data.transform import target_ranges
from frmu.models.encoders import encoder_of, layout
from frmu.models.statistics import weights_of
from frmu.modules.spec import ModuleSpec
from frmu.types import RESIDUALS, Float, State

__all__ = [
    "Weights",
    "flat",
    "initial",
    "inputs_of",
    "key_of",
    "named",
    "predictions",
    "spec_of",
    "targets_of",
    "weights_in",
]


@dataclass(frozen=True, slots=True)
class Weights:
    """The parameters of a module by name, and the names of its outputs: what a head `W` is to a ridge model."""

    parameters: Mapping[str, NDArray[Any]] = field(repr=False)
    outputs: tuple[str, ...]

    @property
    def width(self) -> int:
        """The number of outputs."""
        return len(self.outputs)


def weights_in(state: State) -> Weights:
    """Return the weights of the module that a state holds."""
    return Weights({name: value for name, value in state.parameters.items() if name != RESIDUALS}, state.outputs)


def spec_of(config: Config, outputs: Sequence[str]) -> ModuleSpec:
    """The module of a config, for so many outputs."""
    model, blocks = config.model, layout(config)
    columns = tuple(
        len(blocks[name].idle) if config.encoder(name) == "hash" else config.columns(name) + config.optional
        for name in config.data.modalities
    )
    return ModuleSpec(
        module=model.module, columns=columns, outputs=len(outputs), classes=config.data.task != "regression",
        seed=model.seed, widths=tuple(model.widths), shape=None if model.shape is None else tuple(model.shape),
        epochs=model.epochs, batch=model.batch, lr=model.lr,
        proximal=model.proximal if model.optimizer == "fedprox" else 0.0,
        precision=model.precision, device=model.device, code=config.contents.get(model.module, b""),
    )  # fmt: skip


def inputs_of(config: Config, modalities: Mapping[str, NDArray[Any]]) -> tuple[NDArray[Any], ...]:
    """The columns of each modality as a module is given them, (n, columns) of the precision of the weights."""
    found = []
    for name, X in modalities.items():
        if config.encoder(name) == "hash":
            X = encoder_of(config, name, config.data.modalities[name]).grid(X) / 127.0
        found.append(np.ascontiguousarray(X, dtype=config.model.precision))
    return tuple(found)


def targets_of(config: Config, y: NDArray[Any], outputs: Sequence[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Targets as a module learns them, given as they are learned (`Shard.learned_target`), and how often each counts.

    Places in `outputs`, (n,) int64, for classes; (n, targets) in [-1, 1] of their ranges for a regression.
    """
    if config.data.task != "regression":
        place = {label: at for at, label in enumerate(outputs)}
        counts = weights_of(y, config)
        ones = np.ones(len(y)) if counts is None else counts
        # A class that nobody declared or trains on has no place: its records do not count.
        known = np.array([label in place for label in y.tolist()], dtype=bool)
        return np.array([place.get(label, 0) for label in y.tolist()], dtype=np.int64), np.where(known, ones, 0.0)
    low, high = target_ranges(config)
    scaled = 2.0 * (y.reshape(len(y), len(low)) - low) / (high - low) - 1.0
    return scaled.astype(config.model.precision), np.ones(len(y))


def predictions(config: Config, weights: Weights, modalities: Mapping[str, NDArray[Any]]) -> Float:
    """Return what a module makes of records, (n, outputs), in units of a head (`frmu.data.transform.raw_units`)."""
    from frmu.modules.training import trainer  # torch comes with it

    said = trainer(spec_of(config, weights.outputs)).predict(weights.parameters, inputs_of(config, modalities))
    if config.data.task != "regression" or len(config.data.targets) > 1:
        return said
    low, high = target_ranges(config)
    return np.asarray(low + (said + 1.0) * (high - low) / 2.0)


def initial(spec: ModuleSpec) -> dict[str, NDArray[Any]]:
    """The weights that a training begins with, drawn from the seed; raises `ConfigError` where the module cannot be."""
    from frmu.modules.build import initial_weights

    return initial_weights(spec)


def flat(weights: Mapping[str, NDArray[Any]]) -> Float:
    """All weights one after the other, in the order of their names, (weights,)."""
    return np.concatenate([np.asarray(weights[name], dtype=np.float64).reshape(-1) for name in sorted(weights)])


def named(values: Float, like: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inverse of `flat`, in the shapes and the precision of other weights."""
    found, at = {}, 0
    for name in sorted(like):
        size = like[name].size
        found[name] = values[at : at + size].reshape(like[name].shape).astype(like[name].dtype)
        at += size
    return found


def key_of(client: str, seed: int) -> int:
    """A number of 64 bits of a client's own, under a seed."""
    return int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8, key=str(seed).encode()).digest(), "big")
