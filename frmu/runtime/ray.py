"""The federation on Ray: hosts of clients and the server are actors, and arrays pass between them as refs.

A host puts the arrays of an answer into the object store and returns the ref; the driver hands the ref to the
server, so nothing but small records passes through the driver. No state lives in an actor alone: whoever dies is
started again by Ray, on a node that sees its records, and what it knew is told or computed again.
"""

from __future__ import annotations

import logging
import resource
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from frmu.clients.client import Host
from frmu.config import Config
from frmu.data.sites import SiteLocation
from frmu.errors import FederationError, FrmuError, RoundLostError
from frmu.federation import ClientTask, Payload, Reply, ServerTask, Traffic
from frmu.runtime.dispatch import ActorHandle, Answered, Dispatcher, Lost
from frmu.runtime.nodes import LIGHT, absent, await_labels, plan_on, request
from frmu.runtime.placement import LABEL, HostPlan, Plan
from frmu.server.server import Server
from frmu.wire.pipeline import IDENTITY, Pipeline

__all__ = ["NAMESPACE", "RayFederation", "measured"]

_log = logging.getLogger(__name__)
NAMESPACE = "frmu"
FEW = 8  # clients up to which nobody measures what a process takes
PROCESS = 160 * 2**20  # bytes of a host's process where nobody measured


class _HostActor:
    """A host in its own process; each life of it has a name of its own.

    Beside the live host (`room` "") there may be others for a while, one a room: of a federation that begins anew on
    the same processes, and shares nothing else with the live one.
    """

    def __init__(
        self, config: Config, names: Sequence[str], shards: Path, fencing_token: int, pipeline: Pipeline
    ) -> None:
        self._new: Callable[[], Host] = partial(Host, config, names, shards, fencing_token, pipeline)
        self._hosts: dict[str, Host] = {"": self._new()}
        self._incarnation = secrets.token_hex(8)

    def hello(self) -> Answered:
        """Say which life this is."""
        return Answered(self._incarnation)

    def leave(self, room: str) -> None:
        """Let go of the host of a room."""
        self._hosts.pop(room, None)

    def answer(self, work: ClientTask, names: Sequence[str], incarnation: str | None, room: str = "") -> Answered:
        """Do the work, unless asked in another life; keep arrays in the object store and return their refs."""
        import ray

        if incarnation not in (None, self._incarnation):
            return Answered(self._incarnation)
        if room not in self._hosts:
            self._hosts[room] = self._new()
        replies = (
            Reply(
                answer.client,
                answer.record,
                None if answer.payload is None else ray.put(dict(answer.payload)),
                answer.nbytes,
            )
            for answer in self._hosts[room].answer(work, names)
        )
        return Answered(self._incarnation, tuple(replies))


@dataclass(frozen=True, slots=True)
class _Served:
    """The answer of the server: its incarnation, whether the task was done, what came of it."""

    incarnation: str
    done: bool
    value: Any = None


class _ActorCalls:
    """Calls to host actors, in one of their rooms, as refs of what will come."""

    def __init__(self, room: str = "") -> None:
        self._room = room

    def now(self) -> float:
        return time.monotonic()

    def share(self, work: ClientTask) -> Any:
        import ray

        return ray.put(work)

    def hello(self, handle: ActorHandle) -> Any:
        return handle.actor.hello.remote()

    def answer(self, handle: ActorHandle, shared: Any, names: Sequence[str], incarnation: str | None) -> Any:
        return handle.actor.answer.remote(shared, names, incarnation, self._room)

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        import ray

        if not calls:
            time.sleep(timeout)
            return []
        done, _ = ray.wait(list(calls), num_returns=1, timeout=timeout)
        return list(done)

    def take(self, call: Any) -> Answered | Lost:
        """An error of ours that a client raised is raised as it was."""
        import ray

        try:
            answered: Answered = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FrmuError):
                raise error.cause from None
            raise
        except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnschedulableError) as error:
            return Lost(f"its host died ({_first_line(error)})", final=True)
        except ray.exceptions.RayError:
            return Lost("its host died")
        return answered

    def restart(self, handle: ActorHandle) -> None:
        import ray

        ray.kill(handle.actor, no_restart=False)

    def absent(self, label: str | None) -> str:
        return absent(label)


