"""Erase from real data at random, and hold the digest against a federation that never had the records."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frmu import api
from frmu.config import Config, load
from frmu.datasets import cached
from frmu.types import Selection

__all__ = ["bench_erasure"]

Chosen = tuple[Selection, Any]  # a selection, and the same as a mask over the table


def bench_erasure(data: str, cache: Path, seeds: int) -> dict[str, Any]:
    """One run a seed: train, erase a few subjects or clients, a window and some records, drain, train without them."""
    folder = cached(data, cache)
    table = pq.read_table(folder / "data.parquet")
    config = (folder / "config.toml").read_text(encoding="utf-8")
    runs = [_run(table, config, seed) for seed in range(seeds)]
    return {"data": data, "runs": runs, "equal": all(run["equal"] for run in runs)}


def _run(table: pa.Table, text: str, seed: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        config = _put(Path(folder) / "all", table, text)
        with api.Experiment(config, "local") as experiment:
            trained = experiment.train()
        chosen = _choose(table, config, np.random.default_rng(seed))
        for selection, _ in chosen:
            api.erase(config, selection, "bench")
        with api.Experiment(config, "local") as experiment:
            drained = experiment.drain()
        gone = chosen[0][1]
        for _, mask in chosen[1:]:
            gone = pc.or_(gone, mask)
        with api.Experiment(_put(Path(folder) / "never", table.filter(pc.invert(gone)), text), "local") as experiment:
            never = experiment.train()
    return {
        "seed": seed,
        "records": trained["records"],
        "erased": pc.sum(gone).as_py(),
        "requests": len(chosen),
        "train_seconds": trained["seconds"],
        "drain_seconds": drained["seconds"],
        "state_digest": drained["state_digest"],
        "never_had_digest": never["state_digest"],
        "equal": drained["state_digest"] == never["state_digest"] and drained["verified"],
    }


def _put(folder: Path, table: pa.Table, text: str) -> Config:
    folder.mkdir()
    pq.write_table(table, folder / "data.parquet")
    (folder / "config.toml").write_text(text, encoding="utf-8")
    return load(folder / "config.toml")


def _choose(table: pa.Table, config: Config, rng: np.random.Generator) -> list[Chosen]:
    data = config.data
    pick: Callable[[str, int], list[Any]] = lambda column, number: [  # noqa: E731
        value.item() if hasattr(value, "item") else value
        for value in rng.choice(pc.unique(table[column]).to_numpy(zero_copy_only=False), number, replace=False)
    ]
    chosen: list[Chosen] = []
    if data.subject is not None:
        for subject in pick(data.subject, 3):
            chosen.append((Selection("subject", subject=str(subject)), pc.equal(table[data.subject], subject)))
    client = pick(data.client, 1)[0]
    chosen.append((Selection("client", client=client), pc.equal(table[data.client], client)))
    ids = [str(name) for name in pick(data.record, 50)]
    chosen.append((Selection("records", records=tuple(ids)), pc.is_in(table[data.record], pa.array(ids))))
    if data.time is not None:
        days = np.unique(table[data.time].to_numpy().astype("datetime64[D]"))
        first = days[rng.integers(len(days) // 2)]
        window = (
            first.astype("datetime64[us]").item(),
            (first + np.timedelta64(3, "D")).astype("datetime64[us]").item(),
        )
        inside = pc.and_(
            pc.greater_equal(table[data.time], pa.scalar(window[0], table[data.time].type)),
            pc.less(table[data.time], pa.scalar(window[1], table[data.time].type)),
        )
        chosen.append((Selection("between", between=window), inside))
    return chosen
