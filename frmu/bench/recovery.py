"""The time until a federation on Ray is whole again: a host killed, the server killed, a client joined.

What is killed is killed with -9, by the process id that it tells itself; what is timed is the next answer of all
clients, the next round, and the round after a joiner's records appeared.
"""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar

import pandas as pd

from frmu import api
from frmu.bench.drain import federation_of_homes
from frmu.clients.client import Client
from frmu.clients.tasks.importing import DescribeShard
from frmu.clients.tasks.task import EachClient
from frmu.config import load
from frmu.federation import Answer, Federation, Payload

__all__ = ["bench_recovery"]


@dataclass(frozen=True, slots=True)
class _Process(EachClient):
    """Tell the id of the process that a client is in."""

    def perform(self, client: Client) -> Answer:
        """Return its process id."""
        return Answer(client.name, {"pid": os.getpid()})


@dataclass(frozen=True, slots=True)
class _ServerProcess:
    """Tell the id of the process that the server is in."""

    afresh: ClassVar[bool] = True

    def perform(self, server: Any, payloads: Mapping[str, Payload]) -> int:
        """Return its process id."""
        return os.getpid()


def bench_recovery(clients: int, repeats: int, address: str | None, insecure: bool = False) -> dict[str, Any]:
    """Medians and the worst of so many kills, in seconds; every state must be that of the undisturbed federation.

    `address` is a Ray whose processes run on this machine; None is a private one.
    """
    with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
        config, _ = federation_of_homes(Path(folder), clients, 1)
        config.file.write_text(config.file.read_text().replace('"homes.parquet"', '"*.parquet"'))
        with api.Experiment(load(config.file), address, insecure) as experiment:
            first = experiment.train()["state_digest"]
            live = experiment.session.sites.federation(experiment.session.sites.look().locations)
            host = [_timed(lambda: _kill_host(live), lambda: list(live.run(DescribeShard()))) for _ in range(repeats)]
            server = [_timed(lambda: _kill_server(live), experiment.train) for _ in range(repeats)]
            joined = _timed(lambda: _join(Path(folder)), experiment.train)
        again = [result["state_digest"] for _, result in server]
    return {
        "clients": clients,
        "host": _told([seconds for seconds, _ in host]),
        "server": _told([seconds for seconds, _ in server]),
        "joined": {"seconds": round(joined[0], 3), "clients": joined[1]["clients"]},
        "equal": set(again) == {first} and joined[1]["clients"] == clients + 1,
    }


def _timed(before: Callable[[], None], what: Callable[[], Any]) -> tuple[float, Any]:
    before()
    began = time.perf_counter()
    result = what()
    return time.perf_counter() - began, result


def _told(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 3), "worst": round(max(seconds), 3)}


def _kill_host(live: Federation) -> None:
    reply = next(iter(live.run(_Process(), on=live.clients[:1])))
    os.kill(reply.record["pid"], signal.SIGKILL)


def _kill_server(live: Federation) -> None:
    os.kill(live.serve(_ServerProcess()), signal.SIGKILL)


def _join(folder: Path) -> None:
    """One more home, whose records are those of the first under other names."""
    table = pd.read_parquet(folder / "homes.parquet")
    one = table[table.home == "home 000"]
    one.assign(home="joiner", record="j" + one.record).to_parquet(folder / "joiner.parquet", index=False)
