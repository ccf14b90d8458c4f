"""frmu's values of single records beside the evaluators of OpenDataVal, in its protocol and by its own figures.

A fifth of the labels are mixed, of those that judge as well. Each evaluator values every training point; the lower of
two clusters of values is taken for the noisy ones. OpenDataVal runs in a virtual environment of its own, as a process a
set and seed (`frmu.bench.opendataval_worker`), and our evaluators run there beside its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import frmu
from frmu.bench.images import mnist
from frmu.bench.lines import Lines, code_digest, digest_of_line
from frmu.bench.opendataval_venv import environment, pins
from frmu.config import load
from frmu.datasets import cached
from frmu.errors import FrmuError
from frmu.selection.network import read_policy, shipped
from frmu.types import Float

__all__ = [
    "CHOSEN_ON", "EVALUATORS", "FIGURES", "KNOWN", "OURS", "SETS", "DataSet", "bench_opendataval",
    "draw_opendataval", "summed_up",
]  # fmt: skip

OURS: Mapping[str, str] = {
    "frmu": "ours", "frmu: residual alone": "residual", "frmu: slices of one": "one", "frmu: dealt slices": "dealt",
}  # fmt: skip
RIVALS = ("KNN Shapley", "Data-OOB", "Data-OOB of trees", "DVRL", "LAVA", "Influence", "AME", "random")
EVALUATORS = (*OURS, *RIVALS)
CLASSES_ONLY = ("KNN Shapley", "LAVA")  # they ask whether two labels are the same
FIGURES = ("f1", "found", "low_first", "high_first", "seconds")
TAIL = 600  # characters of what went wrong
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DataSet:
    """A set: whether its target is a class, points to train on, to judge by and to test; ours has a `series`."""

    classes: bool
    counts: tuple[int, int, int]
    series: str | None = None


LARGE = (500, 100, 500)
SETS: Mapping[str, DataSet] = {
    "digits": DataSet(True, LARGE),
    "breast_cancer": DataSet(True, (350, 100, 119)),
    "gaussian_classifier": DataSet(True, LARGE),
    "diabetes": DataSet(False, (280, 80, 82)),
    "bikes": DataSet(True, LARGE, "bikes"),
    "power": DataSet(False, LARGE, "power"),
}
CHOSEN_ON: Mapping[str, DataSet] = {
    "mnist": DataSet(True, LARGE, "mnist"),
    "traffic": DataSet(True, LARGE, "traffic"),
    "air": DataSet(False, LARGE, "air"),
    "appliances": DataSet(False, LARGE, "appliances"),
}
KNOWN: Mapping[str, DataSet] = {**SETS, **CHOSEN_ON}


def bench_opendataval(
    sets: Sequence[str], evaluators: Sequence[str], seeds: int, models: int, cache: Path, venv: Path, out: Path | None,
    tell: Tell,
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure evaluators on sets, one line a set, evaluator and seed; lines that stand in `out` are not measured again.

    `models` is how many models Data-OOB and Influence fit, and AME for each of its four proportions.
    """
    lines, found = Lines(out, ("set", "evaluator", "seed"), tell), []
    for name in sets:
        mine = [one for one in evaluators if KNOWN[name].classes or one not in CLASSES_ONLY]
        for seed in range(seeds):
            digests = {one: _digest(one, name, models) for one in mine}
            missing = [one for one in mine if lines.get(digests[one], set=name, evaluator=one, seed=seed) is None]
            for line in _measured(name, missing, seed, models, cache, venv, tell) if missing else ():
                lines.put({"set": name, "seed": seed, **line, "digest": digests[line["evaluator"]]})
                tell(f"{name}, {line['evaluator']}, seed {seed}: F1 {line['f1']:.3f} in {line['seconds']:.1f} s")
            made = [lines.get(digests[one], set=name, evaluator=one, seed=seed) for one in mine]
            found += [line for line in made if line is not None]
    return found


def _digest(evaluator: str, name: str, models: int) -> str:
    """A digest of all that a line hangs on."""
    one = KNOWN[name]
    settings: dict[str, Any] = {"versions": pins(), "set": [one.classes, one.counts, one.series]}
    settings |= {"protocol": code_digest("bench/opendataval_worker.py")}
    if evaluator in OURS:
        code = code_digest("bench/valuation.py", "selection/*.py", "models/*.py")
        return digest_of_line(
            {**settings, "ours": OURS[evaluator], "code": code, "policy": read_policy(shipped()).digest}
        )
    return digest_of_line({**settings, "models": models})


