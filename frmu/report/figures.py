"""The figures of a round: errors, what is forgotten, and why. Aggregates only."""

from __future__ import annotations

from typing import Any

import numpy as np

from frmu.clients.tasks.statistics import MeasureErrors
from frmu.federation import Federation, in_order
from frmu.methods.method import Round
from frmu.selection.observation import FEATURES
from frmu.types import State

__all__ = ["explain", "forgotten", "measure"]


def measure(federation: Federation, done: Round) -> dict[str, float]:
    """Errors of the state's head, and of the head if nothing had been forgotten, averaged over records.

    For a regression `<split>_rmse` and `<split>_mae` in units of the target; for a classification
    `<split>_accuracy`; each again as `keep_<...>`.
    """
    heads = {"model": done.state.W, "keep": done.keep}
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
        if "correct" in total:
            metrics[f"{name}_accuracy"] = total["correct"] / total["n"]
        else:
            metrics[f"{name}_rmse"] = float(np.sqrt(total["square"] / total["n"]))
            metrics[f"{name}_mae"] = total["absolute"] / total["n"]
    return metrics


def forgotten(state: State) -> dict[str, dict[str, float]]:
    """The slices whose influence is below one, by client."""
    below = {c.name: {key: value for key, value in c.influence.items() if value < 1.0} for c in state.clients}
    return {name: slices for name, slices in below.items() if slices}


def explain(done: Round) -> dict[str, Any]:
    """Return why each slice counts as much as it does: aggregates, losses of every proposal, who was followed.

    With several modalities, also the influence and the score of each within the slice.
    """
    explained = {}
    for client in done.state.clients:
        record = done.records[client.name]
        slices = {
            key: {
                "influence": client.influence[key],
                "records": seen["records"],
                "attention": seen["pool"],
                "features": dict(zip(FEATURES, seen["features"], strict=True)),  # as seen before anything was decided
            }
            | ({"modalities": seen["modalities"]} if "modalities" in seen else {})
            for key, seen in record["slices"].items()
        }
        explained[client.name] = {
            "attention": client.attention,
            "score": done.scores[client.name],
            "chosen_by": client.chosen_by,
            "records": client.records,
            "refits": record["refits"],
            "validation_loss": dict(record["losses"]),
            "slices": slices,
        }
    return explained
