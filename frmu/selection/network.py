"""The policy network, in numpy: masked self-attention over the slices of a client.

Slices are a set, so the network is permutation-equivariant: it sees each slice with everything kept and under the
present influences, and how slices relate, and says what each should count; attention pooling gives one value, what
the present influences would earn on later records. How slices relate enters the attention as a bias, a learned
multiple for each head. The torch twin that RLlib trains is `policy.module`; both read the same file. (Vaswani
et al., "Attention is all you need", NeurIPS 2017; relations as a bias: Ying et al., "Do transformers really perform
bad for graph representation?", NeurIPS 2021; pre-norm blocks.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frmu.errors import PolicyError
from frmu.models.grid import on_grid
from frmu.selection.observation import FEATURES, VERSION, Observation
from frmu.storage.atomic import write_bytes
from frmu.types import Float

__all__ = [
    "BLOCKS", "HEADS", "RELATIONS", "WIDTH", "Network", "current_policy", "influence_of", "misfit", "nearness",
    "read_policy", "shapes", "shipped", "write_policy",
]  # fmt: skip

WIDTH, BLOCKS, HEADS = 48, 2, 4
RELATIONS = 3  # with everything kept, at present, and nearness in the order of slices
LIMIT = 9.0  # logits end here: an influence is never quite 0 or 1
_EPSILON = 1e-5


@dataclass(frozen=True, slots=True)
class Network:
    """Weights by name, float32 as they lie in the file, their digest, and what the policy was trained on.

    `lineage` has `clients` (names of this federation's clients whose records it saw), `parent` (a digest) and
    free notes such as seeds.
    """

    weights: Mapping[str, NDArray[np.float32]] = field(repr=False)
    digest: str
    lineage: Mapping[str, Any]

    def __call__(self, first: Observation, now: Observation) -> tuple[Float, Any, Float]:
        """Logits (K,), the value of the present influences, and the pooling attention (K,).

        `first` is what was seen with everything kept, `now` what is seen under the present influences. Where these are
        of a stack of problems, all have its axis in front, and the value is an array, too.
        """
        w = {name: weight.astype(np.float64) for name, weight in self.weights.items()}
        near = np.broadcast_to(nearness(first.rows.shape[-2]), first.relation.shape)
        relations = np.stack([first.relation, now.relation, near], axis=-3)  # (..., RELATIONS, K, K)
        x = np.concatenate([first.rows, now.rows], axis=-1) @ w["embed.weight"].T + w["embed.bias"]
        for block in range(BLOCKS):
            x = x + _attend(w, x, relations, f"blocks.{block}.")
            x = x + _mix(w, x, f"blocks.{block}.")
        x = _norm(w, x, "norm")
        logits = (x @ w["head.weight"].T + w["head.bias"])[..., 0]
        pool = _softmax((x @ w["pool.weight"].T + w["pool.bias"])[..., 0])
        value = (pool[..., None, :] @ x @ w["value.weight"].T + w["value.bias"])[..., 0, 0]
        return logits, value if value.ndim else float(value), pool


def nearness(slices: int) -> Float:
    """exp(-|s - t|) in the order of slices, (K, K)."""
    at = np.arange(slices, dtype=np.float64)
    return np.asarray(np.exp(-np.abs(at[:, None] - at[None, :])), dtype=np.float64)


def influence_of(logits: Float, by_itself: bool) -> Float:
    """Influences (..., K) in [0, 1] from logits: what an action means, in training and in production.

    For a client by itself the greatest is one: a common factor would only make the ridge stronger.

    >>> influence_of(np.array([0.0, -2.2]), by_itself=True).round(2).tolist()
    [1.0, 0.2]
    """
    influence = 1.0 / (1.0 + np.exp(-np.clip(logits, -LIMIT, LIMIT)))
    return on_grid(influence / influence.max(axis=-1, keepdims=True) if by_itself else influence)


Weights = Mapping[str, Float]


def _attend(w: Weights, x: Float, relations: Float, block: str) -> Float:
    y = _norm(w, x, f"{block}norm1")
    qkv = (y @ w[f"{block}qkv.weight"].T + w[f"{block}qkv.bias"]).reshape(*x.shape[:-1], 3, HEADS, -1)
    query, key, value = (np.swapaxes(qkv[..., part, :, :], -3, -2) for part in range(3))  # (..., HEADS, K, width)
    bias = sum(
        w[f"{block}bias"][:, at, None, None] * relations[..., at, None, :, :] for at in range(RELATIONS)
    )  # of each head
    said = _softmax(query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1]) + bias) @ value
    return np.swapaxes(said, -3, -2).reshape(x.shape) @ w[f"{block}out.weight"].T + w[f"{block}out.bias"]


def _mix(w: Weights, x: Float, block: str) -> Float:
    y = _norm(w, x, f"{block}norm2")
    y = np.maximum(y @ w[f"{block}up.weight"].T + w[f"{block}up.bias"], 0.0)
    return y @ w[f"{block}down.weight"].T + w[f"{block}down.bias"]


def _norm(w: Weights, x: Float, name: str) -> Float:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + _EPSILON)
    return centred / scale * w[f"{name}.weight"] + w[f"{name}.bias"]


def _softmax(x: Float) -> Float:
    exponents = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=-1, keepdims=True), dtype=np.float64)


def shapes() -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight."""
    linear = {"embed": (WIDTH, 2 * len(FEATURES)), "head": (1, WIDTH), "pool": (1, WIDTH), "value": (1, WIDTH)}
    norms = ["norm"]
    for block in (f"blocks.{number}." for number in range(BLOCKS)):
        linear |= {f"{block}qkv": (3 * WIDTH, WIDTH), f"{block}out": (WIDTH, WIDTH)}
        linear |= {f"{block}up": (2 * WIDTH, WIDTH), f"{block}down": (WIDTH, 2 * WIDTH)}
        norms += [f"{block}norm1", f"{block}norm2"]
    weights: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in linear.items()}
    biases: dict[str, tuple[int, ...]] = {f"{name}.bias": (shape[0],) for name, shape in linear.items()}
    scales: dict[str, tuple[int, ...]] = {f"{name}.{part}": (WIDTH,) for name in norms for part in ("weight", "bias")}
    relations: dict[str, tuple[int, ...]] = {f"blocks.{number}.bias": (HEADS, RELATIONS) for number in range(BLOCKS)}
    return weights | biases | scales | relations


