"""The Ray job that this process is the driver of, if it is one: named in every run, and told of every run.

Ray hands a job's driver its submission id in an environment variable, whether or not the driver connects. What a job
has become lies in the head's store as JSON, of which only the job's supervisor writes: before the driver starts and
after it has ended, so that an entry may be added in between. There is no call of Ray's for that; where it fails the job
goes on, for the run names the job in any case.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["RUNS", "announce", "in_upload", "submission", "tags"]

_log = logging.getLogger(__name__)
RUNS = "frmu.runs"  # in the job's metadata: ids of MLflow runs, the oldest first
MOST = 100  # of them are kept: a job that follows its data has no end of runs


def submission() -> str | None:
    """The submission id of the job that this process is the driver of."""
    from_ray = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if not from_ray:
        return None
    try:
        found = json.loads(from_ray)["metadata"]["job_submission_id"]
    except (ValueError, KeyError, TypeError):
        return None
    return str(found)


def in_upload(folder: Path) -> bool:
    """Return whether a folder lies in the copy of a working dir that Ray made for this job, and may remove after it."""
    return submission() is not None and "runtime_resources" in folder.absolute().parts


def tags() -> dict[str, str]:
    """Return what every run of this process says of its job; nothing outside of one."""
    found = submission()
    if found is None:
        return {}
    page = _page(found)
    return {"frmu.ray_job": found} | ({"frmu.ray_job_page": page} if page else {})


def announce(run: str, of: Mapping[str, str]) -> None:
    """Add a run to the metadata of the job that this process is the driver of, and what else says where it is."""
    found = submission()
    if found is None:
        return
    try:
        asyncio.run(_add(found, run, of))
    except Exception as error:  # noqa: BLE001 - Ray's own, of many kinds; none of them may end a training
        _log.warning("Job %s could not be told of its run %s: %s", found, run, error)


async def _add(found: str, run: str, of: Mapping[str, str]) -> None:
    from dataclasses import replace

    from ray.dashboard.modules.job.common import JobInfoStorageClient

    store = JobInfoStorageClient(_head())
    info = await store.get_info(found, timeout=5)
    if info is None:
        raise LookupError("the head knows no such job")
    metadata = dict(info.metadata or {})
    runs = [each for each in metadata.get(RUNS, "").split(",") if each and each != run]
    metadata |= {**of, RUNS: ",".join([*runs[1 - MOST :], run])}
    await store.put_info(found, replace(info, metadata=metadata), timeout=5)


@cache
def _page(found: str) -> str | None:
    """The job's page on the dashboard, as the head knows the dashboard's address."""
    try:
        host = _head().internal_kv_get(b"dashboard", b"dashboard", timeout=5)
    except Exception as error:  # noqa: BLE001 - Ray's own, of many kinds; a page is a convenience
        _log.info("The dashboard's address is not known: %s", error)
        return None
    return f"http://{host.decode()}/#/jobs/{found}" if host else None


def _head() -> Any:
    """A connection to the head of the cluster that runs this job."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    return GcsClient(address=os.environ["RAY_ADDRESS"])
