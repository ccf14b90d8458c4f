"""The table to win: what each selector does for later records, by what it spent.

A task is one site's 24 slices, some of them disturbed on purpose. A selector sees the records to fit and those to
validate; it is judged on the test records, which lie later still, by the change of RMSE against keeping everything.
The unit of cost is the refit. The shipped policy learned from the first part of three sets: of these the other sites
are unseen, three more sets are unseen altogether, and so are three whose records have several modalities (flights with
their weather, digits in six views, invoice lines with their text). A stale relation makes records outdated; shuffled
labels, a faulty gain and scrambled features make them irrelevant. Private records are no matter for a selector: they
are purged before one looks (`frmu.bench.surrogates` has them).
"""

from __future__ import annotations

import datetime as dt
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from frmu.bench.jobs import in_processes, write_rows
from frmu.bench.pretraining_tasks import SEEN, SEEN_SHARE
from frmu.bench.selectors import BUDGETS, Case, selectors
from frmu.clients.client import Client
from frmu.clients.tasks.framu import blocks
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.clients.tasks.rollout import Rollout
from frmu.config import Config, load
from frmu.data.parquet import survey
from frmu.datasets import cached
from frmu.errors import DataError
from frmu.methods.analytic import outputs_of, sums_of
from frmu.models.statistics import loss, one_thread
from frmu.runtime.local import LocalFederation
from frmu.selection.disturbance import KINDS
from frmu.selection.network import Network, read_policy, shipped
from frmu.selection.observation import Fit, fit, observe
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import Budget, RefitCounter
from frmu.types import Float, Sums

__all__ = ["FAMILIES", "MULTI", "UNSEEN", "bench_policy", "gain_of"]

UNSEEN = ("parking", "traffic", "appliances")
MULTI = ("flights", "views", "notes")
OWN = "your own data"
FAMILIES = {"undisturbed": ("none",), "outdated": ("stale",), "irrelevant": ("labels", "gain", "features")}
SITES = 2  # tasks of each kind, set and seed
MOST = 64  # slices of one client, the newest


def bench_policy(
    cache: Path,
    seeds: int,
    configs: Sequence[Path] = (),
    processes: int = 2,
    out: Path | None = None,
    sets: Sequence[str] = (*SEEN, *UNSEEN, *MULTI),
    framu: bool = False,
) -> dict[str, Any]:
    """Every selector on every task; rows by selector and group, and by kind; equal budgets compared; files to `out`.

    `configs` are federations of the user's own, a group by themselves. With `framu`, which needs Ray, Algorithm 1 to
    the letter is a selector as well.
    """
    jobs = [(str(cache), name, seed, framu) for name in sets for seed in range(seeds)]
    jobs += [("", str(config), seed, framu) for config in configs for seed in range(seeds)]
    found = [row for rows in in_processes(_job, jobs, processes) for row in rows]
    result = {
        "policy": read_policy(shipped()).digest,
        "seeds": seeds,
        "tasks": len({row["task"] for row in found}),
        "rows": _table(found),
        "kinds": _by_family(found),
        "budgets": _budgets(found),
    }
    if out is not None:
        write_rows(result, found, out, "policy")
        _draw(result, out / "policy.png")
    return result


# -- the tasks -----------------------------------------------------------------------------------------------------


def _job(job: tuple[str, str, int, bool]) -> list[dict[str, Any]]:
    """Everything about one set and seed, in a process of its own."""
    cache, name, seed, framu = job
    network = read_policy(shipped())
    config = _prepared(name, Path(cache)) if cache else _own(Path(name))
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        if framu:
            from frmu.runtime.connect import cluster

            stack.enter_context(cluster(None))
        stack.enter_context(one_thread())
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="frmu-"))
        federation = LocalFederation(config, survey(config).clients, Path(folder))
        list(federation.run(StageShard({}, b"bench")))
        list(federation.run(CommitShard(True)))
        for label, case in _cases(config, federation, name, bool(cache), seed):
            rng = np.random.Generator(np.random.PCG64([seed, len(rows)]))
            rows += [label | row for row in _compared(case, network, rng, framu)]
    return rows


def _prepared(name: str, cache: Path) -> Config:
    """A set of ours with slices of equal size, where it has a time."""
    folder = cached(name, cache)
    return load(folder / ("slots.toml" if (folder / "slots.toml").exists() else "config.toml"))


