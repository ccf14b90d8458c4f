"""Lineage in MLflow: tags that say whose records a run carries, versions, what a purge found and removed."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = [
    "DETAIL",
    "HOLDS",
    "OF",
    "RUN",
    "Found",
    "Left",
    "Purged",
    "Version",
    "counted",
    "held",
    "holds_tags",
    "listed",
    "model_name",
    "row_of",
    "version_of",
]
HOLDS = "frmu.holds."
OF = "frmu.experiment"  # a code means a client within one experiment only
RUN = "frmu.run"  # the name that a run has before it has one in MLflow: one that was made is not made again
DETAIL = "frmu.detail"  # a run that holds numbers of single clients: removed whole
_VALUE = 4000  # characters of a tag value; MLflow takes 5000 at least


@dataclass(frozen=True, slots=True)
class Version:
    """One state in the registry."""

    number: str
    run_id: str
    tags: Mapping[str, str]

    @property
    def digest(self) -> str:
        """The digest of the state, as its tag says."""
        return self.tags.get("frmu.state_digest", "")


@dataclass(frozen=True, slots=True)
class Left:
    """The findings of a look at the store, as sentences: what carries a learned state, and what else remains."""

    carriers: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()

    @property
    def clean(self) -> bool:
        """Return whether nothing is left that a state could be read from."""
        return not self.carriers

    @property
    def survivors(self) -> tuple[str, ...]:
        """All of it."""
        return self.carriers + self.remains


@dataclass(frozen=True, slots=True)
class Purged:
    """The outcome of a purge: what it removed, and what the look after it still found."""

    runs: tuple[str, ...]
    artifacts: int
    versions: tuple[str, ...]
    left: Left
    outbox: int = 0  # files that waited for MLflow

    @property
    def survivors(self) -> tuple[str, ...]:
        """Return what is still there."""
        return self.left.survivors

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "runs": list(self.runs),
            "artifacts": self.artifacts,
            "outbox": self.outbox,
            "versions": list(self.versions),
            "clean": self.left.clean,
            "survivors": list(self.survivors),
        }


@dataclass(frozen=True, slots=True)
class Found:
    """The end of a lineage: runs, logged models, versions under any name, and the places of their files."""

    runs: tuple[Any, ...] = ()
    models: tuple[Any, ...] = ()
    versions: tuple[Any, ...] = ()
    places: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.runs or self.models or self.versions)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{version.name}/{version.version}" for version in self.versions)


def holds_tags(owners: Iterable[str]) -> dict[str, str]:
    """The tags that name the clients in a state, in values no longer than MLflow takes.

    >>> holds_tags(["00000002", "00000001"])
    {'frmu.holds.0': '00000001,00000002'}
    """
    codes = sorted(set(owners))
    size = _VALUE // (max(map(len, codes), default=0) + 1)
    return {f"{HOLDS}{at // size}": ",".join(codes[at : at + size]) for at in range(0, len(codes), size)}


def held(tags: Mapping[str, str]) -> set[str]:
    """The inverse of `holds_tags`; other tags say nothing.

    >>> sorted(held({"frmu.holds.0": "a,b", "frmu.holds.1": "c", "mlflow.runName": "d"}))
    ['a', 'b', 'c']
    """
    return {code for key, value in tags.items() if key.startswith(HOLDS) for code in value.split(",") if code}


def model_name(experiment: str) -> str:
    """A name that MLflow takes for a model; one that had to be changed gets a hash, so that two stay two.

    >>> model_name("homes")
    'homes'
    >>> model_name("a/b: c")
    'a_b_ c-212e4b'
    """
    plain = "".join("_" if ch in "/:'\"`\\%" or not ch.isprintable() else ch for ch in experiment)[:200]
    if plain == experiment and plain.strip(". "):
        return plain
    return f"{plain}-{hashlib.sha256(experiment.encode()).hexdigest()[:6]}"


def row_of(run: Any) -> str:
    """Return what the row of a run still says, by the first word of each metric's name."""
    groups = sorted({key.split("/")[0] for key in run.data.metrics})
    has = [f"{counted(run.data.metrics, 'number')} ({listed(groups)})"] if groups else []
    has += [counted(run.data.params, "parameter")] if run.data.params else []
    has += [counted(run.inputs.dataset_inputs, "named data set")] if run.inputs and run.inputs.dataset_inputs else []
    deleted = run.info.lifecycle_stage == "deleted"
    how = f"is only marked deleted (run `mlflow gc --run-ids {run.info.run_id}` on the server) and" if deleted else ""
    return f"run {run.info.run_id} ({run.info.run_name}) {how} keeps {', '.join([*has, 'its tags'])}".replace("  ", " ")


def version_of(row: Any) -> Version:
    """Return a row of the registry as a version."""
    return Version(str(row.version), row.run_id or "", dict(row.tags))


def counted(things: Collection[Any], noun: str) -> str:
    """Return how many there are, in words."""
    return f"{len(things)} {noun}{'' if len(things) == 1 else 's'}"


def listed(names: Collection[str]) -> str:
    """Return names in a line; the first few of many."""
    first = list(names)[:8]
    return ", ".join(first) + (f" and {len(names) - len(first)} more" if len(names) > len(first) else "")