class _ServerActor:
    """The server in its own process: the central aggregator; others in rooms of their own, as at the hosts."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._new: Callable[[], Server] = partial(Server, pipeline)
        self._servers: dict[str, Server] = {"": self._new()}
        self._incarnation = secrets.token_hex(8)

    def leave(self, room: str) -> None:
        """Let go of the server of a room."""
        self._servers.pop(room, None)

    def serve(
        self, task: ServerTask, refs: Mapping[str, Any], incarnation: str | None, timeout: float, room: str = ""
    ) -> _Served:
        """Fetch the arrays from the hosts that hold them and do the task, unless it needs what another life held."""
        import ray

        if incarnation not in (None, self._incarnation) and not getattr(task, "afresh", False):
            return _Served(self._incarnation, False)
        payloads: dict[str, Payload] = dict(zip(refs, ray.get(list(refs.values()), timeout=timeout), strict=True))
        if room not in self._servers:
            self._servers[room] = self._new()
        return _Served(self._incarnation, True, self._servers[room].serve(task, payloads))


class RayFederation:
    """Clients on host actors, one or many an actor, and the server on an actor of its own.

    `locations` says where each client's shard lies, `rows` how many records it has, as far as is known. With a `name`
    the server outlives a driver that was killed, on a cluster that does: the next federation of that name takes it
    over. `outlives` is the address of such a cluster, else empty. A `fencing_token` keeps hosts of an earlier job from
    writing shards. Handles pickle, so a remote env runner can drive the same clients.
    """

    def __init__(
        self,
        config: Config,
        locations: Mapping[str, SiteLocation],
        rows: Mapping[str, int] | None = None,
        name: str | None = None,
        fencing_token: int = 0,
        pipeline: Pipeline = IDENTITY,
    ) -> None:
        self.traffic = Traffic()
        self.away: dict[str, str] = {}
        self.plans: list[Plan] = []
        self._rules, self._placement, self._fencing_token = config.rules, config.placement, fencing_token
        self._dispatcher = Dispatcher(_ActorCalls(), config.rules, config.placement.patience)
        self._incarnation: str | None = None
        self._room = ""
        self._pipeline = pipeline
        self._server = _server_actor(name, pipeline)
        self.outlives = "" if name is None or _ours() else _address()
        self.admit(locations, rows or {})

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client, in the order of their names."""
        return self._dispatcher.clients

    def admit(self, locations: Mapping[str, SiteLocation], rows: Mapping[str, int]) -> None:
        """Start hosts for clients that are new; raises `FederationError` where no memory is left for them.

        A host that does not start is told of when it is asked: the others can go on.
        """
        known = set(self.clients)
        new = {client: place for client, place in locations.items() if client not in known}
        if not new:
            return
        process = _measure(self._server, self._placement.start) if len(new) > FEW else PROCESS
        taken = sum(host.memory for plan in self.plans for host in plan.hosts)
        plan = plan_on(new, rows, self._placement, process, taken)
        self.plans.append(plan)
        if self._placement.elastic:
            request([host for plan in self.plans for host in plan.hosts])
        _log.info("%s", plan.to_json())
        self._start(plan.hosts)

    def _start(self, hosts: Sequence[HostPlan]) -> None:
        """A few at a time: processes that start all at once on a few cores only stand in each other's way."""
        import ray

        wave = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        await_labels({host.place.label for host in hosts if host.place.label}, self._placement.patience)
        for at in range(0, len(hosts), wave):
            handles = [self._handle(host) for host in hosts[at : at + wave]]
            hellos = [handle.actor.hello.remote() for handle in handles if not handle.absent]
            if hellos:
                ray.wait(hellos, num_returns=len(hellos), timeout=self._placement.start)
            self._dispatcher.handles += handles

    def _handle(self, host: HostPlan) -> ActorHandle:
        import ray

        options = LIGHT | {"max_restarts": -1, "memory": host.memory}
        if host.place.label:
            options["label_selector"] = {LABEL: host.place.label}
        else:
            options["scheduling_strategy"] = "SPREAD"
        actor = ray.remote(_HostActor).options(**options)
        place = host.place
        handle = ActorHandle(
            host.names,
            actor.remote(place.config, host.names, place.shards, self._fencing_token, self._pipeline),
            place.label,
        )
        handle.absent = absent(handle.label)
        return handle

    def run(self, work: ClientTask, on: Iterable[str] | None = None) -> Iterator[Reply]:
        """See `Federation.run`."""
        return self._dispatcher.run(work, on, self.away, self.traffic)

    def serve(self, task: ServerTask, replies: Iterable[Reply] = ()) -> Any:
        """See `Federation.serve`."""
        refs = {reply.client: reply.payload for reply in replies if reply.payload is not None}
        deadline = time.monotonic() + self._rules.deadline
        while True:
            served = self._served(task, refs, deadline)
            if served is None:
                time.sleep(0.3)  # Ray starts it again
                continue
            lost = not served.done
            self._incarnation = served.incarnation
            if lost:
                raise RoundLostError("the server was lost, and with it the sums that it held; the same command goes on")
            return served.value

    def _served(self, task: ServerTask, refs: Mapping[str, Any], deadline: float) -> _Served | None:
        """Return the answer of the server; None where it is not there, and may be soon."""
        import ray

        limit = self._rules.deadline
        try:
            return ray.get(self._server.serve.remote(task, refs, self._incarnation, limit, self._room), timeout=limit)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FrmuError):
                raise error.cause from None
            if isinstance(error.cause, ray.exceptions.RayError):
                raise RoundLostError("a host was lost before the server had fetched what it answered") from None
            raise
        except ray.exceptions.GetTimeoutError:
            raise FederationError(f"no reply in {limit:g} s from the server; raise rules.deadline") from None
        except ray.exceptions.RayError as error:
            if time.monotonic() > deadline or isinstance(error, ray.exceptions.ActorDiedError):
                reason = str(error).strip().splitlines()[0]
                raise FederationError(f"the server did not come back in {limit:g} s: {reason}") from None
            _log.info("The server died at %s; waiting for its next life", type(task).__name__)
            return None

    def anew(self, clients: Iterable[str]) -> RayFederation:
        """Return another federation of some of the clients, on the same processes and from nothing.

        It shares no record, sum or state with this one; `close` lets go of what it made, and ends no process.
        """
        other = copy(self)
        other._room = secrets.token_hex(8)
        other.traffic, other._incarnation, other.outlives = Traffic(), None, ""
        wanted = set(clients)
        other.away = {name: "it is not asked" for name in self.clients if name not in wanted}
        other._dispatcher = Dispatcher(_ActorCalls(other._room), self._rules, self._placement.patience)
        other._dispatcher.handles = [
            ActorHandle(handle.names, handle.actor, handle.label) for handle in self._dispatcher.handles
        ]
        return other

    def close(self) -> None:
        """End the actors; a federation that began anew on those of another lets go of its own rooms there."""
        import ray

        actors = [*(handle.actor for handle in self._dispatcher.handles), self._server]
        if self._room:
            for actor in actors:
                with suppress(Exception):  # one that died has let go of it
                    actor.leave.remote(self._room)
            return
        if self._placement.elastic:
            with suppress(Exception):
                request([])
        for actor in actors:
            with suppress(Exception):  # a cluster that is gone has ended them
                ray.kill(actor)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _server_actor(name: str | None, pipeline: Pipeline) -> Any:
    import ray

    options = LIGHT | {"max_restarts": -1}
    if name is not None and not _ours():
        options |= {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(_ServerActor).options(**options).remote(pipeline)


def _address() -> str:
    import ray

    return str(ray.get_runtime_context().gcs_address)


def _ours() -> bool:
    """Return whether this program started the Ray that it is connected to, which then ends with it."""
    import ray

    node = ray._private.worker._global_node
    return node is not None and node.is_head()


def _measure(server: Any, timeout: float) -> int:
    """Bytes that a fresh process of ours takes: the server's, which has loaded what a host loads."""
    import ray

    try:
        return int(ray.get(server.serve.remote(_Weigh(), {}, None, timeout), timeout=timeout).value)
    except ray.exceptions.RayError:
        return PROCESS


def measured() -> int:
    """Return the bytes that a process of ours takes, started for this and ended."""
    import ray

    server = _server_actor(None, IDENTITY)
    try:
        return _measure(server, 60.0)
    finally:
        ray.kill(server)


@dataclass(frozen=True, slots=True)
class _Weigh:
    """The resident memory of the server's process, in bytes."""

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> int:
        """As the kernel counts it."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * resource.getpagesize()
