"""The environment in which the slice policy learns: real clients, real records, exact refits.

A task is one client with some of its slices disturbed on purpose. The policy sees aggregates, sets influences
of all slices, and is rewarded by the exact refit on records *later* than those the aggregates come from:
rewarded on what it has seen, it could only equal the best rule. Half of the tasks begin with everything kept, half
where a short search on validation ended, so that it learns to refine what search finds.

A learner that tries actions needs something to compare them with: a group of copies of the environment meets the same
task side by side, and a reward counts against the group's mean, so that easy and hard tasks count alike. One that is
told the slope of the reward needs no copies: a group of one, and `infos` hand out after each step, of the action that
was taken, the slope by each influence (most,), where the task stood before and after it (`frmu.selection.reward`), and
whether the client is by itself.

A task may have several rounds: it begins with the older slices, and in each round newer ones enter, older ones age,
and influences may be changed; the reward of a round is on the stretch that follows it (`Rollout`).

The environment knows a source of tasks only: here the seam of a federation, whose clients may be in process or actors
on a cluster. One that does not answer ends the episode under way, and the next tasks are drawn from the others until it
is asked again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from frmu.clients.tasks.rollout import EnvStep, Rollout
from frmu.errors import ClientsUnavailableError
from frmu.federation import Federation
from frmu.selection.network import LIMIT, influence_of
from frmu.selection.observation import FEATURES
from frmu.selection.selectors import SEARCH
from frmu.types import Sums

__all__ = ["EnvContext", "SliceEnv", "TaskSource", "spaces"]

PAUSE = 30.0  # seconds before a client that did not answer is asked again
GROUP = 12  # copies that meet the same task, where actions are compared
HELD_OUT = 2**32  # training draws the seeds of its tasks below 2^31, `compare` its own just above
SEARCHES = (6, 12, SEARCH)  # refits of the search that a task begins with
TASKS_PER_EPISODE = 10  # tasks in one episode
MASK = 2 * len(FEATURES)


def spaces(max_slices: int) -> tuple[gym.spaces.Box, gym.spaces.Box]:
    """Observation and action space for at most `max_slices` slices.

    An observation is (most + 1, 2 features + 1 + 2 most) float32, a row a slice: its features with everything kept, its
    features now, 1 where the row holds a slice, its relations to all slices with everything kept, and now. The last
    row has the client's number and 1 if nothing was disturbed; only the learner's account of attention scores
    reads it, never the network. An action is a logit a slice, (most,) float32; see `influence.network.influence_of`.
    """
    observation = gym.spaces.Box(-1e6, 1e6, (max_slices + 1, MASK + 1 + 2 * max_slices), np.float32)
    return observation, gym.spaces.Box(-LIMIT, LIMIT, (max_slices,), np.float32)


class TaskSource(Protocol):
    """A source of tasks: names to draw from, what each weighs in an average, and who answers steps."""

    @property
    def clients(self) -> tuple[str, ...]:
        """The names to draw from."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The weight of each."""

    def rollout(
        self, env_steps: Mapping[str, tuple[EnvStep, ...]], max_slices: int, rounds: int
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """The answers to the steps of each client that is asked, as `frmu.clients.tasks.rollout.take` gives them.

        Raises `ClientsUnavailableError` where one does not answer.
        """


@dataclass(frozen=True, slots=True)
class EnvContext:
    """A federation to learn on: the clients to draw from, and what `Rollout` needs.

    `shares` are what the policies of the clients weigh when they are averaged: a_k n_k. `left_out` says, by client, how
    many older slices take no part.
    """

    federation: Federation
    clients: tuple[str, ...]
    outputs: tuple[str, ...]
    total: Sums
    shares: tuple[float, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)

    def rollout(
        self, env_steps: Mapping[str, tuple[EnvStep, ...]], max_slices: int, rounds: int
    ) -> Iterable[tuple[str, list[dict[str, Any]]]]:
        """One dispatch to the clients that are concerned; see `TaskSource`."""
        work = Rollout(env_steps, self.outputs, self.total, max_slices, rounds)
        for reply in self.federation.run(work, on=sorted(env_steps)):
            yield reply.client, reply.record["steps"]


@dataclass(slots=True)
class _Episode:
    """A task under way: whose (a number over all contexts), its seed, round and step; what was seen with everything
    kept in this round; per copy influences, last loss, and the reward of where it stands. `rounds` is how many there
    will be.
    """

    client: int
    seed: int
    first: dict[str, Any]
    influence: list[NDArray[np.float64]]
    loss: list[float]
    standing: list[float]
    rounds: int
    round: int = 0
    step: int = 0
    over: bool = False


class SliceEnv(VectorEnv[Any, Any, Any]):
    """`num_envs` copies, in groups of `group` that share a task; all end their episodes together.

    Tasks are drawn from the clients of all `contexts`, with at most `max_slices` slices. `steps` are the refinements
    of a round and `rounds` those of a task, `forget_penalty` is what forgetting everything would cost, in the unit of
    the reward. An episode is as long as `tasks_per_episode` tasks. A reward counts against the mean of the group of
    copies; a copy that is alone earns it as it is. With `held_out`, every reset deals the same tasks, which no training
    meets.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(
        self,
        contexts: Sequence[TaskSource],
        max_slices: int,
        num_envs: int,
        steps: int = 1,
        rounds: int = 1,
        forget_penalty: float = 0.02,
        seed: int | Sequence[int] = 0,
        tasks_per_episode: int = TASKS_PER_EPISODE,
        group: int = GROUP,
        held_out: bool = False,
    ) -> None:
        self.num_envs = num_envs
        self.single_observation_space, self.single_action_space = spaces(max_slices)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.contexts = tuple(contexts)
        self._clients = [(number, name) for number, context in enumerate(self.contexts) for name in context.clients]
        self._site: int | None = None
        self.turn = 0  # of those in which it is told where to draw from
        self.max_slices, self.steps, self.rounds, self.forget_penalty = max_slices, steps, rounds, forget_penalty
        self.tasks_per_episode, self.group, self.held_out = tasks_per_episode, group, held_out
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self._episodes: list[_Episode] = []
        self._observed: list[Any] = []
        self._taken = 0
        self._over = False
        self._away: dict[int, tuple[float, str]] = {}  # who did not answer: when to ask again, and why

    @property
    def away(self) -> tuple[str, ...]:
        """The names of the clients that did not answer when they were last asked."""
        return tuple(sorted(self._clients[client][1] for client in self._away))

    def only(self, client: int | None, turn: int = 0) -> None:
        """From the next reset on, draw tasks from one client alone, by its number over all contexts; None: all."""
        self._site, self.turn = client, turn

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a task for each group; raises `ClientsUnavailableError` where no client answers."""
        if self.held_out or seed is not None:
            self._rng = np.random.Generator(np.random.PCG64(0 if self.held_out else seed))
        self._taken, self._over = 0, False
        while True:
            self._episodes, self._observed = [], []
            try:
                self._deal()
            except ClientsUnavailableError as error:
                if not self._there():
                    raise self._nobody() from error
            else:
                return self._observation(), {}

    def step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Refit under the actions, (num_envs, most); reward each copy against its group."""
        never = np.zeros(self.num_envs, dtype=bool)
        if self._over:
            observation, _ = self.reset()
            return observation, np.zeros(self.num_envs), never, never.copy(), {}
        before = self._observation()
        try:
            return self._step(actions)
        except ClientsUnavailableError:  # the tasks of all copies go with it: they end here, and others begin
            self._over = True
            return before, np.zeros(self.num_envs), np.full(self.num_envs, True), never, {}

    def _step(
        self, actions: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        never = np.zeros(self.num_envs, dtype=bool)
        rewards, told = self._rollout(actions)
        self._taken += 1
        # A client with few slices has fewer rounds: one task is over with its own last round.
        ended = self.tasks_per_episode == 1 and all(episode.over for episode in self._episodes)
        self._over = ended or self._taken >= self.tasks_per_episode * self.steps * self.rounds
        if not self._over:
            self._deal()
        infos = told | {f"_{name}": np.ones(self.num_envs, dtype=bool) for name in told}
        return self._observation(), rewards, np.full(self.num_envs, self._over), never, infos

    # -- episodes -------------------------------------------------------------------------------------------------

    def _groups(self) -> list[range]:
        return [range(at, min(at + self.group, self.num_envs)) for at in range(0, self.num_envs, self.group)]

    def _deal(self) -> None:
        """A new task for each group that has none, or whose task is over; one observation of each."""
        groups = self._groups()
        free = [at for at in range(len(groups)) if not self._episodes or self._episodes[at].over]
        drawn = [(self._draw(), HELD_OUT * self.held_out + int(self._rng.integers(2**31))) for _ in free]
        searched = self._rng.random(len(drawn)) < 0.5
        refits = self._rng.choice(SEARCHES, len(drawn)).tolist()
        firsts = self._ask([(client, EnvStep(seed, None, 0.0, True)) for client, seed in drawn])
        starts = list(firsts)
        where = [at for at, search in enumerate(searched) if search]
        for at, found in zip(where, self._ask([_search(*drawn[at], refits[at]) for at in where]), strict=True):
            starts[at] = found
        episodes, observed = dict(enumerate(self._episodes)), dict(enumerate(self._observed))
        for at, (client, seed), first, start in zip(free, drawn, firsts, starts, strict=True):
            size = len(groups[at])
            influence, losses, standing = ([start[name]] * size for name in ("influence", "loss", "standing"))
            episodes[at] = _Episode(client, seed, first, influence, losses, standing, first["rounds"])
            observed |= dict.fromkeys(groups[at], start)
        self._episodes = [episodes[at] for at in range(len(groups))]
        self._observed = [observed[env] for env in range(self.num_envs)]

    def _draw(self) -> int:
        if not (there := self._there()):
            raise self._nobody()
        return there[int(self._rng.integers(len(there)))] if self._site is None else self._site

    def _nobody(self) -> ClientsUnavailableError:
        return ClientsUnavailableError.of({self._clients[client][1]: why for client, (_, why) in self._away.items()})

    def _there(self) -> list[int]:
        """The clients to draw from: without those that did not answer a moment ago."""
        now = time.monotonic()
        self._away = {client: until for client, until in self._away.items() if until[0] > now}
        among = range(len(self._clients)) if self._site is None else [self._site]
        return [client for client in among if client not in self._away]

    def _rollout(self, actions: NDArray[np.float32]) -> tuple[NDArray[np.float64], dict[str, NDArray[Any]]]:
        """One step of every copy: rewards, and what is told of each: see the module, and the gain on later records."""
        env_steps = []
        for episode, group in zip(self._episodes, self._groups(), strict=True):
            episode.step += 1
            for copy, env in enumerate(group):
                logits = np.asarray(actions[env][: len(episode.influence[copy])], dtype=np.float64)
                episode.influence[copy] = influence_of(logits, episode.first["by_itself"])
                env_steps.append((episode.client, self._env_step(episode, copy)))
        answers = self._ask(env_steps)
        told = self._told(answers)
        rewards = np.zeros(self.num_envs)
        for episode, group in zip(self._episodes, self._groups(), strict=True):
            raw = np.array([self._reward(episode, copy, answers[env]["loss"]) for copy, env in enumerate(group)])
            # A task in which nothing matters is not blown up to one that does.
            rewards[list(group)] = raw if len(raw) == 1 else (raw - raw.mean()) / (raw.std() + 0.2)
            episode.standing = [answers[env]["standing"] for env in group]
            self._turn(episode, [answers[env] for env in group])
        pairs = zip(self._observed, answers, strict=True)
        self._observed = [before if now["rows"] is None else now for before, now in pairs]
        return rewards, told

    def _told(self, answers: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
        """Rewards may be relative to a group, or bent; here is what a step truly did, copy by copy."""
        slope = np.zeros((self.num_envs, self.max_slices), dtype=np.float32)
        told = {name: np.zeros(self.num_envs, dtype=np.float32) for name in ("standing", "reached", "by_itself")}
        gain = np.zeros(self.num_envs)
        for episode, group in zip(self._episodes, self._groups(), strict=True):
            for copy, env in enumerate(group):
                answer = answers[env]
                slope[env, : len(answer["slope"])] = answer["slope"]
                told["standing"][env], told["reached"][env] = episode.standing[copy], answer["reached"]
                told["by_itself"][env] = episode.first["by_itself"]
                gain[env] = 1.0 - answer["loss"] / (episode.first["keep"] + 1e-12)
        return {"gain": gain, "slope": slope, **told}

    def _env_step(self, episode: _Episode, copy: int) -> EnvStep:
        """Return what a client is asked to do for one copy; where the task goes on, it observes at once."""
        ends = episode.step >= self.steps
        enter = ends and episode.round + 1 < episode.rounds
        # Where a task ends nobody learns from what is seen, but a copy that is alone shows it.
        observe = enter or not ends or self.num_envs == 1
        share = 0.0 if enter else episode.step / (self.steps + 1)
        return EnvStep(episode.seed, tuple(episode.influence[copy]), share, observe, round=episode.round, enter=enter)

    def _turn(self, episode: _Episode, answers: Sequence[dict[str, Any]]) -> None:
        """Begin the next round, or end the task, where its steps are done.

        The first step of a round is rewarded against keeping everything: copies come to it with influences of their
        own, and are compared all the same.
        """
        if episode.step < self.steps:
            return
        episode.over = episode.round + 1 >= episode.rounds
        if episode.over:
            return
        episode.round, episode.step = episode.round + 1, 0
        rows, relation = answers[0]["first"]
        episode.first = {**answers[0], "rows": rows, "relation": relation}
        episode.influence = [answer["influence"] for answer in answers]
        episode.loss = [episode.first["keep"]] * len(answers)

    def _reward(self, episode: _Episode, copy: int, loss: float) -> float:
        """Return what the step gained on later records, in percent of keeping everything, squashed; less the price."""
        gain = np.arcsinh(100.0 * (episode.loss[copy] - loss) / (episode.first["keep"] + 1e-12))
        episode.loss[copy] = loss
        return float(gain - self.forget_penalty * np.mean(1.0 - episode.influence[copy]))

    def _ask(self, env_steps: Sequence[tuple[int, EnvStep]]) -> list[dict[str, Any]]:
        """One dispatch to the clients that are concerned; answers in the order of the steps."""
        where: dict[int, dict[str, list[int]]] = {}
        for at, (client, _) in enumerate(env_steps):
            number, name = self._clients[client]
            where.setdefault(number, {}).setdefault(name, []).append(at)
        answers: list[dict[str, Any]] = [{}] * len(env_steps)
        for number, by_client in where.items():
            asked = {name: tuple(env_steps[at][1] for at in places) for name, places in by_client.items()}
            try:
                for name, said in self.contexts[number].rollout(asked, self.max_slices, self.rounds):
                    for at, answer in zip(by_client[name], said, strict=True):
                        answers[at] = answer
            except ClientsUnavailableError as gone:
                until = time.monotonic() + PAUSE
                self._away |= {self._clients.index((number, name)): (until, why) for name, why in gone.reasons.items()}
                raise
        return answers

    def _observation(self) -> NDArray[np.float32]:
        out = np.zeros((self.num_envs, *self.single_observation_space.shape), dtype=np.float32)
        features, max_slices = len(FEATURES), self.max_slices
        for episode, group in zip(self._episodes, self._groups(), strict=True):
            for env in group:
                first, now, slices = episode.first, self._observed[env], len(episode.first["keys"])
                out[env, :slices, :features] = first["rows"]
                out[env, :slices, features:MASK] = now["rows"]
                out[env, :slices, MASK] = 1.0
                out[env, :slices, MASK + 1 : MASK + 1 + slices] = first["relation"]
                out[env, :slices, MASK + 1 + max_slices : MASK + 1 + max_slices + slices] = now["relation"]
                out[env, -1, :2] = episode.client, first["kind"] == "none"
        # A client that answers with no number ends its episode's worth (`frmu.policy.slope`), not its run.
        return np.nan_to_num(out, copy=False)


def _search(client: int, seed: int, refits: int) -> tuple[int, EnvStep]:
    return client, EnvStep(seed, None, 0.0, True, refits)
