"""A net as it is called: so that what it gives for a record depends on that record alone, to the last bit.

The order in which a product is added up depends on its size, and in small ones on the place of a row; at the end of a
vector other code may be at work than before. So a call is of one record, and nothing else can be in its bits. More at a
time are faster, about twice for a small net; then every call has the same number of records, the last ones zeros where
there are not enough, and a net that is opened is asked if it gives records drawn at random the same bits wherever they
stand, and whoever stands beside them. (Where it does not show in those, a proof of an erasure would find it.)
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.config.files import Net
from frmu.errors import ConfigError

__all__ = ["Call", "Float32", "opened", "run"]

Float32 = NDArray[np.float32]
_TRIES = 8
Call = Callable[[Float32], Float32]  # (batch, *shape) -> (batch, outputs)


def run(net: Net, X: NDArray[Any]) -> Float32:
    """Give records (n, columns) to a net, block by block, (n, outputs)."""
    call = opened(net)
    found = np.empty((len(X), net.outputs), dtype=np.float32)
    for at in range(0, len(X), net.batch):
        rows = X[at : at + net.batch]
        found[at : at + len(rows)] = call(_block(net, rows))[: len(rows)]
    return found


@lru_cache(maxsize=4)
def opened(net: Net) -> Call:
    """Read a net; raises `ConfigError` where its file is not whole, wants code to run, or is not as it is declared."""
    call = _reader(net.suffix)(net)
    _check(net, call)
    return call


def _reader(suffix: str) -> Callable[[Net], Call]:
    """Return what reads files of a kind; each brings a library of its own."""
    if suffix == ".onnx":
        from frmu.nets.onnx import read as onnx

        return onnx
    if suffix == ".safetensors":
        from frmu.nets.architectures import read as architecture

        return architecture
    from frmu.nets.aten import read as pt2

    return pt2


def _block(net: Net, rows: NDArray[Any]) -> Float32:
    """Records (n, columns) as one call of a net has them, (batch, *shape), the last ones zeros."""
    block = np.zeros((net.batch, int(np.prod(net.shape))), dtype=np.float32)
    block[: len(rows)] = rows
    return block.reshape(net.batch, *net.shape)


def _check(net: Net, call: Call) -> None:
    """Raise `ConfigError` where outputs are not as declared, or a record's depend on where it stands, or by whom."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-1.0, 1.0, (net.batch, int(np.prod(net.shape)))).astype(np.float32)
    found = call(_block(net, X))
    if found.shape != (net.batch, net.outputs) or found.dtype != np.float32:
        raise ConfigError(
            f"{net.name}: gives {list(found.shape)} of {found.dtype} for a batch, and must give float32 "
            f"{[net.batch, net.outputs]}; mend {net.knob}.outputs, or give another file"
        )
    if net.batch > 1 and not all(_steady(net, call, X, found, rng) for _ in range(_TRIES)):
        raise ConfigError(
            f"{net.name}: gives a record other bits where it stands elsewhere in a batch, or beside others; set "
            f"{net.knob}.batch = 1, and export it for one record"
        )


def _steady(net: Net, call: Call, X: Float32, found: Float32, rng: np.random.Generator) -> bool:
    """Tell if records give what they gave, in another order, and one of them at the end behind zeros."""
    order, alone = rng.permutation(net.batch), np.zeros_like(X)
    alone[-1] = X[order[0]]
    return _same(call(_block(net, X[order])), found[order]) and _same(call(_block(net, alone))[-1], found[order[0]])


def _same(one: Float32, other: Float32) -> bool:
    return np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
