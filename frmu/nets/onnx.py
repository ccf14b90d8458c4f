"""A net in ONNX, run by onnxruntime (`pip install 'frmu[onnx]'`), after its message was looked through here.

onnxruntime runs no code of a file by itself, but it would read weights from other files that one names. So the protocol
buffer is walked first, whatever it repeats: external data, operators of other domains, functions, graphs within graphs,
and what draws at random are refused. The numbers of fields are those of onnx.proto.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from frmu.config.files import Net
from frmu.errors import ConfigError
from frmu.nets.net import Call, Float32
from frmu.nets.pt2 import shown

__all__ = ["check_model", "read"]

_DOMAINS = (b"", b"ai.onnx")
_RANDOM = (b"Random", b"Multinomial", b"Bernoulli")


def read(net: Net) -> Call:
    """Read an `.onnx` file; raises `ConfigError` where it is not whole, wants other files, or is not as declared."""
    check_model(net)
    try:
        import onnxruntime  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError:
        raise ConfigError(
            f"{net.name}: needs onnxruntime; pip install 'frmu[onnx]', or give a .pt2 file in model.encoders"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(net.raw, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own, of many kinds
        raise _broken(net, error) from None
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(f"{net.name}: has {len(inputs)} inputs and {len(outputs)} outputs, and must have one of each")
    name = inputs[0].name

    def call(X: Float32) -> Float32:
        try:
            return np.asarray(session.run(None, {name: X})[0])
        except Exception as error:  # noqa: BLE001 - onnxruntime's own, of many kinds
            raise ConfigError(
                f"{net.name}: does not take {list(X.shape)} ({_short(error)}); mend {net.knob}.shape and .batch"
            ) from None

    return call


def check_model(net: Net) -> None:
    """Raise `ConfigError` where a model is not whole, or holds what an encoder may not."""
    try:
        for number, value in _fields(net.raw):
            if number == 7:
                _graph(net, value)
            elif number == 25:
                raise _refused(net, "functions of its own")
            elif number == 8:
                _domain(net, dict(_fields(value)).get(1, b""))
    except (ValueError, IndexError, TypeError) as error:
        raise _broken(net, error) from None


def _graph(net: Net, graph: Any) -> None:
    for number, value in _fields(graph):
        if number == 1:
            _node(net, value)
        elif number == 5:
            _tensor(net, value)
        elif number == 15:
            raise _refused(net, "sparse weights")


def _node(net: Net, node: Any) -> None:
    for number, value in _fields(node):
        if number == 7:
            _domain(net, value)
        elif number == 4 and value.startswith(_RANDOM):
            raise _refused(net, f"the operator {shown(value.decode(errors='replace'))}, which draws at random")
        elif number == 5:
            for part, inner in _fields(value):
                if part in (6, 11):
                    raise _refused(net, "a graph within a graph")
                if part in (5, 10):
                    _tensor(net, inner)
                if part in (22, 23):
                    raise _refused(net, "sparse weights")


def _tensor(net: Net, tensor: Any) -> None:
    for number, value in _fields(tensor):
        if number == 13 or (number == 14 and value != 0):
            raise _refused(net, "weights that lie in other files")


def _domain(net: Net, domain: Any) -> None:
    if domain not in _DOMAINS:
        raise _refused(net, f"operators of the domain {shown(domain.decode(errors='replace'))}")


def _fields(raw: Any) -> Iterator[tuple[int, Any]]:
    """The fields of a message by number: whole numbers, and bytes; raises `ValueError` where it is cut off."""
    if not isinstance(raw, bytes):
        raise TypeError("a number in the place of a message")
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        if key & 7 == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        size, at = _varint(raw, at) if key & 7 == 2 else ({1: 8, 5: 4}.get(key & 7, -1), at)
        if size < 0 or at + size > len(raw):
            raise ValueError("it is cut off, or no message")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    found = shift = 0
    while shift < 70:
        found |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if raw[at - 1] < 128:
            return found, at
    raise ValueError("a number that does not end")


def _refused(net: Net, what: str) -> ConfigError:
    return ConfigError(f"{net.name}: has {what}, which an encoder may not; export another net")


def _broken(net: Net, error: Exception) -> ConfigError:
    return ConfigError(f"{net.name}: is not a whole ONNX file ({_short(error)}); export it again")


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
