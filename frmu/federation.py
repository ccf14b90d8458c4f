"""The one seam: work goes out to clients, replies come back, tasks go to the server.

Methods, verifiers and the RL environment are written against `Federation` and never import ray. There are two
implementations, in process and on Ray (`frmu.runtime`), and both give the same state bit for bit, because what
computes is the same `Host` and `Server`, and replies are folded in the order of client names.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

__all__ = ["PROGRESS", "Answer", "ClientTask", "Federation", "Payload", "Reply", "ServerTask", "Traffic", "in_order"]

Payload = Mapping[str, np.ndarray[Any, Any]]
PROGRESS = "frmu.progress"  # the logger that is told what is being done


@dataclass(frozen=True, slots=True)
class Answer:
    """A client's answer to a task: a small record of scalars, and arrays meant for the server."""

    client: str
    record: Mapping[str, Any]
    payload: Payload | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that leave the client: the record as JSON and the arrays."""
        arrays = sum(array.nbytes for array in self.payload.values()) if self.payload else 0
        return len(json.dumps(self.record, default=str)) + arrays


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as the driver sees it: the record, and a handle to the arrays that only the server opens."""

    client: str
    record: Mapping[str, Any]
    payload: Any = field(repr=False)
    nbytes: int


class ClientTask(Protocol):
    """Something that a client does over its own records; frozen, and free of hidden state.

    Done twice it is done once: a client whose process died is asked again. One that has a true `lasting` stays with
    the client's process, and is told again to a new one. What it is `doing`, in words, is told to whoever waits.
    """

    def prepare(self, clients: Sequence[Any]) -> None:
        """Once for all clients of one host, before `perform`: shared reading, say."""

    def perform(self, client: Any) -> Answer:
        """Answer for one client."""


class ServerTask(Protocol):
    """Something that the server does with the arrays of replies.

    One that has a true `afresh` needs nothing that the server held before.
    """

    def perform(self, server: Any, payloads: Mapping[str, Payload]) -> Any:
        """The result that goes back to the driver."""


@dataclass(slots=True)
class Traffic:
    """Bytes between the sites and the centre, counted by content, alike in process and on Ray."""

    up: int = 0
    down: int = 0

    def sent(self, work: ClientTask, clients: int) -> None:
        """Count a work that went out to some clients."""
        self.down += len(pickle.dumps(work)) * clients


class Federation(Protocol):
    """Clients and a server, wherever they run.

    `away` names clients that whoever leads has let go of, and why: nobody asks them until they are taken out of it.
    """

    traffic: Traffic
    away: dict[str, str]

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client, in the order of their names, those who are away among them."""

    def admit(self, locations: Mapping[str, Any], rows: Mapping[str, int]) -> None:
        """Take in clients that are new: the place of each (`frmu.data.sites`), and how many records, where known."""

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """Let clients (all by default) do a task; replies come in the order of arrival.

        Raises `ClientsUnavailableError`, after the replies of the others, when a client does not answer by the deadline
        of the rules, and at once whatever error of ours a client raised.
        """

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """Let the server do a task with the arrays of some replies.

        Raises `RoundLostError` where it was lost, and what it held for the task with it.
        """

    def close(self) -> None:
        """Let go of clients and server."""


def in_order(replies: Iterable[Reply]) -> list[Reply]:
    """Replies in the order of client names: the one order in which they are folded."""
    return sorted(replies, key=lambda reply: reply.client)
