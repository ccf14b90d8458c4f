"""The picture of a state: every client has a row, whatever it is called."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frmu.report.plots import plot_influence
from frmu.types import HEAD, ClientState, State


@pytest.mark.parametrize("by", ["month", "subject"])
def test_a_name_in_any_script_is_drawn_without_a_word_on_the_terminal(tmp_path: Path, by: str) -> None:
    """Warnings are errors here."""
    keys = ("2025-01", "2025-03") if by == "month" else ("subject-00", "subject-07")
    clients = tuple(
        ClientState(name, 10, 1.0, dict(zip(keys, (1.0, 0.5), strict=True))) for name in ("日本", "$x_1$", "a" * 60)
    )
    plot_influence(State("c", "", ("y",), clients, {HEAD: np.zeros((1, 1))}), by, tmp_path / "influence.png")
    assert (tmp_path / "influence.png").read_bytes()[:4] == b"\x89PNG"
