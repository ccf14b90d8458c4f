"""The picture of a state: clients by slices, coloured by influence."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from frmu.types import State

__all__ = ["draw_influence"]


def draw_influence(state: State, path: Path) -> None:
    """Write a PNG of every slice's influence; slices that a client does not hold (any more) stay white."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib.figure import Figure

    keys = sorted({key for client in state.clients for key in client.influence})
    table = np.full((len(state.clients), max(1, len(keys))), np.nan)
    for row, client in enumerate(state.clients):
        for key, value in client.influence.items():
            table[row, keys.index(key)] = value
    figure = Figure(figsize=(2.5 + 0.45 * max(4, len(keys)), 1.6 + 0.28 * len(state.clients)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(table, vmin=0.0, vmax=1.0, cmap="RdYlGn", aspect="auto")
    axes.set_yticks(range(len(state.clients)), [f"{c.name}  (attention {c.attention:.2f})" for c in state.clients])
    shown = range(0, len(keys), max(1, len(keys) // 40))
    axes.set_xticks(list(shown), [keys[at] for at in shown], rotation=60, ha="right")
    axes.set_title("Influence of each slice")
    axes.set_xlabel("slice")
    bar = figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_ticks([0.0, 0.3, 1.0], labels=["forgotten", "attenuated", "kept"])
    figure.savefig(path, dpi=110)
