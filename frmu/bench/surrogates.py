"""The paper's table on surrogates for its data: three kinds of data to unlearn, on one modality and on several.

The paper's own sets cannot be had here; `frmu.datasets.surrogates` says what stands for them. A row is a way to
learn from a federation that has records it had better not have (`frmu.bench.scenario`); it is judged on the test
records of the same federation without them, by

- MSE and MAE, in units of the target (of a classification: of the outputs, which are -1 and 1);
- the gap to retraining: how far its outputs are from those of a model that never had the records, as a root mean
  square in percent of the target's standard deviation. For outdated and irrelevant records that model keeps
  everything else at full influence. For private ones it is the row itself, trained without them: what is asked for
  must leave nothing behind, whatever a row chooses otherwise. There the gap stands for the erased records as well.

What rows *can* do about a request differs. FRAMU has no notion of one: it reduces what its scores say. A rule drops
what helps. The product purges the records and is exact; whether the two states are equal is told bit by bit.

A further row is one more function in `ROWS`: it is given a `Scenario`, whose clients hold the raw modalities and
targets, and gives an `Answer`, whose `predict` may be any model's.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frmu.bench.jobs import write_rows
from frmu.bench.scenario import KEY, SETS, VARIANTS, Scenario, held, scenario
from frmu.bench.selectors import Case, best_rule
from frmu.clients.client import Client
from frmu.clients.tasks.erasure import PurgeShard
from frmu.data.tombstones import tombstones
from frmu.methods.analytic import analytic, outputs_of, sums_of
from frmu.models.ridge import solve
from frmu.models.statistics import one_thread, targets
from frmu.runtime.local import LocalFederation
from frmu.selection.network import read_policy, shipped
from frmu.selection.observation import observe
from frmu.selection.search import Budget, RefitCounter
from frmu.types import Float, Statistics, Sums

__all__ = ["ROWS", "Answer", "Row", "bench_surrogates"]

FIT, TEST = 0, 3


@dataclass(frozen=True, slots=True)
class Answer:
    """A model: `predict` gives outputs (n, outputs) for some rows of a client; what names its state, what it cost."""

    predict: Callable[[Client, NDArray[np.intp]], Float]
    digest: str
    refits: int


Row = Callable[[Scenario], Answer]


def bench_surrogates(
    cache: Path,
    seeds: int,
    sets: Sequence[str] = tuple(SETS),
    rows: Sequence[str] | None = None,
    out: Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Every row in every scenario; means by set and kind and over sets; the single figures as CSV, all as JSON."""
    chosen = {name: row for name, row in ROWS.items() if rows is None or name in rows}
    found: list[dict[str, Any]] = []
    began = time.perf_counter()
    with ExitStack() as stack:
        if "FRAMU" in chosen:
            from frmu.runtime.connect import cluster

            stack.enter_context(cluster(None))
        stack.enter_context(one_thread())
        for seed in range(seeds):
            for name in sets:
                for kind in VARIANTS:
                    found += _measured(name, kind, seed, cache, chosen)
                tell(f"seed {seed}: {name}, {time.perf_counter() - began:.0f} s")
    result = {
        "policy": read_policy(shipped()).digest,
        "seeds": seeds,
        "rows": _means(found, ("set", "modalities", "kind")),
        "kinds": _means(found, ("modalities", "kind")),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if out is not None:
        write_rows(result, found, out, "surrogates")
    return result


def _measured(name: str, kind: str, seed: int, cache: Path, rows: Mapping[str, Row]) -> Iterator[dict[str, Any]]:
    """One scenario: every row, judged."""
    with scenario(name, kind, seed, cache) as scene:
        retrained = keep_all(_never(scene))
        label = {
            "set": name, "modalities": "multi-modal" if SETS[name][1] else "single-modal",
            "kind": kind, "variant": scene.variant, "seed": seed,
        }  # fmt: skip
        for row, make in rows.items():
            started = time.perf_counter()
            answer = make(scene)
            spent = time.perf_counter() - started
            reference = make(_never(scene)) if scene.must_go else retrained
            figures = _figures(scene, answer, reference)
            yield {**label, "row": row, **figures, "refits": answer.refits, "seconds": round(spent, 3)}


def _never(scene: Scenario) -> Scenario:
    return scene.never or scene


# -- the rows --------------------------------------------------------------------------------------------------------


def keep_all(scene: Scenario) -> Answer:
    """Every client by its n_k, every slice in full."""
    return _weighted(scene, {}, 0)


def framu(scene: Scenario) -> Answer:
    """Algorithm 1 to the letter: see `frmu.methods.framu`. Its rounds end where line 19 ends them."""
    from frmu.methods.framu import Settings
    from frmu.methods.framu import framu as method_of
    from frmu.policy.framu import dqn

    method = method_of(scene.config, dqn, Settings(seed=scene.seed))
    done = method.apply(scene.federation, method.init(), None)
    return Answer(_head(done.state.W), done.state.digest, done.refits)


def rule(scene: Scenario) -> Answer:
    """At each client the fixed rule with the least validation loss: see `frmu.bench.policy.best_rule`."""
    outputs, total = _total(scene)
    rng = np.random.Generator(np.random.PCG64(scene.seed))
    influence, refits = {}, 0
    for client in held(scene.federation):
        slices = client.slices("fit", outputs)
        if not slices or client.split_total("validation", outputs).n == 0:
            continue
        task = client.task(slices, total, outputs)
        account = RefitCounter(task, Budget())
        start = account.fit(task.keep)
        case = Case(task, np.zeros(len(task)), client.split_total("later", outputs))
        chosen = best_rule(account, observe(task, start, 0.0, start.loss), case, rng)
        influence[client.name] = dict(zip(task.keys, chosen.tolist(), strict=True))
        refits += account.refits
    return _weighted(scene, influence, refits)


def ours(scene: Scenario) -> Answer:
    """The product: policy, muting and attention as they ship. What must go is purged after a first training."""
    method, network = analytic(scene.config), read_policy(shipped())
    if not scene.must_go:
        done = method.apply(scene.federation, method.init(), network)
        return Answer(_head(done.state.W), done.state.digest, done.refits)
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:  # the shards of the scenario stay as they are
        shutil.copytree(scene.folder / "shards", Path(folder) / "shards")
        federation = LocalFederation(scene.config, scene.federation.clients, Path(folder))
        state = method.apply(federation, method.init(), network).state
        tombstoned = {name: frozenset(tombstones(KEY, name, sorted(ids))) for name, ids in scene.affected.items()}
        kept = method.prepare(federation, state, tombstoned)
        list(federation.run(PurgeShard(tombstoned, KEY)))
        done = method.erase(federation, state, network, tuple(tombstoned), kept)
    return Answer(_head(done.state.W), done.state.digest, done.refits)


def retrained(scene: Scenario) -> Answer:
    """The oracle: trained, with everything kept, on what it should have been trained on."""
    return keep_all(_never(scene))


ROWS: dict[str, Row] = {
    "keep all": keep_all,
    "FRAMU": framu,
    "best rule": rule,
    "ours": ours,
    "oracle (retrained)": retrained,
}


def _weighted(scene: Scenario, influence: Mapping[str, Mapping[str, float]], refits: int) -> Answer:
    """The head with each client by its n_k, under influences by client and slice; slices not named count in full."""
    outputs, _ = _total(scene)
    parts = [
        part.scaled(influence.get(client.name, {}).get(key, 1.0))
        for client in held(scene.federation)
        for key, part in client.slices("fit", outputs).items()
    ]
    total = Statistics.total(parts, *parts[0].b.shape)
    W = solve(total.G, total.b, scene.config.model.frozen_ridge)
    return Answer(_head(W), hashlib.sha256(W.tobytes()).hexdigest(), refits)


def _head(W: Float) -> Callable[[Client, NDArray[np.intp]], Float]:
    return lambda client, rows: np.asarray(client.encoded(client.shard.modalities, rows) @ W)


def _total(scene: Scenario) -> tuple[tuple[str, ...], Sums]:
    """The names of the outputs, and the federation's sums at full influence."""
    config, clients = scene.config, held(scene.federation)
    classes = set() if config.data.task == "regression" else {str(y) for c in clients for y in set(c.shard.target)}
    outputs = outputs_of(config, classes)
    names = tuple(client.name for client in clients)
    return outputs, sums_of(config, config.fingerprint(), scene.federation, names, outputs).total


# -- the figures -----------------------------------------------------------------------------------------------------


def _figures(scene: Scenario, answer: Answer, reference: Answer) -> dict[str, Any]:
    outputs, _ = _total(_never(scene))
    Y, P, R = (np.concatenate(of) for of in zip(*_tested(scene, answer, reference, outputs), strict=True))
    spread = float(np.sqrt(np.mean((Y - Y.mean(axis=0)) ** 2)))
    figures: dict[str, Any] = {
        "mse": float(np.mean((P - Y) ** 2)),
        "mae": float(np.mean(np.abs(P - Y))),
        "accuracy": float(np.mean(P.argmax(axis=1) == Y.argmax(axis=1))) if len(outputs) > 1 else None,
        "gap": 100.0 * float(np.sqrt(np.mean((P - R) ** 2))) / spread,
        "gap_erased": None,
        "exact": None,
    }
    if scene.must_go:
        erased = [
            answer.predict(client, rows) - reference.predict(client, rows)
            for client in held(scene.federation)
            if len(rows := _affected(scene, client))
        ]
        figures["gap_erased"] = 100.0 * float(np.sqrt(np.mean(np.concatenate(erased) ** 2))) / spread
        figures["exact"] = answer.digest == reference.digest
    return figures


def _tested(
    scene: Scenario, answer: Answer, reference: Answer, outputs: tuple[str, ...]
) -> Iterator[tuple[Float, Float, Float]]:
    """Targets, outputs and the reference's outputs on the test records of each client that has some."""
    for client in held(_never(scene).federation):
        rows = np.flatnonzero(client.shard.split == TEST)
        if len(rows):
            y = targets(client.shard.target[rows], outputs)
            yield y, answer.predict(client, rows), reference.predict(client, rows)


def _affected(scene: Scenario, client: Client) -> NDArray[np.intp]:
    """The rows of a client that were learned from and must go."""
    ids = np.array(sorted(scene.affected.get(client.name, ())), dtype=client.shard.ids.dtype)
    return np.flatnonzero((client.shard.split == FIT) & np.isin(client.shard.ids, ids))


def _means(found: Sequence[Mapping[str, Any]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """Means by some labels and row; `gain` is how much lower the MSE is than of keep all, in %, paired by scenario."""
    scenario_of = ("set", "kind", "seed")
    kept = {_at(one, scenario_of): one["mse"] for one in found if one["row"] == "keep all"}
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for one in found:
        groups.setdefault(_at(one, (*by, "row")), []).append(one)
    rows = []
    for key, part in groups.items():
        gains = np.array([100.0 * (1.0 - one["mse"] / kept[_at(one, scenario_of)]) for one in part])
        means = {name: _mean([one[name] for one in part]) for name in ("mse", "mae", "accuracy", "gap", "gap_erased")}
        rows.append(
            {
                **dict(zip((*by, "row"), key, strict=True)), **means,
                "gain": round(float(gains.mean()), 3), "worst": round(float(gains.min()), 2),
                "error": round(float(gains.std(ddof=1) / np.sqrt(len(gains))), 3) if len(gains) > 1 else None,
                "exact": sum(bool(one["exact"]) for one in part) if part[0]["exact"] is not None else None,
                "refits": _mean([one["refits"] for one in part]),
                "seconds": _mean([one["seconds"] for one in part]), "scenarios": len(part),
            }
        )  # fmt: skip
    return rows


def _at(one: Mapping[str, Any], names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(one[name] for name in names)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(float(np.mean(known)), 5) if known else None
