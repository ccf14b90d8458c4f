"""The plan of hosts before they start: clients that share an actor, their nodes, and the memory it takes.

A client whose place is a site runs on a node with the site's label, because its records lie on that node's disk;
others go wherever there is room. What a host takes is the memory of its process, as measured, and an estimate of what
its clients' records and sums add; Ray is told, so that a node is never given more than it has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from frmu.clients.client import BLOCK
from frmu.clients.tasks.selection import AT_ONCE, KEPT
from frmu.config import CALENDAR, Config, Placement
from frmu.data.sites import SiteLocation
from frmu.errors import FederationError
from frmu.models.encoders import integers, width
from frmu.models.features import most_features

__all__ = ["HostPlan", "Node", "Plan", "hosts_for", "need_of", "plan_for"]

ALONE = 32  # up to so many clients "auto" gives each an actor of its own, where there is room; of more one a processor
TOTALS = 12  # sums of layers that a host keeps, all together
SLICES = 64  # slices of a client that are reckoned with where the config does not say how many there are
RECORDS = 8  # and so many records at least in each slice of a calendar
LABEL = "site"


@dataclass(frozen=True, slots=True)
class Node:
    """A node's offer: its label, None without one, bytes of memory for hosts, and processors (0: not known)."""

    label: str | None
    memory: int
    cpus: int = 0


@dataclass(frozen=True, slots=True)
class HostPlan:
    """A host to be started: its clients, the place of all of them, bytes of memory."""

    names: tuple[str, ...]
    place: SiteLocation
    memory: int


@dataclass(frozen=True, slots=True)
class Plan:
    """The hosts of a federation, what one process takes, and the bytes that nodes offer."""

    hosts: tuple[HostPlan, ...]
    process: int
    offered: int

    def to_json(self) -> dict[str, Any]:
        """Counts and MiB, for people."""
        by: dict[str, list[HostPlan]] = {}
        for host in self.hosts:
            by.setdefault(host.place.site or "anywhere", []).append(host)
        return {
            "hosts": len(self.hosts),
            "clients": sum(len(host.names) for host in self.hosts),
            "process_mib": _mib(self.process),
            "planned_mib": _mib(sum(host.memory for host in self.hosts)),
            "offered_mib": _mib(self.offered),
            "sites": {
                site: {"hosts": len(hosts), "clients": sum(len(host.names) for host in hosts),
                       "planned_mib": _mib(sum(host.memory for host in hosts))}
                for site, hosts in sorted(by.items())
            },
        }  # fmt: skip


def hosts_for(clients: Sequence[str], per_actor: int) -> list[tuple[str, ...]]:
    """Groups of clients, in the order of their names, each to be hosted by one actor.

    >>> hosts_for(["a", "b", "c"], 2)
    [('a', 'b'), ('c',)]
    """
    return [tuple(clients[at : at + per_actor]) for at in range(0, len(clients), per_actor)]


def need_of(config: Config, rows: int) -> int:
    """Bytes that a client's records and sums are reckoned to take at its host.

    A row has its columns as float64 twice (as read, as scaled) and three labels; a slice its sums, half a matrix of
    integers, and the client those of what judges. An estimate: slices are not counted before the records are read.
    """
    D = integers(config)
    entry = 4 if rows < 2**17 else 8
    columns = sum(map(config.columns, config.data.modalities))
    return rows * (16 * columns + 3 * 64) + (_slices(config, rows) + 8) * D * (D + 1) // 2 * entry


def _slices(config: Config, rows: int) -> int:
    if config.slice_by in CALENDAR:
        return min(max(rows // RECORDS, 1), SLICES)
    return min(max(rows, 1), config.slices.buckets or SLICES)


def _judging(config: Config, rows: Iterable[int]) -> int:
    """Bytes that a host takes to judge its clients: what it keeps for the next round, and a stack with what follows."""
    d = width(config)
    return min(KEPT + 4 * AT_ONCE, sum(2 * (_slices(config, of) + 6) * d * d * 8 for of in rows))


def _learning(config: Config, rows: int) -> int:
    """Bytes that a host takes to learn features: the totals that it keeps, and a few matrices while it adds up."""
    if not config.learns:
        return 0
    D = integers(config) + most_features(config, rows, len(config.data.classes or ()))
    return TOTALS * D * (D + 1) // 2 * 8 + 4 * D * D * 8


def plan_for(
    locations: Mapping[str, SiteLocation],
    rows: Mapping[str, int],
    placement: Placement,
    process: int,
    nodes: Iterable[Node],
) -> Plan:
    """The hosts for clients at their places, `process` being the bytes of an empty one.

    Raises `FederationError` where the nodes that may take them have less memory than that takes, unless they may
    become more.
    """
    offers = list(nodes)
    by: dict[str, list[str]] = {}
    place_of = {}
    for name in sorted(locations):
        by.setdefault(locations[name].site, []).append(name)
        place_of[locations[name].site] = locations[name]
    hosts: list[HostPlan] = []
    for site, names in sorted(by.items()):
        place = place_of[site]
        fitting = [node for node in offers if place.label in (None, node.label)]
        offered = int(placement.memory * sum(node.memory for node in fitting))
        bounded = fitting and not placement.elastic
        cpus = sum(node.cpus for node in fitting) if bounded else 0
        hosts += _at(place, names, rows, placement.clients_per_actor, process, offered if bounded else None, cpus)
    return Plan(tuple(hosts), process, int(placement.memory * sum(node.memory for node in offers)))


def _at(
    place: SiteLocation, names: list[str], rows: Mapping[str, int], per_actor: int | Literal["auto"], process: int,
    offered: int | None, cpus: int,
) -> list[HostPlan]:  # fmt: skip
    """The hosts of one place; where no node is there yet, nothing is refused.

    More processes than processors gain nothing: each takes memory, and reads the files that clients share once more.
    """
    needs = {name: need_of(place.config, rows.get(name, 0)) for name in names}
    block = process + 2 * BLOCK * width(place.config) * 8 // 4
    block += _learning(place.config, sum(rows.get(name, 0) for name in names))
    block += _judging(place.config, (rows.get(name, 0) for name in names))
    most = len(names) if len(names) <= ALONE else cpus or ALONE
    number = per_actor if isinstance(per_actor, int) else math.ceil(len(names) / most)
    if offered is not None:
        room = offered - sum(needs.values())
        fewest = math.ceil(len(names) / max(1, room // block)) if room >= block else 0
        if not fewest or (isinstance(per_actor, int) and per_actor < fewest):
            raise _too_much(place, len(names), number, block, sum(needs.values()), offered, fewest)
        number = max(number, fewest)
    return [HostPlan(group, place, block + sum(needs[name] for name in group)) for group in hosts_for(names, number)]


def _too_much(
    place: SiteLocation, clients: int, number: int, block: int, needs: int, offered: int, fewest: int
) -> FederationError:
    where = f'the nodes of site "{place.site}"' if place.site else "the cluster"
    hosts = math.ceil(clients / number)
    knob = (
        f'set placement.clients_per_actor to {fewest} or more, or to "auto"'
        if fewest
        else "lower model.features, add nodes, or raise placement.memory"
    )
    return FederationError(
        f"{hosts} hosts of {clients} clients need {_mib(hosts * block + needs):,} MiB ({_mib(block):,} a process, "
        f"{_mib(needs):,} for records and sums), and {where} offer {_mib(offered):,} MiB; {knob}"
    )


def _mib(size: int) -> int:
    return round(size / 2**20)
