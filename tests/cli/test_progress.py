"""Long work says what it does: a log is told after a while, and not at all where nothing takes long."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import homes, put

from frmu.cli import main, progress
from frmu.federation import PROGRESS


def test_a_log_is_told_what_takes_long_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.1)
    with progress.working():
        logging.getLogger(PROGRESS).info("reading, 4 clients")
        logging.getLogger(PROGRESS).info("judging, 4 clients")
        time.sleep(0.4)
        logging.getLogger(PROGRESS).info("measuring, 4 clients")
    time.sleep(0.2)
    assert capsys.readouterr().err == "   0 s  still judging, 4 clients\n"
    assert not logging.getLogger(PROGRESS).handlers


def test_a_training_says_what_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory_tracking: None) -> None:
    told: list[str] = []
    monkeypatch.setattr(progress.threading, "Timer", lambda after, call, words: told.append(words[0]) or Never())
    config = put(tmp_path / "homes", homes(seed=3))  # nobody proposes anything
    run = CliRunner().invoke(main, ["train", str(config.file), "--address", "local"])
    assert run.exit_code == 0, run.output
    named = [line for line in told if not line.startswith("working")]
    assert named == ["reading the records, 4 clients", "adding up records, 4 clients", "judging slices, 4 clients",
                     "counting residuals, 4 clients", "measuring, 4 clients"]  # fmt: skip


class Never:
    """A timer that does not ring."""

    daemon = False

    def start(self) -> None: ...

    def cancel(self) -> None: ...
