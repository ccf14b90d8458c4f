"""The nodes of a cluster: which sites they are, the memory they offer, and what is done on the disk of one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from frmu.config import Placement
from frmu.data.place import Errand, Place
from frmu.errors import FrmuError
from frmu.runtime.placement import LABEL, HostPlan, Node, Plan, plan_for

__all__ = ["LIGHT", "absent", "await_labels", "plan_on", "request", "visit"]

LIGHT: dict[str, Any] = {"num_cpus": 0.01}  # as many processes as memory allows may share a machine


def request(hosts: Sequence[HostPlan]) -> None:
    """Ask the autoscaler for all that the hosts need; no host asks for nothing. Without one Ray does nothing."""
    from ray.autoscaler.sdk import request_resources

    request_resources(
        bundles=[{"CPU": LIGHT["num_cpus"], "memory": host.memory} for host in hosts],
        bundle_label_selectors=[{LABEL: host.place.label} if host.place.label else {} for host in hosts],
    )


def plan_on(
    homes: Mapping[str, Place], rows: Mapping[str, int], placement: Placement, process: int, taken: int = 0
) -> Plan:
    """The plan for clients on the nodes that are there, `taken` bytes of which are taken already."""
    import ray

    nodes = [
        Node(node["Labels"].get(LABEL), int(node["Resources"].get("memory", 0)))
        for node in ray.nodes()
        if node["Alive"]
    ]
    whole = sum(node.memory for node in nodes) or 1
    left = [Node(node.label, max(0, node.memory - taken * node.memory // whole)) for node in nodes]
    return plan_for(homes, rows, placement, process, left)


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
    """Why nothing can run where a label is asked for; empty where a node has it, or none is asked for."""
    there = _labels() if label else set()
    if label is None or label in there:
        return ""
    return (
        f"no node has the label {LABEL}={label} (there are {', '.join(sorted(there)) or 'none with one'}); start one "
        f"with `ray start --labels={LABEL}={label}`, or change [sites]"
    )


def visit(
    errand: Errand, at: Iterable[Place], patience: float, deadline: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Do an errand at each place, on a node that sees it: results by site, and why a site is away.

    An error of ours that a place raised is raised as it was.
    """
    import ray

    places = list(at)
    await_labels({place.label for place in places if place.label}, patience)
    away = {place.site: reason for place in places if (reason := absent(place.label))}
    task = ray.remote(_errand)
    refs = {}
    for place in places:
        if place.site not in away:
            where = {"label_selector": {LABEL: place.label}} if place.label else {}
            refs[task.options(**LIGHT, max_retries=3, **where).remote(errand, place)] = place
    done: dict[str, Any] = {}
    gone: dict[str, float] = {}  # since when the node of a site is not there
    end = time.monotonic() + deadline
    while refs and time.monotonic() < end:
        for ref in ray.wait(list(refs), num_returns=1, timeout=1.0)[0]:
            _took(ref, refs.pop(ref).site, done, away)
        for ref, place in list(refs.items()):
            reason = absent(place.label)
            if not reason:
                gone.pop(place.site, None)
            elif time.monotonic() > gone.setdefault(place.site, time.monotonic()) + patience:
                away[place.site] = reason
                del refs[ref]
    away |= {place.site: f"its node did not answer in {deadline:g} s; see `ray status`" for place in refs.values()}
    return done, away


def _took(ref: Any, site: str, done: dict[str, Any], away: dict[str, str]) -> None:
    """What came back from a site; an error of ours is raised as it was."""
    import ray

    try:
        done[site] = ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, FrmuError):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        away[site] = f"its node did not answer ({type(error).__name__}); see `ray status`"


def _errand(errand: Errand, place: Place) -> Any:
    return errand.perform(place)
