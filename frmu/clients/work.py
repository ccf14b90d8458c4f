"""The works a client knows: import, commit, describe, adopt, sum, choose, measure, locate, purge, scan, play.

Each is a frozen record with a `perform`. What leaves a client is counts, aggregates of whole slices and keyed
hashes; never a row.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from frmu.clients.client import Client, Rehearsal
from frmu.data import shard as shards
from frmu.data.parquet import PRIVATE, RECORD, gather, read_parquet
from frmu.data.shard import SPLITS, Shard
from frmu.data.tombstones import tombstones
from frmu.federation import Answer
from frmu.models.statistics import loss, pack, targets, unpack
from frmu.selection.disturbance import disturb, draw
from frmu.selection.modality import Muting, contribution, mute
from frmu.selection.network import Network
from frmu.selection.observation import fit, observe
from frmu.selection.problem import SelectionProblem
from frmu.selection.search import Budget, RefitCounter, ascend
from frmu.selection.selectors import Decision, decide
from frmu.types import Float, Selection, Statistics

__all__ = [
    "CommitShard",
    "ComputeStatistics",
    "DescribeShard",
    "DiscardShard",
    "EachClient",
    "EnvStep",
    "LoadPolicy",
    "LocateRecords",
    "MeasureErrors",
    "PackedStatistics",
    "PurgeShard",
    "Rollout",
    "ScanShard",
    "SelectInfluences",
    "StageShard",
    "arrivals",
    "errors_of",
]  # fmt: skip

REHEARSALS = 64  # tasks a client keeps in memory while a policy trains


@dataclass(frozen=True, slots=True)
class EachClient:
    """A work that needs no preparation for several clients at once."""

    def prepare(self, clients: Sequence[Client]) -> None:
        """Nothing to share."""


@dataclass(frozen=True, slots=True)
class StageShard:
    """Read and check the client's records in the user's files, and set them aside as the shard to come.

    Records with a tombstone are refused, and those that an open request means, and those that are private: the
    tombstones of the former, and of private ones in the present shard, are told. Nothing that is there changes until
    `CommitShard`.
    """

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)
    requests: Mapping[str, Selection] = field(default_factory=dict)

    def prepare(self, clients: Sequence[Client]) -> None:
        """One reading of the files for all clients of this host."""
        tables = gather(clients[0].config, [client.name for client in clients])
        for client in clients:
            client.incoming = tables[client.name]

    def perform(self, client: Client) -> Answer:
        """Counts: rows taken, rows refused, rows that are private; tombstones by request, and of what must go."""
        table, private = _without_flags(client.incoming)
        client.incoming = None
        tombstoned = self.tombstones.get(client.name, frozenset())
        alive = np.ones(table.num_rows, dtype=bool)
        if tombstoned:
            alive[:] = [name not in tombstoned for name in tombstones(self.key, client.name, table[RECORD].to_pylist())]
        found = {}
        if self.requests:
            shard = Shard.of(table, client.config)
            for request, rows in shard.find(self.requests, client.name, client.config).items():
                found[request] = list(tombstones(self.key, client.name, shard.ids[rows].tolist()))
                alive[rows] = False
        counts = {"refused": int(np.sum(~alive & ~private)), "private": int(np.sum(private))}
        flagged = tombstones(self.key, client.name, table.filter(private)[RECORD].to_pylist())
        held = self._held(client) if private.any() else frozenset()
        alive &= ~private
        with client.writing():
            shards.write(table if alive.all() else table.filter(alive), _incoming(client.path))
        must_go = [name for name in flagged if name in held]
        return Answer(client.name, {"rows": int(np.sum(alive)), **counts, "found": found, "must_go": must_go})

    def _held(self, client: Client) -> frozenset[str]:
        """The tombstones of what the present shard holds, whatever config it was written with."""
        if not client.path.exists():
            return frozenset()
        return frozenset(tombstones(self.key, client.name, read_parquet(client.path, [RECORD])[RECORD].to_pylist()))


def _without_flags(table: Any) -> tuple[Any, Any]:
    """A table in the columns of a shard, and which rows are private, (n,) bool."""
    if PRIVATE not in table.column_names:
        return table, np.zeros(table.num_rows, dtype=bool)
    private = table[PRIVATE].to_numpy(zero_copy_only=False).astype(bool)
    return table.drop_columns([PRIVATE]), private


def _incoming(path: Path) -> Path:
    return path.with_suffix(".incoming")


@dataclass(frozen=True, slots=True)
class CommitShard(EachClient):
    """Make the imported shard the client's own, or throw it away."""

    keep: bool

    def perform(self, client: Client) -> Answer:
        """Rename the file set aside over the shard; a shard without rows is no shard."""
        incoming = _incoming(client.path)
        with client.writing():
            if not self.keep:
                with contextlib.suppress(FileNotFoundError):
                    incoming.unlink()
                return Answer(client.name, {})
            if incoming.exists():
                incoming.replace(client.path)
                client.reload()
            if client.has_shard and not len(client.shard):
                client.path.unlink()
                client.reload()
        return Answer(client.name, {"held": client.has_shard})


