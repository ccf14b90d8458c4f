"""A drain that is killed, with -9, at each of its stages is gone on with; nothing comes back, nothing is done twice."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import drain, put, train

from frmu import api
from frmu.config import Config
from frmu.types import Selection

# The process kills itself right before, or right after, a step; no code of frmu's knows of it.
DRAIN = """
import os, signal, sys
from frmu import api
from frmu.services import erasure, session
from frmu.tracking import registry
from frmu.clients import client
from frmu.config import load
from frmu.data import shard
from frmu.ledger.ledger import Ledger

owner, name, moment, stage = sys.argv[2:]
place = {"Ledger": Ledger, "shards": shard, "session": session, "Registry": registry.Registry}[owner]
original = getattr(place, name)

def struck(*arguments, **options):
    hit = stage == "-" or stage in arguments
    if hit and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if hit and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(place, name, struck)
with api.Experiment(load(sys.argv[1]), "local") as experiment:
    experiment.drain()
"""
STEPS = [
    ("Ledger", "add_tombstones", "-"),
    ("Ledger", "plan", "-"),
    ("shards", "write", "-"),
    ("Ledger", "advance", "purged"),
    ("session", "save_state", "-"),
    ("Ledger", "advance", "refitted"),
    ("Registry", "purge", "-"),
    ("Ledger", "advance", "verified"),
    ("Registry", "register", "-"),
    ("Registry", "promote", "-"),
    ("Ledger", "close_requests", "-"),
]


def killed(config: Config, *point: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DRAIN, config.file, *point], capture_output=True, text=True, check=False
    )
    assert run.returncode == -signal.SIGKILL, run.stderr


# Where one file, or one line of the ledger, is all that tells how far it got; `pytest -m long` tries every step.
BRIEFLY = {("Ledger", "plan"), ("shards", "write"), ("session", "save_state"), ("Ledger", "close_requests")}


def points() -> Iterator[Any]:
    for step in STEPS:
        for moment in ("before", "after"):
            brief = step[:2] in BRIEFLY and moment == "after"
            yield pytest.param(step, moment, id=" ".join((*step, moment)), marks=[] if brief else pytest.mark.long)


@pytest.mark.parametrize(("step", "moment"), list(points()))
def test_killed_and_gone_on_with(tmp_path: Path, table: pd.DataFrame, step: tuple[str, str, str], moment: str) -> None:
    gone = (table.person == "p3") | (table.home == "home 1")
    config = put(tmp_path / "all", table)
    train(config)
    requests = [
        api.erase(config, Selection("subject", subject="p3"))["request"],
        api.erase(config, Selection("client", client="home 1"))["request"],
    ]
    killed(config, step[0], step[1], moment, step[2])
    drain(config)
    with api.Experiment(config, "local") as experiment:
        verified = experiment.verify()
        receipts = experiment.session.ledger.receipts()
        champion = experiment.session.registry.champion()
    assert verified["verified"]
    assert [receipt["request"] for receipt in receipts] == requests
    removed = pd.Series([sum(receipt["removed"].values()) for receipt in receipts], ["p3", "home 1"])
    assert removed.to_dict() == {"p3": int((table.person == "p3").sum()), "home 1": int((table.home == "home 1").sum())}
    never = put(tmp_path / "never", table[~gone])
    assert champion is not None
    assert train(never)["state_digest"] == verified["state_digest"] == champion.digest
    again = train(config)
    assert (again["refused"], again["state_digest"]) == (int(gone.sum()), verified["state_digest"])
