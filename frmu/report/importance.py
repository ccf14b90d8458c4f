"""The picture of what learned features lean on: a panel a layer, a bar a column, the longest on top.

All panels have the columns in one order, that of the last layer, so that a reader follows a row from layer to layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from frmu.models.importance import Column
from frmu.report.plots import KEPT
from frmu.types import Float

__all__ = ["MOST", "plot_importance", "ranked"]

MOST = 20  # columns with a bar of their own
_COLOURS = (KEPT, "#fdb863", "#7b6ca8", "#5aae61", "#b2182b", "#8c6d46", "#e7a1c4", "#3f7f93")  # of modalities, in turn
_OTHERS = "#cccccc"
_NAME = 32  # characters of a column's name


def ranked(columns: Sequence[Column], layers: Sequence[Float]) -> tuple[list[Column], list[list[float]], int]:
    """The columns with a bar, by the last layer; their shares, by layer; and how many others come after them.

    Where there are others, each layer has their sum as one share more.
    """
    order = sorted(range(len(columns)), key=lambda at: (-float(layers[-1][at]), at))
    shown, others = order[:MOST], order[MOST:]
    rest = [[float(sum(of[others]))] if others else [] for of in layers]
    shares = [[*of[shown].tolist(), *more] for of, more in zip(layers, rest, strict=True)]
    return [columns[at] for at in shown], shares, len(others)


def plot_importance(columns: Sequence[Column], layers: Sequence[Float], path: Path) -> None:
    """Write a PNG of the columns' shares of the metric, (columns,) a layer."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    shown, shares, others = ranked(columns, layers)
    modalities = list(dict.fromkeys(column.modality for column in columns))
    names = [_short(column.name) for column in shown] + ([f"{others} others"] if others else [])
    colours = [_COLOURS[modalities.index(column.modality) % len(_COLOURS)] for column in shown]
    figure = Figure(figsize=(_width(len(layers)), 1.3 + 0.27 * max(3, len(names))), layout="constrained")
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    most = max(max(of) for of in shares)
    for at, (axes, of) in enumerate(zip(panels, shares, strict=True), start=1):
        _bars(axes, of, [*colours, _OTHERS][: len(of)], most)
        axes.set_title(f"Layer {at}", loc="left", fontsize="small")
    panels[0].set_yticks(range(len(names)), names, parse_math=False)
    panels[0].set_ylim(len(names) - 0.4, -0.6)
    figure.suptitle("What the learned features lean on, in %", x=0.01, ha="left", fontsize="medium")
    if len(modalities) > 1:
        _legend(figure, modalities)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without a font is boxes
        figure.savefig(path, dpi=120)


def _width(layers: int) -> float:
    return 3.4 + min(14.0, 3.2 * layers)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _bars(axes: Any, shares: Sequence[float], colours: Sequence[str], most: float) -> None:
    percent = 100.0 * np.array(shares)
    bars = axes.barh(range(len(percent)), percent, 0.76, color=colours)
    axes.bar_label(bars, [f"{one:.1f}" for one in percent], padding=3, fontsize="small", color="#444444")
    axes.set_xlim(0.0, 118.0 * most)
    axes.tick_params(axis="y", length=0, labelsize="small")
    axes.set_xticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _legend(figure: Any, modalities: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    patches = [Patch(facecolor=_COLOURS[at % len(_COLOURS)], label=_short(name)) for at, name in enumerate(modalities)]
    figure.legend(handles=patches, loc="outside lower left", ncols=4, frameon=False, fontsize="small")
