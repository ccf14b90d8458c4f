"""The cost of training, erasing and proving: the bare product, sites from ten to ten thousand, a million records.

The federation is made up: sensors whose target is a smooth function of a few of twelve columns. Cold figures are of
whole commands as a user runs them, on a private Ray that they start, with all their processes; warm ones of a
federation that lives. Ratios are of figures of one run, one after the other.
"""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from frmu import api
from frmu.bench.processes import used_by
from frmu.clients.client import BLOCK
from frmu.config import Config, load
from frmu.models.encoders import Encoder
from frmu.models.grid import gram
from frmu.models.statistics import one_thread
from frmu.types import Float, Selection

__all__ = ["COLUMNS", "bench_product", "bench_speed", "draw_speed", "federation_of_sensors", "growth"]

COLUMNS = 12
SINCE, UNTIL = np.datetime64("2025-01-01", "us"), np.datetime64("2025-08-01", "us")  # of the records
Tell = Callable[[str], None]

CONFIG = """
[data]
path = "sensors.parquet"
client = "site"
record = "record"
subject = "person"
time = "ts"
target = "y"
task = "regression"

[data.modalities]
sensors = [COLUMNS]

[data.ranges]
RANGES
y = [-6.0, 6.0]

[slices]
by = "month"

[split]
validation_from = 2025-05-01
later_from = 2025-06-01
test_from = 2025-07-01

[model]
MODEL
"""
FROZEN = 'encoder = "relu"'


