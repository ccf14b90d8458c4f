"""Scenarios: real federations with records that are outdated, private or irrelevant, and the same ones without them.

What goes wrong happens in the file that the clients read, so that everything downstream meets it as in the field: a
lag carries a wrong value into the records after it, a faulty reading stays within the range of its meter.

- outdated: half of the clients; their oldest slices tell a relation that no longer holds (`stale`), or were read by a
  sensor that has been replaced since (`replaced`). Where there is no time, the first slices count as the oldest.
- irrelevant: half of the clients; a run or scatter of slices whose targets are noise, whose sensor was at `fault`,
  or whose records are of something else altogether (`off-domain`).
- private: a tenth of the subjects, or of the records where there are none, asked to be forgotten, at all clients.

`never` is retraining: a federation that did not have those records. Seeds take the variants of a kind in turn.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from frmu.clients.client import Client
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config, load
from frmu.data.parquet import gather, survey
from frmu.data.shard import Shard
from frmu.datasets import cached
from frmu.runtime.local import LocalFederation
from frmu.selection.disturbance import disturb, draw

__all__ = ["KEY", "SETS", "VARIANTS", "Scenario", "filled", "held", "scenario", "spoiled", "within", "written"]

SETS = {
    "energy": ("appliances", False),
    "traffic": ("traffic", False),
    "medical": ("medical", False),
    "flights + weather": ("flights", True),
    "six views": ("views", True),
    "text + numbers": ("notes", True),
}  # the data set, and whether its modalities stay apart
VARIANTS = {"outdated": ("stale", "replaced"), "irrelevant": ("noise", "fault", "off-domain"), "private": ("asked",)}
DISTURBANCES = {"stale": "stale", "replaced": "gain", "noise": "labels", "fault": "gain", "off-domain": "labels"}
SHARE = 0.1  # of the subjects, or records, that ask to be forgotten
KEY = b"bench"


@dataclass(frozen=True, slots=True)
class Scenario:
    """`federation` holds all records, `never` all but the `affected` ones, whose ids stand by client.

    In `folder` lie the shards of `federation`, for whoever has to change them.
    """

    config: Config
    kind: str
    variant: str
    seed: int
    federation: LocalFederation
    folder: Path
    affected: Mapping[str, frozenset[str]]
    never: Scenario | None

    @property
    def must_go(self) -> bool:
        """Return whether somebody has asked for it: then nobody is free to keep the records."""
        return self.kind == "private" and bool(self.affected)


@contextmanager
def scenario(name: str, kind: str, seed: int, cache: Path) -> Iterator[Scenario]:
    """One of `SETS` under one of the kinds; the same seed gives the same records."""
    rng = np.random.Generator(np.random.PCG64([seed, *name.encode(), *kind.encode()]))
    variant = VARIANTS[kind][seed % len(VARIANTS[kind])]
    source, apart = SETS[name]
    folder = cached(source, cache)
    config = load(folder / ("slots.toml" if (folder / "slots.toml").exists() else "config.toml"))
    config = config if apart else _merged(config)
    table = pd.read_parquet(folder / "data.parquet").reset_index(drop=True)
    hit = _asked(table, config, rng) if kind == "private" else _groups(table, config, kind, rng)
    gone = hit.notna()
    if kind != "private":
        table = _wrong(table, hit, config, variant, rng)
    with tempfile.TemporaryDirectory(prefix="frmu-") as scratch:
        roots = {which: Path(scratch) / which for which in ("with", "never")}
        never = filled(written(config, table[~gone], roots["never"]), roots["never"])
        other = Scenario(config, kind, variant, seed, never, roots["never"], {}, None)
        whole = filled(written(config, table, roots["with"]), roots["with"])
        columns = [config.data.client, config.data.record]
        affected = {
            str(client): frozenset(of.astype(str))
            for client, of in table.loc[gone, columns].groupby(columns[0])[columns[1]]
        }
        yield Scenario(config, kind, variant, seed, whole, roots["with"], affected, other)


def filled(config: Config, folder: Path) -> LocalFederation:
    """A federation in process that has imported the records of a config."""
    federation = LocalFederation(config, survey(config).clients, folder)
    list(federation.run(StageShard({}, KEY)))
    list(federation.run(CommitShard(True)))
    return federation


def held(federation: LocalFederation) -> list[Client]:
    """The clients that hold records, in the order of their names."""
    return [client for client in federation.host.clients(federation.clients) if client.has_shard]


def _merged(config: Config) -> Config:
    """Return the features as a single modality."""
    data = config.data.model_copy(update={"modalities": {"numbers": list(config.data.features)}})
    return config.model_copy(update={"data": data})


def written(config: Config, table: pd.DataFrame, folder: Path) -> Config:
    """Write records to a new folder; the config that reads them there."""
    folder.mkdir()
    table.to_parquet(folder / "data.parquet", index=False)
    return config.model_copy(update={"file": folder / "config.toml"})


def _asked(table: pd.DataFrame, config: Config, rng: np.random.Generator) -> pd.Series:
    """A slice for each record that must go, here the same for all; none for the others."""
    who = table[config.data.subject] if config.data.subject else pd.Series(table.index)
    names = np.sort(who.unique())
    chosen = rng.choice(names, max(1, round(SHARE * len(names))), replace=False)
    return pd.Series(None, table.index, dtype=object).mask(who.isin(chosen), "asked")


def _groups(table: pd.DataFrame, config: Config, kind: str, rng: np.random.Generator) -> pd.Series:
    """The slice of each record that is hit, by row; none for the others."""
    shards = {name: Shard(rows, config) for name, rows in gather(config, survey(config).clients).items()}
    names = sorted(shards)
    parts = []
    for name in sorted(rng.choice(names, (len(names) + 1) // 2, replace=False)):
        shard = shards[name]
        keys = sorted(set(shard.slices[shard.split == 0]))
        _, chosen = draw(keys, rng, "stale" if kind == "outdated" else "labels")
        rows = (shard.split == 0) & np.isin(shard.slices, chosen)
        parts.append(pd.DataFrame({"client": name, "record": shard.ids[rows], "slice": shard.slices[rows]}))
    hit = pd.concat(parts).set_index(["client", "record"])["slice"]
    rows = pd.MultiIndex.from_arrays([table[config.data.client].astype(str), table[config.data.record].astype(str)])
    return pd.Series(hit.reindex(rows).to_numpy(dtype=object), table.index)


def spoiled(
    table: pd.DataFrame, config: Config, variant: str, rng: np.random.Generator
) -> tuple[pd.DataFrame, pd.Series]:
    """The table with records gone wrong at half of the clients, and the slice of each record that is hit, by row.

    `variant` is one of an outdated or an irrelevant kind; the table is what the config's source holds.
    """
    kind = next(kind for kind, variants in VARIANTS.items() if variant in variants)
    hit = _groups(table, config, kind, rng)
    return _wrong(table, hit, config, variant, rng), hit


def _wrong(table: pd.DataFrame, hit: pd.Series, config: Config, variant: str, rng: np.random.Generator) -> pd.DataFrame:
    """The table with what is hit gone wrong: slice by slice, but a sensor that was replaced read alike all the time."""
    table, data = table.copy(), config.data
    piece = hit.where(hit.isna(), "all") if variant == "replaced" else hit
    for _, rows in table.groupby([table[data.client], piece]).groups.items():
        if variant == "off-domain":
            _strange(table, rows, config, rng)
        _, y = disturb(DISTURBANCES[variant], {}, table.loc[rows, data.targets[0]].to_numpy(), rng)
        table.loc[rows, data.targets[0]] = within(y, data.ranges.get(data.targets[0]))
    return table


def within(values: Any, limits: list[float] | None) -> Any:
    """Return what a meter can show."""
    return values if limits is None or values.dtype.kind != "f" else np.clip(values, limits[0], limits[1])


def _strange(table: pd.DataFrame, rows: pd.Index, config: Config, rng: np.random.Generator) -> None:
    """Records of something else: numbers from anywhere in a column's range, texts of other records."""
    for name in sorted(set(config.data.features) - set(config.data.lags)):  # each draws
        there = rows[table.loc[rows, name].notna()]
        if name in config.texts:
            table.loc[there, name] = rng.permutation(table[name].dropna().to_numpy())[: len(there)]
        else:
            low, high = config.data.ranges.get(name) or (table[name].min(), table[name].max())
            table.loc[there, name] = rng.uniform(low, high, len(there))
