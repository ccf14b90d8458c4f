"""The bench of growing federations, on a small series of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from frmu.bench import continual
from frmu.bench.continual import FIRST, KINDS, MONTHS, WEEK, draw_continual
from frmu.config import Config, parse
from frmu.models.statistics import loss
from frmu.selection.network import read_policy, shipped
from frmu.selection.problem import refit

CONFIG = {
    "data": {
        "path": "data.parquet", "client": "client", "record": "record", "time": "ts", "target": "y",
        "task": "regression", "modalities": {"all": ["a", "b", "yesterday"]},
        "lags": {"yesterday": {"column": "y", "back": "1d"}},
        "ranges": {"y": [-8.0, 8.0], "a": [-6.0, 6.0], "b": [-6.0, 6.0]},
    },
    "model": {"features": 8},
}  # fmt: skip


@pytest.fixture
def series() -> tuple[pd.DataFrame, Config]:
    """Twice a day for 48 months, nothing but noise changes."""
    rng = np.random.default_rng(0)
    moments = pd.Timestamp("2000-01-03") + pd.to_timedelta(np.arange(MONTHS * 56) * 12, unit="h")
    a, b = rng.normal(size=(2, len(moments)))
    table = pd.DataFrame({"a": a, "b": b, "y": a - 0.5 * b + rng.normal(0, 0.2, len(moments))})
    week = (moments - moments[0]) // WEEK
    return table.assign(moment=moments.astype("datetime64[us]"), week=week, month=week // 4), parse(
        CONFIG, Path("c.toml")
    )


def errors_of(series: tuple[pd.DataFrame, Config], kind: str) -> dict[str, list[float]]:
    return continual._errors_by_way(continual._site(*series, kind, 0), read_policy(shipped()))


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_is_judged_on_the_same_months(series: tuple[pd.DataFrame, Config], kind: str) -> None:
    errors = errors_of(series, kind)
    assert {len(found) for found in errors.values()} == {MONTHS - FIRST}
    assert np.isfinite(list(errors.values())).all()
    assert len(errors) == 11


def test_the_product_finds_a_sensor_that_was_replaced(series: tuple[pd.DataFrame, Config]) -> None:
    site, errors = continual._site(*series, "replaced", 0), errors_of(series, "replaced")
    after = slice(site.since + 3 - FIRST, None)
    kept, product = (np.mean(errors[way][after]) for way in ("keep all", "product"))
    assert product < 0.8 * kept
    before = slice(0, site.since - FIRST)
    assert errors["product"][before] == pytest.approx(errors["keep all"][before], rel=0.05)


def test_a_round_sees_nothing_of_the_month_to_come(series: tuple[pd.DataFrame, Config]) -> None:
    table, config = series
    later = table.assign(y=table["y"].where(table["month"] < 20, 99.0))
    tasks = [continual._task(continual._site(t, config, "natural", 0), 20) for t in (table, later)]
    assert [task.keys[-1] for task in tasks] == ["018", "018"]
    heads = [refit(task, np.ones(19)) for task in tasks]
    assert (heads[0] == heads[1]).all()
    assert loss(heads[0], tasks[0].validation) == loss(heads[1], tasks[1].validation)


def test_figures_are_over_sites_and_drawn(series: tuple[pd.DataFrame, Config], tmp_path: Path) -> None:
    gains = np.array([[1.0, 3.0], [1.0, 3.0], [5.0, 7.0], [5.0, 7.0]])  # two sites, two seeds
    found = continual._figures(gains, gains + 1.0, seeds=2)
    assert (found["gain"], found["standard_error"]) == (4.0, 2.0)
    assert (found["product_ahead"], found["product_ahead_error"]) == (1.0, 0.0)
    assert (found["worst_site"], found["worst_month"]) == (2.0, 1.0)
    errors = errors_of(series, "fault")
    curves = {way: [[float(x) for x in found]] * 2 for way, found in errors.items()}
    result = {"curves": {"fault": curves}, "first_month": FIRST, "sites": ["a", "b"], "seeds": 1}
    draw_continual(result, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
