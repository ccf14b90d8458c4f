"""A run of OpenDataVal, in the virtual environment that has it: `python -m frmu.bench.opendataval_worker JOB`.

JOB is a JSON file that says set, seed and evaluators; arrays come in an .npz file. Standard output is a JSON line an
evaluator, as it comes; whatever the libraries have to say goes to standard error. Every figure is made by OpenDataVal's
own functions. (Jiang, Liang, Zou and Kwon, "OpenDataVal: a unified benchmark for data valuation", NeurIPS 2023.)

OpenDataVal's image and text sets import torchvision and transformers, which nothing here uses: empty modules stand in.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
import time
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from frmu.bench.valuation import Records, values
from frmu.models.statistics import one_thread
from frmu.selection.network import read_policy, shipped
from frmu.types import Float

__all__ = ["main", "records_of"]

ABSENT = ("torchvision", "transformers")
STEP = 0.1  # of the points, between two fits of a removal curve
NOISE = 0.2  # of the labels, of those that judge as well: OpenDataVal's default


class _Absent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """A finder of modules that are not there: whatever is asked of them is an empty class."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = fullname.split(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        vars(module)["__getattr__"] = _empty
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing runs."""


def _empty(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def main(job: Path) -> None:
    """Do a job, and say a line an evaluator."""
    out = sys.stdout
    with redirect_stdout(sys.stderr), one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.meta_path.append(_Absent())
        _perform(json.loads(job.read_text(encoding="utf-8")), out)


def _perform(job: Mapping[str, Any], out: TextIO) -> None:
    import torch
    from opendataval.experiment import ExperimentMediator

    torch.set_num_threads(1)
    fetcher = _fetched(job)
    for name in job["evaluators"]:
        torch.manual_seed(job["seed"])
        model, evaluator = _evaluator(name, job, fetcher)
        mediator = ExperimentMediator(fetcher, model, raises_error=True)
        began = time.process_time()
        mediator.compute_data_values([evaluator])
        seconds = time.process_time() - began
        told = {"evaluator": name, **_figures(evaluator, fetcher, mediator, _model(job, fetcher)), "seconds": seconds}
        out.write(json.dumps(told) + "\n")
        out.flush()


def _fetched(job: Mapping[str, Any]) -> Any:
    """The set: OpenDataVal's own by its name, or arrays; split, and noise in its labels, by the seed."""
    from opendataval.dataloader import DataFetcher, mix_labels

    np.random.seed(job["seed"])  # noqa: NPY002 - OpenDataVal's generator draws from there
    if job["arrays"]:
        with np.load(job["arrays"], allow_pickle=False) as arrays:
            X, y = arrays["X"], arrays["y"]
    else:
        own = DataFetcher(job["set"])
        X, y = np.asarray(own.covar, dtype=np.float64), np.asarray(own.labels)
    if job["classes"]:
        Y = y if y.ndim == 2 else np.eye(int(y.max()) + 1)[y.astype(int)]
    else:
        Y = ((y - y.mean()) / y.std()).reshape(len(y), 1)  # a net of DVRL's sees it
    fetcher = DataFetcher.from_data(X, Y, job["classes"], random_state=job["seed"])
    return fetcher.split_dataset_by_count(*job["counts"]).noisify(mix_labels, noise_rate=NOISE)


# -- evaluators --------------------------------------------------------------------------------------------------


def _evaluator(name: str, job: Mapping[str, Any], fetcher: Any) -> tuple[Any, Any]:
    """The model that an evaluator fits, and the evaluator."""
    from opendataval import dataval

    models, seed = job["models"], job["seed"]
    model = _trees(job, fetcher) if name.endswith("of trees") else _model(job, fetcher)
    made: Mapping[str, Callable[[], Any]] = {
        "DVRL": lambda: dataval.DVRL(random_state=seed),
        "KNN Shapley": lambda: dataval.KNNShapley(random_state=seed),
        "Data-OOB": lambda: dataval.DataOob(models, random_state=seed),
        "Data-OOB of trees": lambda: dataval.DataOob(models, random_state=seed),
        "LAVA": lambda: dataval.LavaEvaluator(random_state=seed),
        "Influence": lambda: dataval.InfluenceSubsample(models, random_state=seed),
        "AME": lambda: dataval.AME(models, random_state=seed),
        "random": lambda: dataval.RandomEvaluator(random_state=seed),
    }
    return model, made[name]() if name in made else _ours()(name, job)


