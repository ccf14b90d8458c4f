"""[placement], [rules], [sites] and [ray]: where clients run, and what is done about those that do not answer."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from frmu.config.table import Table

__all__ = ["Placement", "RayTable", "Rules", "Site", "checked_address"]
_HOST = r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)"


class Placement(Table):
    """`[placement]`: how clients are put on Ray actors.

    `clients_per_actor` "auto" follows from the memory that a host was measured to take. `memory` is the share of a
    node's memory that hosts may fill. A process is given `start` seconds to start. A host that no node can take is
    waited for `patience` seconds: an autoscaler may bring one. With `elastic` the autoscaler is asked for all that the
    plan needs, and nothing is refused for want of memory.
    """

    clients_per_actor: int | Literal["auto"] = "auto"
    memory: float = Field(default=0.7, gt=0, le=1)
    start: float = Field(default=120.0, gt=0)
    patience: float = Field(default=30.0, ge=0)
    elastic: bool = False

    @field_validator("clients_per_actor")
    @classmethod
    def _positive(cls, number: int | str) -> int | str:
        if isinstance(number, int) and number < 1:
            raise ValueError(f'clients_per_actor must be at least 1 or "auto", got {number}')
        return number


class Rules(Table):
    """`[rules]`: what is done about a client that does not answer.

    A work is waited for `deadline` seconds; a host that died meanwhile is asked again, `attempts` times in all. A
    training goes on without who is late ("drop") while a share `quorum` of the clients is there, or ends ("fail").
    An erasure never goes on without anybody: what is to be searched must be there.
    """

    deadline: float = Field(default=300.0, gt=0)
    attempts: int = Field(default=3, ge=1)
    quorum: float = Field(default=0.75, gt=0, le=1)
    late: Literal["drop", "fail"] = "drop"


class Site(Table):
    """`[sites.NAME]`: a place that keeps the records of some clients on its own disk.

    `path` says where they lie there (by default data.path), `folder` where frmu keeps its shards there (by default the
    working folder, which all nodes must then share), `clients` which clients are its own (by default all in `path`).
    Its hosts run on a node with the label site=NAME, or with the `label` given, and nowhere else.
    """

    path: str | None = Field(default=None, min_length=1)
    folder: str | None = Field(default=None, min_length=1)
    clients: list[str] | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)


def checked_address(text: str) -> str:
    """An address of Ray that names a place, and nothing to import: Ray would take NAME:// for a module.

    >>> checked_address("ray://head:10001")
    'ray://head:10001'
    >>> checked_address("os://head")
    Traceback (most recent call last):
    ValueError: an address of Ray must be local, auto, HOST:PORT or ray://HOST:PORT, got "os://head"
    """
    if re.fullmatch(rf"local|auto|{_HOST}:\d{{1,5}}|ray://{_HOST}(:\d{{1,5}})?", text):
        return text
    raise ValueError(f'an address of Ray must be local, auto, HOST:PORT or ray://HOST:PORT, got "{text[:80]}"')


class RayTable(Table):
    """`[ray]`: which Ray the federation runs on."""

    address: str | None = None

    @field_validator("address")
    @classmethod
    def _a_place(cls, address: str | None) -> str | None:
        return None if address is None else checked_address(address)
