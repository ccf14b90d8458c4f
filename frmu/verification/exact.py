"""Level 5: the state's digest equals that of a federation that never had the records.

The digest is over whole numbers and compares on any machine. The head that was solved from them has last bits of its
own: they must be equal where the same library and kernel solved, and equal to 1e-9 elsewhere.

The second federation is new: its own clients and server over the shards as they lie on disk, made from nothing at
every site at once, or in process where no federation runs on Ray. What a stale cache, a drift, a wrong order or a
record left behind would change is the digest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np

from frmu.clients.tasks.erasure import ScanShard
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Federation
from frmu.methods.method import Method
from frmu.models.weights import weights_in
from frmu.selection.network import Network
from frmu.types import HEAD, Float, State

__all__ = ["Afresh", "ExactVerdict", "left_behind", "rebuild", "verify_exact"]
TOLERANCE = 1e-9  # between heads that two libraries or kernels solved for
Afresh = Callable[[Config], AbstractContextManager[Federation]]  # another federation over the same shards, for a while


@dataclass(frozen=True, slots=True)
class ExactVerdict:
    """Digests of the state under test and of the rebuilt one; records with a tombstone, and files, left over.

    `gap` is the greatest difference between the two heads, relative to the greatest weight; `numerics` is what solved
    for each. `shards` are the digests of the shards that were scanned. `rebuilds` is false where the second digest is
    that of the first, because nothing was taken from a state that had been proven or trained.
    """

    digest: str
    rebuilt: str
    left: int
    scanned: int
    unexpected_files: list[str]
    gap: float
    numerics: tuple[str, str]
    shards: Mapping[str, str]
    rebuilds: bool = True

    @property
    def same_head(self) -> bool:
        """Return whether the head is the one that was solved for anew, as far as two machines can tell."""
        return self.gap == 0.0 or (self.numerics[0] != self.numerics[1] and self.gap <= TOLERANCE)

    @property
    def passed(self) -> bool:
        """All must hold."""
        return self.left == 0 and not self.unexpected_files and self.digest == self.rebuilt and self.same_head

    @property
    def level(self) -> str:
        """The highest level that holds: L5 exact, L1 purged, L0 located only."""
        return "L5" if self.passed else "L1" if self.left == 0 and not self.unexpected_files else "L0"

    def evidence(self) -> dict[str, Any]:
        """Return what a receipt keeps of it."""
        return {
            "digest": self.digest,
            "digest_never_had": self.rebuilt,
            "proof": "rebuilt" if self.rebuilds else "unchanged: nobody held anything",
            "tombstoned_records_left": self.left,
            "records_scanned": self.scanned,
            "files_that_are_no_shards": self.unexpected_files,
            "head": "the same bits" if self.gap == 0.0 else f"within {self.gap:.0e}",
            "numerics": self.numerics[1],
        }


def rebuild(config: Config, method: Method, network: Network | None, afresh: Afresh) -> State:
    """Train a second federation, from nothing, on the same shards."""
    with afresh(config) as federation:
        return method.apply(federation, method.init(), network).state


def left_behind(
    federation: Federation, tombstones: dict[str, frozenset[str]], key: bytes
) -> tuple[int, int, dict[str, str]]:
    """Return the records with a tombstone that are still in a shard, the records scanned, and the shards' digests.

    All is read from disk anew.
    """
    records = {reply.client: reply.record for reply in federation.run(ScanShard(tombstones, key))}
    left, scanned = (sum(record[name] for record in records.values()) for name in ("left", "rows"))
    return left, scanned, {client: record["digest"] for client, record in records.items() if record["rows"]}


def verify_exact(
    config: Config,
    method: Method,
    network: Network | None,
    afresh: Afresh,
    state: State,
    tombstones: dict[str, frozenset[str]],
    key: bytes,
    unexpected_files: list[str],
) -> ExactVerdict:
    """Hold a state against a rebuilt federation, and the shards against the tombstones; `unexpected_files` must be
    none.

    Raises `FrmuError` where the state was made with another config or policy: that is no question of erasure.
    """
    if state.config != config.fingerprint():
        raise FrmuError("the state was trained with another config; run `frmu train` before `frmu verify`")
    with afresh(config) as federation:
        rebuilt = method.apply(federation, method.init(), network).state
        left, scanned, digests = left_behind(federation, tombstones, key)
    if state.policy != rebuilt.policy:
        raise FrmuError("the state was made with another policy file; run `frmu train` before `frmu verify`")
    return ExactVerdict(
        state.digest, rebuilt.digest, left, scanned, unexpected_files, _gap(state, rebuilt),
        (state.numerics, rebuilt.numerics), digests,
    )  # fmt: skip


def _gap(state: State, rebuilt: State) -> float:
    """The greatest difference between two heads, or between all weights of two modules, relative to the greatest
    weight.

    It is above zero where any bit differs.
    """
    one, other = _fitted(state), _fitted(rebuilt)
    if {name: part.shape for name, part in one.items()} != {name: part.shape for name, part in other.items()}:
        return float("inf")
    if not all(np.isfinite(part).all() for part in one.values()):
        return float("inf")
    if all(np.array_equal(part, other[name]) for name, part in one.items()):
        return 0.0
    greatest = max(float(np.max(np.abs(part), initial=1e-300)) for part in other.values())
    apart = max(float(np.max(np.abs(part - other[name]), initial=0.0)) for name, part in one.items())
    return max(apart / greatest, 1e-300)


def _fitted(state: State) -> Mapping[str, Float]:
    """The arrays that were fitted, by name: of a ridge model its head."""
    if HEAD in state.parameters:
        return {HEAD: state.W}
    return weights_in(state).parameters
