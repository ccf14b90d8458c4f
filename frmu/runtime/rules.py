"""The rules about a client that does not answer: decisions as data, from the config alone.

Nothing here acts or waits. The dispatcher (`frmu.runtime.dispatch`) asks what to do with a host that failed; a
training asks whether it may go on with who is there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

from frmu.config import Rules
from frmu.errors import ClientsUnavailableError

__all__ = ["Decision", "after_failure", "go_on_without", "unmet"]

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0  # seconds before a host that failed is asked again


@dataclass(frozen=True, slots=True)
class Decision:
    """The decision on the clients of a host that failed: ask again after a pause, one by one, or let go."""

    kind: Literal["again", "apart", "away"]
    pause: float = 0.0
    reason: str = ""


def after_failure(failures: int, clients: int, final: bool, what: str, rules: Rules) -> Decision:
    """Decide on a host that failed so many times in a row at one work, `what` being how.

    A host of several clients that failed twice is asked for one client at a time, so that one client whose records
    kill the process takes no other with it. `final` says that the host will not come back.

    >>> after_failure(1, 1, False, "its host died", Rules()).kind, after_failure(2, 8, False, "", Rules()).kind
    ('again', 'apart')
    >>> after_failure(3, 1, False, "its host died", Rules()).reason
    'its host died, 3 times in a row'
    """
    if final:
        return Decision("away", reason=what)
    pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1))
    if clients > 1 and failures > 1:
        return Decision("apart", pause)
    if failures >= rules.attempts:
        return Decision("away", reason=f"{what}, {failures} times in a row" if failures > 1 else what)
    return Decision("again", pause)


def go_on_without(away: Mapping[str, str], clients: Collection[str], rules: Rules) -> str:
    """Return whether a training goes on without those who are away: the line that says so, or the error that ends it.

    >>> go_on_without({"b": "no reply in 30 s"}, ["a", "b", "c", "d"], Rules())
    'Going on without client b: no reply in 30 s; quorum 0.75 still met (3 of 4)'
    """
    if why := unmet(away, clients, rules):
        raise ClientsUnavailableError.of(away, why)
    there = len(set(clients) - set(away))
    told = "; ".join(f"client {name}: {reason}" for name, reason in sorted(away.items()))
    return f"Going on without {told}; quorum {rules.quorum:g} still met ({there} of {len(clients)})"


def unmet(away: Collection[str], clients: Collection[str], rules: Rules) -> str:
    """Return which rule keeps a training from going on without those who are away; empty where none does.

    >>> unmet(["b", "c"], ["a", "b", "c", "d"], Rules())
    'rules.quorum = 0.75 is not met (2 of 4)'
    """
    there = len(set(clients) - set(away))
    if set(away) & set(clients) and rules.late == "fail":
        return 'rules.late = "fail" lets nobody be left out'
    if there < rules.quorum * len(clients) or not there:
        return f"rules.quorum = {rules.quorum:g} is not met ({there} of {len(clients)})"
    return ""