@dataclass(frozen=True, slots=True)
class DiscardShard(EachClient):
    """Remove the shard of a client that the source no longer has."""

    def perform(self, client: Client) -> Answer:
        """Unlink the shard."""
        with client.writing():
            client.path.unlink(missing_ok=True)
        client.reload()
        return Answer(client.name, {})


@dataclass(frozen=True, slots=True)
class DescribeShard(EachClient):
    """Say what is held: rows, rows by split, classes, the digest of the shard."""

    def perform(self, client: Client) -> Answer:
        """Counts, class names and digests."""
        if not client.has_shard:
            return Answer(
                client.name, {"rows": 0, "splits": {}, "slices": [], "classes": [], "policy": "", "digest": ""}
            )
        shard = client.shard
        labels = sorted(set(shard.target.tolist())) if shard.target.dtype.kind != "f" else []
        counts = np.bincount(shard.split, minlength=len(SPLITS))
        record = {
            "rows": len(shard),
            "splits": {name: int(count) for name, count in zip(SPLITS, counts, strict=True)},
            "slices": list(client.groups(0)),
            "classes": labels,
            "policy": client.network.digest if client.network else "",
            "digest": client.digest,
        }
        return Answer(client.name, record)


@dataclass(frozen=True, slots=True)
class ComputeStatistics(EachClient):
    """Send the sums of all records to fit, at full influence, and of the validation records."""

    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Packed sums in the payload."""
        fit, validation = (client.split_total(split, self.outputs) for split in ("fit", "validation"))
        payload = {"H": pack(fit.G), "b": fit.b, "Hv": pack(validation.G), "bv": validation.b}
        payload["scalars"] = np.array([fit.n, validation.n, validation.c], dtype=np.float64)
        return Answer(client.name, {"rows": len(client.shard)}, payload)


@dataclass(frozen=True, slots=True)
class LoadPolicy(EachClient):
    """Take a policy over; it stays with the client until another one comes."""

    lasting: ClassVar[bool] = True
    network: Network

    def perform(self, client: Client) -> Answer:
        """Keep the policy."""
        client.network = self.network
        return Answer(client.name, {})


@dataclass(frozen=True, slots=True)
class PackedStatistics:
    """The federation's sums at full influence on their way to clients: `H` packed, `b` (d, outputs)."""

    n: int
    H: Float
    b: Float

    @staticmethod
    def of(total: Statistics) -> PackedStatistics:
        """Pack."""
        return PackedStatistics(total.n, pack(total.G), total.b)

    def open(self) -> Statistics:
        """Unpack."""
        return Statistics(self.n, unpack(self.H, len(self.b)), self.b, 0.0)


