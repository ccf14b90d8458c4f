"""A graph of torch.export, run operator by operator: those of a list, called as the file's own programme would.

Nothing is looked up by a word of the file: an operator that is not in the list is refused by its name. A graph is first
run without numbers, on torch's device for shapes alone, so that no tensor is made that is larger than it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from frmu.config.files import Net
from frmu.errors import ConfigError
from frmu.nets.net import Call, Float32
from frmu.nets.pt2 import Graph, Node, Ref, Weight, read_graph, shown

__all__ = ["OPERATORS", "call_of", "one_torch_thread", "read"]

MOST = 1 << 28  # entries of a tensor within: 1 GiB
# Those that give, or may give, what they were given: it may not be changed in place.
_VIEWS = """
    view.default reshape.default flatten.using_ints permute.default transpose.int t.default unsqueeze.default
    squeeze.default squeeze.dim slice.Tensor select.int chunk.default split.Tensor expand.default expand_as.default
    contiguous.default     dropout.default feature_dropout.default detach.default alias.default
"""
_INPLACE = "relu_.default hardtanh_.default silu_.default leaky_relu_.default elu_.default add_.Tensor mul_.Tensor"
_OTHERS = """
    conv1d.default conv1d.padding conv2d.default conv2d.padding linear.default matmul.default mm.default bmm.default
    addmm.default relu.default relu6.default gelu.default silu.default elu.default leaky_relu.default hardtanh.default
    hardswish.default hardsigmoid.default sigmoid.default tanh.default softmax.int log_softmax.int clamp.default
    clamp_min.default clamp_max.default max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default
    adaptive_avg_pool1d.default adaptive_avg_pool2d.default batch_norm.default layer_norm.default group_norm.default
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar neg.default
    abs.default exp.default sqrt.default rsqrt.default reciprocal.default pow.Tensor_Scalar mean.dim sum.dim_IntList
    amax.default cat.default stack.default clone.default linalg_vector_norm.default scaled_dot_product_attention.default
"""
OPERATORS = tuple(sorted(f"{_VIEWS} {_INPLACE} {_OTHERS}".split()))
_FROZEN = {"train": False, "training": False, "dropout_p": 0.0}  # what these arguments must be
Kept = dict[str, Any]  # tensors by name


def read(net: Net) -> Call:
    """Read a `.pt2` file; raises `ConfigError` where it is not whole, or holds an operator that is not in the list."""
    graph = read_graph(net.name, net.raw)
    if graph.sizes != (net.batch, *net.shape):
        raise ConfigError(
            f"{net.name}: takes {list(graph.sizes)}, and {net.knob}.batch and .shape say {[net.batch, *net.shape]}; "
            "mend these, or export it so"
        )
    steps = [_Step(net, node) for node in graph.nodes]
    _check_names(net, graph)
    weights = {name: _tensor(net, name, one) for name, one in graph.weights.items()}
    return call_of(net, weights, lambda kept, x: _walk(net, graph, steps, {**kept, graph.input: x}))


def call_of(net: Net, weights: Mapping[str, Any], forward: Any) -> Call:
    """Build the call of a net of weights and a function of these and the input; shapes alone are tried first."""
    shapes = {name: weight.to("meta") for name, weight in weights.items()}
    with torch.no_grad():
        try:
            forward(shapes, torch.empty((net.batch, *net.shape), device="meta"))
        except (RuntimeError, TypeError, ValueError, IndexError, KeyError, NotImplementedError) as error:
            raise ConfigError(
                f"{net.name}: does not take {[net.batch, *net.shape]} ({' '.join(str(error).split())[:160]}); mend "
                f"{net.knob}.shape and .batch, which must be those that it was exported with"
            ) from None

    def call(X: Float32) -> Float32:
        with torch.no_grad(), one_torch_thread():
            given = torch.empty(X.shape)
            given.copy_(torch.from_numpy(X))  # into memory that torch has laid out: kernels ask for its borders
            return np.asarray(forward(weights, given).numpy().copy())

    return call


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch work on one thread: how sums are split among threads is in their last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Step:
    """A call of a graph, bound to its operator."""

    def __init__(self, net: Net, node: Node) -> None:
        name = node.op.removeprefix("torch.ops.aten.")
        if name not in OPERATORS or name == node.op:
            raise ConfigError(
                f"{net.name}: wants the operator {shown(node.op)}, which is none of those that an encoder may "
                f"have; export another net, or give safetensors and {net.knob}.architecture"
            )
        base, overload = name.split(".")
        self.op: Any = getattr(getattr(torch.ops.aten, base), overload)
        self.node, self.view, self.inplace = node, name in _VIEWS.split(), name in _INPLACE.split()
        self.positional, self.named = self._bound(net, name)

    def _bound(self, net: Net, name: str) -> tuple[list[Any], dict[str, Any]]:
        """The arguments in the order of the operator's own, and by name from where one is left out."""
        left = dict(self.node.arguments)
        positional: list[Any] = []
        for one in self.op._schema.arguments:
            if one.name not in left or one.kwarg_only:
                break
            positional.append(left.pop(one.name))
        known = {one.name for one in self.op._schema.arguments}
        if unknown := [one for one in left if one not in known]:
            raise ConfigError(f"{net.name}: gives {name} an argument {shown(unknown[0])} that it has not")
        for one, value in _FROZEN.items():
            if self.node.arguments.get(one, value) != value:
                raise ConfigError(f"{net.name}: {name} still learns; call eval() on the net before it is exported")
        return positional, left

    def __call__(self, kept: Kept) -> None:
        """Call the operator, and keep what it gives under the names that the graph has for it."""
        given = [_filled(one, kept) for one in self.positional]
        made = self.op(*given, **{name: _filled(one, kept) for name, one in self.named.items()})
        found = list(made) if self.node.several else [made]
        if len(found) != len(self.node.outputs):
            raise ValueError(f"{self.node.op} gives {len(found)} tensors")
        for name, tensor in zip(self.node.outputs, found, strict=True):
            if tensor.numel() > MOST:
                raise ValueError(f"a tensor of {tensor.numel():,} entries within it; {MOST:,} at most")
            kept[name] = tensor


