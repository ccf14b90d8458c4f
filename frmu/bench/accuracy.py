"""Test errors of federations beside the models that people have now, fitted on all records in one place.

Every method has the same rows, columns - lags among them - and split: it is fitted on `fit`, may choose on `validation`
and is judged on `test`. Rivals see the records of all sites together; ours stay at their sites. An erasure of ours is
one record at the largest site, to the new state, held against a federation that is built from nothing on the shards
that are left; a rival has nothing but to fit again.

(Gradient-boosted trees: Friedman, Annals of Statistics 2001; LightGBM: Ke et al., NeurIPS 2017.)
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.bench.images import module
from frmu.bench.scenario import filled, held
from frmu.config import Config, load
from frmu.data.shard import SPLITS
from frmu.datasets import cached
from frmu.methods.analytic import analytic
from frmu.report.figures import measure
from frmu.runtime.local import LocalFederation
from frmu.types import Float

__all__ = ["METHODS", "OURS", "RIVALS", "SETS", "bench_accuracy", "config_for", "draw_accuracy"]

SETS = ("bikes", "air", "appliances", "parking", "power", "traffic", "retail", "flights", "views")
OURS: Mapping[str, Mapping[str, Any]] = {
    "frozen, 64": {"encoder": "relu", "features": 64},
    "learned": {"encoder": "learned", "features": "auto"},
}
EXTRA = "the extra frmu[bench]"
Rows = Mapping[str, tuple[Float, NDArray[Any]]]  # columns and targets by split
Tell = Callable[[str], None]


def bench_accuracy(
    sets: Sequence[str], methods: Sequence[str], seeds: int, cache: Path, out: Path | None, tell: Tell
) -> list[dict[str, Any]]:
    """Measure methods on sets, one line a set, method and seed; lines that stand in `out` are not measured again."""
    done = _read(out)
    for name in sets:
        rows: Rows | None = None
        for method in methods:
            for seed in range(seeds):
                if any((line["set"], line["method"], line["seed"]) == (name, method, seed) for line in done):
                    continue
                if method in OURS:
                    found = _ours(config_for(name, cache, seed, OURS[method]))
                else:
                    rows = _pooled(config_for(name, cache, 0, OURS["frozen, 64"])) if rows is None else rows
                    found = _rival(RIVALS[method], rows, seed)
                line = {"set": name, "method": method, "seed": seed, **found}
                done.append(line)
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")
                tell(f"{name}, {method}, seed {seed}: {found['error']:.4f} in {found['fit']:.1f} s")
    return [line for line in done if line["set"] in sets and line["method"] in methods and line["seed"] < seeds]


def _read(out: Path | None) -> list[dict[str, Any]]:
    if out is None or not out.exists():
        return []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines() if line.strip()]


def config_for(name: str, cache: Path, seed: int, model: Mapping[str, Any]) -> Config:
    """The config of a set under a model; nothing is disturbed, so everything is kept and clients count by size."""
    config = load(sorted(cached(name, cache).glob("*.toml"))[0])
    text = {"model": config.model.model_copy(update={**model, "seed": seed})}
    text |= {"policy": config.policy.model_copy(update={"selector": "keep"})}  # type: ignore[dict-item]
    text |= {"attention": config.attention.model_copy(update={"rule": "size"})}  # type: ignore[dict-item]
    return config.model_copy(update=text)


# -- ours -----------------------------------------------------------------------------------------------------


def _ours(config: Config) -> dict[str, Any]:
    """Test error, seconds to fit and to erase one record, and whether the state is that of never had."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        federation, method = filled(config, Path(folder)), analytic(config)
        began = time.perf_counter()
        done = method.apply(federation, method.init(), None)
        fit = time.perf_counter() - began
        error = _error_of(measure(federation, done), federation)
        client = max(held(federation), key=lambda one: len(one.shard))
        rows = np.zeros(len(client.shard), dtype=bool)
        rows[np.random.default_rng(config.model.seed).choice(np.flatnonzero(client.shard.split == 0))] = True
        began = time.perf_counter()
        client.drop(rows)
        after = method.apply(federation, method.init(), None).state
        erase = time.perf_counter() - began
        never = method.apply(LocalFederation(config, federation.clients, Path(folder)), method.init(), None).state
        return {"error": error, "fit": fit, "erase": erase, "exact": after.digest == never.digest}


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


def _rival(fit: Callable[..., Any], rows: Rows, seed: int) -> dict[str, Any]:
    classes = rows["fit"][1].dtype.kind != "f"
    middle, scale = (0.0, 1.0) if classes else (float(np.mean(rows["fit"][1])), float(np.std(rows["fit"][1])))
    y = {name: Y if classes else (Y - middle) / scale for name, (_, Y) in rows.items()}
    X = {name: part for name, (part, _) in rows.items()}
    began = time.perf_counter()
    model = fit(X["fit"], y["fit"], X["validation"], y["validation"], seed)
    seconds = time.perf_counter() - began
    said = np.asarray(model.predict(X["test"])).reshape(len(y["test"]))
    error = 100.0 * float(np.mean(said != y["test"])) if classes else float(np.sqrt(np.mean((said - y["test"]) ** 2)))
    return {"error": error, "fit": seconds, "erase": seconds, "exact": None}


def _classes(y: NDArray[Any]) -> bool:
    return y.dtype.kind != "f"


def _boosted(X: Float, y: NDArray[Any], V: Float, v: NDArray[Any], seed: int) -> Any:
    """scikit-learn's histogram gradient boosting with its own defaults."""
    made = module("sklearn.ensemble", EXTRA)
    kind = made.HistGradientBoostingClassifier if _classes(y) else made.HistGradientBoostingRegressor
    return kind(random_state=seed).fit(X, y)


def _network(X: Float, y: NDArray[Any], V: Float, v: NDArray[Any], seed: int) -> Any:
    """Two layers of 128 over standardised columns, stopped early."""
    made = module("sklearn.neural_network", EXTRA)
    kind = made.MLPClassifier if _classes(y) else made.MLPRegressor
    net = kind(hidden_layer_sizes=(128, 128), early_stopping=True, max_iter=200, random_state=seed)
    scaler = module("sklearn.preprocessing", EXTRA).StandardScaler()
    return module("sklearn.pipeline", EXTRA).make_pipeline(scaler, net).fit(X, y)


def _lightgbm(X: Float, y: NDArray[Any], V: Float, v: NDArray[Any], seed: int) -> Any:
    """LightGBM, of as many trees as do best on validation, 2,000 at most."""
    made = module("lightgbm", EXTRA)
    kind = made.LGBMClassifier if _classes(y) else made.LGBMRegressor
    model = kind(n_estimators=2000, learning_rate=0.05, random_state=seed, n_jobs=1, verbose=-1)
    return model.fit(X, y, eval_set=[(V, v)], callbacks=[made.early_stopping(50, verbose=False)])


RIVALS: Mapping[str, Callable[..., Any]] = {
    "boosted trees": _boosted, "MLP 128-128": _network, "LightGBM": _lightgbm,
}  # fmt: skip
METHODS = (*RIVALS, *OURS)


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