@dataclass(frozen=True, slots=True)
class SelectInfluences(EachClient):
    """Choose influences for the client's slices, given the sums of the federation, and send the weighted sums.

    The choice rests on the records that are there, the config and the policy file alone.
    """

    outputs: tuple[str, ...]
    total: PackedStatistics

    def perform(self, client: Client) -> Answer:
        """Influences and losses in the record; packed sums in the payload, where they differ from
        `ComputeStatistics`."""
        slices = client.slices("fit", self.outputs)
        record: dict[str, Any] = {"rows": len(client.shard)}
        if not slices:
            nothing: dict[str, Any] = {
                "influence": {},
                "chosen_by": "keep",
                "losses": {},
                "slices": {},
                "modalities": {},
                "refits": 0,
            }
            return Answer(client.name, record | nothing)
        task = client.task(slices, self.total.open(), self.outputs)
        policy = client.config.policy
        decision = decide(task, client.network, policy.selector, policy.margin, policy.steps, policy.budget)
        muting = self._muted(client, task, decision)
        below = muting.below(task, client.blocks) if muting else {}
        influence = muting.influence if muting else decision.influence
        record |= {
            "influence": dict(zip(task.keys, influence.tolist(), strict=True)),
            "chosen_by": decision.chosen_by,
            "losses": dict(decision.losses) | ({"muted": muting.loss} if muting else {}),
            "slices": _explained(task, decision, client.blocks, muting),
            "modalities": below,
            "refits": decision.refits + (muting.refits if muting else 0),
        }
        if np.all(influence == 1.0) and not below:
            return Answer(client.name, record)
        parts = (
            contribution(slices[key], float(i), below.get(key, {}), client.blocks)
            for key, i in zip(task.keys, influence, strict=True)
            if i != 0.0
        )
        sums = Statistics.total(parts, len(self.total.b), len(self.outputs))
        return Answer(client.name, record, {"H": pack(sums.G), "b": sums.b})

    def _muted(self, client: Client, task: SelectionProblem, decision: Decision) -> Muting | None:
        """A second look at every slice, modality by modality, where there are several and anything is to be chosen."""
        policy = client.config.policy
        if policy.selector == "keep" or not client.config.optional or task.validation.n == 0:
            return None
        return mute(task, decision.influence, client.blocks, policy.margin)


def _explained(
    task: SelectionProblem, decision: Decision, names: Collection[str], muting: Muting | None
) -> dict[str, Any]:
    """What was seen of each slice, for the tracker: aggregates only."""
    columns = zip(task.keys, task.n, decision.rows.tolist(), decision.pool.tolist(), strict=True)
    seen: dict[str, Any] = {key: {"records": int(n), "features": row, "pool": pool} for key, n, row, pool in columns}
    if muting is not None:
        for key, scores, q in zip(task.keys, muting.scores.tolist(), muting.modality.tolist(), strict=True):
            seen[key]["modalities"] = {
                name: {"influence": i, "score": score} for name, i, score in zip(names, q, scores, strict=True)
            }
    return seen


@dataclass(frozen=True, slots=True)
class MeasureErrors(EachClient):
    """How good heads (d, outputs) are on the client's own validation, later and test records."""

    heads: Mapping[str, Float]
    outputs: tuple[str, ...]

    def perform(self, client: Client) -> Answer:
        """Sums of errors by head and split, so that the centre can average over records."""
        record: dict[str, Any] = {name: {} for name in self.heads}
        for code, split in enumerate(SPLITS[1:], start=1):
            rows = np.flatnonzero(client.shard.split == code)
            phi = client.encoded(client.shard.modalities, rows)
            y = client.shard.target[rows]
            for name, W in self.heads.items():
                record[name][split] = errors_of(phi @ W, y, self.outputs)
        return Answer(client.name, record)


def errors_of(predicted: Float, y: Any, outputs: tuple[str, ...]) -> dict[str, float]:
    """Sums of errors over records: hits of a classification; squares and absolute values of a regression."""
    if y.dtype.kind != "f":
        hits = np.array(outputs)[np.argmax(predicted, axis=1)] == y if len(y) else np.zeros(0)
        return {"n": len(y), "correct": int(np.sum(hits))}
    error = predicted - targets(y, outputs)
    return {"n": len(y), "square": float(np.sum(error * error)), "absolute": float(np.sum(np.abs(error)))}


