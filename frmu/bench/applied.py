"""Influences as applied, in the model that is used: what they gain where something is wrong, and cost where not.

Small clean federations: two to ten sites of a real series, a hundred to a thousand records each from one stretch of
time, nothing disturbed. Whatever is forgotten there is forgotten by chance, so the mean change of the test error ought
to be none, and no single federation ought to lose much. The same with records gone wrong at half of the sites, see
`frmu.bench.scenario`: once with learned features and once with frozen ones, so that the two are compared pair by pair.
Sites, stretch, size and seed of the features are drawn from the seed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from frmu.bench.scenario import filled, spoiled
from frmu.config import Config, load
from frmu.config.data import Split
from frmu.datasets import cached
from frmu.methods.analytic import analytic
from frmu.report.figures import measure
from frmu.selection.network import read_policy, shipped

__all__ = ["SETS", "WRONG", "bench_applied", "bench_clean"]

SETS = ("air", "bikes", "appliances", "power", "traffic")
BORDERS = (0.6, 0.72, 0.86)  # of the stretch: where validation, later and test begin
WRONG = ("stale", "noise", "fault", "off-domain")  # variants of `frmu.bench.scenario`
CLEAN = (100, 1000)  # records a site
LARGER = (1000, 3000)  # records a site where something is wrong: enough to see it by
DAYS = 28  # shorter stretches are sliced by day, longer ones by week


def bench_clean(
    cache: Path, federations: int, encoder: str = "learned", significance: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Train each federation with the policy that ships; how much lower the test RMSE is than with everything kept, %.

    `significance` is that of the guard, by default the config's; with 1 a margin is all that is asked for.

    `rows` has one entry a federation, `mean`, `error` (its standard error), `worst` and `changed` (federations in which
    anything does not count in full) are over all.
    """
    chosen = {} if significance is None else {"significance": significance}
    drawn = [_Drawn(seed, encoder) for seed in range(federations)]
    return _summed_up(list(_rows(cache, drawn, chosen, tell)))


def bench_applied(
    cache: Path, federations: int, sites: int | None = None, significance: float | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Train federations in which something is wrong, with learned features and with frozen ones.

    `sites` are as many in each, by default two to ten. `learned` and `relu` have what `bench_clean` has each, and
    `difference` the mean gain of the first less that of the second, with its standard error; `all` is by how many
    percent the first errs more, influences and all.
    """
    chosen = {} if significance is None else {"significance": significance}
    found = {}
    for encoder in ("learned", "relu"):
        drawn = [_Drawn(seed, encoder, WRONG[seed // len(SETS) % len(WRONG)], sites) for seed in range(federations)]
        found[encoder] = _summed_up(list(_rows(cache, drawn, chosen, tell)))
    gains = [np.array([row["gain"] for row in one["rows"]]) for one in found.values()]
    change = gains[0] - gains[1]
    error = float(change.std(ddof=1) / np.sqrt(len(change)))
    ours, frozen = (np.array([row["test_rmse"] for row in one["rows"]]) for one in found.values())
    more = 100.0 * float(np.mean(ours / frozen - 1.0))
    return {**found, "difference": {"mean": float(change.mean()), "error": error, "all": more}}


def _summed_up(rows: list[dict[str, Any]]) -> dict[str, Any]:
    gains = np.array([row["gain"] for row in rows])
    return {
        "rows": rows, "mean": float(gains.mean()), "error": float(gains.std(ddof=1) / np.sqrt(len(gains))),
        "worst": float(gains.min()), "best": float(gains.max()), "changed": int(sum(row["below"] > 0 for row in rows)),
    }  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A federation to be drawn: what is wrong there, if anything is, and how many sites it has, if that is said."""

    seed: int
    encoder: str
    wrong: str = ""
    sites: int | None = None


def _rows(
    cache: Path, drawn: Sequence[_Drawn], guard: Mapping[str, float], tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    network = read_policy(shipped())
    for one in drawn:
        name = SETS[one.seed % len(SETS)]
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            config, sites, each = _small(name, one, cache, Path(folder))
            config = config.model_copy(update={"policy": config.policy.model_copy(update=guard)})
            federation, method = filled(config, Path(folder)), analytic(config)
            done = method.apply(federation, method.init(), network)
            metrics = measure(federation, done)
        gain = 100.0 * (1.0 - metrics["test_rmse"] / metrics["keep_test_rmse"])
        below = sum(value < 1.0 for client in done.state.clients for value in client.influence.values())
        attention = min(client.attention for client in done.state.clients)
        yield {
            "set": name, "seed": one.seed, "wrong": one.wrong, "sites": sites, "each": each, "gain": gain,
            "test_rmse": metrics["test_rmse"], "below": below, "least": attention,
        }  # fmt: skip
        tell(
            f"{name}{f', {one.wrong}' if one.wrong else ''}, {sites} sites of {each}, {one.encoder}: {gain:+.2f} %, "
            f"{below} slices below one, attention from {attention:.2f}"
        )


def _small(name: str, one: _Drawn, cache: Path, folder: Path) -> tuple[Config, int, int]:
    """A config over some sites of a set, with so many records each from one stretch of time."""
    seed = one.seed
    rng = np.random.Generator(np.random.PCG64([seed, 77]))
    config = load(cached(name, cache) / "config.toml")
    data = config.data
    assert data.time is not None
    table = pd.read_parquet(config.source).sort_values([data.client, data.time])
    names = sorted(table[data.client].unique())
    sites = min(int(rng.integers(2, 11)) if one.sites is None else one.sites, len(names))
    chosen = rng.choice(names, sites, replace=False)
    each = int(np.exp(rng.uniform(*np.log(LARGER if one.wrong else CLEAN))))
    first = rng.uniform(0.0, 0.8)
    of_sites = [table[table[data.client] == site] for site in chosen]
    parts = [own.iloc[(at := int(first * (len(own) - each))) : at + each] for own in of_sites]
    small = pd.concat(parts, ignore_index=True)
    small.to_parquet(folder / "data.parquet", index=False)
    times = small[data.time]
    dates = [times.quantile(share).to_pydatetime() for share in BORDERS]
    split = dict(zip(("validation_from", "later_from", "test_from"), dates, strict=True))
    by = "day" if (times.max() - times.min()).days < DAYS else "week"
    model = config.model.model_copy(update={"encoder": one.encoder, "features": "auto", "seed": seed})
    slices = config.slices.model_copy(update={"by": by})
    update = {"split": Split(**split), "slices": slices, "model": model, "file": folder / "config.toml"}
    config = config.model_copy(update=update)
    if one.wrong:
        spoiled(small, config, one.wrong, rng)[0].to_parquet(folder / "data.parquet", index=False)
    return config, sites, each
