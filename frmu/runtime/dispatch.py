"""One dispatcher for every runtime: who is asked, who is late and who is let go is decided here and nowhere else.

A runtime gives a transport, which knows how a call travels and what time it is; the rest is the same in process and on
Ray. A host is asked for one batch of clients at a time. It says with every answer which incarnation of its process
answers: a new one has lost what it was told to keep, so it is told again before it is asked. A host that failed is
called until it answers, which tells a process that dies of a task (counted) from a node that is away (waited for).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from frmu.config import Rules
from frmu.errors import ClientsUnavailableError
from frmu.federation import PROGRESS, ClientTask, Reply, Traffic
from frmu.runtime.rules import after_failure

__all__ = ["ActorHandle", "Answered", "Dispatcher", "Lost", "Transport"]

_log = logging.getLogger(__name__)
_progress = logging.getLogger(PROGRESS)
CALL_AGAIN = 0.3  # seconds between two calls to a host that is not back yet
LOOK_AGAIN = 1.0  # and between two looks at which nodes there are


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer of a host: its incarnation; replies, or None where another incarnation was asked."""

    incarnation: str
    replies: tuple[Reply, ...] | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """A call that nobody answered, and why; `final` where the host will not come back."""

    reason: str
    final: bool = False


@dataclass(slots=True)
class ActorHandle:
    """A host as the driver knows it: its clients, what carries calls to it, its last incarnation, what it must keep."""

    names: tuple[str, ...]
    actor: Any
    label: str | None = None
    incarnation: str | None = None
    absent: str = ""  # why it cannot be placed, as was last seen
    kept: dict[type, tuple[Any, tuple[str, ...]]] = field(default_factory=dict)

    def keep(self, work: ClientTask, shared: Any, names: Sequence[str]) -> None:
        """Remember a task whose effect stays with the host, to be told again to its next incarnation."""
        if getattr(work, "lasting", False):
            _, before = self.kept.get(type(work), (None, ()))
            self.kept[type(work)] = (shared, tuple(sorted({*before, *names})))


class Transport(Protocol):
    """The way of a call to a host and back; all that a runtime brings to a dispatch."""

    def now(self) -> float:
        """Return the time in seconds, by which deadlines are kept."""

    def share(self, work: ClientTask) -> Any:
        """Return a task as it is handed to every host of a dispatch."""

    def hello(self, handle: ActorHandle) -> Any:
        """Call a host to see whether it is there; the call."""

    def answer(self, handle: ActorHandle, shared: Any, names: Sequence[str], incarnation: str | None) -> Any:
        """Ask a host, in one incarnation or (None) any, for some of its clients; the call."""

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        """Wait at most so many seconds; the calls that are over, none where the time is."""

    def take(self, call: Any) -> Answered | Lost:
        """Return what came of a call that is over; raises what the task raised."""

    def restart(self, handle: ActorHandle) -> None:
        """End a host that hangs; its next incarnation starts."""

    def absent(self, label: str | None) -> str:
        """Return why no node can take a host of a label; empty where one can."""


class Dispatcher:
    """The hosts of a federation, and tasks that go out to them and come back as replies."""

    def __init__(self, transport: Transport, rules: Rules, patience: float) -> None:
        self.handles: list[ActorHandle] = []
        self._transport, self._rules, self._patience = transport, rules, patience

    @property
    def clients(self) -> tuple[str, ...]:
        """Every client, in the order of their names."""
        return tuple(sorted(name for handle in self.handles for name in handle.names))

    def run(self, work: ClientTask, on: Iterable[str] | None, away: Iterable[str], traffic: Traffic) -> Iterator[Reply]:
        """Let clients do a task, but for those who are away; see `Federation.run`."""
        wanted = set(self.clients if on is None else on) & set(self.clients) - set(away)
        if not wanted:
            return
        traffic.sent(work, len(wanted))
        _progress.info("%s, %s clients", getattr(work, "doing", "working"), f"{len(wanted):,}")
        asked = [(handle, here) for handle in self.handles if (here := tuple(n for n in handle.names if n in wanted))]
        dispatch = _Dispatch(work, asked, self._transport, self._rules, self._patience)
        for reply in dispatch.replies():
            traffic.up += reply.nbytes
            yield reply
        if dispatch.away:
            raise ClientsUnavailableError.of(dispatch.away)


class _Turn:
    """One host in one dispatch: batches of clients that are still to be asked, and the call that is under way."""

    def __init__(self, handle: ActorHandle, names: tuple[str, ...], deadline: float) -> None:
        self.handle, self.deadline = handle, deadline
        self.batches = deque([names])
        self.failures = 0
        self.calling = False  # after a failure: first see whether anybody is there
        self.not_before = 0.0
        self.under_way: Any = None
        self.trouble = ""

    def waits(self) -> bool:
        return bool(self.batches) and self.under_way is None