@dataclass(frozen=True, slots=True)
class LocateRecords(EachClient):
    """Search the shard for what requests mean; answer with counts and the tombstones of what was found."""

    requests: Mapping[str, Selection]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Rows looked through; for each request that means any, keyed hashes."""
        if not client.has_shard:
            return Answer(client.name, {"held": False, "searched": 0, "found": {}})
        shard = client.shard
        rows = shard.find(self.requests, client.name, client.config)
        found = {
            request: list(tombstones(self.key, client.name, shard.ids[hits].tolist())) for request, hits in rows.items()
        }
        return Answer(client.name, {"held": True, "searched": len(shard), "found": found})


@dataclass(frozen=True, slots=True)
class ScanShard(EachClient):
    """Count the records in the shard that have a tombstone: after a purge there must be none."""

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Read the shard from disk again, not from memory."""
        client.reload()
        tombstoned = self.tombstones.get(client.name, frozenset())
        left = int(np.sum(_tombstoned(client, self.key, tombstoned))) if client.has_shard and tombstoned else 0
        return Answer(client.name, {"rows": len(client.shard) if client.has_shard else 0, "left": left})


@dataclass(frozen=True, slots=True)
class PurgeShard(EachClient):
    """Rewrite the shard without the records that have a tombstone; doing it twice is doing it once."""

    tombstones: Mapping[str, frozenset[str]]
    key: bytes = field(repr=False)

    def perform(self, client: Client) -> Answer:
        """Counts: rows dropped, rows left."""
        tombstoned = self.tombstones.get(client.name, frozenset())
        if not client.has_shard or not tombstoned:
            return Answer(client.name, {"dropped": 0, "rows": len(client.shard) if client.has_shard else 0})
        rows = _tombstoned(client, self.key, tombstoned)
        if rows.any():
            client.drop(rows)
        return Answer(client.name, {"dropped": int(rows.sum()), "rows": len(client.shard) if client.has_shard else 0})


def _tombstoned(client: Client, key: bytes, tombstoned: frozenset[str]) -> Any:
    return np.array([name in tombstoned for name in client.tombstones(key)], dtype=bool)


@dataclass(frozen=True, slots=True)
class EnvStep:
    """One step of an episode at one client.

    `seed` names the task, `influence` what to refit with (None: keep all), `step` the share of steps taken, `look`
    whether an observation is wanted as well. With `search` the client first ascends its validation loss from there,
    in so many refits. `round` counts from 0, the round in which the refit takes place; `enter` says that it was the
    last of that round: the next slices enter, at full influence, and what is seen then is of the round to come.
    """

    seed: int
    influence: tuple[float, ...] | None
    step: float
    look: bool
    search: int = 0
    round: int = 0
    enter: bool = False


