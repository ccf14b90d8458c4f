"""The command line: thin over `frmu.api`. Every command takes --json; bad input exits with code 2."""

from frmu.cli import bench, client, erasure, experiment, outbox, policy, submit
from frmu.cli.shell import main

__all__ = ["bench", "client", "erasure", "experiment", "main", "outbox", "policy", "submit"]
