"""The participants of each round, and what a state after some rounds follows from.

A client is drawn by a hash of its own name, so nobody's turn depends on who else is there: without a client the others
take part as they did. What a state after t rounds follows from is then the config, and the records of those who took
part in them: its **key** is a digest of these, and a checkpoint is good for as long as its key is. The same rule lets a
training that was killed go on, an erasure begin behind the rounds in which nobody who lost records took part, and a
training on new records begin where these come in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from frmu.config import Config
from frmu.models.weights import key_of
from frmu.modules.order import draws

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rounds of a training over clients, with the digests of their shards, by name; `about` is what else counts."""

    config: Config
    digests: Mapping[str, str]
    about: str
    _keys: list[str] = field(default_factory=list, init=False, repr=False)

    def participants(self, number: int) -> tuple[str, ...]:
        """The clients of a round, in the order of their names; one at least, where there is any."""
        model = self.config.model
        names = sorted(self.digests)
        if model.participation == 1.0 or not names:
            return tuple(names)
        keys = np.array([key_of(name, model.seed) for name in names], dtype=np.uint64)
        if model.schedule == "cohorts":
            cohorts = max(1, round(1.0 / model.participation))
            turn = number * cohorts // model.rounds
            drawn, mine = draws(keys, turn), draws(keys, -1) % np.uint64(cohorts) == turn
        else:
            drawn = draws(keys, number)
            mine = drawn < np.uint64(model.participation * 2.0**64)
        if not mine.any():
            mine[np.argmin(drawn)] = True
        return tuple(name for name, own in zip(names, mine.tolist(), strict=True) if own)

    def turns(self, rounds: int) -> dict[str, int]:
        """The rounds that each client took part in, of so many: bit t is round t."""
        if self.config.model.participation == 1.0:
            return dict.fromkeys(sorted(self.digests), 2**rounds - 1)
        found = dict.fromkeys(sorted(self.digests), 0)
        for number in range(rounds):
            for name in self.participants(number):
                found[name] |= 1 << number
        return found

    def key(self, rounds: int) -> str:
        """The key of a state after so many rounds."""
        if not self._keys:
            self._keys.append(hashlib.sha256(f"{self.config.fingerprint()}\n{self.about}".encode()).hexdigest())
        while len(self._keys) <= rounds:
            took_part = (f"{name}\0{self.digests[name]}" for name in self.participants(len(self._keys) - 1))
            self._keys.append(hashlib.sha256("\n".join([self._keys[-1], *took_part]).encode()).hexdigest())
        return self._keys[rounds]
