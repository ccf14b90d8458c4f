"""Utility over time: a federation that grows month by month, and what each way to age its records gains.

Real series, hourly over years, stand as sites: PM2.5 in Beijing, Capital bike sharing (two spans of it) and household
power, from which the shipped policy has learned, and traffic on an interstate road, which it never saw. A month is
four weeks. In each round every way gets the same: all months but the newest to fit, slices of a month each, the
newest to validate on; what counts is the error on the month to come, which nobody has seen (prequential evaluation:
Dawid, 1984). Four things happen to a series:

- natural: nothing but what the series itself does;
- replaced: a sensor is replaced midway, and the new one reads differently for good: all that is older is outdated;
- drift: gain and offset of the sensor creep from month 12 to the end;
- fault: for four months the sensor reports at random, and is mended.

"changed months left out" knows which months were tampered with. It is no upper bound: what a series does by itself
it does not see, and right after a change it has little left to fit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from frmu.config import Config, Policy, load
from frmu.data.columns import TIME
from frmu.data.shard import features
from frmu.datasets import cached
from frmu.models.encoders import encode, encoders, width
from frmu.models.statistics import loss, one_thread, statistics_of
from frmu.selection.ageing import decay, window
from frmu.selection.network import Network, read_policy, shipped
from frmu.selection.problem import SelectionProblem, problem_of, refit, validation_loss
from frmu.selection.selectors import decide
from frmu.types import Float, Statistics

__all__ = ["KINDS", "bench_continual", "draw_continual"]

SITES = (("air", 0), ("bikes", 0), ("bikes", 48), ("power", 0), ("traffic", 0))  # data set, first month
UNSEEN = ("traffic",)  # what the shipped policy did not learn from; see its card
MONTHS, FIRST = 48, 12  # of a site; the first that is predicted
WEEK = pd.Timedelta(weeks=1)
PERIOD = pd.Timedelta(weeks=20)  # what a client of the cached series is a cut of
KINDS = ("natural", "replaced", "drift", "fault")
SPANS = (3, 6, 12)  # months of windows and of half-lives
POLICY = Policy()  # as a config has it that says nothing
PRODUCT, BEST, CLEAN = "product", "product + ageing", "changed months left out"


@dataclass(frozen=True, slots=True)
class Site:
    """Months of one series under one kind of change, as a whole and by week, and which of them are wrong."""

    months: Sequence[Statistics]
    weeks: Sequence[Sequence[Statistics]]
    wrong: frozenset[int]
    since: int
    ridge: float


def bench_continual(
    cache: Path, seeds: int = 3, kinds: Sequence[str] = KINDS, told: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Errors on the month to come, for every way to age; plain JSON types."""
    began = time.perf_counter()
    network = read_policy(shipped())
    curves: dict[str, dict[str, list[list[float]]]] = {}
    with one_thread():
        for kind in kinds:
            curves[kind] = {}
            for name, first in SITES:
                table, config = _series(name, first, cache)
                for seed in range(seeds):
                    site = _site(table, config, kind, seed)
                    for way, errors in _errors_by_way(site, network).items():
                        curves[kind].setdefault(way, []).append(errors)
                told(f"{kind}: {name} from month {first}, {time.perf_counter() - began:.0f} s")
    gains = {kind: {way: _gains(found[way], found["keep all"]) for way in found} for kind, found in curves.items()}
    tables = {
        kind: {way: _figures(found[way], found[PRODUCT], seeds) for way in found} for kind, found in gains.items()
    }
    return {
        "sites": [f"{name} from month {first}" for name, first in SITES],
        "unseen": [at for at, (name, _) in enumerate(SITES) if name in UNSEEN],
        "seeds": seeds,
        "policy": network.digest,
        "first_month": FIRST,
        "months": MONTHS,
        "tables": tables,
        "curves": {kind: {way: found[way].tolist() for way in found} for kind, found in gains.items()},
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def _figures(gains: Float, product: Float, seeds: int) -> dict[str, Any]:
    """Mean gain over keeping all, in percent; how far the product is ahead; the worst site, the worst month.

    Seeds of one site share its records, so standard errors are over the means of sites.
    """
    by_site = gains.mean(axis=1).reshape(-1, seeds).mean(axis=1)
    ahead = product.mean(axis=1).reshape(-1, seeds).mean(axis=1) - by_site
    return {
        "gain": float(by_site.mean()),
        "by_site": by_site.tolist(),
        "standard_error": _standard_error(by_site),
        "product_ahead": float(ahead.mean()),
        "product_ahead_error": _standard_error(ahead),
        "worst_site": float(by_site.min()),
        "worst_month": float(gains.min()),
    }


def _standard_error(numbers: Float) -> float:
    return float(numbers.std(ddof=1) / np.sqrt(len(numbers))) if len(numbers) > 1 else 0.0


def _gains(errors: Sequence[Sequence[float]], keep: Sequence[Sequence[float]]) -> Float:
    """Lower RMSE than keeping all, in percent, (sites x seeds, rounds)."""
    return np.asarray(100.0 * (1.0 - np.asarray(errors) / np.asarray(keep)), dtype=np.float64)


# -- the series -----------------------------------------------------------------------------------------------


def _series(name: str, first: int, cache: Path) -> tuple[pd.DataFrame, Config]:
    """48 months of a series in the order of time, with `week` and `month` counted from 0, and its config.

    A gap of years, as traffic has one, is left out of the count of months.
    """
    folder = cached(name, cache)
    table = pd.read_parquet(folder / "data.parquet")
    periods = table["client"].str.rsplit("-", n=1).str[1].astype(int)
    moment = table["ts"] + periods * PERIOD
    dense = periods.rank(method="dense").astype(int) - 1
    week = (table["ts"] + dense * PERIOD - table["ts"].min().normalize()) // WEEK - 4 * first
    month = week // 4
    table = table.assign(moment=moment.astype("datetime64[us]"), week=week, month=month)
    table = table[(month >= 0) & (month < MONTHS)].sort_values("moment", kind="stable").reset_index(drop=True)
    return table, load(folder / "config.toml")


def _site(table: pd.DataFrame, config: Config, kind: str, seed: int) -> Site:
    """The statistics of a series to which something happens; the seed says when and how much, and seeds the encoder."""
    rng = np.random.Generator(np.random.PCG64([seed, KINDS.index(kind)]))
    y, wrong, since = _happen(table, config.data.targets[0], kind, rng)
    config = config.model_copy(update={"model": config.model.model_copy(update={"seed": seed})})
    columns = {name: table[name].to_numpy(dtype=np.float64) for name in config.data.features if name in table}
    arrow = pa.table({**columns, config.data.targets[0]: y, TIME: table["moment"].to_numpy()})
    phi = encode(features(arrow, config), encoders(config))
    week = table["week"].to_numpy()
    nothing = Statistics.zero(width(config), 1)
    rows = [np.flatnonzero(week == w) for w in range(4 * MONTHS)]
    parts = [statistics_of(phi[at], y[at, None]) if len(at) else nothing for at in rows]
    weeks = [parts[4 * m : 4 * m + 4] for m in range(MONTHS)]
    months = [Statistics.total(four, width(config), 1) for four in weeks]
    return Site(months, weeks, wrong, since, config.model.frozen_ridge)


def _happen(table: pd.DataFrame, target: str, kind: str, rng: np.random.Generator) -> tuple[Float, frozenset[int], int]:
    """The target under one kind of change, the months that are wrong from then on, and when that is."""
    y = table[target].to_numpy(dtype=np.float64).copy()
    month, spread = table["month"].to_numpy(), float(y.std())
    since = int(rng.integers(18, 27))
    if kind == "replaced":
        gain, offset = rng.choice([rng.uniform(0.5, 0.7), rng.uniform(1.4, 1.8)]), rng.choice([-1.0, 1.0]) * spread
        y[month >= since] = gain * y[month >= since] + offset
        return y, frozenset(range(since)), since
    if kind == "drift":
        way = np.clip((month - FIRST) / (MONTHS - FIRST), 0.0, None)
        return y * (1.0 + rng.uniform(0.3, 0.6) * way) + rng.choice([-1.0, 1.0]) * spread * way, frozenset(), FIRST
    if kind == "fault":
        hit = (month >= since) & (month < since + 4)
        y[hit] = rng.permutation(y[hit])
        return y, frozenset(range(since, since + 4)), since
    return y, frozenset(), 0


# -- the rounds -----------------------------------------------------------------------------------------------


def _errors_by_way(site: Site, network: Network) -> dict[str, list[float]]:
    """The RMSE on the month to come, by way and round; a month without records is no round for anybody."""
    errors: dict[str, list[float]] = {}
    for month in range(FIRST, MONTHS):
        test = site.months[month]
        task = _task(site, month)
        for way, influence in _ways(site, task, month, network):
            error = float(np.sqrt(loss(refit(task, influence), test))) if test.n else float("nan")
            errors.setdefault(way, []).append(error)
    return {way: _filled(found) for way, found in errors.items()}


def _filled(errors: Sequence[float]) -> list[float]:
    """Errors with the one before where a month had no record."""
    return [float(x) for x in pd.Series(errors).ffill().bfill()]


def _task(site: Site, month: int) -> SelectionProblem:
    """Return what is there before a month: its predecessor to validate on, all months before that to fit."""
    fit = [m for m in range(month - 1) if site.months[m].n]
    keys = [f"{m:03d}" for m in fit]
    d, outputs = site.months[0].b.shape
    nothing = Statistics.zero(d, outputs)
    return problem_of(
        {key: site.months[m] for key, m in zip(keys, fit, strict=True)},
        np.array([(fit[-1] - m) / (fit[-1] - fit[0]) for m in fit]),
        nothing,
        site.weeks[month - 1],
        nothing,
        site.ridge,
    )


def _ways(site: Site, task: SelectionProblem, month: int, network: Network) -> Iterator[tuple[str, Float]]:
    """Every way to age, as influences."""
    keep = np.ones(len(task))
    fit = [int(key) for key in task.keys]
    span = fit[-1] - fit[0]
    ageing = {f"window {m} months": window(task.age, (m - 1) / span) for m in SPANS}
    ageing |= {f"decay, half-life {m} months": decay(task.age, m / span) for m in SPANS}
    yield "keep all", keep
    yield from ageing.items()
    yield "rules, guarded", decide(task, None, "rules", POLICY.margin, POLICY.steps, POLICY.budget).influence
    policy = decide(task, network, "policy", POLICY.margin, POLICY.steps, POLICY.budget).influence
    yield PRODUCT, policy
    yield BEST, _guarded(task, {"keep all": keep, PRODUCT: policy, **ageing})
    # A sensor that was just replaced leaves nothing clean to fit: then all is kept.
    clean = np.array([0.0 if m in site.wrong and month > site.since else 1.0 for m in fit])
    yield CLEAN, clean if clean.any() else keep


def _guarded(task: SelectionProblem, proposals: Mapping[str, Float]) -> Float:
    """The proposal that is best on validation, if it gains the margin over keeping all."""
    losses = {name: validation_loss(task, influence) for name, influence in proposals.items()}
    best = min(losses, key=lambda name: (losses[name], name))
    return proposals[best if losses[best] <= (1.0 - POLICY.margin) * losses["keep all"] else "keep all"]


# -- the picture ----------------------------------------------------------------------------------------------

_LINES = {
    PRODUCT: ("#08519c", "-", 2.4),
    BEST: ("#3182bd", "--", 2.0),
    "rules, guarded": ("#31a354", "-", 1.3),
    "window 12 months": ("#d95f0e", "-", 1.3),
    "decay, half-life 6 months": ("#756bb1", "-", 1.3),
    CLEAN: ("#969696", ":", 1.5),
}


def draw_continual(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: the gain over keeping all, month by month, one field a kind of change, one line a way to age."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    kinds = list(result["curves"])
    figure = Figure(figsize=(11.0, 3.4 * -(-len(kinds) // 2) + 0.6), layout="constrained")
    fields = figure.subplots(-(-len(kinds) // 2), 2, squeeze=False, sharex=True).flat
    for field, kind in zip(fields, kinds, strict=False):
        _field(field, result["curves"][kind], kind, result["first_month"], result["seeds"])
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    units = f"{len(result['sites'])} sites x {result['seeds']} seeds"
    figure.suptitle(f"Lower error on the month to come than keeping everything, %  ({units}, mean of three months)")
    figure.savefig(path, dpi=110)


def _field(axes: Any, curves: Mapping[str, Sequence[Sequence[float]]], kind: str, first: int, seeds: int) -> None:
    for way, (colour, style, width_) in _LINES.items():
        by_site = np.asarray(curves[way]).reshape(-1, seeds, len(curves[way][0])).mean(axis=1)
        smooth = pd.DataFrame(by_site.T).rolling(3, min_periods=1).mean()
        mean, error = smooth.mean(axis=1), smooth.std(axis=1, ddof=1) / np.sqrt(smooth.shape[1])
        months = np.arange(first, first + len(mean))
        axes.plot(months, mean, color=colour, linestyle=style, linewidth=width_, label=way)
        if way == PRODUCT:
            axes.fill_between(months, mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0.0, color="#444444", linewidth=0.8)
    axes.set_title(kind, loc="left", fontsize="medium")
    axes.set_xlabel("month", fontsize="small")
    axes.tick_params(labelsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
