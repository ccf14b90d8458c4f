"""The server's part in learned features: what is chosen, and what is taken where there is nothing to choose by."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from frmu.clients.layers import Layer, LayerBook
from frmu.config import Config, parse
from frmu.errors import FrmuError
from frmu.models.features import Features
from frmu.server.layers import ChooseFeatures, FitLayers, climb

OUTPUTS = ("y",)


def config_of(**model: object) -> Config:
    data = {"path": "x.parquet", "client": "k", "record": "r", "target": "y", "task": "regression"}
    ranges = {"a": [-1.0, 1.0], "b": [-1.0, 1.0], "y": [-4.0, 4.0]}
    return parse({"data": data | {"modalities": {"all": ["a", "b"]}, "ranges": ranges}, "model": model}, Path("x.toml"))


def payload(config: Config, layer: Layer, n: int, judged: int, target: str = "a") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (n + judged, 2))
    y = np.sin(3 * X[:, 0]) if target == "a" else np.zeros(len(X))
    shard = SimpleNamespace(
        modalities={"all": X}, learned_target=y, split=np.r_[np.zeros(n), np.ones(judged)], __len__=lambda: len(X),
        cohort=lambda share: np.ones(len(X), bool),
    )  # fmt: skip
    sums = LayerBook().total(layer, {"one": shard}, config)  # type: ignore[dict-item]
    slopes = {f"0/slopes/{name}": one.packed for name, one in sums.slopes.items()}
    return {"0/fit": sums.fit.packed, "0/validation": sums.validation.packed, **slopes}


def fitted(config: Config, n: int = 400, judged: int = 200, enough: int = 40, target: str = "a"):
    layer = Layer(Features("relu", 30), OUTPUTS, 0, slopes=True)
    work = FitLayers(config, (layer,), (1e-3, 10.0), ("full", "diagonal"), enough)
    return work.perform(None, {"host": payload(config, layer, n, judged, target)})[0]  # type: ignore[arg-type]


def test_what_comes_later_must_beat_what_stands_by_a_margin() -> None:
    assert climb([1.0]) == 0
    assert climb([1.0, 0.996]) == 0
    assert climb([1.0, 0.994]) == 1
    assert climb([1.0, 0.5, 0.499]) == 1
    assert climb([float("inf"), 3.0]) == 1
    assert climb([1.0, float("nan")]) == 0


def test_a_metric_leans_on_the_input_that_matters() -> None:
    found = fitted(config_of())
    assert found.ridge == 1e-3
    assert (found.n, found.judged) == (400, 200)
    for shape in ("full", "diagonal"):
        S = found.metrics[shape]["all"]
        assert S[0, 0] > 3 * S[1, 1]
    assert not found.metrics["diagonal"]["all"][0, 1]


def test_without_records_to_judge_by_the_first_ridge_is_taken() -> None:
    assert fitted(config_of(), judged=0).ridge == 1e-3
    assert fitted(config_of(), judged=30).ridge == 1e-3


def test_where_nothing_matters_there_is_no_metric() -> None:
    assert fitted(config_of(), target="nothing").metrics == {"full": None, "diagonal": None}


def test_more_features_must_be_worth_it() -> None:
    config = config_of()
    layer = Layer(Features("relu", 30, bins=4), OUTPUTS, 0, slopes=False)
    options = tuple(Features("relu", width, bins=bins) for width in (1, 15, 30) for bins in (0, 4))
    sent = {"host": payload(config, layer, 800, 400)}
    chosen = ChooseFeatures(config, layer, options, (1e-3,), 40, 4).perform(None, sent)  # type: ignore[arg-type]
    assert chosen.losses["1 features, 0 bins"] > chosen.losses["15 features, 0 bins"]
    assert chosen.features in options[1:]
    assert chosen.total.n == 800
    assert chosen.judged == 400
    default = ChooseFeatures(config, layer, options, (1e-3, 1.0), 401, 4).perform(None, sent)  # type: ignore[arg-type]
    assert (default.features, default.ridge) == (options[4], 1e-3)


def test_a_ridge_too_small_for_the_sums_is_passed_over_and_the_last_is_told() -> None:
    config = config_of()
    layer = Layer(Features("relu", 30), OUTPUTS, 0, slopes=True)
    sent = payload(config, layer, 50, 50)
    sent["0/fit"] = np.where(np.arange(len(sent["0/fit"])) == len(sent["0/fit"]) - 200, 2**40, sent["0/fit"])
    work = FitLayers(config, (layer,), (1e-12,), ("full",), 40)
    with pytest.raises(FrmuError, match=r"not positive definite.*raise model\.ridge"):
        work.perform(None, {"host": sent})  # type: ignore[arg-type]
