"""[model.files]: a frozen encoder that is a file of the user's own, and its content.

The content is read beside the config and stays with it, so it goes to clients on other machines with the config, and
into the checkpoint with the state: a file that is moved or gone tomorrow changes nothing of what was trained today.
"""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from frmu.config.table import Table
from frmu.errors import ConfigError

__all__ = ["LARGEST", "SUFFIXES", "EncoderFile", "Net", "content_of", "is_file", "net_of"]

SUFFIXES = (".pt2", ".onnx", ".safetensors")
LARGEST = 64 << 20  # bytes of a file: it travels with the config, and lies in every checkpoint


class EncoderFile(Table):
    """`[model.files.MODALITY]`: the shape of what goes into the net of `model.encoders`, and of what comes out of it.

    A record's scaled columns, float32 in [-1, 1], are given in `shape`; by default as they are, one after the other.
    The `outputs` are clipped to `range` and stand on 255 steps of it. A call is of one record, so that the bits of its
    outputs are its own; `batch` is for nets that are as exact with more (`frmu.nets.net`), and never fewer are given.
    `architecture` is for safetensors, which hold no graph. `sha256`, where it is given, must be that of the file.
    """

    outputs: int = Field(ge=1, le=4096)
    range: Annotated[list[float], Field(min_length=2, max_length=2)]
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1, max_length=4)] | None = None
    batch: int = Field(default=1, ge=1, le=4096)
    architecture: Literal["cnn"] | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @field_validator("range")
    @classmethod
    def _ordered(cls, ends: list[float]) -> list[float]:
        low, high = ends
        if not low < high or not math.isfinite(high - low):
            raise ValueError(f"range must be [low, high] with low < high and a finite width, got [{low}, {high}]")
        return ends


@dataclass(frozen=True, slots=True)
class Net:
    """A frozen encoder as it lies in a file, `raw`, and what its config says of it; `name` is for messages."""

    name: str
    modality: str
    raw: bytes = field(repr=False)
    shape: tuple[int, ...]
    outputs: int
    low: float
    high: float
    batch: int
    architecture: str | None

    @property
    def suffix(self) -> str:
        """The end of the file's name, which says how it is read."""
        return os.path.splitext(self.name)[1]  # noqa: PTH122 - a name, which may be of another machine

    @property
    def knob(self) -> str:
        """The table to mend."""
        return f"model.files.{self.modality}"

    def header(self) -> dict[str, Any]:
        """Everything that can change an output, and the digest of the file; its name cannot."""
        return {
            "sha256": _digest(self.raw), "shape": self.shape, "outputs": self.outputs,
            "range": [self.low.hex(), self.high.hex()], "batch": self.batch, "architecture": self.architecture,
        }  # fmt: skip


def is_file(encoder: str) -> bool:
    """Return whether an encoder is the name of a file.

    >>> is_file("digits.pt2"), is_file("relu")
    (True, False)
    """
    return encoder.endswith(SUFFIXES)


def content_of(path: Path) -> bytes | None:
    """Return the content of an encoder's file, None where it cannot be read: whoever needs it says why."""
    try:
        return path.read_bytes() if path.stat().st_size <= LARGEST else None
    except OSError:
        return None


def net_of(modality: str, path: Path, declared: EncoderFile, raw: bytes | None, columns: int) -> Net:
    """Build the net of a modality of so many scaled columns; raises `ConfigError` where it cannot be what is declared.

    >>> net_of("image", Path("no/digits.pt2"), EncoderFile(outputs=8, range=[0.0, 1.0]), None, 4)
    Traceback (most recent call last):
    frmu.errors.ConfigError: no/digits.pt2: no such file; put it back, or mend model.encoders.image
    """
    where = f"model.files.{modality}"
    if raw is None:
        raise ConfigError(f"{path}: {_why_not(path)}, or mend model.encoders.{modality}")
    if declared.sha256 is not None and declared.sha256 != _digest(raw):
        raise ConfigError(
            f"{path}: its SHA-256 is {_digest(raw)}, and {where}.sha256 is another: put the file back that is meant, "
            "or mend sha256"
        )
    shape = tuple(declared.shape or (columns,))
    if math.prod(shape) != columns:
        raise ConfigError(
            f"{where}.shape must hold the {columns} scaled columns of the modality, got {list(shape)}, which hold "
            f"{math.prod(shape)}"
        )
    low, high = declared.range
    return Net(
        str(path), modality, raw, shape, declared.outputs, float(low), float(high), declared.batch,
        declared.architecture,
    )  # fmt: skip


@lru_cache(maxsize=8)
def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def _why_not(path: Path) -> str:
    """Return why a file could not be read, and what to do."""
    try:
        size = path.stat().st_size
        with path.open("rb"):
            pass
    except FileNotFoundError:
        return "no such file; put it back"
    except OSError as error:
        return f"cannot be read: {error.strerror}; mend that"
    return f"has {size >> 20} MiB, and an encoder may have {LARGEST >> 20}; give a smaller one"
