"""`frmu init` needs no hand work on a real table: a line says what it makes of a column, and the config trains."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import TRACKING, homes, train

from frmu.config import Config, load
from frmu.data.inference import infer_config
from frmu.data.proposals import Proposal, propose, skewed, within
from frmu.errors import DataError

N = 400
rng = np.random.default_rng(0)


def one(values: Any, **named: Any) -> Proposal:
    return propose("it", pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values, **named)]))


@pytest.mark.parametrize(
    ("values", "note"),
    [
        (pa.nulls(5), "left out, for it has no value in any row"),
        (pa.array([np.nan] * 5), "left out, for it has no value in any row"),
        (pa.array([None] * 5, pa.string()), "left out, for it has no value in any row"),
        (pa.array([7] * 5), "left out, for every row has the same value, 7"),
        (pa.array(["a"] * 5), 'left out, for every row has the same value, "a"'),
        (pa.array([f"c{i}" for i in range(100_000)]), "left out, for it has 100,000 different values in 100,000 rows"),
        (pa.array([f"c{i % 5000}" for i in range(100_000)]), "left out, for it has 5,000 different values in 100,000"),
        (pa.array([f"a note of {i}" for i in range(50)]), 'left out, for it is free text; .* the encoder "hash"'),
        (pa.array([[1.0]] * 5), "left out, for list<.*> is neither a number nor text"),
        (pa.array(["a\0b", "c"]), "left out, for it holds a NUL character"),
    ],
)
def test_what_nothing_is_learned_from_is_left_out_and_said(values: pa.Array, note: str) -> None:
    found = one(values)
    assert found.kind == "nothing"
    assert re.search(f'^"it": {note}', found.note), found.note


@pytest.mark.parametrize(
    "values",
    [
        pa.array([1, 2, 3], pa.uint8()),
        pa.array(np.array([1, 2, 3], dtype=np.float16)),
        pa.array([Decimal("1.5"), Decimal("2.5"), Decimal("3.5")]),
        pa.array([1, 2, 3]),
    ],
)
def test_numbers_need_no_word(values: pa.Array) -> None:
    found = one(values)
    assert (found.kind, found.note, found.missing) == ("number", "", False)
    assert found.range.startswith("[")


def test_booleans_gaps_and_categories_are_said() -> None:
    assert one([True, False, True]).range == "[0.0, 1.0]"
    assert "a boolean" in one([True, False]).note
    gaps = one([1.0, None, 3.0])
    assert gaps.missing
    assert gaps.note == '"it": it may be missing, for it is in 1 of 3 rows'
    assert one([1.0, None, 1.0]).kind == "number"  # there or not says something
    assert one(["b", "a", None, "a"]).declared == ("a", "b")
    assert one(["b", "a", None, "a"]).missing
    many = one([f"c{i % 1000}" for i in range(9000)])
    assert many.declared == 64
    assert many.note == '"it": a category of 1,000 values, hashed to 64 buckets, for a list is too long'


def test_many_categories_get_fewer_buckets() -> None:
    wide = [Proposal(str(i), "category", "x", declared=64) for i in range(9)]
    assert {one.declared for one in within(wide)} == {16}
    assert within(wide[:8]) == wide[:8]


def test_a_long_tail_is_told_from_a_short_one() -> None:
    assert skewed(rng.lognormal(3, 1, 1000)) is not None
    assert skewed(rng.normal(10, 1, 1000)) is None
    assert skewed(-rng.lognormal(3, 1, 1000)) is None
    assert skewed(rng.lognormal(-12, 1, 1000)) is None  # log1p changes nothing there


def test_a_feature_of_a_long_tail_is_proposed_with_its_logarithm() -> None:
    found = one(np.floor(rng.lognormal(3, 1.2, 1000)))
    assert found.transform == "log1p"
    assert "learned as log1p" in found.note
    assert found.range.startswith("[0.0, ")
    assert one(rng.normal(10, 1, 1000)).transform == ""


def untidy() -> pa.Table:
    table = homes(2)
    n = len(table)
    drawn = np.random.default_rng(0)
    columns = {
        "gaps": pa.array(np.where(drawn.random(n) < 0.2, np.nan, 1.0 + drawn.random(n)), from_pandas=True),
        "nan": pa.array(np.where(drawn.random(n) < 0.2, np.nan, drawn.random(n))),
        "flag": pa.array(drawn.random(n) < 0.5),
        "colour": pa.array([None if i % 9 == 0 else ["red", 'gr"een', "blå"][i % 3] for i in range(n)]),
        "kind of": pa.array([f"kind {i % 4}" for i in range(n)]).dictionary_encode(),
        "code": pa.array([f"code{i % 300}" for i in range(n)]),
        "id": pa.array([f"x{i}" for i in range(n)]),
        "note": pa.array([f"the note of {i}" for i in range(n)]),
        "same": pa.array([3] * n),
        "none": pa.nulls(n),
        "price": pa.array([Decimal(int(i % 50)) / 4 for i in range(n)]),
        "half": pa.array(drawn.random(n).astype(np.float16)),
        "level": pa.array(drawn.integers(0, 5, n).astype(np.float32)).dictionary_encode(),
        "sold": pa.array(np.floor(drawn.lognormal(3, 1.2, n))),
        "visitors": pa.array(np.floor(drawn.lognormal(3, 1.2, n))),
    }
    whole = pa.Table.from_pandas(table.drop(columns=["load", "band"]), preserve_index=False)
    for name, values in columns.items():
        whole = whole.append_column(name, values)
    return whole


def proposed(folder: Path, **named: str) -> tuple[Config, dict[str, Any]]:
    said = infer_config([str(folder / "a.parquet")], folder / "c.toml", named)
    text = (folder / "c.toml").read_text() + f'\n[store]\ntracking = "{TRACKING}"\nexperiment = "{folder}"\n'
    (folder / "c.toml").write_text(text)
    return load(folder / "c.toml"), said


@pytest.mark.usefixtures("memory_tracking")
def test_an_untidy_table_is_proposed_and_trained(tmp_path: Path) -> None:
    pq.write_table(untidy(), tmp_path / "a.parquet")
    config, said = proposed(tmp_path, target="sold", record="record")
    data = config.data
    assert data.missing == ["gaps", "nan", "colour"]
    assert data.categories == {
        "colour": ("blå", 'gr"een', "red"), "kind of": tuple(f"kind {i}" for i in range(4)), "code": 64,
    }  # fmt: skip
    assert data.transforms == {"visitors": "log1p", "sold": "log1p"}
    assert data.ranges["sold"][0] == 0.0
    assert data.ranges["flag"] == [0.0, 1.0]
    assert {"price", "half", "level", "temperature"} <= set(data.features)
    assert not {"id", "note", "same", "none"} & set(data.features)
    for name in ("gaps", "nan", "flag", "colour", "kind of", "code", "id", "note", "same", "none", "sold"):
        assert sum(note.startswith(f'"{name}": ') for note in said["notes"]) == 1, name
    assert "numbers as they are: hour_sin, hour_cos, temperature, humidity, price, half, level" in said["notes"]
    metrics = train(config)["metrics"]
    assert metrics["test_rmse"] > 1.0  # in things sold


def test_what_is_text_here_and_a_number_there_is_a_category(tmp_path: Path) -> None:
    table = homes(2)
    for name, values in {"a": table.index % 3, "b": (table.index % 3).astype(str)}.items():
        half = table.assign(code=values)[table.home == f"home {int(name == 'b')}"]
        half.to_parquet(tmp_path / f"{name}.parquet", index=False)
    said = infer_config([str(tmp_path)], tmp_path / "c.toml", {"target": "load"})
    assert load(tmp_path / "c.toml").data.categories["code"] == ("0", "1", "2")
    assert any("it is text in" in note and "and a number in" in note for note in said["notes"])


def test_a_table_without_a_feature_says_why(tmp_path: Path) -> None:
    table = pd.DataFrame({"home": "a", "record": range(9), "load": 0.5, "same": 1})
    table.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r'no column is left to be a feature: "same": left out, for every row'):
        infer_config([str(tmp_path / "a.parquet")], tmp_path / "c.toml", {"target": "load"})
