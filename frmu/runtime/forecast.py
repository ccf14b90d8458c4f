"""The plan of a training before it is begun: which hosts it would start on a cluster, and the memory that takes."""

from __future__ import annotations

from typing import Any

from frmu.config import Config
from frmu.data.sites import TakeInventory, client_locations, site_locations
from frmu.errors import RequestError
from frmu.runtime.connect import cluster
from frmu.runtime.nodes import plan_on, run_at_sites
from frmu.runtime.ray import measured

__all__ = ["forecast"]


def forecast(config: Config, address: str | None = None, insecure: bool = False) -> dict[str, Any]:
    """The plan as plain JSON types, with why a site is away; raises what a training would raise for want of memory."""
    named = address if address is not None else config.ray.address
    if named == "local":
        raise RequestError("in this process there are no hosts to plan; leave out --address local")
    at = site_locations(config.bare())
    with cluster(named, insecure):
        if config.sites:
            found, away = run_at_sites(TakeInventory(True), at, 0.0, config.rules.deadline)
        else:
            found, away = {"": TakeInventory(True).perform(at[0])}, {}
        rows = {client: number for holdings in found.values() for client, number in holdings.rows.items()}
        by = {client: place for client, place in client_locations(found, at).items() if client in rows}
        plan = plan_on(by, rows, config.placement, measured())
    return plan.to_json() | {"away": away}
