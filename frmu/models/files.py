"""A frozen encoder that is a file of the user's own: a net's outputs on the grid.

A net that was trained elsewhere is as frozen as random features are: records go through it, and none goes into it, so
nothing of it has to be unlearned for the records of this federation. (What it has seen before, nobody here knows.)
Outputs are float32, and the grid has 255 steps of the declared range, so that two machines whose last bits differ
mostly agree; where an output lies within those bits of a border between steps they may not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config import Config
from frmu.config.files import Net
from frmu.errors import DataError
from frmu.models.grid import LEFT, Columns, present
from frmu.types import Float

__all__ = ["NetEncoder", "check_files", "columns_of_net"]


@dataclass(frozen=True, slots=True)
class NetEncoder:
    """One modality's encoder that is a net in a file; the net is opened when records are first given to it.

    Where it is `optional`, the last of the columns it is given is whether the modality is there, 1 or 0.
    """

    net: Net
    optional: bool = False

    def grid(self, X: Float) -> NDArray[np.int8]:
        """Scaled columns, (n, columns), as the integers of outputs and presence, (n, integers).

        Raises `DataError` where an output is no number.
        """
        from frmu.nets import run  # torch comes with it

        net = self.net
        values = run(net, X[:, :-1] if self.optional else X).astype(np.float64)
        if not np.isfinite(values).all():
            raise DataError(
                f"{net.name}: gives NaN or infinity for {int((~np.isfinite(values)).any(axis=1).sum())} of "
                f"{len(values)} records; give model.encoders.{net.modality} a net that gives numbers for all of them"
            )
        Z = (on_steps(values, net.low, net.high) - LEFT).astype(np.int8)
        return present(Z, X[:, -1] != 0.0, self.columns.idle) if self.optional else Z

    @property
    def columns(self) -> Columns:
        """The columns of a block of phi, as they are made of the integers."""
        return columns_of_net(self.net.outputs, self.optional)


def on_steps(values: Float, low: float, high: float) -> Float:
    """Numbers as whole steps, 0 to 255, of a range; beyond it they are clipped.

    >>> on_steps(np.array([-9.0, 0.0, 0.1, 1.0, 7.0]), 0.0, 1.0).tolist()
    [0.0, 0.0, 26.0, 255.0, 255.0]
    """
    return np.asarray(np.floor((np.clip(values, low, high) - low) * (255.0 / (high - low)) + 0.5))


def columns_of_net(outputs: int, optional: bool) -> Columns:
    """The columns of a net's block of phi: an output in units of its range, from 0 to 1, and whether it is there."""
    found = Columns.shifted(outputs, np.full(outputs, 1.0 / 255.0))
    return found.beside(Columns.plain(1, 1.0)) if optional else found


def check_files(config: Config) -> None:
    """Open every encoder of a config that is a file; raises `ConfigError` for the first that is not as declared."""
    nets: Mapping[str, Any] = {name: config.net(name) for name in config.model.files}
    if nets:
        from frmu.nets import opened

        for net in nets.values():
            opened(net)
