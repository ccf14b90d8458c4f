"""What leaves a client: counts, sums over slices, keyed hashes; never a row.

Everything that a host answers passes through `Host.answer`, in process and on an actor alike, and what a site says of
its disk through `SiteDirectory.run_at_sites`, where it is caught: through training, a drain, attacks on the receipt,
and the training of a policy. No answer may hold the id of a record, a person, or a cell of a row - raw, scaled, or
encoded - to the last bit.

What sums say of rows is another matter, and no test can deny it. The sums of one record are that record's encoding,
and from the sums of a few much can be told; slices here have dozens. Where a "relu" feature is not zero for one record
alone, its sum is that record's value, which happens here and is passed over below. An error that stops an import names
the cell at fault.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import CONFIG, put

from frmu import api
from frmu.clients.client import Client, Host
from frmu.clients.tasks.task import EachClient
from frmu.config import Config
from frmu.data.shard import Shard, clients_in, path_of
from frmu.federation import Answer
from frmu.models.encoders import blocks, encode, encoders
from frmu.policy.training import context_of, train_policy
from frmu.runtime.local import LocalFederation
from frmu.selection.network import current_policy
from frmu.services.sites import SiteDirectory
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Answer]]:
    """Every answer from here on, and the work it is to."""
    caught: list[tuple[str, Answer]] = []
    answer = Host.answer

    def heard(host: Host, work: Any, names: Any) -> list[Answer]:
        answers = answer(host, work, names)
        caught.extend((type(work).__name__, one) for one in answers)
        return answers

    run_at_sites = SiteDirectory.run_at_sites

    def told(sites: SiteDirectory, task: Any) -> Any:
        found, away = run_at_sites(sites, task)
        caught.extend((type(task).__name__, Answer(site, {"found": repr(one)})) for site, one in found.items())
        return found, away

    monkeypatch.setattr(Host, "answer", heard)
    monkeypatch.setattr(SiteDirectory, "run_at_sites", told)
    return caught


CONTINUOUS = ("temperature", "humidity", "yesterday")


@dataclass(frozen=True)
class Private:
    """What must not leave: words by a pattern, cells by their bits, and what the grid makes of a record together.

    A value on the grid alone tells of no row: sums hit it by chance. All of one record's would.
    """

    words: re.Pattern[str]
    cells: np.ndarray
    encoded: np.ndarray  # (records, columns)

    @staticmethod
    def of(config: Config, table: pd.DataFrame) -> Private:
        """The rows of a federation as users, shards and encoders have them.

        A value that a column has twice, as a sine of the hour, tells of no row.
        """
        encoded: list[np.ndarray] = []
        columns = [table[name].to_numpy(np.float64) for name in ("temperature", "humidity", "load")]
        for client in clients_in(config.folder / "shards"):
            shard = Shard.read(path_of(config.folder / "shards", client), config)
            columns += [column for X in shard.modalities.values() for column in X.T]
            columns.append(shard.target)
            found = encode(shard.modalities, encoders(config))[:, blocks(config)["weather"]]
            encoded.append(found[:, -len(CONTINUOUS) - 2 : -2])  # before presence and whether there was a yesterday
        found = [np.unique(column, return_counts=True) for column in columns]
        once = np.unique(np.concatenate([values[counts == 1] for values, counts in found]))
        words = {re.escape(word) for word in (*table.person.unique(), *table.record)}
        pattern = re.compile(rf"(?<![\w-])({'|'.join(sorted(words))})(?![\w-])")
        return Private(pattern, once, np.concatenate(encoded))

    def in_(self, answer: Answer) -> str:
        """What of it is in an answer; empty where nothing is."""
        text = json.dumps(answer.record, default=_plain)
        for array in (answer.payload or {}).values():
            if array.dtype.kind != "f":
                if not _sums_of_several(array):
                    return f"an array of {array.dtype} that is no sum over several records"
            elif rows := np.isin(self.encoded, array).all(axis=1).sum():
                return f"{rows} encoded records in an array of shape {array.shape}"
            elif hits := np.isin(array.astype(np.float64), self.cells).sum():
                return f"{hits} cells in an array of shape {array.shape}"
        if found := self.words.search(text):
            return f'the word "{found[1]}"'
        numbers = np.array([float(each) for each in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)])
        return f"{hits} cells in the record" if (hits := np.isin(numbers, self.cells).sum()) else ""


def _sums_of_several(array: np.ndarray) -> bool:
    """Packed sums begin with how many records there are, in steps of weight."""
    D = (np.sqrt(8.0 * array.size + 1.0) - 1.0) / 2.0
    return bool(array.dtype in (np.int32, np.int64) and array.ndim == 1 and int(D) == D and abs(int(array[0])) != 1)


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value)


def of_persons(folder: Path, table: pd.DataFrame) -> tuple[Config, pd.DataFrame]:
    table = table.assign(person=[f"person-{name}" for name in table.person])
    return put(folder, table, f"{CONFIG}\n[policy]\nsamples = 64\nenv_runners = 0\n"), table


@pytest.fixture
def trained(tmp_path: Path, table: pd.DataFrame, wire: list[tuple[str, Answer]]) -> tuple[Config, Private]:
    config, rows = of_persons(tmp_path / "homes", table)
    with api.Experiment(config, "local") as experiment:
        experiment.train()
    return config, Private.of(config, rows)


def works(wire: list[tuple[str, Answer]]) -> set[str]:
    return {name for name, _ in wire}


def leaks(wire: list[tuple[str, Answer]], private: Private) -> set[str]:
    return {f"{name} of {answer.client}: {found}" for name, answer in wire if (found := private.in_(answer))}


def test_no_row_leaves_a_client_in_its_life(trained: tuple[Config, Private], wire: list[tuple[str, Answer]]) -> None:
    config, private = trained
    receipt = api.erase(config, Selection("subject", subject="person-p2"))["request"]
    api.erase(config, Selection("records", records=("h0-1", "h1-7")))
    with api.Experiment(config, "local") as experiment:
        assert experiment.drain()["verified"]
        assert experiment.verify(receipt, "L3")["proofs"]
    assert works(wire) >= {
        "StageShard", "DescribeShard", "ComputeStatistics", "SelectInfluences", "MeasureErrors", "LocateRecords",
        "PurgeShard", "Shadow", "Pairs", "Plant", "Recall", "Strike", "TakeInventory",
    }  # fmt: skip
    assert len(private.cells) > 10_000
    assert not leaks(wire, private)


@pytest.fixture
def ray_is_up() -> Iterator[None]:
    """RLlib asks for it, though the clients are here."""
    from frmu.runtime.connect import cluster

    with cluster(None):
        yield


def test_no_row_leaves_a_client_that_trains_a_policy(
    ray_is_up: None, trained: tuple[Config, Private], wire: list[tuple[str, Answer]]
) -> None:
    config, private = trained
    wire.clear()
    federation = LocalFederation(config, clients_in(config.folder / "shards"), config.folder)
    parent = current_policy(None, config.folder / "policies", {})
    learned = train_policy(config.policy, [context_of(config, federation)], parent, 1)
    assert learned.env_steps >= 64
    assert works(wire) >= {"DescribeShard", "ComputeStatistics", "Rollout"}
    assert not leaks(wire, private)


@dataclass(frozen=True)
class Leak(EachClient):
    """A work as it must not be: one row leaves."""

    how: str

    def perform(self, client: Client) -> Answer:
        shard = client.shard
        row, phi = shard.modalities["weather"][3], client.encoded(shard.modalities, slice(3, 4))
        sums = np.zeros((4, len(row)))
        sums[2] = row
        match self.how:
            case "scaled":
                return Answer(client.name, {}, {"H": sums})
            case "integers":
                return Answer(client.name, {}, {"H": client._integers(np.arange(3, 4), ("load",))[0]})
            case "encoded":
                return Answer(client.name, {}, {"H": np.concatenate([np.ones(5), phi[0]])})
            case "target":
                return Answer(client.name, {"loss": float(shard.target[3])})
            case "raw":
                return Answer(client.name, {"seen": {"2025-01": {"most": shard.table["temperature"][3].as_py()}}})
            case "id":
                return Answer(client.name, {"worst": [str(shard.ids[3])]})
        return Answer(client.name, {"who": shard.table["#subject"][3].as_py()})


@pytest.mark.parametrize("how", ["scaled", "integers", "encoded", "target", "raw", "id", "subject"])
def test_a_row_that_left_would_be_seen(
    trained: tuple[Config, Private], wire: list[tuple[str, Answer]], how: str
) -> None:
    config, private = trained
    wire.clear()
    list(LocalFederation(config, clients_in(config.folder / "shards"), config.folder).run(Leak(how)))
    assert len(leaks(wire, private)) == 4
