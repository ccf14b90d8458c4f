"""A deadline for calls that have none: what is waited for is said while it lasts, and the wait ends.

RLlib waits for its workers inside calls that take no timeout. Such a call runs on a thread of its own; where the
deadline passes the caller goes on with an error, and the thread ends with the process.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from frmu.errors import FederationError

__all__ = ["within"]

T = TypeVar("T")
_log = logging.getLogger("frmu.progress")
SAY = 30.0  # seconds between two lines about what is waited for


def within(seconds: float, what: str, call: Callable[[], T], knob: str) -> T:
    """Return what a call returns, or raise what it raises; `FederationError` where it takes longer than `seconds`.

    Every half minute a line says what is waited for, and how long still.

    >>> within(5.0, "an answer", lambda: 42, "raise rules.deadline")
    42
    """
    result: list[T] = []
    raised: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True, name=what)
    began = time.monotonic()
    thread.start()
    while thread.is_alive():
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            raise FederationError(f"{what} took longer than {seconds:.3g} s; see `ray status`. {knob}")
        thread.join(min(SAY, left))
        if thread.is_alive() and left > SAY:
            _log.info("Waiting for %s since %.0f s; at most %.0f s more", what, time.monotonic() - began, left - SAY)
    if raised:
        raise raised[0]
    return result[0]
