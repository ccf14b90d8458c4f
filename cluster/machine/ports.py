"""The ports of a node: a block of its own, so that no two nodes of a machine meet on one.

Ray's workers open ports of their own; without a range each node would take them from all, and the port that another
node's agent was promised may be gone. Blocks lie below the range from which the kernel gives away ports.
"""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from machine.errors import ClusterError

__all__ = ["BLOCK", "block", "free", "node_ports"]

BLOCK = 128
NAMED = ("gcs", "client", "dashboard", "agent", "agent_grpc", "runtime_env", "metrics", "raylet", "objects")
_LOWEST, _HIGHEST = 12_000, 32_000


def node_ports(first: int) -> dict[str, int]:
    """The named ports of the block that begins at `first`, and the range of its workers."""
    ports = {name: first + offset for offset, name in enumerate(NAMED)}
    return ports | {"workers_from": first + 16, "workers_to": first + BLOCK - 1}


def free(port: int) -> bool:
    """Tell if nobody listens on the port, on loopback or anywhere."""
    for host in ("127.0.0.1", ""):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True


def block(wanted: int | None, taken: Iterable[int] = ()) -> int:
    """The first port of a block that nobody listens in: the one that was wanted, or any that is not `taken`.

    Raises `ClusterError` where the wanted one is in use.
    """
    if wanted is not None:
        if not 1024 <= wanted <= 65_536 - BLOCK:
            raise ClusterError(f"--ports must be from 1024 to {65_536 - BLOCK}, got {wanted}")
        _all_free(wanted)
        return wanted
    starts = [start for start in range(_LOWEST, _HIGHEST, BLOCK) if start not in set(taken)]
    for start in random.sample(starts, len(starts)):
        if all(free(port) for port in range(start, start + BLOCK)):
            return start
    raise ClusterError(f"no {BLOCK} free ports in a row between {_LOWEST} and {_HIGHEST}; name some with --ports FIRST")


def _all_free(first: int) -> None:
    for port in range(first, first + BLOCK):
        if not free(port):
            raise ClusterError(
                f"port {port} on 127.0.0.1 is in use, and --ports {first} wants {first} to {first + BLOCK - 1} for a "
                "node; name another first port, or leave --ports out"
            )