@dataclass(frozen=True, slots=True)
class Rollout(EachClient):
    """Steps of RL episodes: the client disturbs some of its slices by the seed, refits, and tells what it sees.

    The answer holds an observation (aggregates), the influences, the loss on the later records under them and under
    full influence, and which slices were disturbed, for the account of precision and recall.

    With several `rounds` the slices stand in a line of time and arrive as they did: a round judges by the records that
    arrived after those it fits, and is rewarded on those that came after them, before anybody fitted them; the last
    round by the validation and the later records. (Prequential: Dawid, "The prequential approach", JRSS A, 1984.)
    """

    moves: Mapping[str, tuple[EnvStep, ...]]
    outputs: tuple[str, ...]
    total: PackedStatistics
    max_slices: int
    rounds: int = 1

    def perform(self, client: Client) -> Answer:
        """One entry a move."""
        moves = self.moves.get(client.name, ())
        return Answer(client.name, {"steps": [self._step(client, move) for move in moves]})

    def _step(self, client: Client, move: EnvStep) -> dict[str, Any]:
        name = (move.seed, self.max_slices, self.rounds)
        rounds = client.rehearsals.get(name)
        if rounds is None:
            while len(client.rehearsals) >= max(1, REHEARSALS // self.rounds):
                client.rehearsals.pop(next(iter(client.rehearsals)))
            rounds = client.rehearsals[name] = self.episode(client, move.seed)
        kind, hit, task, kept, keep = rounds[move.round]
        here = kept if move.influence is None else fit(task, np.array(move.influence))
        if move.search:
            here = ascend(RefitCounter(task, Budget()), here, move.search)
        reached = loss(here.W, task.later)
        first = None
        if move.enter:
            kind, hit, task, kept, keep = rounds[move.round + 1]
            here = fit(task, np.concatenate([here.influence, np.ones(len(task) - len(here.influence))]))
            first = observe(task, kept, 0.0, kept.loss)
        look = observe(task, here, move.step, kept.loss) if move.look else None
        return {
            "kind": kind,
            "keys": task.keys,
            "hit": [key in hit for key in task.keys],
            "by_itself": task.by_itself,
            "influence": here.influence,
            "rows": look and look.rows,
            "relation": look and look.relation,
            "first": first and (first.rows, first.relation),
            "loss": reached,
            "keep": keep,
            "rounds": len(rounds),
        }

    def rehearse(self, client: Client, seed: int, kind: str | None = None, whole: bool = False) -> Rehearsal:
        """The last round of an episode: the only one, where there is one."""
        return self.episode(client, seed, kind, whole)[-1]

    def episode(self, client: Client, seed: int, kind: str | None = None, whole: bool = False) -> tuple[Rehearsal, ...]:
        """A task over some newest slices of the client, a few of them disturbed, drawn from the seed alone.

        The kind may be given, and `whole` takes as many slices as there may be. One entry a round; where there are too
        few slices for all rounds, fewer.
        """
        rng = np.random.Generator(np.random.PCG64(seed))
        slices = client.slices("fit", self.outputs)
        keys = sorted(slices)[-self.max_slices :]
        if not whole:
            keys = keys[-int(rng.integers(min(4, len(keys)), len(keys) + 1)) :]
        kind, hit = draw(keys, rng, kind)
        chosen = dict(slices)
        groups = client.groups(0)
        for key in hit:
            modalities = {name: X[groups[key]] for name, X in client.shard.modalities.items()}
            y = client.shard.target[groups[key]]
            chosen[key] = client.statistics(*disturb(kind, modalities, y, rng), self.outputs)
        borders = arrivals(len(keys), self.rounds)
        # What judges and what rewards is as it was recorded: a disturbance is of what is fitted.
        blocks = [tuple(slices[key] for key in keys[first:last]) for first, last in pairwise(borders)]
        blocks += [client.parts(self.outputs), (client.split_total("later", self.outputs),)]
        shape = (len(self.total.b), len(self.outputs))
        total, found = self.total.open(), []
        for number, border in enumerate(borders):
            task = client.task({key: chosen[key] for key in keys[:border]}, total, self.outputs)
            if border < len(keys):
                judge, reward = (Statistics.total(block, *shape) for block in blocks[number : number + 2])
                task = replace(task, validation=judge, parts=blocks[number], later=reward)
            kept = fit(task, task.keep)
            found.append((kind, frozenset(hit) & frozenset(keys[:border]), task, kept, loss(kept.W, task.later)))
        return tuple(found)


def arrivals(slices: int, rounds: int) -> list[int]:
    """How many of the slices, in the order of time, are there in each round: the last number is all of them.

    An episode begins with at least two slices, and about half, and so may have fewer rounds than are asked for.

    >>> arrivals(12, 1), arrivals(12, 3), arrivals(3, 4), arrivals(1, 4)
    ([12], [8, 10, 12], [2, 3], [1])
    """
    rounds = min(rounds, max(1, slices - 1))
    width = max(1, slices // (2 * rounds))
    return [slices - (rounds - 1 - number) * width for number in range(rounds)]
