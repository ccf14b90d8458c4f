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
from frmu.data.transform import head_widths, raw_units
from frmu.errors import RequestError, StoreError
from frmu.models.features import model_of, predictor
from frmu.models.residuals import LEAST, needed, reach
from frmu.models.statistics import one_thread
from frmu.services.requests import ledger_of
from frmu.services.witness import tracker_of
from frmu.storage.atomic import write_file
from frmu.storage.checkpoint import config_of, load_state
from frmu.storage.workspace import Workspace
from frmu.tracking.queue import Queue
from frmu.types import RESIDUALS, Float, State

__all__ = ["Model", "load_model", "predict"]

BLOCK = 4_096  # rows encoded at a time


@dataclass(frozen=True, slots=True)
class Model:
    """A state, and the config that says how to encode for it."""

    state: State
    config: Config

    def predict(self, file: str | Path, interval: float | None = None) -> pa.Table:
        """Client, record id where the file has one, and prediction for every row of a Parquet file, in its order.

        A classification gives the class as `prediction` and the score of each class beside it; a regression gives it
        in units of the target, whatever its transform, and then within its declared range; of several targets one a
        column, `prediction <target>`. With an `interval`, such as 0.9, `low` and `high` are what that share of the
        records that judged would have been within (`frmu.models.residuals`).
        """
        return self.predict_and_count(file, interval)[0]

    def predict_and_count(
        self, file: str | Path, interval: float | None = None
    ) -> tuple[pa.Table, dict[str, int], dict[str, int]]:
        """As `predict`; and how many values were clipped to their declared range, and at how many clients, by range.

        Raises `DataError` where a client has more of them in the file than `data.clip` lets in.
        """
        within = None if interval is None else self.reaches(interval)
        table = parquet.inputs(self.config, str(file))
        values: Counter[str] = Counter()
        at: Counter[str] = Counter()
        outputs = np.zeros((table.num_rows, len(self.state.outputs)))
        names = table[CLIENT].to_numpy(zero_copy_only=False)
        predict = predictor(self.config, model_of(self.state))
        with one_thread():
            for client in np.unique(names):
                rows = np.flatnonzero(names == client)
                own = table.take(rows)
                for one in beyond(own, self.config):
                    if one.refused(self.config):
                        raise one.error(self.config, str(client), str(file), int(rows[one.row]))
                    values[one.name] += one.values
                    at[one.name] += 1
                columns = features(own, self.config)
                for first in range(0, len(rows), BLOCK):
                    some = {name: X[first : first + BLOCK] for name, X in columns.items()}
                    outputs[rows[first : first + BLOCK]] = predict(some)
        return self._answer(file, table, outputs, within), dict(sorted(values.items())), dict(sorted(at.items()))

    def reaches(self, interval: float) -> Float:
        """Return how far the truth is from a prediction at most, (targets,), in units of the head.

        Raises `RequestError` where the model is of classes, or too few records judged it for an interval of that level.
        """
        if self.config.data.task != "regression":
            raise RequestError("an interval is for a regression; a classification has a score for each class")
        if not 0.0 < interval < 1.0:
            raise RequestError(f"an interval must be a share between 0 and 1, such as 0.9, got {interval:g}")
        counts = self.state.parameters.get(RESIDUALS)
        n = 0 if counts is None else int(counts[0].sum())
        if counts is None or n < needed(interval):
            has = f"it has {n:,}" if n else f"it has fewer than {LEAST}, or was made by an older frmu: train again"
            raise RequestError(
                f"an interval of {interval:g} needs a model that {needed(interval):,} validation records judged, and "
                f"{has}; ask for less, or widen the validation part of [split]"
            )
        return np.array([reach(one.astype(np.int64), interval) for one in counts]) * head_widths(self.config)

    def _answer(self, file: str | Path, table: pa.Table, outputs: Float, within: Float | None) -> pa.Table:
        data = self.config.data
        columns: dict[str, Any] = {data.client: table[CLIENT]}
        if data.record in pq.read_schema(file).names:
            columns[data.record] = parquet.read_parquet(file, [data.record])[data.record]
        if data.task == "regression":
            return pa.table({**columns, **self._in_units(outputs, within)})
        best = np.array(self.state.outputs)[np.argmax(outputs, axis=1)]
        scores = {f"score {name}": outputs[:, at] for at, name in enumerate(self.state.outputs)}
        return pa.table({**columns, "prediction": best, **scores})

    def _in_units(self, outputs: Float, within: Float | None) -> dict[str, Float]:
        """Predictions in units of the targets, by column, with the ends of intervals where these are asked for."""
        parts = {"prediction": outputs}
        parts |= {} if within is None else {"low": outputs - within, "high": outputs + within}
        targets = self.config.data.targets
        found: dict[str, Float] = {}
        for name, part in parts.items():
            raw = raw_units(part if len(targets) > 1 else part[:, 0], self.config).reshape(len(part), len(targets))
            found |= {name if len(targets) == 1 else f"{name} {of}": raw[:, at] for at, of in enumerate(targets)}
        return found


def load_model(path: Path) -> Model:
    """Read a state file that stands alone; raises `StoreError` if it is not whole."""
    state = load_state(path)
    if state is None:
        raise StoreError(f"{path}: no such state")
    config = config_of(path)
    if config.fingerprint() != state.config:
        raise StoreError(f"{path}: its config is not the one that the state was made with; it was changed")
    return Model(state, config)


def predict(
    config: Config, file: Path, out: Path, version: str | None = None, interval: float | None = None
) -> dict[str, Any]:
    """Write predictions for a Parquet file; what was used as plain JSON types.

    For an `interval` see `Model.predict`. Raises `RequestError` where the registry has no champion, or the version
    holds a state that an erasure has overtaken, or that this federation never made.
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
    if model.config.model.code_file is not None and not config.model.allow_code:
        raise RequestError(
            f'version {number} of "{registry.name}" is code of somebody\'s own ({model.config.model.module}), which '
            f"would be run; set model.allow_code = true in {config.file} if you wrote it"
        )
    # What is let in is for the config of today to say: a state is the same under any.
    data = model.config.data.model_copy(update={"clip": config.data.clip})
    model = Model(model.state, model.config.model_copy(update={"data": data}))
    answer, clipped, clipped_at = model.predict_and_count(file, interval)
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
        """A data frame of predictions, in the order of the rows; `params` may hold an `interval`."""
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            file = Path(folder) / "inputs.parquet"
            frame.to_parquet(file, index=False)
            return self._model.predict(file, (params or {}).get("interval")).to_pandas()


def _load_pyfunc(path: str) -> _Pyfunc:
    """The hook by which MLflow loads a version; raises `StoreError` for one that is code: nobody here allowed that."""
    model = load_model(Path(path))
    if model.config.model.code_file is not None:
        raise StoreError(
            f"{path}: is code of somebody's own ({model.config.model.module}), which MLflow must not run; use `frmu "
            "predict`"
        )
    return _Pyfunc(model)
