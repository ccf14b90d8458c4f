"""The server lets go of the sums of what was erased, though nobody tells it whose: it is told each shard's digest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import homes, put

from frmu.clients.tasks.erasure import PurgeShard
from frmu.clients.tasks.importing import CommitShard, StageShard
from frmu.config import Config
from frmu.data.tombstones import tombstones
from frmu.methods.agents import World
from frmu.methods.analytic import analytic
from frmu.methods.framu import Settings, Weights, framu
from frmu.methods.method import Method
from frmu.runtime.local import LocalFederation
from frmu.types import Float

KEY = b"k"


class Still:
    """Agents that find nothing: what a round makes of the records shows, and no learner is needed."""

    refits = 0

    def __init__(self, world: World) -> None:
        self.world = world

    def play(self) -> list[Float]:
        return [np.ones((len(keys), self.world.modalities)) for keys in self.world.keys]

    def weights(self) -> list[Weights]:
        return [{"w": np.zeros(1, dtype=np.float32)} for _ in self.world.names]

    def load(self, weights: Sequence[Weights]) -> None:
        pass

    def greedy(self, weights: Weights, rows: Float) -> Float:
        return np.ones(rows.shape[1])


@contextmanager
def still(world: World, settings: Settings) -> Iterator[Still]:
    yield Still(world)


METHODS: dict[str, Callable[[Config], Method]] = {"analytic": analytic, "framu": lambda config: framu(config, still)}


@pytest.mark.parametrize("name", sorted(METHODS))
@pytest.mark.parametrize("whole", [False, True], ids=["some records", "a whole client"])
def test_a_server_that_held_the_erased_gives_what_one_that_never_did(name: str, whole: bool, tmp_path: Path) -> None:
    config = put(tmp_path / "homes", homes(3))
    federation = LocalFederation(config, sorted(set(homes(3).home)), tmp_path / "shards")
    list(federation.run(StageShard({}, KEY)))
    list(federation.run(CommitShard(True)))
    method = METHODS[name](config)
    before = method.apply(federation, method.init(), None).state
    ids = [f"h1-{number}" for number in range(424 if whole else 200)]
    gone = {"home 1": frozenset(tombstones(KEY, "home 1", ids))}
    list(federation.run(PurgeShard(gone, KEY)))
    erased = method.erase(federation, before, None, ("home 1",), None)
    fresh = LocalFederation(config, federation.clients, tmp_path / "shards")
    never = method.apply(fresh, method.init(), None)
    assert erased.state.digest == never.state.digest != before.digest
    assert np.array_equal(erased.keep, never.keep)
    if name == "analytic":  # who lost nothing is not asked again
        assert erased.fitted == (() if whole else ("home 1",))
