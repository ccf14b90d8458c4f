"""The face of frmu for jobs, notebooks and the command line: one experiment, its federation, ledger and runs.

with Experiment(load("homes.toml")) as experiment:
    experiment.train()
    experiment.drain()
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from frmu.config import Config
from frmu.services import erasure, explanation, integrity, policy_training, replay, training, verification
from frmu.services.requests import erase, ledger_of, receipt_of, requests, status, withdraw
from frmu.services.session import Session
from frmu.tracking.sync import Delivered, give_up

__all__ = ["Experiment", "erase", "ledger_of", "receipt_of", "requests", "status", "withdraw"]


class Experiment:
    """A config at work: the face of the services, each a function over `session`; see `Session` for how it opens."""

    def __init__(self, config: Config, address: str | None = None, insecure: bool = False) -> None:
        self.session = Session(config, address, insecure)

    def __enter__(self) -> Self:
        self.session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.session.__exit__(kind, error, trace)

    def train(self, until: dt.date | None = None) -> dict[str, Any]:
        """Import the records that remain and train; see `frmu.services.training.train`."""
        return training.train(self.session, until)

    def learn(
        self, iterations: int | None = None, start: str = "current", resume: bool | None = None, adopt: str = "better"
    ) -> dict[str, Any]:
        """Train the slice policy with RLlib on this federation's clients; see `frmu.services.policy_training.learn`."""
        return policy_training.learn(self.session, iterations, start, resume, adopt)

    def explain(
        self, client: str | None = None, slice_: str | None = None, picture: Path | None = None
    ) -> dict[str, Any]:
        """Say why slices count as they do; see `frmu.services.explanation.explain`."""
        return explanation.explain(self.session, client, slice_, picture)

    def drain(self, now: bool = False) -> dict[str, Any]:
        """Honour pending requests in one batch; see `frmu.services.erasure.drain`."""
        return erasure.drain(self.session, now)

    def replay(self) -> dict[str, Any]:
        """Remove again whatever has a tombstone; see `frmu.services.replay.replay`."""
        return replay.replay(self.session)

    def verify(
        self, receipt: str | None = None, level: str = "L5", forget: Path | None = None, seed: int = 0
    ) -> dict[str, Any]:
        """Prove the state, or one receipt, at a level; see `frmu.services.verification.verify`."""
        return verification.verify(self.session, receipt, level, forget, seed)

    def standing_check(self) -> dict[str, Any]:
        """Check that nothing was changed since it was proven; see `frmu.services.integrity.standing_check`."""
        return integrity.standing_check(self.session)

    def deliver(self) -> Delivered:
        """Deliver what waits for MLflow; see `Session.deliver`."""
        return self.session.deliver()

    def give_up(self, run: str) -> dict[str, Any]:
        """Remove a run that waits for MLflow, by its key, instead of delivering it; what it was, as plain JSON types.

        Raises `RequestError` where no run that waits is called so.
        """
        gone = give_up(self.session.outbox, run)
        return {"given_up": gone.key, "name": gone.name}
