"""Test errors of federations beside the models that people have now, fitted on all records in one place.

Every method has the same rows, columns - lags among them - and split: it is fitted on `fit`, may choose on `validation`
and is judged on `test`. Rivals see the records of all sites together; ours stay at their sites. An erasure of ours is
one record at the largest site, to the new state, held against a federation that is built from nothing on the shards
that are left; a rival has nothing but to fit again. All run on one thread. Of a regression it is counted as well for
how many test records an interval of 90 % holds, which rests on the residuals of validation records.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frmu.bench.lines import Lines, code_digest, digest_of_line
from frmu.bench.rivals import RIVALS, Rows, measured
from frmu.bench.scenario import filled, held
from frmu.config import Config, load
from frmu.data.shard import SPLITS
from frmu.data.transform import head_widths, scaled_targets
from frmu.datasets import cached
from frmu.methods.analytic import analytic
from frmu.models.features import head_of
from frmu.models.residuals import reach
from frmu.models.statistics import one_thread
from frmu.report.figures import measure
from frmu.runtime.local import LocalFederation
from frmu.types import RESIDUALS, State

__all__ = ["KNOWN", "METHODS", "OURS", "SETS", "WIDTHS", "bench_accuracy", "config_for", "draw_accuracy"]

SETS = ("bikes", "air", "appliances", "parking", "power", "traffic", "retail", "flights", "views", "mnist")
OURS: Mapping[str, Mapping[str, Any]] = {
    "frozen, 64": {"encoder": "relu", "features": 64},
    "learned": {"encoder": "learned", "features": "auto"},
}
WIDTHS: Mapping[str, Mapping[str, Any]] = {
    f"learned, {width:,}": {"encoder": "learned", "width": width} for width in (512, 1024, 2048, 4096)
}
MORE: Mapping[str, Mapping[str, Any]] = {
    "frozen, 512": {"encoder": "relu", "width": 512},
    "one layer": {"encoder": "learned", "features": "auto", "layers": 1},
    "lattice of 1/4": {"encoder": "learned", "features": "auto", "lattice": 0.25},
    "no lattice": {"encoder": "learned", "features": "auto", "lattice": 1e-4},  # finer, and sums would not be whole
}
ALL_OURS: Mapping[str, Mapping[str, Any]] = {**OURS, **WIDTHS, **MORE}
LEVEL = 0.9  # of intervals
METHODS = (*RIVALS, *OURS)
KNOWN = (*RIVALS, *ALL_OURS)
Tell = Callable[[str], None]


def bench_accuracy(
    sets: Sequence[str], methods: Sequence[str], seeds: int, cache: Path, out: Path | None, tell: Tell,
    erase: bool = True,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure methods on sets, one line a set, method and seed; lines that stand in `out` are not measured again.

    With `erase` something is erased from ours as well.
    """
    lines, found = Lines(out, ("set", "method", "seed"), tell), []
    for name in sets:
        rows: Rows | None = None
        for method in methods:
            for seed in range(seeds):
                names = {"set": name, "method": method, "seed": seed}
                config = config_for(name, cache, seed, ALL_OURS.get(method, OURS["frozen, 64"]))
                digest = _digest(method, config, erase)
                line = lines.get(digest, **names)
                if line is None:
                    if method not in ALL_OURS and rows is None:
                        rows = _pooled(config)
                    result = _ours(config, erase) if method in ALL_OURS else measured(RIVALS[method], rows or {}, seed)
                    line = {**names, **result, "digest": digest}
                    lines.put(line)
                    tell(f"{name}, {method}, seed {seed}: {line['error']:.4f} in {line['fit']:.1f} s")
                found.append(line)
    return found


def _digest(method: str, config: Config, erase: bool = True) -> str:
    """A digest of all that a line hangs on: of a rival the version, and the data's part of a config."""
    if method in ALL_OURS:
        return digest_of_line({"config": config.fingerprint(), "code": code_digest(), "erase": erase})
    data = {
        "data": config.data.model_dump(mode="json", exclude={"path"}),
        "split": config.split.model_dump(mode="json"),
    }
    return digest_of_line({"rival": RIVALS[method].version, "code": code_digest("bench/rivals.py"), **data})


