"""Calls without a deadline of their own: the wait is said, and ends."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from frmu.errors import FederationError
from frmu.runtime import deadline
from frmu.runtime.deadline import within


def test_what_a_call_raises_is_raised_as_it_was() -> None:
    def fail() -> None:
        raise KeyError("a")

    with pytest.raises(KeyError):
        within(5, "nothing", fail, "")


def test_a_wait_is_said_while_it_lasts_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(deadline, "SAY", 0.05)
    never = threading.Event()
    began = time.monotonic()
    with caplog.at_level(logging.INFO, "frmu.progress"), pytest.raises(FederationError, match=r"a host.*turn the knob"):
        within(0.3, "a host", never.wait, "turn the knob")
    assert time.monotonic() - began < 3
    assert 3 <= len([line for line in caplog.messages if line.startswith("Waiting for a host")]) <= 6
    never.set()
