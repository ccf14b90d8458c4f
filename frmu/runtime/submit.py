"""Submitting a job to a cluster: the folder goes up, the command runs there, its output and exit code come back.

What goes up is kept by the head for as long as it lives, so records, keys and working folders stay here. A cluster
that would take a job from anybody gets none from us, unless it is said to be meant.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frmu.errors import FederationError, RequestError
from frmu.runtime.preflight import TOKEN, authorization, closed

__all__ = ["STOPPED", "Cluster", "Outcome"]

STOPPED = 143  # the exit code of a job that was stopped
PATIENCE = "30"  # seconds that `ray job stop` leaves a job to close what is open; Ray's default is 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job: its status in Ray's words, its exit code, what Ray says of it, and what it took."""

    id: str
    status: str
    exit_code: int
    message: str
    seconds: float


class Cluster:
    """The dashboard of a cluster, which takes jobs.

    `address` is that of the dashboard; by default RAY_API_SERVER_ADDRESS. Raises `FederationError` where nothing
    answers, the token is refused, or none is asked for and not `insecure`.
    """

    def __init__(self, address: str | None = None, insecure: bool = False) -> None:
        self.address = (address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265").rstrip("/")
        if not self.address.startswith(("http://", "https://")):  # Ray would import what stands before other ://
            raise FederationError(
                f'the address of a dashboard must begin with http:// or https://, got "{self.address}"; check '
                "--address and RAY_API_SERVER_ADDRESS"
            )
        if _lets_in(self.address, "") and not insecure:
            raise FederationError(closed(self.address))
        import ray  # noqa: F401 - reads the mode and the token

        header = authorization()
        if not _lets_in(self.address, header):
            wrong = "is not the one" if header else "is missing"
            raise FederationError(
                f"the Ray cluster at {self.address} demands its token, and the one here {wrong}: {TOKEN}"
            )
        from ray.job_submission import JobSubmissionClient

        _hush()
        self._client: Any = JobSubmissionClient(self.address)

    def submit(self, command: str, package: Path | None, name: str | None = None, **metadata: str) -> str:
        """Send a package up, if there is one, and run a command in it; the submission id: `name`, where it is given."""
        environment: dict[str, Any] = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": PATIENCE}}
        if package is not None:
            environment["working_dir"] = str(package)
        self._new(name)
        try:
            found: str = self._client.submit_job(
                entrypoint=command, runtime_env=environment, submission_id=name, metadata=metadata
            )
        except (RuntimeError, ValueError, ConnectionError) as error:
            raise FederationError(_why_not(str(error), self.address)) from None
        return found

    def _new(self, name: str | None) -> None:
        """Raise `RequestError` for an id that is taken: Ray would answer with an error of its own server."""
        if name is None:
            return
        with suppress(RuntimeError):  # no such job
            status = self._client.get_job_status(name)
            raise RequestError(f'a job "{name}" is there already ({status}); give another --id, or leave it out')

    def page(self, job: str) -> str:
        """Return the address at which the dashboard shows a job."""
        return f"{self.address}/#/jobs/{job}"

    def follow(self, job: str, tell: Callable[[str], None]) -> Outcome:
        """Hand on what a job prints until it ends."""
        began = time.monotonic()
        with suppress(RuntimeError):  # the connection went; how the job ended is asked for anyway
            asyncio.run(self._tail(job, tell))
        while not (info := self._client.get_job_info(job)).status.is_terminal():
            time.sleep(0.5)
        code = info.driver_exit_code
        if code is None:
            code = STOPPED if info.status == "STOPPED" else 1
        return Outcome(job, str(info.status), code, str(info.message or ""), round(time.monotonic() - began, 1))

    async def _tail(self, job: str, tell: Callable[[str], None]) -> None:
        async for text in self._client.tail_job_logs(job):
            tell(text)


def _lets_in(address: str, header: str) -> bool:
    """Return whether the jobs of a cluster can be listed with a header of authorization, or without."""
    request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": header} if header else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            if isinstance(json.load(answer), list):
                return True
            raise ValueError("what answers lists no jobs")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return False
        raise FederationError(
            f"{address} does not answer as a Ray dashboard does ({error}); check the address"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:200]
        raise FederationError(
            f"no Ray dashboard at {address}: {reason}; check --address and RAY_API_SERVER_ADDRESS"
        ) from None


def _why_not(reason: str, address: str) -> str:
    """Return what kept a job from being taken, and the knob."""
    short = " ".join(reason.split())[:300]
    if "exceeds the maximum size" in reason:
        return f"the folder is larger than the 100 MiB that Ray takes: name what is not needed by --exclude ({short})"
    if "agent" in reason and "500" in reason:
        return (
            f"the head at {address} has no agent to run jobs: another cluster on that machine has its port; start the "
            f"head with another --dashboard-agent-listen-port ({short})"
        )
    return f"the cluster at {address} did not take the job: {short}"


def _hush() -> None:
    """Keep Ray's remarks about packages and web sockets to itself; its modules set levels of their own."""
    import logging

    for name in list(logging.Logger.manager.loggerDict):
        if name.startswith(("ray.dashboard.modules", "ray._private.runtime_env")):
            logging.getLogger(name).setLevel(logging.WARNING)