def _own(file: Path) -> Config:
    return load(file).at(dt.datetime.now(dt.UTC).date())


def _cases(
    config: Config, federation: LocalFederation, name: str, ours: bool, seed: int
) -> Iterator[tuple[dict[str, Any], Case]]:
    outputs: tuple[str, ...] = config.data.targets
    if config.data.task != "regression":
        outputs = outputs_of(config, {str(label) for c in _held(federation) for label in set(c.shard.target)})
    names = tuple(client.name for client in _held(federation))
    whole = sums_of(config, config.fingerprint(), federation, names, outputs).total
    clients = [client for client in _held(federation) if _can_be_judged(client)]
    if not clients:
        raise DataError(
            f"{name}: no client has two slices to fit, validation records and test records; move the dates in [split], "
            "or cut finer slices"
        )
    known = name if ours else Path(name).stem
    for group, members in (_groups(name, clients) if ours else {OWN: clients}).items():
        rng = np.random.Generator(np.random.PCG64([seed, len(group), len(known)]))
        for number, kind in enumerate(KINDS * SITES):
            client = members[int(rng.integers(len(members)))]
            alone = number >= len(KINDS)
            total = client.split_sums("fit", outputs) if alone else whole
            rollout = Rollout({}, outputs, total, MOST)
            drawn = rollout.rehearse(client, int(rng.integers(2**31)), kind, whole=True)
            task = drawn[2]
            hit = np.array([key in drawn[1] for key in task.keys], dtype=np.float64)
            label = {
                "task": f"{name}/{group}/{seed}/{number}", "set": known, "group": group, "kind": drawn[0],
                "setting": "by itself" if alone else "in a federation",
            }  # fmt: skip
            others = () if alone else tuple(other for other in clients if other is not client)
            fellows = partial(_fellows, others, whole, outputs)
            yield label, Case(task, hit, client.split_total("test", outputs), fellows, blocks(config))


def _fellows(clients: Sequence[Client], whole: Sums, outputs: tuple[str, ...]) -> tuple[SelectionProblem, ...]:
    return tuple(client.task(client.slices("fit", outputs), whole, outputs) for client in clients)


def _held(federation: LocalFederation) -> list[Client]:
    return [client for client in federation.host.clients(federation.clients) if client.has_shard]


def _can_be_judged(client: Client) -> bool:
    return bool(len(client.groups(0)) > 1 and client.groups(1) and client.groups(3))


def _groups(name: str, clients: list[Client]) -> dict[str, list[Client]]:
    if name in MULTI:
        return {"unseen data, multi-modal": clients}
    if name not in SEEN:
        return {"unseen data": clients}
    border = int(SEEN_SHARE * len(clients))
    return {"seen sites": clients[:border], "unseen sites": clients[border:]}


# -- the account ---------------------------------------------------------------------------------------------------


def _compared(case: Case, network: Network, rng: np.random.Generator, framu: bool = False) -> Iterator[dict[str, Any]]:
    task = case.task
    kept = RefitCounter(task, Budget()).fit(task.keep)
    for name, (budget, select) in selectors(network, len(task), framu).items():
        account = RefitCounter(task, Budget(budget))
        start = account.fit(task.keep)
        influence = select(account, observe(task, start, 0.0, start.loss), case, rng)
        spent, seconds = account.refits, account.seconds
        gain = gain_of(case, kept, influence)
        dropped = influence < 0.5
        yield {
            "selector": name, "gain": gain, "refits": spent, "seconds": seconds,
            "true": float(np.sum(dropped * case.hit)), "dropped": float(np.sum(dropped)),
            "hit": float(np.sum(case.hit)),
        }  # fmt: skip


def gain_of(case: Case, kept: Fit, influence: Float) -> float:
    """Return how much lower the test RMSE is under some influences (K,) than with everything kept, in percent."""
    return 100.0 * (1.0 - _rmse(fit(case.task, influence), case) / _rmse(kept, case))


def _rmse(at: Fit, case: Case) -> float:
    return math.sqrt(loss(at.W, case.test) + 1e-12)


