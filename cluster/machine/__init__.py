"""A real cluster on one machine: Ray nodes by site, MLflow and PostgreSQL, each a process of its own on loopback.

`cluster/local` is its command line; tests use `Cluster` itself.
"""

from __future__ import annotations

from machine.cluster import Cluster
from machine.errors import ClusterError

__all__ = ["Cluster", "ClusterError"]
