"""A case through the product - trained, erased, audited, served - and what every model of it says of its probes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from frmu import api
from frmu.bench.images import Labels
from frmu.config import Config, load
from frmu.data.parquet import gather
from frmu.data.shard import Shard
from frmu.errors import StoreError
from frmu.models.encoders import encode, encoders, width
from frmu.models.statistics import statistics_of, targets
from frmu.services.prediction import Model, load_model, predict
from frmu.types import HEAD, Float, Selection, Statistics
from frmu.verification.models_under_test import fine_tune

__all__ = ["CLASSES", "ROWS", "TUNING", "Case", "Line", "ask", "labels_said", "put", "shards", "tell"]
ROWS = ("original", "fine-tuned", "erased", "retrained")
TUNING = 50  # steps of gradient descent of the fine-tuned model, at the largest stable rate
Line = dict[str, float]  # one row of a table, by column


@dataclass(frozen=True, slots=True)
class Case:
    """One experiment: what the federation holds, what is to go, and the files of records that models are asked about.

    `gone` (records,) bool is the same as `selection`.
    """

    held: pd.DataFrame
    selection: Selection
    gone: NDArray[np.bool_]
    probes: Mapping[str, pd.DataFrame]


@dataclass(frozen=True, slots=True)
class _Told:
    """The outcome by model: scores (records, classes) of every probe, the model itself, seconds."""

    scores: Mapping[str, Mapping[str, Float]]
    models: Mapping[str, Model] = field(repr=False)
    seconds: Mapping[str, float]
    verified: bool
    erased: int
    proofs: Sequence[Mapping[str, Any]] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every state."""
        return {row: self.models[row].state.digest for row in ROWS}

    @property
    def equal(self) -> bool:
        """Return whether the erased state is the retrained one, bit for bit, and the drain said so."""
        return self.verified and self.digests["erased"] == self.digests["retrained"]

    def summary(self) -> dict[str, Any]:
        """Return what a run keeps beside its rows."""
        return {"erased": self.erased, "digests": self.digests, "digest_equal": self.equal}

    def line(self, row: str) -> Line:
        """Return what both set-ups tell of a model: its distance to the retrained one, its seconds."""
        pairs = zip(self.scores[row].values(), self.scores["retrained"].values(), strict=True)
        return {
            "gap": max(float(np.max(np.abs(mine - other))) for mine, other in pairs),
            "seconds": self.seconds[row],
        }


CLASSES = np.array([str(digit) for digit in range(10)])


def tell(case: Case, text: str, audit: bool = False) -> _Told:
    """Train, ask, fine-tune, erase, ask, train again elsewhere, ask."""
    scores, models, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        files = _files(Path(folder), case.probes)
        here = put(Path(folder) / "all", case.held, text)
        never = put(Path(folder) / "never", case.held[~case.gone], text)
        seconds["original"] = _train(here)["seconds"]
        scores["original"], models["original"] = _served(here, files)
        began = time.perf_counter()
        models["fine-tuned"] = _tuned(models["original"], never)
        seconds["fine-tuned"] = time.perf_counter() - began
        scores["fine-tuned"] = {name: ask(models["fine-tuned"], probe) for name, probe in case.probes.items()}
        request = api.erase(here, case.selection, "bench")["request"]
        with api.Experiment(here, "local") as experiment:
            drained = experiment.drain()
        seconds["erased"] = drained["seconds"]
        scores["erased"], models["erased"] = _served(here, files)
        seconds["retrained"] = _train(never)["seconds"]
        scores["retrained"], models["retrained"] = _served(never, files)
        proofs = _audited(here, request) if audit else []
    erased = sum(sum(receipt["removed"].values()) for receipt in drained["receipts"])
    return _Told(scores, models, seconds, drained["verified"], erased, proofs)


def _files(folder: Path, probes: Mapping[str, pd.DataFrame]) -> dict[str, Path]:
    """Probes as Parquet files, by name."""
    files = {name: folder / f"{name}.parquet" for name in probes}
    for name, probe in probes.items():
        probe.to_parquet(files[name], index=False)
    return files


def put(folder: Path, table: pd.DataFrame, text: str) -> Config:
    """A data set and its config, loaded; folders beside each other share a tracking database."""
    folder.mkdir()
    table.to_parquet(folder / "data.parquet", index=False)
    store = f'[store]\ntracking = "sqlite:///{folder.parent}/mlflow.db"\nexperiment = "{folder.name}"\n'
    (folder / "config.toml").write_text(f"{text}\n{store}", encoding="utf-8")
    return load(folder / "config.toml")


def _train(config: Config) -> dict[str, Any]:
    with api.Experiment(config, "local") as experiment:
        return experiment.train()


def _audited(config: Config, request: str) -> list[Mapping[str, Any]]:
    """Return what the product's own level 3 says of the receipt."""
    with api.Experiment(config, "local") as experiment:
        return list(experiment.verify(request, "L3")["proofs"])


def _served(config: Config, files: Mapping[str, Path]) -> tuple[dict[str, Float], Model]:
    """The scores (records, classes) that the champion serves, by file, and the model behind it."""
    scores, model = {}, load_model(config.folder / "state.safetensors")
    for name, file in files.items():
        answer = config.folder.parent / f"answer-{name}.parquet"
        served = predict(config, file, answer)
        if served["state_digest"] != model.state.digest:
            raise StoreError(f"{config.folder}: what is served is not the state that was trained last")
        scores[name] = _scores(pq.read_table(answer).to_pandas())
    return scores, model


def ask(model: Model, records: pd.DataFrame) -> Float:
    """The scores (records, classes) of a model that is not served."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        file = Path(folder) / "records.parquet"
        records.assign(client="test").to_parquet(file, index=False)
        return _scores(model.predict(file).to_pandas())


def _scores(answer: pd.DataFrame) -> Float:
    return answer[[f"score {name}" for name in CLASSES]].to_numpy()


def labels_said(scores: Float) -> Labels:
    """Return the class of the highest score of each record."""
    return CLASSES[np.argmax(scores, axis=1)]


def _tuned(original: Model, never: Config) -> Model:
    """The original after some steps of gradient descent on what is fitted of what remains."""
    by, outputs = encoders(never), original.state.outputs
    parts = []
    for shard in shards(never):
        rows = np.flatnonzero(shard.split == 0)
        phi = encode({name: X[rows] for name, X in shard.modalities.items()}, by)
        parts.append(statistics_of(phi, targets(shard.target[rows], outputs)))
    retain = Statistics.total(parts, width(never), len(outputs))
    return replace(
        original, state=replace(original.state, parameters={HEAD: fine_tune(original.state.W, retain, TUNING)})
    )


def shards(config: Config) -> list[Shard]:
    """Return what each client of a config's file holds, as it would be cut into splits."""
    clients = sorted(set(pd.read_parquet(config.source, columns=["client"])["client"]))
    return [Shard(table, config) for table in gather(config, clients).values()]