def _table(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a selector and group (and setting): mean gain %, standard error, worst, precision, recall, cost."""
    rows = []
    columns = [(group, setting) for group in _order(found, "group") for setting in _order(found, "setting")]
    for selector in _order(found, "selector"):
        mine = [row for row in found if row["selector"] == selector]
        for group, setting in columns:
            part = [row for row in mine if (row["group"], row["setting"]) == (group, setting)]
            if part:
                kinds = {kind: _mean([r["gain"] for r in part if r["kind"] == kind]) for kind in KINDS}
                rows.append({"selector": selector, "group": group, "setting": setting, **_summary(part), **kinds})
    return rows


def _by_family(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a selector, group, setting and kind of data to unlearn."""
    places: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    family_of = {kind: family for family, kinds in FAMILIES.items() for kind in kinds}
    for row in found:
        place = (row["selector"], row["group"], row["setting"], family_of[row["kind"]])
        places.setdefault(place, []).append(row)
    names = ("selector", "group", "setting", "family")
    return [{**dict(zip(names, place, strict=True)), **_summary(part)} for place, part in places.items()]


def _summary(part: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    gains = np.array([row["gain"] for row in part])
    true, dropped, hit = (sum(row[name] for row in part) for name in ("true", "dropped", "hit"))
    return {
        "mean": round(float(gains.mean()), 2),
        "error": round(float(gains.std() / math.sqrt(len(gains))), 2),
        "worst": round(float(gains.min()), 1),
        "precision": round(true / dropped, 3) if dropped else None,
        "recall": round(true / hit, 3) if hit else None,
        "refits": round(float(np.mean([row["refits"] for row in part])), 1),
        "seconds": round(float(np.mean([row["seconds"] for row in part])), 4),
        "tasks": len(part),
    }


def _mean(values: Sequence[float]) -> float | None:
    return round(float(np.mean(values)), 2) if values else None


def _order(found: Sequence[Mapping[str, Any]], name: str) -> list[str]:
    return list(dict.fromkeys(row[name] for row in found))


def _budgets(found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours against each rival at the same budget, paired by task: the difference of gains and its standard error."""
    compared = []
    columns = [(group, setting) for group in _order(found, "group") for setting in _order(found, "setting")]
    for group, setting in columns:
        mine = [row for row in found if (row["group"], row["setting"]) == (group, setting)]
        by = {(row["selector"], row["task"]): row["gain"] for row in mine}
        tasks = sorted({task for _, task in by})
        for budget in BUDGETS:
            ours = np.array([by[f"learned + search @ {budget}", task] for task in tasks])
            rivals = [f"greedy @ {budget}", f"gradient @ {budget}", f"DVRL @ {budget}", "best rule", "greedy 16"]
            for rival in rivals[: 5 if budget == BUDGETS[-1] else 4]:
                change = ours - np.array([by[rival, task] for task in tasks])
                error = float(change.std() / math.sqrt(len(change)))
                compared.append(
                    {
                        "group": group, "setting": setting, "budget": budget, "rival": rival,
                        "ours": round(float(ours.mean()), 2),
                        "difference": round(float(change.mean()), 2), "error": round(error, 2), "tasks": len(tasks),
                    }
                )  # fmt: skip
    return compared


def _draw(result: Mapping[str, Any], path: Path) -> None:
    """Quality against refits, one line a selector that takes a budget, one point for each other; a panel a group."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(row["group"] for row in result["rows"]))
    figure = Figure(figsize=(5.5 * len(groups), 5), layout="constrained")
    for axes, group in zip(np.atleast_1d(figure.subplots(1, len(groups), sharey=True)), groups, strict=True):
        rows = [row for row in result["rows"] if (row["group"], row["setting"]) == (group, "by itself")]
        for family, colour in (("learned + search", "C3"), ("greedy", "C0"), ("gradient", "C2"), ("DVRL", "C4")):
            line = [row for row in rows if row["selector"].startswith(f"{family} @")]
            axes.errorbar(
                [row["refits"] for row in line], [row["mean"] for row in line], [row["error"] for row in line],
                marker="o", color=colour, label=family, capsize=3,
            )  # fmt: skip
        for name, marker in (
            ("learned, one pass", "*"),
            ("learned, 3 steps", "P"),
            ("best rule", "s"),
            ("oracle", "x"),
        ):
            axes.plot(*next((r["refits"], r["mean"]) for r in rows if r["selector"] == name), marker, ms=9, label=name)
        axes.set_xscale("log")
        axes.set_title(f"{group}, by itself")
        axes.set_xlabel("refits spent")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.supylabel("lower test RMSE than keeping everything, %")
    figure.savefig(path, dpi=110)
