"""Transforms of numbers before they are scaled, and back again: "log1p", the logarithm of 1 + x.

A count or an amount of money has a long tail, and on a grid of its range most values would lie within a few steps; its
logarithm spreads them. A range is declared in raw units and transformed with the values. What is learned of a target is
the transformed one; whoever reads a prediction or an error gets it in raw units.

The logarithm is made of additions, multiplications and divisions, which IEEE 754 rounds alike on every processor; those
of libraries differ in the last bit, and with it what a record is on the grid. (As in fdlibm: log m = 2 artanh((m - 1) /
(m + 1)); what is lost in 1 + x is put back as in Goldberg, "What every computer scientist should know", 1991.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from frmu.config import Config
from frmu.config.data import Data
from frmu.types import Float

__all__ = [
    "backward", "forward", "head_widths", "learned_range", "learned_target", "learned_units", "raw_units",
    "scaled_targets", "target_ranges",
]  # fmt: skip

_ROOT, _LN2 = 0.7071067811865476, 0.6931471805599453
_TERMS = 12  # of the series: the next is below 2^-60, for |s| <= 0.1716


def forward(values: Float, transform: str | None) -> Float:
    """Return values as they are learned; what is missing (NaN) stays missing.

    >>> forward(np.array([0.0, np.e - 1.0, np.nan]), "log1p").round(12).tolist()
    [0.0, 1.0, nan]
    """
    return _log1p(np.asarray(values, dtype=np.float64)) if transform == "log1p" else values


def backward(values: Float, transform: str | None) -> Float:
    """Return values in raw units again.

    >>> backward(forward(np.array([0.0, 41.0]), "log1p"), "log1p").round(9).tolist()
    [0.0, 41.0]
    """
    with np.errstate(over="ignore"):  # beyond float64 is beyond any range
        return np.expm1(values) if transform == "log1p" else values


def _log1p(x: Float) -> Float:
    y = 1.0 + x
    m, e = np.frexp(y)
    small = m < _ROOT
    m, e = np.where(small, 2.0 * m, m), np.where(small, e - 1, e)
    s = (m - 1.0) / (m + 1.0)
    square, series = s * s, np.zeros_like(s)
    for term in range(_TERMS, -1, -1):
        series = series * square + 1.0 / (2 * term + 1)
    return np.asarray(e * _LN2 + 2.0 * s * series + (x - (y - 1.0)) / y)


def learned_range(config: Config, *names: str) -> tuple[float, float]:
    """Return the declared range of the first of some names that has one, as it is learned.

    The transform is that of the last name: a lag has the one of the column that it looks at. Raises `ConfigError` as
    `frmu.config.data.Data.range_of`.
    """
    transform = config.data.transforms.get(names[-1])
    low, high = forward(np.array(config.data.range_of(*names)), transform).tolist()
    return low, high


def learned_target(y: Float, config: Config) -> Float:
    """Return targets of a regression, (n,) or (n, targets), clipped to their declared range, and transformed."""
    return _by_target(_learned, y, config)


def learned_units(y: Float, config: Config) -> Float:
    """Return targets, (n,) or (n, targets), in the units of a head.

    One target is as `learned_target` if it is transformed, else as it is. Several are scaled to [-1, 1] of their
    ranges, so that none counts more for its unit.
    """
    data = config.data
    if len(data.targets) > 1:
        return scaled_targets(learned_target(y, config), config)
    return learned_target(y, config) if data.targets[0] in data.transforms else y


def scaled_targets(y: Float, config: Config) -> Float:
    """Scale several targets, (n, targets), as `learned_target` gives them, to [-1, 1]; one stays as it is."""
    if len(config.data.targets) == 1:
        return y
    low, high = target_ranges(config)
    return np.asarray(2.0 * (y - low) / (high - low) - 1.0)


def target_ranges(config: Config) -> tuple[Float, Float]:
    """Return the least and the greatest that each target may be, as it is learned, (targets,) each."""
    ranges = np.array([learned_range(config, name) for name in config.data.targets])
    return ranges[:, 0], ranges[:, 1]


def head_widths(config: Config) -> Float:
    """Return the width of each target's range in the units of a head, (targets,): 2 where there are several."""
    low, high = target_ranges(config)
    return high - low if len(low) == 1 else np.full(len(low), 2.0)


def raw_units(outputs: Float, config: Config) -> Float:
    """Return a head's outputs, (n,) or (n, targets), in units of the target; a transformed one within its range."""
    if len(config.data.targets) > 1:
        low, high = target_ranges(config)
        outputs = low + (outputs + 1.0) * (high - low) / 2.0
    return _by_target(_raw, outputs, config)


def _by_target(what: Callable[[Float, str, Data], Float], y: Float, config: Config) -> Float:
    """Let each target's column be worked on by itself."""
    data = config.data
    if len(data.targets) == 1:
        return what(y, data.targets[0], data)
    return np.stack([what(y[:, at], name, data) for at, name in enumerate(data.targets)], axis=1)


def _learned(y: Float, target: str, data: Data) -> Float:
    return forward(np.clip(y, *data.range_of(target)), data.transforms.get(target))


def _raw(outputs: Float, target: str, data: Data) -> Float:
    transform = data.transforms.get(target)
    return outputs if transform is None else np.clip(backward(outputs, transform), *data.range_of(target))
