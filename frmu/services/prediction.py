"""Predictions from a state that is still good.

The champion of the model registry predicts, or a version that is named; it must be, to the last bit of its weights,
one that this federation made and no erasure has overtaken, or it is refused. MLflow can load a version as a pyfunc
through this module; no pickle is involved.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frmu.config import Config
from frmu.data import parquet
from frmu.data.clipping import beyond
from frmu.data.columns import CLIENT
from frmu.data.shard import features
from frmu.data.transform import raw_units
from frmu.errors import RequestError, StoreError
from frmu.models.features import encoding, features_of
from frmu.models.statistics import one_thread
from frmu.services.requests import ledger_of
from frmu.services.witness import tracker_of
from frmu.storage.atomic import write_file
from frmu.storage.checkpoint import config_of, load_state
from frmu.storage.workspace import Workspace
from frmu.tracking.queue import Queue
from frmu.types import Float, State

__all__ = ["Model", "load_model", "predict"]


@dataclass(frozen=True, slots=True)
class Model:
    """A state, and the config that says how to encode for it."""

    state: State
    config: Config

    def predict(self, file: str | Path) -> pa.Table:
        """Client, record id where the file has one, and prediction for every row of a Parquet file, in its order.

        A classification gives the class as `prediction` and the score of each class beside it; a regression gives it
        in units of the target, whatever its transform, and then within its declared range.
        """
        return self.predict_and_count(file)[0]

    def predict_and_count(self, file: str | Path) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
        """As `predict`; and how many values were clipped to their declared range, and at how many clients, by range.

        Raises `DataError` where a client has more of them in the file than `data.clip` lets in.
        """
        table = parquet.inputs(self.config, str(file))
        values: Counter[str] = Counter()
        at: Counter[str] = Counter()
        outputs = np.zeros((table.num_rows, len(self.state.outputs)))
        names = table[CLIENT].to_numpy(zero_copy_only=False)
        phi_of = encoding(self.config, features_of(self.state))
        with one_thread():
            for client in np.unique(names):
                rows = np.flatnonzero(names == client)
                own = table.take(rows)
                for one in beyond(own, self.config):
                    if one.refused(self.config):
                        raise one.error(self.config, str(client), str(file), int(rows[one.row]))
                    values[one.name] += one.values
                    at[one.name] += 1
                outputs[rows] = phi_of(features(own, self.config)) @ self.state.W
        return self._answer(file, table, outputs), dict(sorted(values.items())), dict(sorted(at.items()))

    def _answer(self, file: str | Path, table: pa.Table, outputs: Float) -> pa.Table:
        data = self.config.data
        columns: dict[str, Any] = {data.client: table[CLIENT]}
        if data.record in pq.read_schema(file).names:
            columns[data.record] = parquet.read_parquet(file, [data.record])[data.record]
        if data.task == "regression":
            return pa.table({**columns, "prediction": raw_units(outputs[:, 0], self.config)})
        best = np.array(self.state.outputs)[np.argmax(outputs, axis=1)]
        scores = {f"score {name}": outputs[:, at] for at, name in enumerate(self.state.outputs)}
        return pa.table({**columns, "prediction": best, **scores})


def load_model(path: Path) -> Model:
    """Read a state file that stands alone; raises `StoreError` if it is not whole."""
    state = load_state(path)
    if state is None:
        raise StoreError(f"{path}: no such state")
    config = config_of(path)
    if config.fingerprint() != state.config:
        raise StoreError(f"{path}: its config is not the one that the state was made with; it was changed")
    return Model(state, config)


def predict(config: Config, file: Path, out: Path, version: str | None = None) -> dict[str, Any]:
    """Write predictions for a Parquet file; what was used as plain JSON types.

    Raises `RequestError` where the registry has no champion, or the version holds a state that an erasure has
    overtaken, or that this federation never made.
    """
    _may_be_written(config, file, out)
    registry = tracker_of(config).registry(config.experiment)
    champion = registry.champion()
    waiting = Queue(Workspace(config.folder, config.key_file).outbox)
    if version is None and champion is None:
        first = "`frmu deliver`: runs wait for MLflow" if waiting.count() else "`frmu train`, or finish the drain"
        raise RequestError(f'the registry has no champion of "{registry.name}": run {first}')
    there = {one.number: one for one in registry.versions()}
    number = version if version is not None else champion.number if champion is not None else ""
    if number not in there:
        raise RequestError(f'the registry has no version {number} of "{registry.name}" (it has {", ".join(there)})')
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        model = load_model(registry.fetch(number, Path(folder)))
    with ledger_of(config) as ledger:
        if model.state.contents not in ledger.history.clean_contents():
            raise RequestError(
                f'version {number} of "{registry.name}" holds the state {model.state.digest[:16]}, which an erasure '
                "has overtaken or this federation never made; it is not served. Leave --version out: the champion is"
            )
    # What is let in is for the config of today to say: a state is the same under any.
    data = model.config.data.model_copy(update={"clip": config.data.clip})
    model = Model(model.state, model.config.model_copy(update={"data": data}))
    answer, clipped, clipped_at = model.predict_and_count(file)
    write_file(out, lambda file: pq.write_table(answer, file), aside=out.with_name(f".{out.name}.partial"))
    return {
        "rows": answer.num_rows,
        "out": str(out),
        "clipped": clipped,
        "clipped_at": clipped_at,
        "version": number,
        "state_digest": model.state.digest,
        "outbox": {"runs": waiting.count(), "folder": str(waiting.folder)},
    }


def _may_be_written(config: Config, file: Path, out: Path) -> None:
    """Predictions replace no file that somebody reads."""
    if out.exists() and not out.is_file():
        raise RequestError(f"{out}: is not a regular file; give another --out")
    if not out.absolute().parent.is_dir():
        raise RequestError(f"{out}: its folder is not there; make it, or give another --out")
    if config.folder.resolve() in out.resolve().parents:
        raise RequestError(f"{out}: lies in the working folder, which is frmu's own; give another --out")
    if out.exists() and any(
        read.exists() and out.samefile(read) for read in [file, *map(Path, parquet.files_of(config))]
    ):
        raise RequestError(f"{out}: is a file that records are read from; give another --out")


class _Pyfunc:
    """A state as MLflow calls it: predictions for a pandas data frame."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def predict(self, frame: Any, params: Any = None) -> Any:
        """A data frame of predictions, in the order of the rows."""
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            file = Path(folder) / "inputs.parquet"
            frame.to_parquet(file, index=False)
            return self._model.predict(file).to_pandas()


def _load_pyfunc(path: str) -> _Pyfunc:
    """The hook by which MLflow loads a version."""
    return _Pyfunc(load_model(Path(path)))
