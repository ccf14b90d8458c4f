"""The door to Ray: being connected to a cluster at an address, or to a private one, for a while.

Attaching to a running cluster uses its token, and one that asks for none is not entered unless it is said to be
meant; a private Ray, started where no cluster is named, listens on loopback only and demands a token of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from frmu.config import checked_address
from frmu.errors import FederationError
from frmu.runtime.preflight import TOKEN, preflight

__all__ = ["cluster", "connected"]

_log = logging.getLogger(__name__)
_PRIVATE = {  # how a Ray of our own is started: closed by default
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every service listens on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@contextmanager
def cluster(address: str | None, insecure: bool = False) -> Iterator[None]:
    """Be connected to Ray for a while: to the cluster at an address, or to a private one.

    Without an address the cluster that `RAY_ADDRESS` names is used (as inside a Ray job), else a private Ray is
    started. Within another `cluster`, or where the program has connected already, that connection is used.
    Raises `FederationError` where no cluster answers, it refuses the token, or it asks for none and not `insecure`.
    """
    if connected():
        yield
        return
    named = _named(address)
    before = dict(os.environ)
    folder = None
    if named is None:
        os.environ.update({name: value for name, value in _PRIVATE.items() if name not in before})
        if "RAY_AUTH_TOKEN_PATH" not in before:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        folder = tempfile.mkdtemp(prefix="frmu-")
    import ray

    _reread_token()
    _silence()
    try:
        with _own_signals():
            _connect(named, folder, insecure)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
            for name in {*_PRIVATE, "RAY_AUTH_TOKEN"} - set(before):
                os.environ.pop(name, None)


def connected() -> bool:
    """Return whether this process is connected to Ray."""
    return "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM that the program has set, if it has: Ray sets one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _reread_token() -> None:
    """Make Ray look at the environment again: it reads mode and token once, when it is first imported."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


def _silence() -> None:
    """Keep Ray's remarks (many actors on few cores are meant here) out of standard output, which is for results."""
    with suppress(ImportError, AttributeError):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.handlers.clear()
        global_worker_stdstream_dispatcher.add_handler("frmu", lambda data: _log.debug("%s", data))
    with suppress(ImportError, AttributeError):
        from ray._private import worker

        # What the raylet says of a node or a worker that died goes another way to the same place.
        worker.print_to_stdstream = lambda data, ignore_prefix: _log.debug("%s", data["lines"])


@contextmanager
def _lean() -> Iterator[None]:
    """Start a private Ray without what nobody asks there, and waits for: API server, autoscaler and log monitor.

    Three Python processes, of which `ray.init` waits for the first; `ray start` has switches for two, `ray.init` for
    none. Where Ray is built otherwise it starts them as ever.
    """
    from ray._private.node import Node

    parts = [name for name in ("start_api_server", "start_monitor", "start_log_monitor") if hasattr(Node, name)]
    before = {name: getattr(Node, name) for name in parts}
    for name in parts:
        setattr(Node, name, _nothing)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def _nothing(node: Any, **_: Any) -> None:
    """Stand for a process that is not started."""


def _named(address: str | None) -> str | None:
    """The address of the cluster to attach to, or None; Ray itself would import what stands before other ://."""
    named = address or os.environ.get("RAY_ADDRESS")
    if named is None or named == "local":
        return None
    try:
        return checked_address(named)
    except ValueError as error:
        raise FederationError(f"{error}; check --address and RAY_ADDRESS") from None


def _connect(named: str | None, folder: str | None, insecure: bool) -> None:
    import ray

    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": False,
    }
    try:
        if named:
            ray.init(address=preflight(named, insecure), **quiet)
        else:
            with _lean():
                ray.init(address="local", include_dashboard=False, _temp_dir=folder, **quiet)
    except FederationError:
        raise
    except Exception as error:  # noqa: BLE001 - of many kinds; the bare class where a node is slow to start
        reason = " ".join(str(error).split())[:300].rstrip(". ") or type(error).__name__
        if named is None:
            raise FederationError(
                f"a private Ray could not be started: {reason}. Try again where the machine has less to do; "
                "`--address local` does without Ray"
            ) from None
        raise FederationError(f"no Ray cluster at {named}: {reason}. Check the address, and {TOKEN}") from None
