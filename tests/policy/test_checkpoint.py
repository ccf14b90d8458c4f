"""The progress of a training is read whole, or refused in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.errors import PolicyError
from frmu.policy.checkpoint import ADAM, Progress, read_progress, write_progress
from frmu.selection.network import shapes

LINEAGE = {"clients": ["home 0"], "run": "r", "parent": None, "buried": 0}
WEIGHTS = {name: np.zeros(shape, np.float32) for name, shape in shapes().items()}
MOMENTS = {
    f"{kind}/{name}": np.ones(() if kind == "step" else shape, np.float32)
    for kind in ADAM
    for name, shape in shapes().items()
}
HISTORY = ({"gain": 0.1, "env_steps": 32.0},)


def put(
    folder: Path, moments: Mapping[str, Any] = MOMENTS, lineage: Mapping[str, Any] = LINEAGE,
    history: tuple[Mapping[str, float], ...] = HISTORY, weights: Mapping[str, Any] = WEIGHTS,
) -> Path:  # fmt: skip
    progress = Progress(1, weights, moments, {"home 0": {"a": 1.0}}, history, 2.0)
    (folder / "scratch").mkdir()
    write_progress(progress, lineage, folder / "training.safetensors", folder / "scratch")
    return folder / "training.safetensors"


@pytest.mark.parametrize("moments", [MOMENTS, {}])
def test_what_is_written_is_read_back(moments: Mapping[str, Any], tmp_path: Path) -> None:
    progress, lineage = read_progress(put(tmp_path, moments))
    assert lineage == LINEAGE
    assert (progress.iterations, progress.history, progress.seconds) == (1, HISTORY, 2.0)
    assert set(progress.moments) == set(moments)


NAME = next(iter(shapes()))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"moments": MOMENTS | {"exp_avg/none": np.zeros(3, np.float32)}}, "its moments are not those of its weights"),
        ({"moments": MOMENTS | {f"exp_avg/{NAME}": np.zeros(3, np.float32)}}, "its moments are not those"),
        ({"moments": {f"step/{NAME}": np.zeros((), np.float32)}}, "its moments are not those of its weights"),
        ({"weights": WEIGHTS | {NAME: np.zeros(3, np.float32)}}, rf"{NAME} has \(3,\) and not"),
        ({"weights": WEIGHTS | {NAME: WEIGHTS[NAME] * np.float32("nan")}}, f"{NAME} is not finite"),
        ({"lineage": {"clients": ["home 0"]}}, "its account has gaps"),
        ({"lineage": {**LINEAGE, "clients": "home 0"}}, "its account has gaps"),
        ({"lineage": {"run": "r", "parent": None, "buried": 0}}, "KeyError"),
        ({"history": ()}, "its account has gaps"),
        ({"history": ({"gain": 0.1},)}, "its account has gaps"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(change: dict[str, Any], why: str, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=rf"training\.safetensors: not a .*{why}.*; start anew with --no-resume"):
        read_progress(put(tmp_path, **change))


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0.0, 1.0, exclude_max=True))
def test_a_checkpoint_cut_short_is_refused(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = put(tmp_path_factory.mktemp("cut"))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(PolicyError, match=r"not a whole checkpoint: .*; start anew with --no-resume"):
        read_progress(path)
