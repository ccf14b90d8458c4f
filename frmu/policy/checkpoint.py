"""The progress of a policy's training, on disk: what a training that was killed goes on from.

RLlib's own checkpoints are pickles, and nothing pickled is read from disk here. So this is a safetensors file of
our own: the weights, Adam's moments and step counts, and as JSON the iteration, the scores and the history. What is
not in it is where the generators of random numbers stood: a training that goes on draws new tasks, from its seed and
the iteration it goes on at; and where sites train copies of their own, they begin from the average again.

It has learned from records, so it has a lineage as a policy has, and an erasure deletes it in the same way.
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
from frmu.selection.network import misfit, shapes
from frmu.selection.observation import VERSION
from frmu.storage.atomic import write_bytes

__all__ = ["Progress", "lineage_of", "read_progress", "write_progress"]

_FORMAT = "frmu-training/1"
ADAM = ("exp_avg", "exp_avg_sq", "step")  # what torch keeps of each weight
Tensors = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Progress:
    """`iterations` that are done, the weights by name, and Adam's `moments` by kind and name.

    `scores` are raw, by client and slice; `history` has one entry an iteration; `seconds` is what it took so far.
    """

    iterations: int
    weights: Tensors = field(repr=False)
    moments: Tensors = field(repr=False)
    scores: Mapping[str, Mapping[str, float]] = field(repr=False)
    history: tuple[Mapping[str, float], ...] = field(repr=False)
    seconds: float


def write_progress(progress: Progress, lineage: Mapping[str, Any], path: Path, scratch: Path) -> None:
    """Replace the checkpoint atomically, by way of a file in `scratch`: after a crash the old or the new one is there.

    `lineage` has the `clients` it learned from, and what must be the same when it is gone on with.
    """
    account = {
        "iterations": progress.iterations,
        "scores": progress.scores,
        "history": list(progress.history),
        "seconds": progress.seconds,
    }
    metadata = {
        "format": _FORMAT,
        "features": str(VERSION),
        "lineage": json.dumps(lineage, sort_keys=True),
        "account": json.dumps(account, sort_keys=True),
    }
    tensors = {f"weights/{name}": weight for name, weight in progress.weights.items()}
    tensors |= {f"moments/{name}": moment for name, moment in progress.moments.items()}
    content = save({name: np.ascontiguousarray(tensors[name]) for name in sorted(tensors)}, metadata=metadata)
    write_bytes(path, content, aside=scratch / path.name)


def read_progress(path: Path) -> tuple[Progress, dict[str, Any]]:
    """The checkpoint and its lineage; raises `PolicyError` where it is broken or of another frmu."""
    tensors, metadata = _read(path)
    if metadata.get("format") != _FORMAT or metadata.get("features") != str(VERSION):
        raise PolicyError(f"{path}: a training of another frmu; start anew with `frmu policy train --no-resume`")
    by: dict[str, dict[str, NDArray[np.float32]]] = {"weights": {}, "moments": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition("/")
        by.setdefault(part, {})[rest] = tensor
    if why := misfit(by["weights"]) or _misfit(by["moments"]):
        raise PolicyError(f"{path}: not a training of this frmu: {why}; start anew with --no-resume")
    try:
        account, lineage = json.loads(metadata["account"]), json.loads(metadata["lineage"])
        progress = Progress(
            int(account["iterations"]), by["weights"], by["moments"], account["scores"],
            tuple(account["history"]), float(account["seconds"]),
        )  # fmt: skip
        whole = progress.iterations == len(progress.history) and all("env_steps" in of for of in progress.history)
        whole = whole and isinstance(lineage["clients"], list) and {"run", "parent", "buried"} <= set(lineage)
    except (KeyError, TypeError, ValueError) as error:
        raise PolicyError(f"{path}: not a whole checkpoint: {error!r}; start anew with --no-resume") from None
    if not whole:
        raise PolicyError(f"{path}: not a whole checkpoint: its account has gaps; start anew with --no-resume")
    return progress, lineage


def _misfit(moments: Mapping[str, NDArray[Any]]) -> str:
    """Return why moments are not those of Adam over the network: of every weight all three, or none at all."""
    known = shapes()
    # A step count is stored as an array of one.
    wanted = {f"{kind}/{name}": (1,) if kind == "step" else known[name] for kind in ADAM for name in known}
    found = {name: moment.shape for name, moment in moments.items()}
    return "" if found in ({}, wanted) else "its moments are not those of its weights"


def lineage_of(path: Path) -> tuple[str, dict[str, Any] | None]:
    """The digest of a checkpoint and its lineage; None where nobody can tell what it learned from."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        return digest, json.loads(_read(path)[1]["lineage"])
    except (PolicyError, KeyError, ValueError):
        return digest, None


def _read(path: Path) -> tuple[dict[str, NDArray[np.float32]], dict[str, str]]:
    try:
        with safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in sorted(file.keys())}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise PolicyError(f"{path}: not a whole checkpoint: {error}; start anew with --no-resume") from None
