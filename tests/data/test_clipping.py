"""What lies beyond a declared range is clipped by itself, counted by client, and refused above a share."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, put, train
from hypothesis import given
from hypothesis import strategies as st

from frmu.config import Config, load
from frmu.data.clipping import Beyond, beyond, let_in
from frmu.data.parquet import gather
from frmu.data.shard import Shard
from frmu.errors import ConfigError, DataError
from frmu.models.encoders import encoders, grid
from frmu.models.statistics import target_grid


def clipping(share: float, text: str = CONFIG) -> str:
    return text.replace("[data.modalities]", f"clip = {share}\n\n[data.modalities]")


def spiked(table: pd.DataFrame, rows: int, value: float = 101.0, column: str = "humidity") -> pd.DataFrame:
    """The first rows of home 0 with a value of their own, the third the worst."""
    changed = table.copy()
    changed.loc[: rows - 1, column] = value
    changed.loc[min(2, rows - 1), column] = value + 9.0
    return changed


def of_home(config: Config) -> Any:
    return gather(config, ["home 0"])["home 0"]


@given(values=st.integers(1, 10_000), more=st.integers(0, 10_000), hundredths=st.integers(0, 99))
def test_what_is_let_in_is_a_share_of_whole_numbers(values: int, more: int, hundredths: int) -> None:
    config: Any = SimpleNamespace(data=SimpleNamespace(clip=float(f"0.{hundredths:02d}")))
    allowed = Fraction(values, values + more) <= Fraction(hundredths, 100) or (values == 1 and hundredths > 0)
    assert Beyond("a", values, values + more, 0.0, 0).refused(config) != allowed


@pytest.mark.parametrize(("share", "rows"), [(0.0, 0), (0.001, 1), (0.01, 4), (0.5, 212)])
def test_as_many_as_the_share_allows_are_let_in(tmp_path: Path, table: pd.DataFrame, share: float, rows: int) -> None:
    config = put(tmp_path / "in", spiked(table, rows) if rows else table, clipping(share))
    assert let_in(of_home(config), "home 0", config) == ({"humidity": rows} if rows else {})
    config = put(tmp_path / "out", spiked(table, rows + 1), clipping(share))
    with pytest.raises(DataError, match=rf'"humidity" must be within .*beyond it: {rows + 1} of 424 values'):
        let_in(of_home(config), "home 0", config)


def test_the_worst_is_named_with_its_file_and_its_row(broken: Callable[..., Config]) -> None:
    config = broken(lambda t: spiked(t, 9), clipping(0.02))
    told = (
        r'homes\.parquet: column "humidity" must be within its declared range \[0, 100\] but for 2 % of a client\'s '
        r'values \(data\.clip\), got 110 at client "home 0", row 2, the worst one \(beyond it: 9 of 424 values\); '
        r"widen data\.ranges\.humidity, raise data\.clip or mend the records"
    )
    with pytest.raises(DataError, match=told):
        let_in(of_home(config), "home 0", config)


def test_nothing_is_let_in_where_the_share_is_none(broken: Callable[..., Config]) -> None:
    config = broken(lambda t: spiked(t, 1, 92.0), clipping(0))
    with pytest.raises(DataError, match=r'within its declared range \[0, 100\], got 101 at client "home 0", row 0'):
        train(config)
    assert not list((config.folder / "shards").iterdir())


def test_one_reading_of_a_client_of_few_records_is_let_in(tmp_path: Path, table: pd.DataFrame) -> None:
    for rows in (1, 2, 3):
        few = table.iloc[:rows]
        config = put(tmp_path / f"{rows}", spiked(few, 1))
        assert let_in(of_home(config), "home 0", config) == {"humidity": 1}
    config = put(tmp_path / "two", spiked(few, 2))
    with pytest.raises(DataError, match="beyond it: 2 of 3 values"):
        let_in(of_home(config), "home 0", config)


def test_missing_values_are_no_values(broken: Callable[..., Config]) -> None:
    lacks = lambda t: t.assign(temperature=t.temperature.mask(t.index > 99), humidity=t.humidity.mask(t.index > 99))  # noqa: E731
    config = broken(lambda t: spiked(lacks(t), 2))
    with pytest.raises(DataError, match="beyond it: 2 of 100 values"):
        let_in(of_home(config), "home 0", config)


def test_a_lag_with_a_range_of_its_own_is_counted_by_it(broken: Callable[..., Config]) -> None:
    narrow = clipping(0.9).replace("load = [-5.0, 20.0]", "load = [-5.0, 20.0]\nyesterday = [2.0, 20.0]")
    config = broken(lambda t: spiked(t, 1, 21.0, "load"), narrow)
    found = {one.name: one.values for one in beyond(of_home(config), config)}
    assert found["load"] == 1
    assert found["yesterday"] == int((of_home(config)["load"].to_numpy() < 2.0).sum()) + 1
    config = broken(lambda t: t, clipping(0.0, narrow.replace("clip = 0.9\n", "")))
    with pytest.raises(DataError, match=r'lag "yesterday" of column "load" must be within .*data\.ranges\.yesterday'):
        let_in(of_home(config), "home 0", config)


@pytest.mark.parametrize("huge", [101.0, 1e308, -1e308])
@pytest.mark.parametrize(
    "text", [CONFIG, CONFIG.replace("load = [-5.0, 20.0]", "load = [-5, 20]\nyesterday = [-9, 9]")]
)
def test_what_is_learned_is_what_the_bound_would_give(broken: Callable[..., Config], huge: float, text: str) -> None:
    """Columns, lags and targets, bit for bit; the shard and its errors keep what was given."""
    bounds = {"humidity": (0.0, 100.0), "load": (-5.0, 20.0)}
    seen = []
    for clipped in (False, True):

        def change(t: pd.DataFrame, clipped: bool = clipped) -> pd.DataFrame:
            t = t.copy()
            for column, (low, high) in bounds.items():
                t.loc[[3, 50], column] = np.clip(huge, low, high) if clipped else huge
            return t

        config = broken(change, text)
        shard = Shard(of_home(config), config)
        seen.append((grid(shard.modalities, encoders(config)), target_grid(shard.learned_target, config, ["load"])))
        assert (huge in shard.target) != clipped
    for raw, bound in zip(*seen, strict=True):
        assert np.array_equal(raw, bound)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("load = [-5.0, 20.0]", "load = [5, 5]"), r'range of "load" must be \[low, high\] with low < high'),
        (("load = [-5.0, 20.0]", "load = [20.0, -5.0]"), r'range of "load" must be \[low, high\] with low < high'),
        (("load = [-5.0, 20.0]", "load = [-inf, 5]"), r"data\.ranges\.load\.0: .*finite number"),
        (("[data.modalities]", "clip = 1.0\n[data.modalities]"), "data.clip: .*less than 1"),
        (("[data.modalities]", "clip = -0.1\n[data.modalities]"), "data.clip: .*greater than or equal to 0"),
        (("[data.modalities]", "clip = nan\n[data.modalities]"), "data.clip"),
        (("[data.modalities]", "clipp = 0.1\n[data.modalities]"), 'data.clipp: unknown key; did you mean "clip"'),
    ],
)
def test_what_can_be_no_range_or_share_is_told(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    (tmp_path / "c.toml").write_text(CONFIG.replace(*change))
    with pytest.raises(ConfigError, match=message):
        load(tmp_path / "c.toml")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (("humidity = [0, 100]\n", ""), "humidity"),
        (("load = [-5.0, 20.0]", ""), "load"),
        (("load = [-5.0, 20.0]", "yesterday = [-5.0, 20.0]"), "load"),  # that of its lag is not the target's
        (('column = "load"', 'column = "spare"'), "spare"),
    ],
)
def test_a_column_without_a_range_is_told_with_the_line_to_add(
    broken: Callable[..., Config], change: tuple[str, str], name: str
) -> None:
    config = broken(lambda t: t.assign(spare=t.load), CONFIG.replace(*change))
    told = rf'"{name}" has no declared range.* Add this under \[data\.ranges\]: {name} = \['
    with pytest.raises(DataError, match=told):
        gather(config, ["home 0"])


def test_a_lag_may_declare_the_range_of_what_it_alone_looks_at(broken: Callable[..., Config]) -> None:
    text = CONFIG.replace('column = "load"', 'column = "spare"') + "\n"
    text = text.replace("load = [-5.0", "yesterday = [-5.0, 20.0]\nload = [-5.0")
    config = broken(lambda t: spiked(t.assign(spare=t.load), 1, 50.0, "spare"), text)
    assert let_in(of_home(config), "home 0", config) == {"yesterday": 1}


def test_the_share_is_no_part_of_what_a_state_is_made_of(tmp_path: Path) -> None:
    prints = set()
    for share in (0, 0.01, 0.5):
        (tmp_path / "c.toml").write_text(clipping(share))
        prints.add(load(tmp_path / "c.toml").fingerprint())
    assert len(prints) == 1
