"""One trip of a work to the hosts and back: whoever died is asked again, whoever is late is let go.

A host is asked for one batch of clients at a time. It says with every answer which life of its process it is in: one
that was born again since has lost what it was told to keep, so it is told again before it is asked. A host that failed
is called until it answers, which tells a process that dies of a work (counted) from a node that is away (waited for).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from frmu.config import Rules
from frmu.errors import FrmuError
from frmu.federation import ClientTask, Reply
from frmu.runtime.rules import after_failure

__all__ = ["ActorHandle", "Answered", "Dispatch"]

_log = logging.getLogger(__name__)
CALL_AGAIN = 0.3  # seconds between two calls to a host that is not back yet
LOOK_AGAIN = 1.0  # and between two looks at which nodes there are


@dataclass(frozen=True, slots=True)
class Answered:
    """Hold what a host says: which life it is in; replies, or None where it was asked in another life of its."""

    incarnation: str
    replies: tuple[Reply, ...] | None = None


@dataclass(slots=True)
class ActorHandle:
    """A host as the driver knows it: its clients, the actor, the life it was last seen in, what it must keep."""

    names: tuple[str, ...]
    actor: Any
    label: str | None = None
    incarnation: str | None = None
    absent: str = ""  # why it cannot be placed, as was last seen
    kept: dict[type, tuple[Any, tuple[str, ...]]] = field(default_factory=dict)

    def keep(self, work: ClientTask, shared: Any, names: Sequence[str]) -> None:
        """Remember a work whose effect stays with the host, to be told again to one that was born again."""
        if getattr(work, "lasting", False):
            _, before = self.kept.get(type(work), (None, ()))
            self.kept[type(work)] = (shared, tuple(sorted({*before, *names})))

    def met(self, incarnation: str) -> None:
        """Note which life the host is in; one that lost what it was told is told again."""
        if self.incarnation not in (None, incarnation):
            _log.info("The host of %s was born again", ", ".join(self.names))
            for shared, names in self.kept.values():
                self.actor.answer.remote(shared, names, incarnation)
        self.incarnation = incarnation


class _Turn:
    """One lane on one trip: batches of clients that are still to be asked, and what is under way."""

    def __init__(self, handle: ActorHandle, names: tuple[str, ...], deadline: float) -> None:
        self.handle, self.deadline = handle, deadline
        self.batches = deque([names])
        self.failures = 0
        self.calling = False  # after a failure: first see whether anybody is there
        self.not_before = 0.0
        self.under_way: Any = None
        self.trouble = ""

    def send(self, shared: Any) -> Any:
        """Ask for the next batch, or call; the ref of what will come."""
        actor = self.handle.actor
        self.under_way = (
            actor.hello.remote()
            if self.calling
            else actor.answer.remote(shared, self.batches[0], self.handle.incarnation)
        )
        return self.under_way

    def waits(self) -> bool:
        return bool(self.batches) and self.under_way is None


class Dispatch:
    """A work on its way to some lanes, each with the names to be asked for there.

    `absent` says why no node can take a lane of a label; one whose node is gone is waited for `patience` seconds, and
    not at all where that was known before.
    """

    def __init__(
        self,
        work: ClientTask,
        shared: Any,
        asked: Sequence[tuple[ActorHandle, tuple[str, ...]]],
        rules: Rules,
        patience: float,
        absent: Callable[[str | None], str],
    ) -> None:
        self._work, self._shared, self._rules, self._patience, self._absent = work, shared, rules, patience, absent
        self._began = time.monotonic()
        self._turns = [_Turn(handle, names, self._began + rules.deadline) for handle, names in asked]
        self.away: dict[str, str] = {}
        for turn in self._turns:
            turn.handle.absent = absent(turn.handle.label)
            if turn.handle.absent:
                turn.deadline = self._began

    def replies(self) -> Iterator[Reply]:
        """Replies in the order of arrival; afterwards `away` says who did not answer, and why."""
        import ray

        flying: dict[Any, _Turn] = {}
        while any(turn.batches for turn in self._turns):
            now = time.monotonic()
            for turn in self._turns:
                if turn.batches and turn.calling:
                    self._look_for(turn, now)
                if turn.batches and now >= turn.deadline:
                    flying.pop(turn.under_way, None)
                    self._late(turn)
                elif turn.waits() and now >= turn.not_before:
                    flying[turn.send(self._shared)] = turn
            pause = max(0.0, self._wake(now) - now)
            if not flying:
                time.sleep(pause)
                continue
            done, _ = ray.wait(list(flying), num_returns=1, timeout=pause)
            for ref in done:
                yield from self._took(flying.pop(ref), ref)

    def _wake(self, now: float) -> float:
        """Return when something is to be done, whatever arrives."""
        turns = [turn for turn in self._turns if turn.batches]
        moments = [turn.not_before if turn.waits() else turn.deadline for turn in turns]
        moments += [now + LOOK_AGAIN for turn in turns if turn.calling and turn.handle.label]
        return min(moments, default=now)

    def _look_for(self, turn: _Turn, now: float) -> None:
        """Return whether the node that a host must run on is there; the clock of patience starts where it is not."""
        was, turn.handle.absent = turn.handle.absent, self._absent(turn.handle.label)
        if turn.handle.absent and not was:
            turn.deadline = min(turn.deadline, now + self._patience)
            _log.warning(
                "Waiting %.3g s for %s, which did not answer %s: %s",
                max(0.0, turn.deadline - now), ", ".join(name for batch in turn.batches for name in batch),
                type(self._work).__name__, turn.handle.absent,
            )  # fmt: skip
        elif was and not turn.handle.absent:
            turn.deadline = self._began + self._rules.deadline

    def _took(self, turn: _Turn, ref: Any) -> Sequence[Reply]:
        """Take what came; an error of ours that a client raised is raised as it was."""
        import ray

        turn.under_way = None
        try:
            answered: Answered = ray.get(ref)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, FrmuError):
                raise error.cause from None
            raise
        except ray.exceptions.RayError as error:
            self._failed(turn, error)
            return ()
        turn.handle.met(answered.incarnation)
        turn.calling = False
        if answered.replies is None:
            return ()
        turn.failures = 0
        turn.handle.keep(self._work, self._shared, turn.batches.popleft())
        return answered.replies

    def _failed(self, turn: _Turn, error: Any) -> None:
        import ray

        gone = isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnschedulableError)
        turn.trouble = f"its host died ({_first_line(error)})" if gone else "its host died"
        if turn.calling and not gone:  # nobody there yet: that is no failure of the work
            turn.not_before = time.monotonic() + CALL_AGAIN
            return
        turn.failures += 0 if turn.calling else 1
        what = f"{turn.trouble} at {type(self._work).__name__}"
        final = gone and turn.calling
        decision = after_failure(turn.failures, len(turn.batches[0]), final, what, self._rules)
        _log.info("Clients %s: %s; %s", ", ".join(turn.batches[0]), what, decision.kind)
        turn.calling, turn.not_before = True, time.monotonic() + decision.pause
        if decision.kind == "apart":
            turn.batches.extendleft([(name,) for name in reversed(turn.batches.popleft())])
            turn.failures = 0
        elif decision.kind == "away":
            lost = turn.batches.popleft() if not final else tuple(name for batch in turn.batches for name in batch)
            turn.batches = deque() if final else turn.batches
            turn.failures = 0
            self.away |= dict.fromkeys(lost, decision.reason)

    def _late(self, turn: _Turn) -> None:
        """Its time is over. A host that hangs is ended, so that it does not go on with what nobody waits for."""
        import ray

        waited = f"{turn.deadline - self._began:.3g} s"
        if turn.handle.absent:
            reason = turn.handle.absent
        elif turn.calling:
            reason = f"{turn.trouble} and did not come back in {waited}"
        elif turn.handle.incarnation is None:
            reason = f"its host did not start in {waited}; see `ray status`"
        else:
            reason = f"no reply in {waited}"
            ray.kill(turn.handle.actor, no_restart=False)
        self.away |= {name: reason for batch in turn.batches for name in batch}
        turn.batches.clear()
        turn.under_way = None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
