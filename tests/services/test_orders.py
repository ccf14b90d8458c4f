"""A closed request holds in whatever order it is asked, clients leave and join, shards come back, rounds and drains go.

After every step: no state has a record that a closed request means, and no receipt claims a client that was not
searched. A few orders by default, 500 with `pytest -m long tests/services/test_orders.py`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.ledger.request import OPEN
from frmu.services.participants import leave, rejoin
from frmu.storage.checkpoint import load_state
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

HOMES = ("home 0", "home 1", "home 2")
PERSONS = ("p1", "p2")


class Life:
    """A federation of three homes, and what a reader of its receipts may rely on."""

    def __init__(self, folder: Path, sites: bool, dice: random.Random) -> None:
        self.table = homes(3, seed=1)
        self.dice = dice
        self.said: list[str] = []
        self.asked: dict[str, str] = {}
        self.closed: set[str] = set()
        self.out: set[str] = set()
        self.work = {name: folder / name[-1] / "work" for name in HOMES}
        text = CONFIG
        for name in HOMES if sites else ():
            self.work[name].mkdir(parents=True)
            path = folder / name[-1] / "rows.parquet"
            self.table[self.table.home == name].to_parquet(path, index=False)
            text += f'\n[sites.s{name[-1]}]\npath = "{path}"\nfolder = "{self.work[name]}"\n'
        self.config: Config = put(folder, self.table, text)
        train(self.config)
        roots = [*self.work.values()] if sites else [self.config.folder]
        self.shards = {file: file.read_bytes() for root in roots for file in root.rglob("shards/*.parquet")}

    def step(self) -> None:
        deed = self.dice.choice(["ask", "leave", "join", "train", "train", "drain", "drain", "restore", "lose"])
        self.said.append(deed)
        try:
            getattr(self, deed)()
        except FrmuError as error:  # refused: nothing may have changed for the worse
            self.said[-1] += f" ({str(error)[:60]})"
        self.hold()

    def ask(self) -> None:
        person = self.dice.choice(PERSONS)
        self.asked[api.erase(self.config, Selection("subject", subject=person))["request"]] = person

    def leave(self) -> None:
        if len(self.out) < 2:
            name = self.dice.choice(HOMES)
            leave(self.config, name)
            self.out.add(name)

    def join(self) -> None:
        name = self.dice.choice(HOMES)
        rejoin(self.config, name)
        self.out.discard(name)

    def train(self) -> None:
        train(self.config)

    def drain(self) -> None:
        for receipt in drain(self.config)["receipts"]:
            missed = {name for name in HOMES if name not in receipt["searched"]}
            assert set(receipt["not_searched"]) == missed, self.said
            assert receipt["level"] == ("L5 of those searched" if missed else "L5"), self.said

    def restore(self) -> None:
        """A backup of the first shards comes back at one client, and whatever has a tombstone is removed again."""
        file, data = self.dice.choice(sorted(self.shards.items()))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        with api.Experiment(self.config, "local") as experiment:
            experiment.replay()

    def lose(self) -> None:
        """A disk dies with a shard on it; the records are still where they came from."""
        self.dice.choice(sorted(self.shards)).unlink(missing_ok=True)

    def hold(self) -> None:
        open_ = {row["request"] for row in api.requests(self.config, OPEN)}
        self.closed |= {person for request, person in self.asked.items() if request not in open_}
        state = load_state(self.config.folder / "state.safetensors")
        assert state is not None
        left = self.table[~self.table.person.isin(self.closed)]
        for client in state.clients:
            assert client.records <= int((left.home == client.name).sum()), (client.name, self.said)


def live(folder: Path, seed: int) -> None:
    dice = random.Random(seed)
    life = Life(folder, bool(seed % 2), dice)
    for _ in range(9):
        life.step()
    for name in sorted(life.out):  # everybody comes back in the end
        rejoin(life.config, name)
    train(life.config)
    life.said.append("all back, train")
    life.hold()


@pytest.mark.parametrize(
    "seed", [seed if seed < 4 else pytest.param(seed, marks=pytest.mark.cluster) for seed in range(20)]
)
def test_in_any_order(tmp_path: Path, seed: int) -> None:
    live(tmp_path / "homes", seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20, 500))
def test_in_many_orders(tmp_path: Path, seed: int) -> None:
    live(tmp_path / "homes", seed)
