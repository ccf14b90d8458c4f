"""The picture of importances: few columns or many, one layer or several."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frmu.models.importance import Column
from frmu.report.importance import MOST, plot_importance, ranked


@pytest.mark.parametrize(("columns", "layers"), [(1, 1), (3, 2), (100, 8)])
def test_any_number_of_columns_is_drawn(tmp_path: Path, columns: int, layers: int) -> None:
    rng = np.random.default_rng(0)
    names = [Column(f"$m_{at % 9}$", ("日本" if at else "$x_1$" * 20) + str(at)) for at in range(columns)]
    plot_importance(names, [rng.dirichlet(np.ones(columns)) for _ in range(layers)], tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_the_longest_bars_of_the_last_layer_come_first_and_the_others_are_one() -> None:
    columns = [Column("m", str(at)) for at in range(MOST + 5)]
    last = np.arange(len(columns)) / np.arange(len(columns)).sum()
    shown, (first, second), others = ranked(columns, [last[::-1], last])
    assert (shown[0].name, others) == (str(MOST + 4), 5)
    assert second[:MOST] == sorted(second[:MOST], reverse=True)
    assert sum(first) == pytest.approx(1.0)
    assert second[MOST] == pytest.approx(last[:5].sum())
    assert ranked(columns[:3], [last[:3]])[2] == 0
