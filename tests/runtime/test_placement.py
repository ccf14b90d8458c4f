"""The plan: every client has one host, at its own site, and no site is given more than its nodes have."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from conftest import CONFIG
from hypothesis import given
from hypothesis import strategies as st

from frmu.config import Config, Placement, parse
from frmu.data.sites import SiteLocation
from frmu.errors import FederationError
from frmu.runtime.placement import Node, need_of, plan_for

BASE: Config = parse(tomllib.loads(CONFIG), Path("homes.toml"))
GIB = 2**30
ONE = Placement(clients_per_actor=1)


def homes(by_site: dict[str, int]) -> dict[str, SiteLocation]:
    """So many clients at each site; "" is no site."""
    return {
        f"{site or 'any'}-{n:04d}": SiteLocation(site, BASE, Path(f"/{site}"), None, site or None)
        for site, number in by_site.items()
        for n in range(number)
    }


@given(st.dictionaries(st.sampled_from(["", "a", "b"]), st.integers(1, 300), min_size=1), st.integers(2, 200))
def test_every_client_has_one_host_that_fits(by_site: dict[str, int], gib: int) -> None:
    nodes = [Node("a", gib * GIB), Node("b", gib * GIB), Node(None, gib * GIB)]
    at = homes(by_site)
    try:
        plan = plan_for(at, dict.fromkeys(at, 5000), Placement(), GIB // 8, nodes)
    except FederationError:
        assert gib < 40
        return
    hosted = [name for host in plan.hosts for name in host.names]
    assert sorted(hosted) == sorted(at)
    for host in plan.hosts:
        assert {at[name].site for name in host.names} == {host.place.site}
    for site in ("a", "b"):
        assert sum(h.memory for h in plan.hosts if h.place.site == site) <= 0.7 * gib * GIB


def test_auto_shares_an_actor_as_memory_runs_short() -> None:
    at = homes({"": 500})
    rows = dict.fromkeys(at, 100)
    wide = plan_for(at, rows, Placement(memory=1.0), GIB // 8, [Node(None, 200 * GIB)])
    tight = plan_for(at, rows, Placement(memory=1.0), GIB // 8, [Node(None, 3 * GIB)])
    assert len(wide.hosts) == 32
    assert 1 <= len(tight.hosts) < 32


@pytest.mark.parametrize(
    ("clients", "cpus", "hosts"), [(32, 2, 32), (33, 2, 2), (500, 2, 2), (500, 64, 63), (40, 0, 20)]
)
def test_many_clients_share_one_actor_a_processor(clients: int, cpus: int, hosts: int) -> None:
    at = homes({"": clients})
    plan = plan_for(at, dict.fromkeys(at, 100), Placement(memory=1.0), GIB // 8, [Node(None, 200 * GIB, cpus)])
    assert len(plan.hosts) == hosts


def test_what_cannot_fit_is_refused_with_the_knob() -> None:
    at = homes({"": 1000})
    rows = dict.fromkeys(at, 100)
    with pytest.raises(
        FederationError, match=r"1000 hosts of 1000 clients need .* MiB .* set placement.clients_per_actor to"
    ):
        plan_for(at, rows, ONE, GIB // 8, [Node(None, 8 * GIB)])
    with pytest.raises(FederationError, match=r"lower model.features, add nodes, or raise placement.memory"):
        plan_for(at, dict.fromkeys(at, 10**9), Placement(), GIB // 8, [Node(None, 8 * GIB)])
    # one site may be short of memory where the cluster is not
    with pytest.raises(FederationError, match='the nodes of site "a" offer'):
        plan_for(homes({"a": 40, "": 1}), {}, ONE, GIB // 8, [Node("a", GIB), Node(None, 100 * GIB)])


def test_a_site_without_a_node_is_not_refused_but_waited_for() -> None:
    plan = plan_for(homes({"a": 3}), {}, ONE, GIB // 8, [Node(None, GIB)])
    assert len(plan.hosts) == 3


def test_more_records_need_more() -> None:
    assert need_of(BASE, 10_000) > need_of(BASE, 1_000) > 0


def test_a_cluster_that_grows_refuses_nothing() -> None:
    at = homes({"": 1000})
    plan = plan_for(at, {}, Placement(clients_per_actor=1, elastic=True), GIB // 8, [Node(None, GIB)])
    assert len(plan.hosts) == 1000