def read_policy(path: Path) -> Network:
    """Load a policy file; raises `PolicyError` if it is broken or was made for other features."""
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in sorted(file.keys())}
        raw = path.read_bytes()
    except FileNotFoundError:
        raise PolicyError(f"{path}: no such policy file; leave policy.file out to use the shipped one") from None
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path}: not a whole safetensors file: {error}; remove it, or mend policy.file") from None
    version = metadata.get("features")
    if version != str(VERSION):
        raise PolicyError(
            f"{path}: made for observation version {version}, this frmu computes version {VERSION}; train it again "
            "with `frmu policy train`"
        )
    if why := misfit(weights):
        raise PolicyError(f"{path}: not a policy of this frmu: {why}; leave policy.file out, or name another")
    return Network(
        weights={name: weight.astype(np.float32) for name, weight in weights.items()},
        digest=hashlib.sha256(raw).hexdigest(),
        lineage=_lineage(path, metadata.get("lineage", "{}")),
    )


def misfit(weights: Mapping[str, NDArray[Any]]) -> str:
    """Return why weights are not those of the network: one that is missing, too many, of another shape or no number.

    >>> misfit({"head.bias": np.zeros(1)})[:42]
    'blocks.0.bias is missing, which has (4, 3)'
    """
    known = shapes()
    for name, shape in sorted(known.items()):
        if name not in weights:
            return f"{name} is missing, which has {shape}"
        if weights[name].shape != shape:
            return f"{name} has {weights[name].shape} and not {shape}"
        if not np.isfinite(weights[name]).all():
            return f"{name} is not finite"
    more = sorted(set(weights) - set(known))
    return f"{more[0]} is none of its weights" if more else ""


def _lineage(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PolicyError(f"{path}: nobody can tell what it learned from; leave policy.file out, or name another")
    return found


def write_policy(weights: Mapping[str, Any], lineage: Mapping[str, Any], path: Path) -> Network:
    """Save weights (float32 arrays by name) and lineage, atomically, and read them back."""
    metadata = {"features": str(VERSION), "lineage": json.dumps(lineage, sort_keys=True)}
    content = save({name: np.ascontiguousarray(weights[name]) for name in sorted(weights)}, metadata=metadata)
    write_bytes(path, content, aside=path.with_suffix(".partial"))
    return read_policy(path)


def current_policy(file: Path | None, folder: Path, retired: frozenset[str]) -> Network:
    """The policy in force: the file that is named, else the newest trained here, else the shipped one.

    One that learned from records that have been erased since is retired, and passed over.
    """
    mine = sorted(folder.glob("*.safetensors"), reverse=True) if folder.is_dir() else []
    for path in [file, *mine] if file is not None else mine:
        network = read_policy(path)
        if network.digest not in retired:
            return network
    return read_policy(shipped())


def shipped() -> Path:
    """The policy that comes with the package."""
    return Path(__file__).parent / "shipped.safetensors"
