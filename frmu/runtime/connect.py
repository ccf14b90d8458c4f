"""The door to Ray: being connected to a cluster at an address, or to a private one, for a while.

Attaching to a running cluster uses its token; a private Ray, started where no cluster is named, listens on loopback
only and demands a token of its own.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from frmu.errors import FederationError

__all__ = ["cluster"]

_log = logging.getLogger(__name__)
_PRIVATE = {  # how a Ray of our own is started: closed by default
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every service listens on loopback only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_worker_niceness": "0",
}


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Be connected to Ray for a while: to the cluster at an address, or to a private one.

    Without an address the cluster that `RAY_ADDRESS` names is used (as inside a Ray job), else a private Ray is
    started. Within another `cluster`, or where the program has connected already, that connection is used.
    Raises `FederationError` where no cluster answers or it refuses the token.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield
        return
    named = address or os.environ.get("RAY_ADDRESS")
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
            _connect(named, folder)
        yield
    finally:
        ray.shutdown()
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
            for name in {*_PRIVATE, "RAY_AUTH_TOKEN"} - set(before):
                os.environ.pop(name, None)


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


def _answers(address: str) -> None:
    """Raise `FederationError` where nothing listens at HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise FederationError(f"no Ray cluster at {address}: {error}; check the address") from None


def _connect(named: str | None, folder: str | None) -> None:
    import ray

    if named is not None:
        _answers(named)

    quiet: dict[str, Any] = {
        "logging_level": logging.ERROR,
        "log_to_driver": False,
        "configure_logging": False,
    }
    try:
        if named:
            ray.init(address=named, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, _temp_dir=folder, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FederationError(
            f"no Ray cluster at {named or 'a private address'}: {reason}. Check the address, and that RAY_AUTH_MODE "
            "and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) are those of the cluster"
        ) from None
