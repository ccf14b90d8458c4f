"""Importances of columns as a terminal shows them."""

from __future__ import annotations

from typing import Any

from frmu.cli.shell import count, say, table

__all__ = ["tell_importances"]

MOST = 20  # columns in a line of their own


def tell_importances(result: dict[str, Any]) -> None:
    """Say what each column counts, a column a layer; and which columns act together."""
    layers = [_flat(one["columns"]) for one in result["layers"]]
    order = sorted(layers[-1], key=lambda column: -layers[-1][column])
    shown, others = order[:MOST], order[MOST:]
    rows = [[*column, *(_percent(of[column]) for of in layers)] for column in shown]
    if others:
        rows.append([count(len(others), "other"), "", *(_percent(sum(of[c] for c in others)) for of in layers)])
    title = f"Shares of a {result['shape']} metric, in %: what the learned features lean on"
    table(title, ["modality", "column", *(f"layer {one['layer']}" for one in result["layers"])], rows)
    pairs = [[_joined(one["columns"]), f"{100.0 * one['share']:+.2f}"] for one in result["pairs"]]
    if pairs:
        table("Columns that act together in the last layer", ["columns", "%"], pairs)
    if "picture" in result:
        say(f"Wrote {result['picture']}")


def _flat(columns: dict[str, dict[str, float]]) -> dict[tuple[str, str], float]:
    return {(modality, name): share for modality, of in columns.items() for name, share in of.items()}


def _percent(share: float) -> str:
    return f"{100.0 * share:.1f}"


def _joined(columns: list[list[str]]) -> str:
    return " and ".join(f"{modality}: {name}" for modality, name in columns)
