"""The models that people have now, fitted on all records in one place, on one thread.

(Gradient-boosted trees: Friedman, Annals of Statistics 2001; LightGBM: Ke et al., NeurIPS 2017; xRFM: Beaglehole,
Holzmüller, Radhakrishnan and Belkin, 2025, kernel machines with learned metrics in the leaves of a tree.)
"""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from frmu.bench.images import module
from frmu.types import Float

__all__ = ["RIVALS", "Rival", "Rows", "measured"]

EXTRA = "the extra frmu[bench]"
LEAF = 4096  # records a kernel machine is solved on: all at once would take their cube
Rows = Mapping[str, tuple[Float, NDArray[Any]]]  # columns and targets by split


@dataclass(frozen=True, slots=True)
class Rival:
    """A model, of a package: what it is fitted by, on records to fit, validation records and a seed.

    What `fit` returns predicts targets as it was given them.
    """

    package: str
    modules: tuple[str, ...]
    fit: Callable[[Float, NDArray[Any], Float, NDArray[Any], int], Any]

    @property
    def version(self) -> str:
        """The package and its version, as it is installed; "" where it is not."""
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:
            return ""


def measured(rival: Rival, rows: Rows, seed: int) -> dict[str, Any]:
    """Test error and seconds to fit; a model that is not ours has nothing but to fit again to forget."""
    for name in rival.modules:
        module(name, EXTRA)  # only what is loaded can be held to one thread
    with threadpool_limits(limits=1):
        return _measured(rival, rows, seed)


def _measured(rival: Rival, rows: Rows, seed: int) -> dict[str, Any]:
    classes = _classes(rows["fit"][1])
    middle, scale = (0.0, 1.0) if classes else (float(np.mean(rows["fit"][1])), float(np.std(rows["fit"][1])))
    y = {name: Y if classes else (Y - middle) / scale for name, (_, Y) in rows.items()}
    X = {name: part for name, (part, _) in rows.items()}
    began = time.perf_counter()
    model = rival.fit(X["fit"], y["fit"], X["validation"], y["validation"], seed)
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


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A model of standardised columns in float32, which knows classes by their numbers and answers with their names."""

    scaler: Any
    model: Any
    names: NDArray[Any] | None

    def predict(self, X: Float) -> NDArray[Any]:
        """The target of each record, (n,)."""
        said = np.asarray(self.model.predict(self.columns(X))).reshape(len(X))
        return said if self.names is None else self.names[said.astype(int)]

    def columns(self, X: Float) -> NDArray[np.float32]:
        """The columns as the model sees them."""
        return np.asarray(self.scaler.transform(X), dtype=np.float32)

    def target(self, y: NDArray[Any]) -> NDArray[Any]:
        """The targets as the model sees them, (n,) int64 of classes; (n, 1) float32 otherwise."""
        return y[:, None].astype(np.float32) if self.names is None else np.searchsorted(self.names, y)


def _xrfm(X: Float, y: NDArray[Any], V: Float, v: NDArray[Any], seed: int) -> Any:
    """xRFM as it comes, on standardised columns, in leaves of 4,096 records at most."""
    scaler = module("sklearn.preprocessing", EXTRA).StandardScaler().fit(X)
    made = module("xrfm", EXTRA).xRFM
    model = made(max_leaf_size=LEAF, device="cpu", n_threads=1, random_state=seed, verbose=False)
    found = _Scaled(scaler, model, np.unique(y) if _classes(y) else None)
    model.fit(found.columns(X), found.target(y), found.columns(V), found.target(v))
    return found


RIVALS: Mapping[str, Rival] = {
    "boosted trees": Rival("scikit-learn", ("sklearn.ensemble",), _boosted),
    "MLP 128-128": Rival("scikit-learn", ("sklearn.neural_network",), _network),
    "LightGBM": Rival("lightgbm", ("lightgbm",), _lightgbm),
    "xRFM, leaves of 4,096": Rival("xrfm", ("xrfm", "torch"), _xrfm),
}