def bench_speed(
    sites: Sequence[int], records: Sequence[int], each: int, repeats: int, tell: Tell = lambda line: None,
    model: str = FROZEN,
) -> dict[str, Any]:  # fmt: skip
    """Measure federations of so many `sites` with `each` records, and of 100 sites with so many `records` in all.

    `model` are the lines of the config's [model].
    """
    by_sites = [_measured(number, each, repeats, tell, model) for number in sites]
    by_records = [_measured(100, number // 100, repeats, tell, model) for number in records]
    rows = {"sites": by_sites, "records": by_records}
    exponents = {
        along: {name: growth([row[along] for row in measured], [row[name] for row in measured]) for name in GROWING}
        for along, measured in rows.items()
        if len(measured) > 2
    }
    return {"columns": COLUMNS, **rows, "growth": exponents}


GROWING = ("train", "train_memory", "drain", "verify", "warm_drain")


def bench_product(rows: int, d: int, repeats: int) -> dict[str, float]:
    """Time the sums of `rows` records of d features beside F^T F in float64, on one thread, one after the other.

    Seconds, medians of the repeats: `float64` is the product alone, `sums` that on the grid, `features_and_sums` with
    the way from columns to features. The rows are those of one block of 65,536, again and again: what they cost is
    the same, and F of a million rows would take 4.6 GB.
    """
    rng = np.random.default_rng(0)
    block = min(rows, 2**16)
    encoder = Encoder("relu", rng.normal(size=(COLUMNS, d - 2 * COLUMNS)) * 0.4, rng.uniform(-1, 1, d - 2 * COLUMNS))
    X = rng.uniform(-1.0, 1.0, (block, COLUMNS))
    Z = encoder.grid(X)
    F = Z.astype(np.float64)
    times = max(1, rows // block)
    found: dict[str, list[float]] = {"float64": [], "sums": [], "features_and_sums": []}
    with one_thread():
        for _ in range(repeats):
            found["float64"].append(times * _seconds(lambda: F.T @ F))
            found["sums"].append(times * _seconds(lambda: gram(Z)))
            found["features_and_sums"].append(times * _seconds(lambda: _encoded_and_summed(encoder, X)))
    return {name: median(seconds) for name, seconds in found.items()} | {"rows": times * block, "d": Z.shape[1]}


def _encoded_and_summed(encoder: Encoder, X: Float) -> None:
    whole = gram(encoder.grid(X[:BLOCK]))
    for at in range(BLOCK, len(X), BLOCK):
        whole = whole + gram(encoder.grid(X[at : at + BLOCK]))


def _seconds(do: Callable[[], Any]) -> float:
    began = time.perf_counter()
    do()
    return time.perf_counter() - began


def _measured(sites: int, each: int, repeats: int, tell: Tell, model: str) -> dict[str, Any]:
    """One federation: commands from cold, then erasures on a living one beside training again."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        tell(f"{sites:,} sites of {each:,} records")
        config = federation_of_sensors(Path(folder), sites, each, model)
        file = str(config.file)
        row: dict[str, Any] = {"sites": sites, "each": each, "records": sites * each}
        for name, arguments in (("train", ["train", file]), ("drain", ["drain", file]), ("verify", ["verify", file])):
            if name == "drain":
                _ask(config, Selection("records", client="site 00000", records=("r0", "r1", "r2")))
            usage, said = used_by(arguments)
            proven = said.get("verified", True)
            row |= {name: usage.seconds, f"{name}_cpu": usage.cpu, f"{name}_memory": usage.memory}
            row["proven"] = row.get("proven", True) and proven
            tell(f"  {name} {usage.seconds:.1f} s, {usage.cpu:.1f} processor s, {usage.memory / 2**20:,.0f} MiB")
        return row | _warm(config, each, repeats, tell)


def _warm(config: Config, each: int, repeats: int, tell: Tell) -> dict[str, Any]:
    """Erasures on a federation that lives: seconds to the new state, and to its proof."""
    numbers = iter(range(1, each))
    window = (dt.datetime(2025, 1, 4), dt.datetime(2025, 1, 6))
    kinds: dict[str, Callable[[], Selection]] = {
        "record": lambda: Selection("records", client="site 00001", records=(f"r{each + next(numbers)}",)),
        "subject": lambda: Selection("subject", subject=f"p{next(numbers)}"),
        "window": lambda: Selection("between", between=window),
        "site": lambda: Selection("client", client="site 00002"),
    }
    found: dict[str, Any] = {}
    with api.Experiment(config) as experiment:
        experiment.train()
        _drained(experiment, kinds["subject"]())  # the first starts what later ones find running
        for name, make in kinds.items():
            runs = [_drained(experiment, make()) for _ in range(repeats if name in ("record", "subject") else 1)]
            found[f"warm_{name}"] = median(run["seconds"] for run in runs)
            found[f"warm_{name}_proof"] = median(run["verify_seconds"] for run in runs)
        found["warm_drain"] = found["warm_subject"]
        again = [experiment.train()["seconds"] for _ in range(min(2, repeats))]
        found["warm_train"] = median(again)
    for name in kinds:
        found[f"ratio_{name}"] = found[f"warm_{name}"] / found["warm_train"]
        tell(f"  {name}: {found[f'warm_{name}']:.3f} s, {found[f'ratio_{name}']:.3f} of training again")
    return found


def _drained(experiment: api.Experiment, what: Selection) -> dict[str, Any]:
    _ask(experiment, what)
    return experiment.drain()


def _ask(where: Config | api.Experiment, what: Selection) -> None:
    if isinstance(where, api.Experiment):
        where.session.ledger.receive(what, "bench")
    else:
        api.erase(where, what, "bench")


def federation_of_sensors(folder: Path, sites: int, each: int, model: str = FROZEN) -> Config:
    """Write sites with `each` records from January to July, one row group a site; a person has three records."""
    rng = np.random.default_rng(0)
    names = [f"f{column}" for column in range(COLUMNS)]
    ts = (SINCE + (UNTIL - SINCE) * np.arange(each) // each).astype("datetime64[us]")
    schema: pq.ParquetWriter | None = None
    for site in range(sites):
        X = rng.uniform(-1.0, 1.0, (each, COLUMNS))
        y = np.sin(3.0 * X[:, 0]) + X[:, 1] * X[:, 2] + rng.normal(0.0, 0.3, each)
        numbers = range(site * each, (site + 1) * each)
        table = pa.table(
            {"record": [f"r{number}" for number in numbers], "site": [f"site {site:05d}"] * each,
             "person": [f"p{number // 3}" for number in numbers], "ts": ts}
            | dict(zip(names, X.T, strict=True)) | {"y": np.clip(y, -6.0, 6.0)}
        )  # fmt: skip
        if schema is None:
            schema = pq.ParquetWriter(folder / "sensors.parquet", table.schema)
        schema.write_table(table)
    if schema is not None:
        schema.close()
    text = CONFIG.replace("COLUMNS", ", ".join(f'"{name}"' for name in names))
    text = text.replace("RANGES", "\n".join(f"{name} = [-1.0, 1.0]" for name in names))
    (folder / "sensors.toml").write_text(text.replace("MODEL", model), encoding="utf-8")
    return load(folder / "sensors.toml")


def growth(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """Fit cost = base + unit size^exponent, to the least relative error; the three numbers.

    >>> found = growth([10, 100, 1000], [3.1, 4.0, 13.0])
    >>> round(found["exponent"], 2), round(found["base"], 1)
    (1.0, 3.0)
    """
    x, y = np.array(sizes, dtype=np.float64), np.array(costs, dtype=np.float64)
    best: tuple[float, float, Float] | None = None
    for exponent in np.arange(0.2, 2.21, 0.02):
        A = np.stack([np.ones_like(x), x**exponent], axis=1) / y[:, None]
        found = np.maximum(np.linalg.lstsq(A, np.ones_like(y), rcond=None)[0], 0.0)
        error = float(np.sum((A @ found - 1.0) ** 2))
        if best is None or error < best[0]:
            best = (error, float(exponent), found)
    assert best is not None
    return {"base": float(best[2][0]), "unit": float(best[2][1]), "exponent": best[1]}


def draw_speed(result: Mapping[str, Any], path: Path) -> None:
    """Write a PNG: seconds and memory against sites and against records, with the fitted lines."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    along = [name for name in ("sites", "records") if result[name]]
    figure = Figure(figsize=(5.2 * len(along), 4.2), layout="constrained")
    for axes, name in zip(np.ravel(figure.subplots(1, len(along))), along, strict=True):
        _lines(axes, name, result[name], result["growth"].get(name, {}))
    figure.savefig(path, dpi=120)


SHOWN = {
    "train": ("train, cold", "#1b6ca8"), "drain": ("erase and prove, cold", "#b2182b"),
    "warm_drain": ("erase one person, warm", "#e66101"), "verify": ("verify, cold", "#4d9221"),
}  # fmt: skip


def _lines(axes: Any, along: str, rows: Sequence[Mapping[str, Any]], fits: Mapping[str, Mapping[str, float]]) -> None:
    sizes = [row[along] for row in rows]
    for name, (label, colour) in SHOWN.items():
        exponent = f", n^{fits[name]['exponent']:.2f}" if name in fits else ""
        axes.plot(sizes, [row[name] for row in rows], "o", color=colour, label=f"{label}{exponent}")
        if name in fits:
            fine = np.geomspace(min(sizes), max(sizes), 60)
            fit = fits[name]
            axes.plot(fine, fit["base"] + fit["unit"] * fine ** fit["exponent"], color=colour, linewidth=0.9)
    axes.set(xscale="log", yscale="log", xlabel=along, ylabel="seconds")
    axes.legend(frameon=False, fontsize="small")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
