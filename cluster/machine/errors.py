"""The one error of the machine, that says what, where and which knob to turn."""

from __future__ import annotations

__all__ = ["ClusterError"]


class ClusterError(Exception):
    """The cluster cannot be started, changed or stopped as asked; exit code 2 on the command line."""
