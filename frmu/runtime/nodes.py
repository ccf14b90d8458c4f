"""The nodes of a cluster: which sites they are, the memory they offer, and what is done on the disk of one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from frmu.config import Placement
from frmu.data.sites import SiteLocation, SiteTask
from frmu.errors import FrmuError
from frmu.runtime.placement import LABEL, HostPlan, Node, Plan, plan_for

__all__ = ["LIGHT", "SiteWorkers", "absent", "await_labels", "free_cpus", "plan_on", "request", "run_at_sites"]

ATTEMPTS, AGAIN = 10, 1.0  # times that a process which is lost is asked, and seconds between them
LIGHT: dict[str, Any] = {"num_cpus": 0.01}  # as many processes as memory allows may share a machine


def request(hosts: Sequence[HostPlan]) -> None:
    """Ask the autoscaler for all that the hosts need; no host asks for nothing. Without one Ray does nothing."""
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[{"CPU": LIGHT["num_cpus"], "memory": host.memory} for host in hosts],
        bundle_label_selectors=[{LABEL: host.place.label} if host.place.label else {} for host in hosts],
    )


def plan_on(
    locations: Mapping[str, SiteLocation], rows: Mapping[str, int], placement: Placement, process: int, taken: int = 0
) -> Plan:
    """The plan for clients on the nodes that are there, `taken` bytes of which are taken already."""
    import ray

    nodes = [
        Node(node["Labels"].get(LABEL), int(offer.get("memory", 0)), int(offer.get("CPU", 0)))
        for node in ray.nodes()
        if node["Alive"] and (offer := node["Resources"]) is not None
    ]
    whole = sum(node.memory for node in nodes) or 1
    left = [replace(node, memory=max(0, node.memory - taken * node.memory // whole)) for node in nodes]
    return plan_for(locations, rows, placement, process, left)


def free_cpus() -> list[float]:
    """Return the CPUs that nobody has taken, a node each: an actor needs what it asks for on one of them."""
    from ray._private.state import available_resources_per_node

    return [float(of.get("CPU", 0.0)) for of in available_resources_per_node().values()]


def _labels() -> set[str]:
    """The site labels of the nodes that are alive."""
    import ray

    return {node["Labels"].get(LABEL, "") for node in ray.nodes() if node["Alive"]} - {""}


def await_labels(labels: set[str], patience: float) -> None:
    """Give an autoscaler, or whoever starts nodes, a while to bring those that sites need."""
    end = time.monotonic() + patience
    while labels and labels - _labels() and time.monotonic() < end:
        time.sleep(0.5)


def absent(label: str | None) -> str:
    """Return why nothing can run where a label is asked for; empty where a node has it, or none is asked for."""
    there = _labels() if label else set()
    if label is None or label in there:
        return ""
    return (
        f"no node has the label {LABEL}={label} (there are {', '.join(sorted(there)) or 'none with one'}); start one "
        f"with `ray start --labels={LABEL}={label}`, or change [sites]"
    )


class SiteWorkers:
    """One process at each site that does tasks on its disk: started for the first, ended by `close`.

    A process that waits for the next task answers at once; one that is started for each takes seconds.
    """

    def __init__(self, patience: float, deadline: float) -> None:
        self._patience, self._deadline = patience, deadline
        self._actors: dict[str, Any] = {}

    def run_at_sites(self, task: SiteTask, at: Iterable[SiteLocation]) -> tuple[dict[str, Any], dict[str, str]]:
        """Do a task at each place, on a node that sees it: results by site, and why a site is away.

        An error of ours that a place raised is raised as it was.
        """
        places = list(at)
        await_labels({place.label for place in places if place.label}, self._patience)
        away = {place.site: reason for place in places if (reason := absent(place.label))}
        asked = [place for place in places if place.site not in away]
        refs = {self._actor(place).do.remote(task, place): place for place in asked}
        done: dict[str, Any] = {}
        try:
            self._await(task, refs, done, away)
        finally:
            for site in away:
                self._dismiss(site)
        return done, away

    def _actor(self, place: SiteLocation) -> Any:
        import ray

        if place.site not in self._actors:
            where = {"label_selector": {LABEL: place.label}} if place.label else {}
            options = LIGHT | {"max_restarts": -1, "max_task_retries": 3} | where
            self._actors[place.site] = ray.remote(_SiteWorker).options(**options).remote()
        return self._actors[place.site]

    def _await(self, task: SiteTask, refs: dict[Any, SiteLocation], done: dict[str, Any], away: dict[str, str]) -> None:
        """Take what comes; a process that was lost is asked again while its node may only seem to be there."""
        import ray

        tries: dict[str, int] = {}
        gone: dict[str, float] = {}  # since when the node of a site is not there
        end = time.monotonic() + self._deadline
        while refs and time.monotonic() < end:
            for ref in ray.wait(list(refs), num_returns=1, timeout=1.0)[0]:
                place = refs.pop(ref)
                if not (lost := _took(ref, place.site, done)):
                    continue
                tries[place.site] = tries.get(place.site, 0) + 1
                if tries[place.site] >= ATTEMPTS:
                    away[place.site] = lost
                    continue
                time.sleep(AGAIN)
                self._dismiss(place.site)
                refs[self._actor(place).do.remote(task, place)] = place
            for ref, place in list(refs.items()):
                reason = absent(place.label)
                if not reason:
                    gone.pop(place.site, None)
                elif time.monotonic() > gone.setdefault(place.site, time.monotonic()) + self._patience:
                    away[place.site] = reason
                    del refs[ref]
        late = f"its node did not answer in {self._deadline:g} s; see `ray status`"
        away |= {place.site: late for place in refs.values()}

    def _dismiss(self, site: str) -> None:
        """End the process of a site, and with it what it was asked to do and nobody waits for any more."""
        import ray

        if (actor := self._actors.pop(site, None)) is not None:
            with suppress(Exception):  # a cluster that is gone has ended it
                ray.kill(actor)

    def close(self) -> None:
        """End the processes."""
        for site in list(self._actors):
            self._dismiss(site)


class _SiteWorker:
    """A process at a site."""

    def do(self, task: SiteTask, place: SiteLocation) -> Any:
        return task.perform(place)


def run_at_sites(
    task: SiteTask, at: Iterable[SiteLocation], patience: float, deadline: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Do one task by itself; see `SiteWorkers.run_at_sites`."""
    with closing(SiteWorkers(patience, deadline)) as workers:
        return workers.run_at_sites(task, at)


def _took(ref: Any, site: str, done: dict[str, Any]) -> str:
    """Take what came back from a site, or return how its process was lost; an error of ours is raised as it was."""
    import ray

    try:
        done[site] = ray.get(ref)
        return ""
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FrmuError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        return f"its node did not answer ({type(error).__name__}); see `ray status`"
