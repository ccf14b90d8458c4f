"""The graph and the weights of a file that `torch.export.save` wrote, without torch: JSON and raw numbers.

`torch.export.load` may run what the file says: it unpickles sample inputs and some weights, gives symbolic sizes to a
parser that evaluates, and finds operators by their names. So none of that is called. Sample inputs are never looked
at; a weight that is pickled, a size that is a symbol, and an argument that is no tensor, number or text are refused.
Members are stored as they are in such a file: a compressed one, which might unpack to anything, is none.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frmu.errors import ConfigError

__all__ = ["Graph", "Node", "Ref", "Weight", "read_graph", "shown"]

_SCHEMA = 8  # of torch.export, as its major version
_DTYPES = {5: "int64", 7: "float32"}  # torch.export's numbers for them
_PLAIN = {
    "as_int": int, "as_float": float, "as_bool": bool, "as_string": str, "as_ints": int, "as_floats": float,
    "as_bools": bool,
}  # fmt: skip
_BROKEN = (
    KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError, EOFError, OSError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Ref:
    """A tensor of the graph, by its name."""

    name: str


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as it lies in the file: bytes, and how a tensor is laid over them, in entries."""

    raw: bytes
    dtype: str
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


@dataclass(frozen=True, slots=True)
class Node:
    """A call of an operator: its name, its arguments by name, in their order, and the names of what it gives.

    `several` says that it gives a list of them.
    """

    op: str
    arguments: Mapping[str, Any]
    outputs: tuple[str, ...]
    several: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """A net: the name of its input and its sizes, weights by name, calls in their order, the name of its output."""

    input: str
    sizes: tuple[int, ...]
    weights: Mapping[str, Weight]
    nodes: tuple[Node, ...]
    output: str


def read_graph(name: str, raw: bytes) -> Graph:
    """Read a file's graph; raises `ConfigError`, which begins with its name, where it is not whole or wants code."""
    try:
        return _read(name, raw)
    except ConfigError:
        raise
    except _BROKEN as error:
        raise ConfigError(
            f"{name}: is not a whole file of torch.export ({type(error).__name__}: {str(error)[:120]}); export it again"
        ) from None


def _read(name: str, raw: bytes) -> Graph:
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        members = _members(name, archive, len(raw))
        model = json.loads(archive.read(members["models/model.json"]))
        if model["schema_version"]["major"] != _SCHEMA:
            raise ConfigError(
                f"{name}: is of version {model['schema_version']['major']} of torch.export's format, and {_SCHEMA} is "
                "read here; export it with the torch that is installed"
            )
        stored = {
            kind: json.loads(archive.read(members[f"data/{kind}/model_{kind}_config.json"]))["config"]
            for kind in ("weights", "constants")
        }
        module = model["graph_module"]
        graph, signature = module["graph"], module["signature"]
        weights: dict[str, Weight] = {}
        inputs = []
        for spec in signature["input_specs"]:
            (kind, one), *_ = spec.items()
            if kind == "user_input":
                inputs.append(one["arg"]["as_tensor"]["name"])
                continue
            own = {"parameter": "parameter_name", "buffer": "buffer_name", "tensor_constant": "tensor_constant_name"}
            if kind not in own:
                raise ConfigError(f"{name}: has an input of kind {shown(kind)}; only tensors go into an encoder")
            where = "weights" if one[own[kind]] in stored["weights"] else "constants"
            meta = stored[where][one[own[kind]]]
            weights[one["arg"]["name"]] = _weight(name, one[own[kind]], meta, where, archive, members)
    outputs = [_only(name, spec)["arg"]["as_tensor"]["name"] for spec in signature["output_specs"]]
    if len(inputs) != 1 or len(outputs) != 1:
        raise ConfigError(
            f"{name}: has {len(inputs)} inputs and {len(outputs)} outputs, and an encoder has one of each; export it so"
        )
    sizes = tuple(_size(name, one) for one in graph["tensor_values"][inputs[0]]["sizes"])
    return Graph(inputs[0], sizes, weights, tuple(_node(name, node) for node in graph["nodes"]), outputs[0])


