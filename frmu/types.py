"""The records that travel between the rooms of the house.

All are frozen. Arrays in them are float64 and C-ordered unless said otherwise; `d` is the length of an encoded
record, `outputs` the number of targets (1 for a regression, one a class otherwise), `K` the slices of a client.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "HEAD",
    "RESIDUALS",
    "ClientState",
    "Float",
    "Selection",
    "State",
    "Statistics",
    "Sums",
    "digest_of",
    "mirror",
]

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Statistics:
    """The sums of a set of records for a ridge head, so that sets add.

    `n` records, `G` = sum phi phi^T (d, d), `b` = sum phi y^T (d, outputs), `c` = sum |y|^2.
    """

    n: int
    G: Float
    b: Float
    c: float

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(self.n + other.n, self.G + other.G, self.b + other.b, self.c + other.c)

    def scaled(self, weight: float) -> Statistics:
        """Return the sums under an influence or an attention; `n` stays a count."""
        return Statistics(self.n, weight * self.G, weight * self.b, weight * self.c)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return int(self.G.nbytes + self.b.nbytes) + 16

    @staticmethod
    def zero(d: int, outputs: int) -> Statistics:
        """The statistics of no record."""
        return Statistics(0, np.zeros((d, d)), np.zeros((d, outputs)), 0.0)

    @staticmethod
    def total(parts: Iterable[Statistics], d: int, outputs: int) -> Statistics:
        """The sum, added in the order given: the caller fixes it, so that the bits are fixed.

        >>> one = Statistics(1, np.eye(2), np.ones((2, 1)), 1.0)
        >>> Statistics.total([one, one], 2, 1).c
        2.0
        """
        total = Statistics.zero(d, outputs)
        for part in parts:
            total = total + part
        return total


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of a set of records on the grid, M = sum z z^T, (D, D) of whole numbers: so sets add and subtract.

    M is symmetric, so `packed` is its upper triangle, (D (D + 1) / 2,), of int32 as long as that holds it, else int64.
    The first integer of every record is one, so the first entry counts the records. See `frmu.models.grid`.
    """

    packed: NDArray[Any]

    @staticmethod
    def of(M: NDArray[Any]) -> Sums:
        """The sums of a matrix (D, D) of whole numbers.

        >>> Sums.of(np.array([[1, 2], [2, 5]])).packed.tolist()
        [1, 2, 5]
        """
        return Sums(_narrow(M.reshape(-1)[_upper(len(M))]))

    @staticmethod
    def zero(D: int) -> Sums:
        """The sums of no record."""
        return Sums(np.zeros(D * (D + 1) // 2, dtype=np.int32))

    @property
    def n(self) -> int:
        """The number of records, each as often as its weight says."""
        return int(self.packed[0])

    @property
    def D(self) -> int:  # noqa: N802 - the symbol of the equations
        """The integers of a record."""
        return int((np.sqrt(8.0 * len(self.packed) + 1.0) - 1.0) / 2.0 + 0.5)

    @property
    def M(self) -> NDArray[np.int64]:  # noqa: N802 - the symbol of the equations
        """The whole matrix, (D, D) of int64.

        >>> Sums(np.array([1, 2, 5])).M.tolist()
        [[1, 2], [2, 5]]
        """
        return self.packed.astype(np.int64)[mirror(self.D)]

    def __add__(self, other: Sums) -> Sums:
        return Sums(_narrow(np.add(self.packed, other.packed, dtype=np.int64)))

    def __sub__(self, other: Sums) -> Sums:
        return Sums(_narrow(np.subtract(self.packed, other.packed, dtype=np.int64)))


def _narrow(packed: NDArray[Any]) -> NDArray[Any]:
    """Sums in 32 bits, if every entry fits, else in 64."""
    few = len(packed) == 0 or (packed.max() < 2**31 and packed.min() >= -(2**31))
    return packed.astype(np.int32 if few else np.int64)


@cache
def _upper(D: int) -> NDArray[np.intp]:
    """Return where the entries of the upper triangle are in a matrix (D, D), row by row."""
    return np.flatnonzero(np.triu(np.ones((D, D), dtype=bool)))


@cache
def mirror(D: int) -> NDArray[np.int32]:
    """Return where each entry of a symmetric matrix (D, D) is in its upper triangle."""
    at = np.zeros((D, D), dtype=np.int32)
    at.reshape(-1)[_upper(D)] = np.arange(D * (D + 1) // 2)
    return np.maximum(at, at.T)


HEAD = "W"  # the name of a ridge model's parameter
RESIDUALS = "residuals"  # of counts of what it misses, (outputs, cells): see `frmu.models.residuals`


@dataclass(frozen=True, slots=True)
class ClientState:
    """One client's place in a state: records per slice, influence per slice, attention.

    `modalities` holds the influence of a modality within a slice, by slice and modality, where it is below one.
    """

    name: str
    records: int
    attention: float
    influence: Mapping[str, float]
    chosen_by: str = "keep"
    modalities: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class State:
    """The learned state of a federation: a pure function of the records, the config and the policy file.

    `parameters` are arrays by name; that of a ridge model is `HEAD`, (d, outputs). `sums` is the digest of the
    integer sums that the head was solved from, empty where it was not. Nothing else steers a state, so two federations
    with equal digests are the same federation.
    """

    config: str
    policy: str
    outputs: tuple[str, ...]
    clients: tuple[ClientState, ...]
    parameters: Mapping[str, Float] = field(repr=False)
    sums: str = ""
    numerics: str = ""  # what solved for the head: its last bits are that library's and that processor's
    learned: Mapping[str, Any] = field(default_factory=dict)  # of learned features: what was chosen, as JSON types

    @property
    def W(self) -> Float:  # noqa: N802 - the symbol of the equations
        """The head, (d, outputs)."""
        return self.parameters[HEAD]

    @property
    def digest(self) -> str:
        """SHA-256 over every weight, and the integer sums that these gave.

        A head follows from those, and its last bits are the processor's; so they are left out. Where there are no such
        sums they count, in the order of the parameters' names.
        """
        return digest_of(self.header()) if self.sums else self.contents

    @property
    def contents(self) -> str:
        """SHA-256 over everything, the bits of the parameters among it: whether a file is whole."""
        return digest_of(self.header(), *(self.parameters[name] for name in sorted(self.parameters)))

    def header(self) -> dict[str, Any]:
        """Everything but the arrays, as plain JSON types; floats keep all their bits."""
        # A head alone goes without saying; and what a head misses follows from it, to its own last bits.
        names = set(self.parameters) - {RESIDUALS}
        named = {} if names == {HEAD} else {"parameters": sorted(names)}
        summed = {"sums": self.sums} if self.sums else {}
        learned = {"learned": dict(self.learned)} if self.learned else {}
        return (
            named
            | summed
            | learned
            | {
                "config": self.config,
                "policy": self.policy,
                "outputs": list(self.outputs),
                "clients": [
                    {
                        "name": client.name,
                        "records": client.records,
                        "attention": float(client.attention).hex(),
                        "influence": _hex(client.influence),
                        "chosen_by": client.chosen_by,
                    }
                    # A state in which every modality counts in full says nothing of modalities.
                    | (
                        {"modalities": {key: _hex(of) for key, of in client.modalities.items()}}
                        if client.modalities
                        else {}
                    )
                    for client in self.clients
                ],
            }
        )

    @staticmethod
    def from_header(header: Mapping[str, Any], parameters: Mapping[str, Float], numerics: str = "") -> State:
        """The inverse of `header`."""
        clients = tuple(
            ClientState(
                entry["name"],
                entry["records"],
                float.fromhex(entry["attention"]),
                _float(entry["influence"]),
                entry["chosen_by"],
                {key: _float(of) for key, of in entry.get("modalities", {}).items()},
            )
            for entry in header["clients"]
        )
        outputs, sums = tuple(header["outputs"]), header.get("sums", "")
        learned = header.get("learned", {})
        return State(header["config"], header["policy"], outputs, clients, parameters, sums, numerics, learned)


def _hex(values: Mapping[str, float]) -> dict[str, str]:
    return {key: float(value).hex() for key, value in values.items()}


def _float(values: Mapping[str, str]) -> dict[str, float]:
    return {key: float.fromhex(value) for key, value in values.items()}


def digest_of(header: Mapping[str, Any], *arrays: NDArray[Any]) -> str:
    """SHA-256 of a JSON header followed by the bytes of arrays.

    >>> digest_of({"a": 1}, np.zeros(2)) == digest_of({"a": 1}, np.zeros(2))
    True
    >>> digest_of({"a": 1}, np.zeros(2)) == digest_of({"a": 1}, np.zeros((2, 1)))
    False
    """
    sha = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for array in arrays:
        sha.update(str((array.dtype.str, array.shape)).encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()


@dataclass(frozen=True, slots=True)
class Selection:
    """The records that an erase request means; `client` narrows any kind to one client.

    `records` are record ids, `subject` a person, `between` a time window [from, to) in naive UTC, `slice` the key of
    a slice as `rule` cuts them, `where` an SQL-like filter on declared columns. A selection with only a client means
    all its records. One of kind "records" without ids means what was found when it was made, which the ledger knows
    by tombstones alone.
    """

    kind: Literal["records", "subject", "client", "between", "slice", "where"]
    client: str | None = None
    records: tuple[str, ...] = ()
    subject: str | None = None
    between: tuple[dt.datetime, dt.datetime] | None = None
    slice: str | None = None
    where: str | None = None
    rule: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        window = [moment.isoformat() for moment in self.between] if self.between else None
        return {
            "kind": self.kind,
            "client": self.client,
            "records": list(self.records),
            "subject": self.subject,
            "between": window,
            "slice": self.slice,
            "where": self.where,
            "rule": self.rule,
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Selection:
        """The inverse of `to_json`.

        >>> Selection.from_json(Selection("subject", subject="ada").to_json()).subject
        'ada'
        """
        window = raw["between"]
        between = (dt.datetime.fromisoformat(window[0]), dt.datetime.fromisoformat(window[1])) if window else None
        plain = {name: raw[name] for name in ("kind", "client", "subject", "slice", "where", "rule")}
        return Selection(**plain, records=tuple(raw["records"]), between=between)
