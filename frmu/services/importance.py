"""The inputs that a model's learned features lean on, from its checkpoint alone.

No federation, site or shard is needed: a metric is part of the state. A state that an erasure has overtaken is not
explained, as it is not served.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from frmu.config import Config
from frmu.errors import RequestError, StoreError
from frmu.models.importance import Column, Pair, importances, learned_columns, strongest_pairs
from frmu.report.importance import plot_importance
from frmu.services.prediction import Model, load_model
from frmu.services.requests import ledger_of
from frmu.storage.checkpoint import settled
from frmu.storage.workspace import Workspace
from frmu.types import HEAD, Float, State

__all__ = ["explain_features"]


def explain_features(config: Config, picture: Path | None = None) -> dict[str, Any]:
    """The importance of every column that features are learned of, by layer and modality; plain JSON types.

    `picture` is a PNG to write. Raises `RequestError` where there is no metric to explain, and `StoreError` where
    nothing was trained with this config, or an erasure has overtaken the state.
    """
    model = _in_force(config)
    state, columns = model.state, learned_columns(model.config)
    layers = importances(state)
    _must_be_learned(state, layers)
    if picture is not None:
        _may_be_drawn(picture)
        plot_importance(columns, layers, picture)
    return {
        "state_digest": state.digest,
        "shape": state.learned["shape"],
        "layers": [{"layer": at, "columns": _by_modality(columns, of)} for at, of in enumerate(layers, start=1)],
        "pairs": [_pair(one) for one in strongest_pairs(state, columns)],
        **({"picture": str(picture)} if picture is not None else {}),
    }


def _in_force(config: Config) -> Model:
    file = Workspace.existing(config).state
    model = load_model(file)
    if model.state.config != settled(config, file).fingerprint():
        raise StoreError(f"{file}: trained with another config; run `frmu train` first")
    with ledger_of(config) as ledger:
        if model.state.contents not in ledger.history.clean_contents():
            raise StoreError(f"{file}: an erasure has overtaken this state, so it is not explained; finish the drain")
    return model


def _must_be_learned(state: State, layers: Sequence[Float]) -> None:
    if HEAD not in state.parameters:
        raise RequestError('a module that is trained by rounds (model.kind = "rounds") has no features to be looked at')
    if not state.learned:
        raise RequestError(
            "the features of this model are frozen: they lean on no input more than on another; set model.encoder = "
            '"learned" and train again'
        )
    if not layers:
        raise RequestError(
            "the features of this model were learned in 0 layers, so they lean on no input more than on another: "
            "that was best on validation, or there are few records for the columns; set model.layers = 2 to see a "
            "metric all the same"
        )


def _may_be_drawn(path: Path) -> None:
    if path.suffix.lower() != ".png" or path.is_dir() or not path.absolute().parent.is_dir():
        raise RequestError(f"{path}: a picture is written as a .png file into a folder that is there")


def _by_modality(columns: Sequence[Column], importance: Float) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for column, share in zip(columns, importance.tolist(), strict=True):
        found.setdefault(column.modality, {})[column.name] = share
    return found


def _pair(pair: Pair) -> dict[str, Any]:
    return {"columns": [[one.modality, one.name] for one in (pair.one, pair.other)], "share": pair.share}