def _members(name: str, archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of an archive by their paths below its one folder."""
    infos = archive.infolist()
    if any(info.compress_type != zipfile.ZIP_STORED for info in infos) or sum(info.file_size for info in infos) > size:
        raise ConfigError(f"{name}: has members that would unpack to more than the file; export it again")
    found = {info.filename.partition("/")[2]: info for info in infos}
    if len(found) != len(infos):
        raise ConfigError(f"{name}: has two members of one name; export it again")
    if "models/model.json" not in found:
        raise ConfigError(
            f"{name}: holds no graph as this version of torch.export writes it; save it with torch.export.save, by the "
            "torch that is installed"
        )
    if archive.read(found["byteorder"]) != b"little":
        raise ConfigError(f"{name}: its numbers are not little-endian; export it on another machine")
    return found


def _weight(
    name: str, own: str, meta: Mapping[str, Any], where: str, archive: zipfile.ZipFile,
    members: Mapping[str, zipfile.ZipInfo],
) -> Weight:  # fmt: skip
    if meta["use_pickle"] is not False:
        raise ConfigError(f"{name}: its weight {shown(own)} is pickled, and a pickle is a program; it is not opened")
    tensor, path = meta["tensor_meta"], meta["path_name"]
    if tensor["dtype"] not in _DTYPES:
        raise ConfigError(f"{name}: its weight {shown(own)} is not float32; export the net in float32")
    sizes, strides = (tuple(_size(name, one) for one in tensor[key]) for key in ("sizes", "strides"))
    if len(sizes) != len(strides):
        raise ValueError("a weight has other strides than sizes")
    raw = archive.read(members[f"data/{where}/{path}"])
    return Weight(raw, _DTYPES[tensor["dtype"]], sizes, strides, _size(name, tensor["storage_offset"]))


def _node(name: str, node: Mapping[str, Any]) -> Node:
    arguments = {}
    for one in node["inputs"]:
        if one["name"] in arguments:
            raise ValueError("an argument twice")
        arguments[str(one["name"])] = _argument(name, one["arg"])
    made = _only(name, {"out": node["outputs"][0]} if len(node["outputs"]) == 1 else {})
    several = "as_tensors" in made
    outputs = made["as_tensors"] if several else [made["as_tensor"]]
    return Node(str(node["target"]), arguments, tuple(str(one["name"]) for one in outputs), several)


def _argument(name: str, arg: Mapping[str, Any]) -> Any:
    """Read an argument of a call: tensors, numbers, text, nothing."""
    ((kind, value),) = arg.items()
    if kind == "as_none":
        return None
    if kind == "as_tensor":
        return Ref(str(value["name"]))
    if kind == "as_tensors":
        return tuple(Ref(str(one["name"])) for one in value)
    if kind.startswith("as_sym"):
        raise _symbolic(name)
    if kind not in _PLAIN:
        raise ConfigError(f"{name}: gives an operator {shown(kind)}; only tensors, numbers and text are read")
    for one in value if isinstance(value, list) else [value]:
        if type(one) is not _PLAIN[kind] and not (_PLAIN[kind] is float and type(one) is int):
            raise TypeError(f"{kind} holds another type")
    return list(value) if isinstance(value, list) else value


def _size(name: str, size: Mapping[str, Any]) -> int:
    if set(size) != {"as_int"}:
        raise _symbolic(name)
    if type(size["as_int"]) is not int or size["as_int"] < 0:
        raise ValueError("a size that is no whole number")
    return size["as_int"]


def _symbolic(name: str) -> ConfigError:
    return ConfigError(f"{name}: has sizes that are symbols; export it with fixed sizes, without dynamic_shapes")


def _only(name: str, found: Mapping[str, Any]) -> Any:
    """Return the only value of a mapping."""
    if len(found) != 1:
        raise ConfigError(f"{name}: has a call with several outputs, which is not read; export the net without it")
    return next(iter(found.values()))


def shown(text: object) -> str:
    """Return a word of a file as it may stand in a message."""
    return re.sub(r"[^\w.:]", "?", str(text))[:60]
