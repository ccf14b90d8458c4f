"""The command line: thin over `frmu.api`. Every command takes --json; bad input exits with code 2."""

from frmu.cli import bench, erasure, experiment, outbox, policy
from frmu.cli.shell import main

__all__ = ["bench", "erasure", "experiment", "main", "outbox", "policy"]
