"""The environment in which the slice policy learns: real clients, real records, exact refits.

A task is one client with some of its slices disturbed on purpose. The policy sees aggregates, sets influences
of all slices, and is rewarded by the exact refit on records *later* than those the aggregates come from:
rewarded on what it has seen, it could only equal the best rule. Half of the tasks begin with everything kept, half
where a short search on validation ended, so that it learns to refine what search finds. Several copies of the
environment play the same task side by side, and a reward counts against the copies' mean, so that easy and hard
tasks teach alike.

The environment knows the seam only: its clients may be in process or actors on a cluster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from frmu.client.work import Move, Packed, Play
from frmu.federation import Federation
from frmu.influence.network import LIMIT, influence_of
from frmu.influence.observation import FEATURES
from frmu.influence.selectors import SEARCH

__all__ = ["Board", "SliceEnv", "spaces"]

GROUP = 12  # copies that play the same task
CHAIN = 10  # tasks in one episode
MASK = 2 * len(FEATURES)


def spaces(most: int) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Observation and action space for at most `most` slices.

    An observation is (most + 1, 2 features + 1 + 2 most) float32, a row a slice: its features with everything kept, its
    features now, 1 where the row holds a slice, its relations to all slices with everything kept, and now. The last
    row has the client's number and 1 if nothing was disturbed; only the learner's account of attention scores
    reads it, never the network. An action is a logit a slice, (most,) float32; see `influence.network.influence_of`.
    """
    observation = gym.spaces.Box(-1e6, 1e6, (most + 1, MASK + 1 + 2 * most), np.float32)
    return observation, gym.spaces.Box(-LIMIT, LIMIT, (most,), np.float32)


@dataclass(frozen=True, slots=True)
class Board:
    """A federation to learn on: the clients to draw from, and what `Play` needs."""

    federation: Federation
    clients: tuple[str, ...]
    outputs: tuple[str, ...]
    total: Packed


@dataclass(slots=True)
class _Game:
    """A task under way: whose (a number over all boards), its seed, the step, what was seen with everything kept; per
    copy influences and last loss."""

    client: int
    seed: int
    step: int
    first: dict[str, Any]
    influence: list[NDArray[np.float64]]
    loss: list[float]


class SliceEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies, in groups that share a task; all end their episodes together.

    Tasks are drawn from the clients of all `boards`, with at most `most` slices. `steps` are the refinements of a
    task, `price` is what forgetting everything would cost, in the unit of the reward.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(
        self,
        boards: Sequence[Board],
        most: int,
        num_envs: int,
        steps: int = 1,
        price: float = 0.02,
        seed: int | Sequence[int] = 0,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces(most)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.boards = tuple(boards)
        self._clients = [(number, name) for number, board in enumerate(self.boards) for name in board.clients]
        self.most, self.steps, self.price = most, steps, price
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._games: list[_Game] = []
        self._played = 0
        self._over = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a task for each group."""
        if seed is not None:
            self._rng = np.random.Generator(np.random.PCG64(seed))
        self._played, self._over = 0, False
        return self._deal(), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Refit under the actions, (num_envs, most); reward each copy against its group."""
        never = np.zeros(self.num_envs, dtype=bool)
        if self._over:
            observation, _ = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), {}
        rewards, gains, looks = self._play(actions)
        # Rewards are relative to the group; what was truly gained goes into the infos, for the learning curve.
        infos = {"gain": gains, "_gain": np.ones(self.num_envs, dtype=bool)}
        if self._games[0].step < self.steps:
            return self._observation(looks), rewards, never, never.copy(), infos
        self._played += 1
        self._over = self._played >= CHAIN
        return self._deal(), rewards, np.full(self.num_envs, self._over), never, infos

    # -- the game ---------------------------------------------------------------------------------------------

    def _groups(self) -> list[range]:
        return [range(at, min(at + GROUP, self.num_envs)) for at in range(0, self.num_envs, GROUP)]

    def _deal(self) -> NDArray[np.float32]:
        """New tasks; one look at each."""
        drawn = [(int(self._rng.integers(len(self._clients))), int(self._rng.integers(2**31))) for _ in self._groups()]
        searched = self._rng.random(len(drawn)) < 0.5
        firsts = self._ask([(client, Move(seed, None, 0.0, True)) for client, seed in drawn])
        starts = list(firsts)
        where = [at for at, search in enumerate(searched) if search]
        for at, found in zip(where, self._ask([self._search(*drawn[at]) for at in where]), strict=True):
            starts[at] = found
        self._games, looks = [], []
        for (client, seed), first, start, group in zip(drawn, firsts, starts, self._groups(), strict=True):
            influence = [start["influence"]] * len(group)
            self._games.append(_Game(client, seed, 0, first, influence, [start["loss"]] * len(group)))
            looks += [start] * len(group)
        return self._observation(looks)

    @staticmethod
    def _search(client: int, seed: int) -> tuple[int, Move]:
        return client, Move(seed, None, 0.0, True, SEARCH)

    def _play(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64], list[Any]]:
        """One step of every copy: rewards, relative gains on later records, and what is seen afterwards."""
        moves = []
        for game, group in zip(self._games, self._groups(), strict=True):
            game.step += 1
            for copy, env in enumerate(group):
                logits = np.asarray(actions[env][: len(game.influence[copy])], dtype=np.float64)
                game.influence[copy] = influence_of(logits, game.first["by_itself"])
                look = game.step < self.steps
                moves.append(
                    (game.client, Move(game.seed, tuple(game.influence[copy]), game.step / (self.steps + 1), look))
                )
        answers = self._ask(moves)
        rewards, gains = np.zeros(self.num_envs), np.zeros(self.num_envs)
        for game, group in zip(self._games, self._groups(), strict=True):
            raw = [self._reward(game, copy, answers[env]["loss"]) for copy, env in enumerate(group)]
            spread = np.std(raw) + 0.2  # a task in which nothing matters is not blown up to one that does
            rewards[list(group)] = (np.array(raw) - np.mean(raw)) / spread
            gains[list(group)] = [1.0 - answers[env]["loss"] / (game.first["keep"] + 1e-12) for env in group]
        return rewards, gains, answers

    def _reward(self, game: _Game, copy: int, loss: float) -> float:
        """What the step gained on later records, in percent of keeping everything, squashed; less the price."""
        gain = np.arcsinh(100.0 * (game.loss[copy] - loss) / (game.first["keep"] + 1e-12))
        game.loss[copy] = loss
        return float(gain - self.price * np.mean(1.0 - game.influence[copy]))

    def _ask(self, moves: Sequence[tuple[int, Move]]) -> list[dict[str, Any]]:
        """One trip to the clients that are concerned; answers in the order of the moves."""
        where: dict[int, dict[str, list[int]]] = {}
        for at, (client, _) in enumerate(moves):
            number, name = self._clients[client]
            where.setdefault(number, {}).setdefault(name, []).append(at)
        answers: list[dict[str, Any]] = [{}] * len(moves)
        for number, by_client in where.items():
            board = self.boards[number]
            asked = {name: tuple(moves[at][1] for at in places) for name, places in by_client.items()}
            play = Play(asked, board.outputs, board.total, self.most)
            for reply in board.federation.run(play, on=sorted(by_client)):
                for at, answer in zip(by_client[reply.client], reply.record["steps"], strict=True):
                    answers[at] = answer
        return answers

    def _observation(self, looks: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        out = np.zeros((self.num_envs, *self.single_observation_space.shape), dtype=np.float32)
        features, most = len(FEATURES), self.most
        for game, group in zip(self._games, self._groups(), strict=True):
            for env in group:
                first, now, slices = game.first, looks[env], len(game.first["keys"])
                out[env, :slices, :features] = first["rows"]
                out[env, :slices, features:MASK] = now["rows"]
                out[env, :slices, MASK] = 1.0
                out[env, :slices, MASK + 1 : MASK + 1 + slices] = first["relation"]
                out[env, :slices, MASK + 1 + most : MASK + 1 + most + slices] = now["relation"]
                out[env, -1, :2] = game.client, first["kind"] == "none"
        return out
