"""The command line: thin over `frmu.api`. Every command takes --json; bad input exits with code 2."""

from frmu.cli import (
    bench,
    bench_accuracy,
    bench_erasure,
    bench_learning,
    bench_opendataval,
    client,
    erasure,
    experiment,
    ledger,
    outbox,
    policy,
    requests,
    submit,
)
from frmu.cli.shell import main

__all__ = [
    "bench",
    "bench_accuracy",
    "bench_erasure",
    "bench_learning",
    "bench_opendataval",
    "client",
    "erasure",
    "experiment",
    "ledger",
    "main",
    "outbox",
    "policy",
    "requests",
    "submit",
]
