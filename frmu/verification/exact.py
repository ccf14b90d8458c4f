"""Level 5: the state's digest equals that of a federation that never had the records.

The second federation is new: its own clients and server over the shards as they lie on disk, in process where these
lie on this machine. What a stale cache, a drift, a wrong order or a record left behind would change is the digest.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from frmu.clients.tasks.erasure import ScanShard
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Federation
from frmu.methods.method import Method
from frmu.models.statistics import numerics
from frmu.selection.network import Network
from frmu.types import State

__all__ = ["Afresh", "ExactVerdict", "left_behind", "rebuild", "verify_exact"]
Afresh = Callable[[Config], AbstractContextManager[Federation]]  # another federation over the same shards, for a while


@dataclass(frozen=True, slots=True)
class ExactVerdict:
    """Digests of the state under test and of the rebuilt one; records with a tombstone, and files, left over."""

    digest: str
    rebuilt: str
    left: int
    scanned: int
    unexpected_files: list[str]
    numerics: dict[str, str]

    @property
    def passed(self) -> bool:
        """All must hold."""
        return self.left == 0 and not self.unexpected_files and self.digest == self.rebuilt

    @property
    def level(self) -> str:
        """The highest level that holds: L5 exact, L1 purged, L0 located only."""
        return "L5" if self.passed else "L1" if self.left == 0 and not self.unexpected_files else "L0"

    def evidence(self) -> dict[str, Any]:
        """Return what a receipt keeps of it."""
        return {
            "digest": self.digest,
            "digest_never_had": self.rebuilt,
            "tombstoned_records_left": self.left,
            "records_scanned": self.scanned,
            "files_that_are_no_shards": self.unexpected_files,
            "numerics": self.numerics,
        }


def rebuild(config: Config, method: Method, network: Network | None, afresh: Afresh) -> State:
    """Train a second federation, from nothing, on the same shards."""
    with afresh(config) as federation:
        return method.apply(federation, method.init(), network).state


def left_behind(federation: Federation, tombstones: dict[str, frozenset[str]], key: bytes) -> tuple[int, int]:
    """Records with a tombstone that are still in a shard, and records scanned; read from disk anew."""
    replies = list(federation.run(ScanShard(tombstones, key)))
    return sum(reply.record["left"] for reply in replies), sum(reply.record["rows"] for reply in replies)


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
        left, scanned = left_behind(federation, tombstones, key)
    if state.policy != rebuilt.policy:
        raise FrmuError("the state was made with another policy file; run `frmu train` before `frmu verify`")
    return ExactVerdict(state.digest, rebuilt.digest, left, scanned, unexpected_files, numerics())
