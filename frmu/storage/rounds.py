"""Checkpoints of a training by rounds: safetensors files under the key of what they follow from. No pickle.

A key (`frmu.methods.participation`) is a digest of all that a state after so many rounds follows from. A file whose key
is not that of the records as they stand carries what is no more to be known: it is removed before anything is trained.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frmu.storage.atomic import write_bytes

__all__ = ["Checkpoint", "Checkpoints"]

_FORMAT = "frmu-round/1"
_NAME = re.compile(r"(\d{6})-([0-9a-f]{64})\.safetensors")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The weights after some rounds, `arrays` by name, and what is told of the rounds until then, as JSON types."""

    rounds: int
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)
    told: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """The folder of checkpoints."""

    folder: Path

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(path.stat().st_size for path, _, _ in self._files())

    def __len__(self) -> int:
        return len(self._files())

    def keep(self, key: str, one: Checkpoint) -> None:
        """Write a checkpoint, atomically."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        told = json.dumps(dict(one.told), sort_keys=True)
        metadata = {"format": _FORMAT, "told": told, "digest": _digest(told, one.arrays)}
        path = self.folder / f"{one.rounds:06d}-{key}.safetensors"
        write_bytes(path, save(dict(one.arrays), metadata=metadata), aside=path.with_suffix(".partial"))

    def purge(self, key: Callable[[int], str]) -> tuple[int, int]:
        """Remove every file but those of the records as they stand; how many, and of how many bytes.

        `key` is that of a state after so many rounds.
        """
        removed = freed = 0
        for path, rounds, own in self._files():
            if key(rounds) != own:
                freed, removed = freed + path.stat().st_size, removed + 1
                path.unlink()
        for path in self.folder.glob("*.partial"):
            path.unlink()
        return removed, freed

    def clear(self) -> tuple[int, int]:
        """Remove every file."""
        return self.purge(lambda rounds: "")

    def latest(self, most: int) -> Checkpoint | None:
        """The checkpoint after the most rounds, `most` at most; one that is not whole is removed."""
        for path, rounds, _ in sorted(self._files(), key=lambda one: -one[1]):
            if rounds <= most:
                if found := _read(path, rounds):
                    return found
                path.unlink()
        return None

    def unexpected_files(self, key: Callable[[int], str]) -> list[str]:
        """The files that are no checkpoint of the records as they stand."""
        if not self.folder.exists():
            return []
        good = {path.name for path, rounds, own in self._files() if key(rounds) == own}
        return sorted(path.name for path in self.folder.iterdir() if path.name not in good)

    def _files(self) -> list[tuple[Path, int, str]]:
        there = sorted(self.folder.glob("*.safetensors")) if self.folder.exists() else []
        named = [(path, _NAME.fullmatch(path.name)) for path in there]
        return [(path, int(match[1]), match[2]) for path, match in named if match]


def _read(path: Path, rounds: int) -> Checkpoint | None:
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError):
        return None
    if metadata.get("format") != _FORMAT or metadata.get("digest") != _digest(metadata.get("told", ""), arrays):
        return None
    return Checkpoint(rounds, arrays, json.loads(metadata["told"]))


def _digest(told: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    sha = hashlib.sha256(told.encode())
    for name in sorted(arrays):
        sha.update(f"{name}{arrays[name].dtype.str}{arrays[name].shape}".encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()