def _model(job: Mapping[str, Any], fetcher: Any) -> Any:
    from opendataval.model import ModelFactory

    return ModelFactory("sklogreg" if job["classes"] else "sklinreg", fetcher)


def _trees(job: Mapping[str, Any], fetcher: Any) -> Any:
    from opendataval.model import ClassifierSkLearnWrapper, RegressionSkLearnWrapper
    from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

    if not job["classes"]:
        return RegressionSkLearnWrapper(DecisionTreeRegressor, random_state=job["seed"])
    return ClassifierSkLearnWrapper(DecisionTreeClassifier, *fetcher.label_dim, random_state=job["seed"])


def _ours() -> Any:
    """The class of our evaluators; it can be made only where OpenDataVal is."""
    from opendataval.dataval import DataEvaluator
    from opendataval.dataval.api import ModelLessMixin

    class FrmuEvaluator(DataEvaluator, ModelLessMixin):
        """Values of frmu's, of one kind (`frmu.bench.valuation`)."""

        def __init__(self, name: str, job: Mapping[str, Any]) -> None:
            self.kind, self.seed, self.classes = job["ours"][name], job["seed"], job["classes"]

        def train_data_values(self, *args: Any, **kwargs: Any) -> Any:
            """Value the training points by themselves and those that judge; no prediction model is used."""
            tensors = (self.x_train, self.y_train, self.x_valid, self.y_valid)
            X, Y, V, U = (np.asarray(one.numpy(force=True), dtype=np.float64) for one in tensors)
            records = records_of(X, Y, V, U, self.classes)
            self.found = values(self.kind, records, read_policy(shipped()), self.seed)
            return self

        def evaluate_data_values(self) -> Float:
            """The values, (n,)."""
            return self.found

    return FrmuEvaluator


def records_of(X: Float, Y: Float, V: Float, U: Float, classes: bool) -> Records:
    """Points and labels of OpenDataVal as records: of classes, one-hot in {0, 1}, targets are -1 or +1.

    >>> records_of(np.ones((1, 2)), np.array([[0.0, 1.0]]), np.ones((1, 2)), np.array([[1.0, 0.0]]), True).Y
    array([[-1.,  1.]])
    """
    X, Y, V, U = (one.reshape(len(one), -1) for one in (X, Y, V, U))
    return Records(X, 2.0 * Y - 1.0, V, 2.0 * U - 1.0, True) if classes else Records(X, Y, V, U, False)


# -- figures -----------------------------------------------------------------------------------------------------


def _figures(evaluator: Any, fetcher: Any, mediator: Any, model: Any) -> dict[str, float]:
    """F1 of noisy labels, the share of them in the lowest fifth, and areas under curves of removal."""
    from opendataval.experiment.exper_methods import discover_corrupted_sample, noisy_detection, remove_high_low

    found = discover_corrupted_sample(evaluator, fetcher, percentile=NOISE / 4)["corrupt_found"]
    curves = remove_high_low(evaluator, fetcher, model, percentile=STEP, metric=mediator.metric)
    low, high = (next(of for name, of in curves.items() if f"_{side}_" in name) for side in ("least", "most"))
    return {
        "f1": float(noisy_detection(evaluator, fetcher)["kmeans_f1"]),
        "found": float(found[4]),
        "low_first": area(low),
        "high_first": area(high),
    }


def area(curve: Sequence[float]) -> float:
    """The mean height of a curve, one value a `STEP`, until half of the points are gone, by the trapezoid rule.

    What a model makes of the few points that are left at the end is chance, and of a regression without bounds.

    >>> area([1.0, 0.0])
    0.5
    """
    half = np.asarray(curve[: round(0.5 / STEP) + 1])
    return float(np.mean((half[1:] + half[:-1]) / 2.0))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
