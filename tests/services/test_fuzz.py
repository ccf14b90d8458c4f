"""The law again, on random data, configs and requests. `pytest -m long` tries many more."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import TRACKING

from frmu import api
from frmu.config import Config, load
from frmu.errors import RequestError, StoreError
from frmu.types import Selection


def random_table(rng: np.random.Generator) -> pd.DataFrame:
    """Random clients, subjects, times (some of them doubled), labels and three kinds of ids."""
    n = int(rng.integers(40, 500))
    start, span = pd.Timestamp("2024-11-20"), int(rng.integers(1, 200))
    ids = [np.arange(n), np.arange(n) / 2, np.array([f"r/{i}" for i in range(n)])][int(rng.integers(3))]
    table = pd.DataFrame(
        {
            "id": ids,
            "site": rng.choice([f"s{i}" for i in range(int(rng.integers(1, 7)))], n, p=None),
            "who": rng.choice([f"p{i}" for i in range(int(rng.integers(1, 12)))], n),
            "t": start + pd.to_timedelta(rng.integers(0, span * 24, n), unit="h"),
            "a": rng.normal(size=n),
            "b": rng.integers(0, 5, n),
            "c": rng.random(n) > 0.5,
            "group": rng.choice(["x", "y", "z"], n),
        }
    )
    table["t"] = table["t"].astype("datetime64[us]")
    table["note"] = rng.choice(["", "a lamp", "Lamp, b", "c c a"], n)
    table["y"] = table["a"] * 2 - table["b"] + rng.normal(size=n) * 0.1
    table["label"] = np.where(table["y"] > 1, "hi", np.where(table["y"] < -8, "rare", "lo"))
    if rng.random() < 0.6:
        lacks = rng.random((n, 2)) < rng.random()
        table["b"], table["c"] = table["b"].mask(lacks[:, 0]), table["c"].astype("boolean").mask(lacks[:, 0])
        table["note"] = table["note"].mask(lacks[:, 1])
    return table


def random_config(rng: np.random.Generator, table: pd.DataFrame) -> str:
    """A config for a table; in a third of them one value in twenty lies beyond its range."""
    pick = lambda *options: options[int(rng.integers(len(options)))]  # noqa: E731
    classify = rng.random() < 0.4
    lags = bool(not classify and rng.random() < 0.5)
    classes = pick("", 'classes = ["hi", "lo", "rare"]\n') if classify else ""
    target, task = ("label", "classification") if classify else ("y", "regression")
    narrow = len(table) % 3 == 0
    text, encoders = pick(("", ""), ("said = ['note']", 'said = "hash"'))
    lines = [
        '[data]\npath = "data"\nclient = "site"\nrecord = "id"\nsubject = "who"\ntime = "t"',
        f'target = "{target}"\ntask = "{task}"\n{classes}clip = {0.999 if narrow else 0.01}',
        f"[data.modalities]\nfirst = {['a', 'before'] if lags else ['a']}\nsecond = ['b', 'c']\n{text}",
        '[data.lags]\nbefore = { column = "y", back = "1d" }' if lags else "",
        f"[data.ranges]\na = {'[-2, 2]' if narrow else '[-10, 10]'}\nb = [0, 4]\nc = [0, 1]"
        + ("" if classify else "\ny = [-30, 30]"),
        f'[slices]\nby = "{pick("day", "week", "month", "subject", "group")}"\nbuckets = {pick(1, 3, 16)}',
        pick(frozen(pick), learned(pick)),
        f"[model.encoders]\n{encoders}",
        f'[policy]\nselector = "{pick("policy", "policy", "rules", "keep")}"\nsteps = {pick(1, 2)}',
        f'[attention]\nrule = "{pick("counterfactual", "size")}"',
    ]
    if rng.random() < 0.6:
        times = table["t"].quantile([0.5, 0.7, 0.85]).dt.ceil("h").tolist()
        if times[0] < times[1] < times[2]:
            names = ("validation_from", "later_from", "test_from")
            dates = [f"{name} = {moment.isoformat()}" for name, moment in zip(names, times, strict=True)]
            lines.append("[split]\n" + "\n".join(dates))
    return "\n".join(lines)


def frozen(pick: Callable[..., Any]) -> str:
    """A table of frozen features."""
    return f'[model]\nencoder = "{pick("relu", "fourier", "linear")}"\nfeatures = {pick(1, 7, 20)}'


def learned(pick: Callable[..., Any]) -> str:
    """A table of learned features, some of it chosen on validation."""
    auto, relu, fourier, full, diagonal = '"auto"', '"relu"', '"fourier"', '"full"', '"diagonal"'
    return "\n".join(
        [
            f'[model]\nencoder = "learned"\nfeatures = {pick(1, 20, 40)}\njudges = {pick(3, 20)}',
            f"layers = {pick(auto, 0, 1, 2)}\nlattice = {pick(0.25, 0.05)}\ncohort = {pick(256, 65_536)}",
            f"hidden = {pick(0, 2, 8)}",
            f"bins = {pick(auto, 0, 3)}\nkind = {pick(relu, fourier)}\nmetric = {pick(diagonal, full)}",
        ]
    )


def put(folder: Path, table: pd.DataFrame, text: str, rng: np.random.Generator) -> Config:
    """Shuffled rows in a random number of files."""
    (folder / "data").mkdir(parents=True)
    shuffled = table.sample(frac=1.0, random_state=int(rng.integers(2**31)))
    for number, part in enumerate(np.array_split(np.arange(len(shuffled)), int(rng.integers(1, 4)))):
        if len(part):
            shuffled.iloc[part].to_parquet(folder / "data" / f"{number}.parquet", index=False)
    (folder / "c.toml").write_text(f'{text}\n[store]\ntracking = "{TRACKING}"\nexperiment = "fuzz"\n')
    return load(folder / "c.toml")


def random_request(rng: np.random.Generator, table: pd.DataFrame) -> tuple[Selection, pd.Series]:
    kind = ["records", "subject", "client", "between", "one site", "where"][int(rng.integers(6))]
    if kind == "records":
        some = table.sample(min(len(table), int(rng.integers(1, 20))), random_state=int(rng.integers(2**31)))
        names = tuple(f"{x:g}" if isinstance(x, float) else str(x) for x in some["id"])
        return Selection("records", records=names), table["id"].isin(some["id"])
    if kind == "subject":
        who = str(rng.choice(table["who"].unique()))
        return Selection("subject", subject=who), table["who"] == who
    if kind == "where":
        bound, numbers = float(rng.normal()), sorted(int(x) for x in rng.integers(0, 5, 2))
        text = f"a > {bound!r} and b in ({numbers[0]}, {numbers[1]}) or not (c = true or who <> 'p1') or b is null"
        b, c = table["b"], table["c"].astype("boolean").fillna(True).astype(bool)  # not known: neither c nor not c
        return Selection("where", where=text), (table["a"] > bound) & b.isin(numbers) | ~(
            c | (table["who"] != "p1")
        ) | b.isna()
    site = str(rng.choice(table["site"].unique()))
    if kind == "client":
        return Selection("client", client=site), table["site"] == site
    first = pd.Timestamp(rng.choice(table["t"])).to_pydatetime()
    window = (first, first + dt.timedelta(days=int(rng.integers(1, 20))))
    inside = (table["t"] >= window[0]) & (table["t"] < window[1])
    if kind == "between":
        return Selection("between", between=window), inside
    return Selection("between", client=site, between=window), inside & (table["site"] == site)


def check(folder: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = random_table(rng)
    text = random_config(rng, table)
    config = put(folder / "all", table, text, rng)
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    gone = pd.Series(False, index=table.index)
    drained: dict = {}
    waiting = pd.Series(False, index=table.index)
    for _ in range(int(rng.integers(1, 6))):
        selection, mask = random_request(rng, table)
        try:
            request = api.erase(config, selection)["request"]
        except RequestError:  # a client that has been erased before
            assert not (mask & ~gone).any()
            continue
        turn = rng.random()
        if turn < 0.2:
            api.withdraw(config, request)
            continue
        waiting |= mask
        if turn < 0.6:
            with api.Experiment(config, "local") as experiment:
                if turn < 0.3 and not (gone | waiting).all():  # a new import in between hides nothing
                    experiment.train()
                drained = experiment.drain()
            gone |= waiting
    gone |= waiting
    with api.Experiment(config, "local") as experiment:
        drained = experiment.drain()
        assert experiment.verify()["verified"]
    if gone.all():
        return
    with api.Experiment(put(folder / "never", table[~gone], text, rng), "local") as experiment:
        assert experiment.train()["state_digest"] == drained["state_digest"], text
    with api.Experiment(config, "local") as experiment:
        try:
            again = experiment.train()
        except StoreError:
            assert gone.all()
        else:
            assert (again["state_digest"], again["refused"]) == (drained["state_digest"], int(gone.sum()))


@pytest.mark.cluster
@pytest.mark.parametrize("seed", range(4))
def test_erased_is_never_had(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4, 300))
def test_erased_is_never_had_many_times(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed)
