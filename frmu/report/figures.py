"""The figures of a round: errors, what is forgotten, and why. Aggregates only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from frmu.clients.tasks.statistics import MeasureErrors
from frmu.federation import Federation, in_order
from frmu.methods.method import Round
from frmu.models.features import Head, features_of, model_of
from frmu.selection.observation import FEATURES
from frmu.types import State

__all__ = ["account_of_slices", "forgotten", "influences_in", "measure", "summed_up"]


def measure(federation: Federation, done: Round) -> dict[str, float]:
    """Errors of the state's head, and of the head if nothing had been forgotten, averaged over records.

    For a regression `<split>_rmse` and `<split>_mae` in units of the target; of several targets those in shares of
    their declared ranges, and `<split>_rmse <target>` in its own. For a classification `<split>_accuracy`, and
    `<split>_weighted_accuracy` where classes have weights. Each again as `keep_<...>`, where there
    is such a head.
    """
    heads = {"model": model_of(done.state)}
    if done.keep is not None:
        heads["keep"] = Head(done.keep, features_of(done.state))
    names = [client.name for client in done.state.clients]
    sums: dict[tuple[str, str], dict[str, float]] = {}
    for reply in in_order(federation.run(MeasureErrors(heads, done.state.outputs), on=names)):
        for head, splits in reply.record.items():
            for split, errors in splits.items():
                total = sums.setdefault((head, split), dict.fromkeys(errors, 0.0))
                for key, value in errors.items():
                    total[key] += value
    metrics: dict[str, float] = {}
    for (head, split), total in sums.items():
        if total["n"] == 0:
            continue
        name = split if head == "model" else f"keep_{split}"
        metrics |= _mean(name, total)
    return metrics


def _mean(split: str, total: Mapping[str, float]) -> dict[str, float]:
    """The metrics behind sums of errors; a target's name is cut to what MLflow takes in one of its own."""
    if "correct" in total:
        weighted = {f"{split}_weighted_accuracy": total["hit"] / total["weight"]} if total.get("weight") else {}
        return {f"{split}_accuracy": total["correct"] / total["n"]} | weighted
    found: dict[str, float] = {}
    for key, value in total.items():
        kind, _, target = key.partition(" ")
        own = re.sub(r"[^\w.\- ]", "_", f" {target}") if target else ""
        if kind == "square":
            found[f"{split}_rmse{own}"] = float(np.sqrt(value / total["n"]))
        elif kind == "absolute":
            found[f"{split}_mae{own}"] = value / total["n"]
    return found


def forgotten(state: State) -> dict[str, dict[str, float]]:
    """The slices whose influence is below one, by client."""
    below = {c.name: {key: value for key, value in c.influence.items() if value < 1.0} for c in state.clients}
    return {name: slices for name, slices in below.items() if slices}


def account_of_slices(done: Round) -> dict[str, Any]:
    """Return why each slice counts as much as it does, a row a slice: `columns`, and `data` as lists in their order.

    Aggregates: influence and the policy's attention of the slice, its features as seen before anything was decided, and
    what goes for the whole client - attention and score, who was followed, the validation loss of every proposal. With
    several modalities also the influence and the score of each within the slice.
    """
    rows: list[dict[str, Any]] = []
    for client in done.state.clients:
        record = done.records[client.name]
        whole = {
            "client_records": client.records,
            "client_attention": client.attention,
            "client_score": done.scores[client.name],
            "chosen_by": client.chosen_by,
            "drawn_back": record.get("drawn_back", ""),
            "refits": record["refits"],
        } | {f"loss: {name}": loss for name, loss in record["losses"].items()}
        for key, seen in record["slices"].items():
            by = seen.get("modalities", {}).items()
            one = {"client": client.name, "slice": key, "influence": client.influence[key], "records": seen["records"]}
            one |= {f"influence: {name}": of["influence"] for name, of in by}
            one |= {f"score: {name}": of["score"] for name, of in by}
            one |= {"attention": seen["pool"]}
            one |= {f"seen: {name}": value for name, value in zip(FEATURES, seen["features"], strict=True)}
            rows.append(one | whole)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


def influences_in(account: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The influences by client and slice in what `account_of_slices` gave.

    >>> influences_in({"columns": ["client", "slice", "influence"], "data": [["a", "2025-01", 0.5]]})
    {'a': {'2025-01': 0.5}}
    """
    at = [account["columns"].index(name) for name in ("client", "slice", "influence")] if account["data"] else []
    found: dict[str, dict[str, float]] = {}
    for row in account["data"]:
        client, key, influence = (row[column] for column in at)
        found.setdefault(client, {})[key] = influence
    return found


def summed_up(state: State) -> dict[str, float]:
    """A few numbers over all slices and clients: how many count in full, less, not at all; the range of attention."""
    influences = [value for client in state.clients for value in client.influence.values()]
    attention = [client.attention for client in state.clients]
    if not influences:
        return {}
    return {
        "slices": len(influences),
        "slices_forgotten": sum(value == 0.0 for value in influences),
        "slices_attenuated": sum(0.0 < value < 1.0 for value in influences),
        "attention_least": min(attention),
        "attention_most": max(attention),
    }