def _walk(net: Net, graph: Graph, steps: Sequence[_Step], kept: Kept) -> Any:
    """Run a graph over weights and an input; a tensor is let go after its last use."""
    last = {ref: at for at, node in enumerate(graph.nodes) for ref in _refs(node)}
    going: dict[int, list[str]] = {}
    for name, at in last.items():
        going.setdefault(at, []).append(name)
    for at, step in enumerate(steps):
        step(kept)
        for name in going.get(at, ()):
            if name != graph.output:
                del kept[name]
    return kept[graph.output]


def _check_names(net: Net, graph: Graph) -> None:
    """Raise `ConfigError` where a call uses what is not there yet, or changes what it does not own."""
    there, owned = {graph.input, *graph.weights}, set()
    for node in graph.nodes:
        name = node.op.removeprefix("torch.ops.aten.")
        if missing := [ref for ref in _refs(node) if ref not in there]:
            raise ConfigError(f"{net.name}: uses {shown(missing[0])} before it is made; export it again")
        changed = node.arguments.get("self", node.arguments.get("input"))
        if name in _INPLACE.split() and not (isinstance(changed, Ref) and changed.name in owned):
            raise ConfigError(f"{net.name}: {name} changes its input or a weight; export the net with inplace=False")
        if set(node.outputs) & there or len(set(node.outputs)) < len(node.outputs):
            raise ConfigError(f"{net.name}: makes a tensor twice under one name; export it again")
        there |= set(node.outputs)
        owned |= set(node.outputs) if name not in _VIEWS.split() else set()
    if graph.output not in there - {graph.input, *graph.weights}:
        raise ConfigError(f"{net.name}: gives what it was given; export a net that makes something of it")


def _refs(node: Node) -> Iterator[str]:
    for one in node.arguments.values():
        for ref in one if isinstance(one, tuple) else (one,):
            if isinstance(ref, Ref):
                yield ref.name


def _filled(argument: Any, kept: Kept) -> Any:
    if isinstance(argument, Ref):
        return kept[argument.name]
    return [kept[one.name] for one in argument] if isinstance(argument, tuple) else argument


def _tensor(net: Net, name: str, weight: Weight) -> Any:
    """A weight in memory of torch's own, laid out as in the file."""
    dtype = torch.float32 if weight.dtype == "float32" else torch.int64
    try:
        flat = torch.frombuffer(bytearray(weight.raw), dtype=dtype) if weight.raw else torch.empty(0, dtype=dtype)
        laid = flat.as_strided(weight.sizes, weight.strides, weight.offset)
        if laid.numel() > max(1, flat.numel()):
            raise ValueError("it is larger than its bytes")
        return laid.clone()
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"{net.name}: its weight {shown(name)} is not whole ({' '.join(str(error).split())[:100]}); export it again"
        ) from None