class _Dispatch:
    """A task on its way to some hosts, each with the names to be asked for there.

    A host whose node is gone is waited for `patience` seconds, and not at all where that was known before.
    """

    def __init__(
        self, work: ClientTask, asked: Sequence[tuple[ActorHandle, tuple[str, ...]]], transport: Transport,
        rules: Rules, patience: float,
    ) -> None:  # fmt: skip
        self._work, self._transport, self._rules, self._patience = work, transport, rules, patience
        self._shared = transport.share(work)
        self._began = transport.now()
        self._turns = [_Turn(handle, names, self._began + rules.deadline) for handle, names in asked]
        self.away: dict[str, str] = {}
        for turn in self._turns:
            turn.handle.absent = transport.absent(turn.handle.label)
            if turn.handle.absent:
                turn.deadline = self._began

    def replies(self) -> Iterator[Reply]:
        """Replies in the order of arrival; afterwards `away` says who did not answer, and why."""
        flying: dict[Any, _Turn] = {}
        while any(turn.batches for turn in self._turns):
            now = self._transport.now()
            for turn in self._turns:
                if turn.batches and turn.calling:
                    self._look_for(turn, now)
                if turn.batches and now >= turn.deadline:
                    flying.pop(turn.under_way, None)
                    self._late(turn)
                elif turn.waits() and now >= turn.not_before:
                    flying[self._send(turn)] = turn
            pause = max(0.0, self._wake(now) - now)
            for call in self._transport.wait(list(flying), pause):
                yield from self._took(flying.pop(call), call)

    def _send(self, turn: _Turn) -> Any:
        """Ask for the next batch, or call; the call."""
        handle = turn.handle
        turn.under_way = (
            self._transport.hello(handle)
            if turn.calling
            else self._transport.answer(handle, self._shared, turn.batches[0], handle.incarnation)
        )
        return turn.under_way

    def _wake(self, now: float) -> float:
        """Return when something is to be done, whatever arrives."""
        turns = [turn for turn in self._turns if turn.batches]
        moments = [turn.not_before if turn.waits() else turn.deadline for turn in turns]
        moments += [now + LOOK_AGAIN for turn in turns if turn.calling and turn.handle.label]
        return min(moments, default=now)

    def _look_for(self, turn: _Turn, now: float) -> None:
        """See whether the node that a host must run on is there; the clock of patience starts where it is not."""
        was, turn.handle.absent = turn.handle.absent, self._transport.absent(turn.handle.label)
        if turn.handle.absent and not was:
            turn.deadline = min(turn.deadline, now + self._patience)
            _log.warning(
                "Waiting %.3g s for %s, which did not answer %s: %s",
                max(0.0, turn.deadline - now), ", ".join(name for batch in turn.batches for name in batch),
                type(self._work).__name__, turn.handle.absent,
            )  # fmt: skip
        elif was and not turn.handle.absent:
            turn.deadline = self._began + self._rules.deadline

    def _took(self, turn: _Turn, call: Any) -> Sequence[Reply]:
        """Take what came of a call."""
        turn.under_way = None
        answered = self._transport.take(call)
        if isinstance(answered, Lost):
            self._failed(turn, answered)
            return ()
        self._met(turn.handle, answered.incarnation)
        turn.calling = False
        if answered.replies is None:
            return ()
        turn.failures = 0
        turn.handle.keep(self._work, self._shared, turn.batches.popleft())
        return answered.replies

    def _met(self, handle: ActorHandle, incarnation: str) -> None:
        """Note which incarnation a host is in; a new one is told again what the one before was to keep."""
        if handle.incarnation not in (None, incarnation):
            _log.info("The host of %s was started again", ", ".join(handle.names))
            for shared, names in handle.kept.values():
                self._transport.answer(handle, shared, names, incarnation)
        handle.incarnation = incarnation

    def _failed(self, turn: _Turn, lost: Lost) -> None:
        turn.trouble = lost.reason
        if turn.calling and not lost.final:  # nobody there yet: that is no failure of the task
            turn.not_before = self._transport.now() + CALL_AGAIN
            return
        turn.failures += 0 if turn.calling else 1
        what = f"{turn.trouble} at {type(self._work).__name__}"
        final = lost.final and turn.calling
        decision = after_failure(turn.failures, len(turn.batches[0]), final, what, self._rules)
        _log.info("Clients %s: %s; %s", ", ".join(turn.batches[0]), what, decision.kind)
        turn.calling, turn.not_before = True, self._transport.now() + decision.pause
        if decision.kind == "apart":
            turn.batches.extendleft([(name,) for name in reversed(turn.batches.popleft())])
            turn.failures = 0
        elif decision.kind == "away":
            gone = turn.batches.popleft() if not final else tuple(name for batch in turn.batches for name in batch)
            turn.batches = deque() if final else turn.batches
            turn.failures = 0
            self.away |= dict.fromkeys(gone, decision.reason)

    def _late(self, turn: _Turn) -> None:
        """Let go of a host whose time is over. One that hangs is ended: nobody waits for what it goes on with."""
        waited = f"{turn.deadline - self._began:.3g} s"
        if turn.handle.absent:
            reason = turn.handle.absent
        elif turn.calling:
            reason = f"{turn.trouble} and did not come back in {waited}"
        elif turn.handle.incarnation is None:
            reason = f"its host did not start in {waited}; see `ray status`"
        else:
            reason = f"no reply in {waited}"
            self._transport.restart(turn.handle)
        self.away |= {name: reason for batch in turn.batches for name in batch}
        turn.batches.clear()
        turn.under_way = None
