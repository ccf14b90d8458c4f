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
from frmu.server.layers import ChooseFeatures, Chosen, FitLayer, climb
from frmu.types import Float

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
    slopes = {} if sums.slopes is None else {"0/slopes": sums.slopes.packed}
    return {"0/fit": sums.fit.packed, "0/validation": sums.validation.packed, **slopes}


def fitted(config: Config, diagonal: bool = True, target: str = "a", bins: int = 0) -> Float | None:
    layer = Layer(Features("relu", 30, bins=bins), OUTPUTS, 0, slopes=True)
    sent = {"host": payload(config, layer, 400, 200, target)}
    return FitLayer(config, layer, 1e-3, diagonal).perform(None, sent)  # type: ignore[arg-type]


def test_what_comes_later_must_beat_what_stands_by_a_margin() -> None:
    assert climb([1.0]) == 0
    assert climb([1.0, 0.996]) == 0
    assert climb([1.0, 0.994]) == 1
    assert climb([1.0, 0.5, 0.499]) == 1
    assert climb([float("inf"), 3.0]) == 1
    assert climb([1.0, float("nan")]) == 0


@pytest.mark.parametrize("diagonal", [True, False])
def test_a_metric_leans_on_the_input_that_matters(diagonal: bool) -> None:
    found = fitted(config_of(), diagonal)
    assert found is not None
    assert found[0, 0] > 3 * found[1, 1]
    assert not diagonal or not found[0, 1]


def test_ramps_are_left_out_of_a_metric() -> None:
    plain, with_ramps = fitted(config_of(lattice=0.01)), fitted(config_of(lattice=0.01), bins=4)
    assert plain is not None
    assert with_ramps is not None
    assert np.array_equal(plain, with_ramps)


def test_where_nothing_matters_there_is_no_metric() -> None:
    assert fitted(config_of(), target="nothing") is None


def chosen(enough: int = 40, ridges: tuple[float, ...] = (1e-3,), widths: tuple[int, ...] = (1, 15, 30)) -> Chosen:
    config = config_of()
    layers = tuple(
        Layer(Features("relu", 30, bins=4, lattice=0.25, metric=S), OUTPUTS, 0, slopes=False)
        for S in (None, np.diag([9.0, 0.0]))
    )
    sent: dict[str, np.ndarray] = {}
    for at, layer in enumerate(layers):
        sent |= {name.replace("0/", f"{at}/"): one for name, one in payload(config, layer, 800, 400).items()}
    work = ChooseFeatures(config, layers, (0, 4), widths, ridges, enough)
    return work.perform(None, {"host": sent})  # type: ignore[arg-type]


def test_what_is_more_must_be_worth_it() -> None:
    found = chosen()
    assert found.losses["1 features"] > found.losses["15 features"]
    assert set(found.losses) == {
        "layer 0, 0 bins", "layer 1, 0 bins", "layer 0, 4 bins", "layer 1, 4 bins", "1 features", "15 features",
    }  # fmt: skip
    assert (found.total.n, found.judged) == (800, 400)
    assert found.layer == 1  # it looks at what matters alone
    assert chosen(widths=(30,)).features.width == 30


def test_without_records_to_judge_by_the_simplest_is_taken() -> None:
    found = chosen(enough=401, ridges=(1e-2, 1.0))
    assert (found.layer, found.features.bins, found.features.width, found.ridge) == (0, 0, 30, 1e-2)
    assert not found.losses


def test_of_ridges_that_are_as_good_the_largest_is_taken() -> None:
    assert chosen(ridges=(1e-9, 1e-8)).ridge == 1e-8
    assert chosen(ridges=(1e-3, 1e6)).ridge == 1e-3


def test_a_ridge_too_small_for_the_sums_is_passed_over_and_the_last_is_told() -> None:
    config = config_of()
    layer = Layer(Features("relu", 30), OUTPUTS, 0, slopes=True)
    sent = payload(config, layer, 50, 50)
    sent["0/fit"] = np.where(np.arange(len(sent["0/fit"])) == len(sent["0/fit"]) - 200, 2**40, sent["0/fit"])
    with pytest.raises(FrmuError, match=r"not positive definite.*raise model\.ridge"):
        FitLayer(config, layer, 1e-12, diagonal=True).perform(None, {"host": sent})  # type: ignore[arg-type]