def _measured(
    name: str, evaluators: Sequence[str], seed: int, models: int, cache: Path, venv: Path, tell: Tell
) -> Iterator[dict[str, Any]]:
    """The lines of some evaluators on a set, as they come out of the process."""
    python, one = environment(venv, tell), KNOWN[name]
    with tempfile.TemporaryDirectory(prefix="frmu-") as aside:
        folder = Path(aside)
        job = {
            "set": name, "seed": seed, "classes": one.classes, "counts": one.counts, "models": models,
            "evaluators": list(evaluators), "ours": dict(OURS), "arrays": None,
        }  # fmt: skip
        if one.series is not None:
            X, y = _arrays(one, cache)
            job["arrays"] = str(folder / "arrays.npz")
            np.savez(folder / "arrays.npz", X=X, y=y)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        yield from _said_by(python, folder)


def _said_by(python: Path, folder: Path) -> Iterator[dict[str, Any]]:
    """Run a job's process; frmu is on its path by a link, so that nothing else of ours is. Raises `FrmuError`."""
    (folder / "path").mkdir()
    (folder / "path" / "frmu").symlink_to(Path(frmu.__file__).parent, target_is_directory=True)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    kept |= {"PYTHONPATH": str(folder / "path"), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    command = [str(python), "-m", "frmu.bench.opendataval_worker", str(folder / "job.json")]
    with (folder / "errors").open("w+", encoding="utf-8") as errors:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=kept, cwd=folder
        ) as process:
            try:
                for line in process.stdout or ():
                    yield json.loads(line)
            except BaseException:  # whoever asked has left: the process has nobody to tell
                process.terminate()
                raise
        errors.seek(0)
        if process.returncode:
            raise FrmuError(f"OpenDataVal's process ended with {process.returncode}: {errors.read().strip()[-TAIL:]}")


# -- our series --------------------------------------------------------------------------------------------------


def _arrays(one: DataSet, cache: Path) -> tuple[Float, NDArray[Any]]:
    """Columns in standard units (n, columns), and the target; of a class its third of the target's range by rank."""
    if one.series == "mnist":
        images = mnist(cache)
        half = images.pixels.reshape(len(images.pixels), 14, 2, 14, 2).mean(axis=(2, 4))
        return _standard(half.reshape(len(half), -1)), images.labels.astype(int)
    X, y = _series(str(one.series), cache)
    return _standard(X), np.searchsorted(np.quantile(y, [1 / 3, 2 / 3]), y) if one.classes else y


def _standard(X: Float) -> Float:
    return np.asarray((X - X.mean(axis=0)) / (X.std(axis=0) + 1e-8), dtype=np.float64)


def _series(name: str, cache: Path) -> tuple[Float, Float]:
    """The records of a series that have every column, and what the target was a lag ago; sites are put together."""
    folder = cached(name, cache)
    data = load(folder / "config.toml").data
    table = pd.read_parquet(folder / "data.parquet").sort_values(["client", "ts"])
    for column, lag in data.lags.items():
        before = table[["client", "ts", lag.column]].rename(columns={lag.column: column})
        table = table.merge(before.assign(ts=before["ts"] + pd.Timedelta(lag.back)), on=["client", "ts"], how="inner")
    columns = [column for of in data.modalities.values() for column in of]
    return table[columns].to_numpy(np.float64), table[data.targets[0]].to_numpy(np.float64)


# -- the table ---------------------------------------------------------------------------------------------------


def summed_up(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row a set and evaluator: mean and standard error over seeds of each figure, and seeds."""
    rows = []
    for name, evaluator in dict.fromkeys((line["set"], line["evaluator"]) for line in lines):
        mine = [line for line in lines if (line["set"], line["evaluator"]) == (name, evaluator)]
        row: dict[str, Any] = {"set": name, "evaluator": evaluator, "seeds": len(mine)}
        for figure in FIGURES:
            of = [float(line[figure]) for line in mine]
            row |= {figure: mean(of), f"{figure}_error": stdev(of) / len(of) ** 0.5 if len(of) > 1 else None}
        rows.append(row)
    return rows


def draw_opendataval(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write a PNG: F1 of noisy labels, an evaluator a bar, with its standard error."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    sets, evaluators = (list(dict.fromkeys(row[of] for row in rows)) for of in ("set", "evaluator"))
    figure = Figure(figsize=(2.5 + 2.2 * len(sets), 4.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(evaluators)
    for number, evaluator in enumerate(evaluators):
        of = {row["set"]: row for row in rows if row["evaluator"] == evaluator}
        at = [place + width * (number - (len(evaluators) - 1) / 2) for place, name in enumerate(sets) if name in of]
        axes.bar(
            at, [row["f1"] for row in of.values()], width, label=evaluator, color=f"C{number % 10}",
            yerr=[row["f1_error"] or 0.0 for row in of.values()], hatch="//" if number >= 10 else None,
        )  # fmt: skip
    axes.set_xticks(range(len(sets)), sets)
    axes.set_ylabel("F1 of noisy labels")
    axes.legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=120)
