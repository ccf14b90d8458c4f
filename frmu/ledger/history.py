"""The history of clients, states and runs in the lines of a ledger: functions of the lines alone.

A client stands in the lines as its owner code, or as the first 8 digits of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from frmu.ledger.chain import Line

__all__ = ["STANDING", "History", "unsearched"]

_MEMBERSHIP = ("left", "joined")
_KNOWN = ("trained", "empty", "left", "joined", "received", "planned")
STANDING = ("standing", "searched", "left")
_STATES = ("trained", "verified", "replayed", "purged")
_RUNS = ("trained", "refitted", "replayed", "learned", "delivered")


def _left(lines: Sequence[Line]) -> frozenset[str]:
    """Return the owners of clients that have left, and have not joined again."""
    out: set[str] = set()
    for line in lines:
        (out.add if line.kind == "left" else out.discard)(line.body["client"])
    return frozenset(out)


def _gone(lines: Sequence[Line]) -> frozenset[str]:
    """Return the owners of clients that have left for good."""
    return frozenset(line.body["client"] for line in lines if line.kind == "left" and line.body.get("for_good"))


def _away(lines: Sequence[Line], state: str) -> frozenset[str]:
    """Return the owners of clients that were away when a state, by its digest, was last trained."""
    trained = [line.body for line in lines if line.body["state"] == state]
    return frozenset(trained[-1].get("away", ())) if trained else frozenset()


def _known(lines: Sequence[Line]) -> frozenset[str]:
    """Return who ever took part and may come back.

    Not a client whose records a closed request erased as a whole, nor one that has left for good.
    """
    found: set[str] = set()
    whole: set[str] = set()
    kinds: dict[str, str] = {}
    for line in lines:
        if line.kind == "trained":
            found |= {code[:8] for code in (*line.body["clients"], *line.body.get("away", ()))}
        elif line.kind == "empty":  # every record in its files was refused: nothing is there to be searched
            found -= set(line.body["clients"])
        elif line.kind in _MEMBERSHIP:
            change = found.discard if line.body.get("for_good") else found.add
            change(line.body["client"][:8])
        elif line.kind == "received":
            kinds[line.request] = line.body["kind"]
        elif kinds.get(line.request) == "client":
            whole |= {owner[:8] for owner in line.body["records"]}
    return frozenset(found - whole)


def unsearched(lines: Sequence[Line]) -> dict[str, frozenset[str]]:
    """Return for each request that was closed without some clients those of them that are not searched yet."""
    remaining: dict[str, set[str]] = {}
    for line in lines:
        if line.kind == "standing":
            remaining[line.request] = set(line.body["clients"])
        elif line.kind == "searched" and line.request in remaining:
            remaining[line.request] -= set(line.body["clients"])
        elif line.kind == "left" and line.body.get("for_good"):
            for codes in remaining.values():
                codes.discard(line.body["client"][:8])
    return {request: frozenset(codes) for request, codes in remaining.items()}


def _clean(lines: Sequence[Line], what: str) -> frozenset[str]:
    """Return "state" or "contents" of the states made, and proven, after the last purge that took any record."""
    clean: set[str] = set()
    for line in lines:
        if line.kind == "purged" and line.body["records"]:
            clean.clear()
        elif line.kind != "purged" and line.body.get("passed", True) and what in line.body:
            clean.add(line.body[what])
    return frozenset(clean)


def _runs(lines: Sequence[Line], owners: Collection[str]) -> list[str]:
    """Return the MLflow runs that learned from any of some clients."""
    wanted = set(owners)
    return list(dict.fromkeys(line.body["run"] for line in lines if wanted & set(line.body["clients"])))


class History:
    """The history in the lines of one ledger; `lines` gives those of some kinds, in order."""

    def __init__(self, lines: Callable[[Collection[str]], list[Line]]) -> None:
        self._lines = lines

    def left(self) -> frozenset[str]:
        """Return the owners of clients that have left the federation, and have not joined again."""
        return _left(self._lines(_MEMBERSHIP))

    def gone(self) -> frozenset[str]:
        """Return the owners of clients that have left for good."""
        return _gone(self._lines(_MEMBERSHIP))

    def away(self, state: str) -> frozenset[str]:
        """Return the owners of clients that were away when a state, by its digest, was last trained."""
        return _away(self._lines(["trained"]), state)

    def known(self) -> frozenset[str]:
        """Return who ever took part and may come back, by the first 8 digits of their codes."""
        return _known(self._lines(_KNOWN))

    def clean_states(self) -> frozenset[str]:
        """Return the digests of the states that no erasure has overtaken."""
        return _clean(self._lines(_STATES), "state")

    def clean_contents(self) -> frozenset[str]:
        """Return the digests of those states with the bits of their weights, as they were solved for here."""
        return _clean(self._lines(_STATES), "contents")

    def runs(self, owners: Collection[str]) -> list[str]:
        """Return the MLflow runs that learned from any of some clients, by the first 8 digits of their codes."""
        return _runs(self._lines(_RUNS), owners)

    def shards(self) -> dict[str, tuple[str, ...]]:
        """Return the keyed digests that a shard may have, by the first 8 digits of its client's code.

        One, as it was last written; and those that were staged since, by a job that was killed before it said more.
        """
        known: dict[str, tuple[str, ...]] = {}
        for line in self._lines(("staged", "written")):
            for owner, code in line.body["shards"].items():
                known[owner] = (code,) if line.kind == "written" else (*known.get(owner, ()), code)
        return known

    def retired(self) -> frozenset[str]:
        """Return the digests of policies that must not be used again."""
        return frozenset(line.body["policy"] for line in self._lines(["retired"]))
