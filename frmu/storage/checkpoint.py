"""The state on disk: a safetensors file, replaced atomically. No pickle.

Beside the state it holds the part of the config that made it, and the content of the encoders that are files, so that
the file alone is enough to predict with. The config's fingerprint, which the state has, tells if either was changed.
"""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from frmu.config import Config
from frmu.errors import StoreError
from frmu.storage.atomic import write_bytes
from frmu.types import State

__all__ = ["config_of", "load_state", "save_state", "settled"]

_FORMAT = "frmu-state/3"
_FILE = "encoder of "  # what a tensor is called that is a file, with the modality, or the module, after it
_PARTS = {"data", "slices", "split", "model", "policy", "attention"}  # of the config


def save_state(state: State, config: Config, path: Path) -> None:
    """Write a state and its digest; after a crash the old file or the new one is there, whole."""
    metadata = {
        "format": _FORMAT,
        "digest": state.digest,
        "contents": state.contents,
        "numerics": state.numerics,
        "header": json.dumps(state.header(), sort_keys=True),
        "config": config.model_dump_json(include=_PARTS, exclude_unset=True),
    }
    files = {f"{_FILE}{name}": np.frombuffer(raw, np.uint8) for name, raw in config.contents.items()}
    write_bytes(path, save({**state.parameters, **files}, metadata=metadata), aside=path.with_suffix(".partial"))


def config_of(path: Path) -> Config:
    """The config that a state was made with, where paths mean nothing."""
    with safe_open(path, framework="np") as file:
        config = Config.model_validate_json((file.metadata() or {})["config"])
        own = [*config.model.files, *([config.model.module] if config.model.code_file is not None else [])]
        there = {f"{_FILE}{name}" for name in own} & set(file.keys())
        contents = {name.removeprefix(_FILE): file.get_tensor(name).tobytes() for name in sorted(there)}
    return config.model_copy(update={"contents": contents}) if contents else config


def settled(config: Config, path: Path) -> Config:
    """The config with the day that the state at `path` was trained on, where split.until is "today"; today's without.

    What is done with a state goes by its own day: an erasure must not move the borders of a split.
    """
    if not config.split.rolling:
        return config
    try:
        day = config_of(path).split.until if path.exists() else None
    except (SafetensorError, OSError, KeyError, ValueError):  # no whole checkpoint: whoever loads it will say so
        day = None
    return config.at(day if isinstance(day, dt.date) else dt.datetime.now(dt.UTC).date())


def load_state(path: Path) -> State | None:
    """Read a state back, or None where there is none yet; raises `StoreError` if its digest does not hold."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            names = [name for name in file.keys() if not name.startswith(_FILE)]  # noqa: SIM118 - no mapping
            parameters = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{path}: not a whole checkpoint: {error}; remove it and train again") from None
    if metadata.get("format") != _FORMAT:
        raise StoreError(f"{path}: not a checkpoint of this frmu (format {metadata.get('format')}); train again")
    try:
        state = State.from_header(json.loads(metadata["header"]), parameters, metadata.get("numerics", ""))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: not a whole checkpoint: {error!r}; remove it and train again") from None
    if (state.digest, state.contents) != (metadata.get("digest"), metadata.get("contents")):
        raise StoreError(f"{path}: the checkpoint does not match its digest; it was changed. Train again")
    return state
