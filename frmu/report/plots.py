"""The picture of a state: clients by slices in the order of time, coloured by influence.

Slices of a calendar lie where they lie in time, so a gap in the records is a gap in the picture; others stand side by
side. It shows what the state knows and nothing else: a slice that was erased leaves no mark.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from frmu.config import CALENDAR
from frmu.data.shard import span
from frmu.types import ClientState, State

__all__ = ["plot_explanation", "plot_influence", "ready"]

FORGOTTEN, ATTENUATED, KEPT = "#b2182b", "#fdb863", "#5b9bc9"  # told apart by the colour-blind, too
_NAME = 28  # characters of a client's name
_LABELS = 45  # names down the side before some are left out
_LINED = 200  # clients between whose rows a white line can be seen


def ready() -> None:
    """Import matplotlib: it takes a second, which somebody who waits for something else has."""
    import matplotlib.backends.backend_agg
    import matplotlib.dates
    import matplotlib.figure  # noqa: F401


def plot_influence(state: State, by: str, path: Path) -> None:
    """Write a PNG of every slice's influence; `by` is what slices are cut by. What a client does not hold is white."""
    plot_explanation(state.clients, by, path)


def plot_explanation(
    clients: Sequence[ClientState], by: str, path: Path, changes: Mapping[str, float] | None = None
) -> None:
    """Write a PNG of the influences of some clients, in the order given.

    `changes`, of a single client, say by how many percent its validation loss would change if a slice that counts were
    left out, or one that is forgotten counted in full: bars below, above zero where the choice was right.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    places, width = _places(sorted({key for client in clients for key in client.influence}), by)
    height = min(18.0, 0.9 + max(0.16, min(0.34, 14.0 / max(1, len(clients)))) * max(2, len(clients)))
    below = 2.2 if changes else 0.0
    figure = Figure(figsize=(width, height + below + 0.7), layout="constrained")
    rows = figure.subplots(2 if changes else 1, 1, sharex=True, squeeze=False, height_ratios=_ratios(height, below))
    axes = rows[0][0]
    _boxes(axes, clients, places)
    _sides(axes, clients)
    _legend(figure, axes)
    if changes:
        one = clients[0].influence
        _bars(rows[1][0], changes, places, [_colour(one[key]) for key in sorted(changes)])
    _along(rows[-1][0], places, by)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # a name in a script without a font is boxes
        figure.savefig(path, dpi=120)


def _places(keys: Sequence[str], by: str) -> tuple[dict[str, tuple[float, float]], float]:
    """Place each slice: its begin and width, in days or in numbers; and the width of the figure, in inches."""
    if by not in CALENDAR:
        return {key: (at - 0.5, 1.0) for at, key in enumerate(keys)}, 4.0 + min(14.0, 0.4 * max(5, len(keys)))
    from matplotlib.dates import date2num

    places = {}
    for key in keys:
        first, last = span(key, by)
        places[key] = (float(date2num(first)), float(date2num(last) - date2num(first)))
    days = max((at + wide for at, wide in places.values()), default=1.0) - min(
        (at for at, _ in places.values()), default=0
    )
    units = days / {"day": 1.0, "week": 7.0, "month": 30.0}[by]
    return places, 4.0 + min(14.0, max(5.0, 0.3 * units))


def _ratios(height: float, below: float) -> list[float]:
    return [height, below] if below else [1.0]


def _colour(influence: float) -> Any:
    """Red at 0, amber halfway in between, blue at 1; only what is forgotten or kept in full has their colours."""
    if influence in (0.0, 1.0):
        return FORGOTTEN if influence == 0.0 else KEPT
    return _between()(influence)


@cache
def _between() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("attenuated", ["#e66101", ATTENUATED, "#fee8c8"])


def _boxes(axes: Any, clients: Sequence[ClientState], places: Mapping[str, tuple[float, float]]) -> None:
    """A box a slice; all are one collection, for there may be many thousands."""
    from matplotlib.collections import PolyCollection

    boxes, colours = [], []
    for row, client in enumerate(clients):
        for key, influence in client.influence.items():
            (left, wide), low, high = places[key], row - 0.42, row + 0.42
            boxes.append([(left, low), (left, high), (left + wide, high), (left + wide, low)])
            colours.append(_colour(influence))
    line = 0.4 if len(clients) <= _LINED else 0.0
    axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors="white", linewidths=line))
    axes.autoscale_view(scaley=False)


def _sides(axes: Any, clients: Sequence[ClientState]) -> None:
    """Names on the left, attention on the right."""
    shown = range(0, len(clients), max(1, -(-len(clients) // _LABELS)))
    names = [client.name if len(client.name) <= _NAME else f"{client.name[: _NAME - 1]}…" for client in clients]
    axes.set_yticks(list(shown), [names[at] for at in shown], parse_math=False)
    axes.set_ylim(len(clients) - 0.4, -0.6)
    right = axes.secondary_yaxis("right")
    right.set_yticks(list(shown), [f"{clients[at].attention:.2f}" for at in shown])
    right.set_ylabel("attention", fontsize="small")
    for side in (axes, right):
        side.tick_params(axis="y", length=0, labelsize="small")
    for spine in (*axes.spines.values(), *right.spines.values()):
        spine.set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    from matplotlib.patches import Patch

    axes.set_title("Influence of each slice", loc="left", fontsize="medium")
    named = {"kept": KEPT, "attenuated": ATTENUATED, "forgotten": FORGOTTEN}
    patches = [Patch(facecolor=colour, label=name) for name, colour in named.items()]
    patches.append(Patch(facecolor="white", edgecolor="#bbbbbb", label="nothing to fit"))
    figure.legend(handles=patches, loc="outside upper right", ncols=4, frameon=False, fontsize="small")


def _bars(axes: Any, changes: Mapping[str, float], places: Mapping[str, tuple[float, float]], colours: Any) -> None:
    keys = sorted(changes)
    left, wide = ([places[key][part] for key in keys] for part in (0, 1))
    axes.bar(left, [changes[key] for key in keys], wide, align="edge", color=colours, edgecolor="white", linewidth=0.4)
    axes.axhline(0.0, color="#444444", linewidth=0.8)
    axes.set_title(
        "Validation loss if the slice were left out, or let in again: change in %", loc="left", fontsize="medium"
    )
    axes.tick_params(axis="y", labelsize="small")
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)


def _along(axes: Any, places: Mapping[str, tuple[float, float]], by: str) -> None:
    """Dates along the axis, or the keys of slices."""
    axes.tick_params(axis="x", labelsize="small")
    if by in CALENDAR:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=4, maxticks=12)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        return
    keys = list(places)
    shown = range(0, len(keys), max(1, -(-len(keys) // 40)))
    axes.set_xticks(list(shown), [keys[at] for at in shown], rotation=60, ha="right", parse_math=False)