def config_for(name: str, cache: Path, seed: int, model: Mapping[str, Any]) -> Config:
    """The config of a set under a model; nothing is disturbed, so everything is kept and clients count by size.

    A `width` of the model is the number of features of all modalities together.
    """
    config = load(sorted(cached(name, cache).glob("*.toml"))[0])
    settings = {key: value for key, value in model.items() if key != "width"} | {"seed": seed}
    if "width" in model:  # frozen features are so many a modality
        settings["features"] = model["width"] // (1 if model["encoder"] == "learned" else len(config.data.modalities))
    text = {"model": config.model.model_copy(update=settings)}
    text |= {"policy": config.policy.model_copy(update={"selector": "keep"})}  # type: ignore[dict-item]
    text |= {"attention": config.attention.model_copy(update={"rule": "size"})}  # type: ignore[dict-item]
    return config.model_copy(update=text)


# -- ours -----------------------------------------------------------------------------------------------------


def _ours(config: Config, erase: bool = True) -> dict[str, Any]:
    """Test error, seconds to fit and to erase one record, and whether the state is that of never had."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder, one_thread():
        federation, method = filled(config, Path(folder)), analytic(config)
        began = time.perf_counter()
        done = method.apply(federation, method.init(), None)
        fit = time.perf_counter() - began
        error, holds = _error_of(measure(federation, done), federation), _holds(config, federation, done.state)
        found = {"error": error, "fit": fit, "holds": holds}
        return found | (_erased(config, federation, Path(folder)) if erase else {"erase": None, "exact": None})


def _holds(config: Config, federation: LocalFederation, state: State) -> float | None:
    """The share of test records within the interval of `LEVEL`; None where the model has none."""
    counts = state.parameters.get(RESIDUALS)
    if counts is None:
        return None
    head, within = head_of(state), [reach(one.astype(np.int64), LEVEL) for one in counts] * head_widths(config)
    inside, records = 0, 0
    for client in held(federation):
        rows = np.flatnonzero(client.shard.split == SPLITS.index("test"))
        said = client.predictions({"": head}, client.shard.modalities, rows)[""]
        truth = scaled_targets(client.shard.learned_target[rows], config).reshape(said.shape)
        inside, records = inside + int(np.sum(np.abs(truth - said) <= within)), records + said.size
    return inside / max(1, records)


def _erased(config: Config, federation: LocalFederation, folder: Path) -> dict[str, Any]:
    """Erase one fitted record of the largest site."""
    method = analytic(config)
    client = max(held(federation), key=lambda one: len(one.shard))
    rows = np.zeros(len(client.shard), dtype=bool)
    rows[np.random.default_rng(config.model.seed).choice(np.flatnonzero(client.shard.split == 0))] = True
    began = time.perf_counter()
    client.drop(rows)
    after = method.apply(federation, method.init(), None).state
    seconds = time.perf_counter() - began
    never = method.apply(LocalFederation(config, federation.clients, folder), method.init(), None).state
    return {"erase": seconds, "exact": after.digest == never.digest}


def _error_of(metrics: Mapping[str, float], federation: LocalFederation) -> float:
    if "test_accuracy" in metrics:
        return 100.0 * (1.0 - metrics["test_accuracy"])
    fitted = np.concatenate([client.shard.target[client.shard.split == 0] for client in held(federation)])
    return metrics["test_rmse"] / float(np.std(fitted))


# -- rivals ---------------------------------------------------------------------------------------------------


def _pooled(config: Config) -> Rows:
    """The columns and targets of all sites together, by split; whether a modality is there is a column, as in ours."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        shards = [client.shard for client in held(filled(config, Path(folder)))]
        X = np.concatenate([np.concatenate(list(s.modalities.values()), axis=1) for s in shards])
        y, split = (np.concatenate([getattr(s, name) for s in shards]) for name in ("target", "split"))
    return {name: (X[split == code], y[split == code]) for code, name in enumerate(SPLITS)}


def draw_accuracy(table: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG: the error of each method on each set, in percent above that of boosted trees."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    sets = list(dict.fromkeys(row["set"] for row in table))
    methods = [name for name in dict.fromkeys(row["method"] for row in table) if name != "boosted trees"]
    figure = Figure(figsize=(2.5 + 1.1 * len(sets), 4.0), layout="constrained")
    axes = figure.subplots()
    for number, method in enumerate(methods):
        of = {row["set"]: row["against"] for row in table if row["method"] == method}
        at = np.arange(len(sets)) + 0.8 * (number - (len(methods) - 1) / 2) / max(1, len(methods))
        axes.bar(at, [of.get(name, np.nan) for name in sets], 0.8 / max(1, len(methods)), label=method)
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.set_xticks(np.arange(len(sets)), sets, rotation=30, ha="right")
    axes.set_ylabel("test error against boosted trees, %")
    axes.set_ylim(-30.0, 40.0)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)
