"""FRAMU to the letter: Algorithm 1, with our stated choice for each definition that it leaves open. A baseline.

    1-3  initialise local parameters w_k, global parameters W, scores A_ik        `Agents`, built with one W for all
    4    for t = 1 .. T                                                           `run`, `Settings.rounds`
    5-10 each agent k: observe s_ij, act, reward r, next s'_ij, TD error d, Q     `Agents.play`
    11   A_ikj <- A_ikj + eta |d|                                                 `gained`
    12   send w_k and A_ikj to the central server                                 `Agents.weights`
    13   each point i: if the mean of A_ikj over modalities and agents < theta:
         reduce the influence of i in the global model                            `mean_score`, `reduced`
    16   W <- sum_k (n_k / N) w_k, sent to the agents                             `averaged`
    18   each agent: w_k <- beta W + (1 - beta) w_k                               `mixed`
    19   stop when |P(W_t+1) - P(W_t)| < epsilon                                  `stops`

It is here to be measured beside the exact method, not to be improved: A grows with surprise of either sign and has
no scale, so a fixed theta reduces in the first rounds and fires no more; |d| knows no good from bad.

What is open, and our choice:

- *Point* i: a slice. A score for each record would leave the client and tell of a person. *Agent* k: a client.
  *Modality* j: those of the config. n_k: the client's records to fit.
- *State* s_ij: the aggregates of `influence.observation` for slice i, from the features of modality j alone.
- *Action* a_t: one a slice, for all its modalities - forget, attenuate, keep - by the mean of Q over them, epsilon
  greedy. All slices of all agents act at once; an agent goes on from the influences that it has set.
- *Reward*: by how much the validation loss of the exact refit falls if this slice alone is changed.
- *Next state* s'_ij: the row of the same slice after the turn. No state is terminal.
- *Local model* w_k: the parameters of Q. They are what is averaged (16) and mixed (18). The head needs neither: its
  sums add, so that it is global by itself, with every client by its n_k.
- *Mean over agents*: over all K, as printed. A slice sits at one agent, so its mean is A / K.
- *Reduce*: the influence 0.25, the attenuate of the actions. Judged anew in each round, in full otherwise.
- *Performance* P(W): validation loss saved against keeping everything, as a share, where each agent sets its slices
  by the greedy policy of W; the mean over agents by n_k / N.
- *Q*: a small network, the same at the start for every agent; alpha is the step of its optimiser on the Huber loss
  of d. Each transition is learned from once, as printed, then DQN replays some; replays touch no score.
- *theta, eta, beta, epsilon, T*: `Settings`.

History steers it: its result depends on seeds, on the order of draws and on scores of records that may have left. It
is not exact, it is never checkpointed, and no receipt rests on it; `frmu train` cannot choose it.

(Shaik et al., "FRAMU: Attention-based machine unlearning using federated reinforcement learning", IEEE TKDE 36(10),
2024; arXiv 2309.10283. Parameters by n_k / N: McMahan et al., FedAvg, AISTATS 2017.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from frmu.clients.tasks.framu import Seen, Trial, Weigh
from frmu.clients.tasks.importing import DescribeShard
from frmu.config import Config
from frmu.errors import FrmuError
from frmu.federation import Federation, Payload, in_order
from frmu.methods.agents import World, world_of
from frmu.methods.analytic import outputs_of
from frmu.methods.method import Method, Round, nothing_kept
from frmu.models.encoders import width
from frmu.models.grid import total
from frmu.models.ridge import solve
from frmu.models.statistics import basis_of, denominator
from frmu.selection.network import Network
from frmu.server.server import Server
from frmu.types import HEAD, ClientState, Float, State, Sums

__all__ = [
    "LEVELS",
    "Agents", "Outcome", "Settings", "averaged", "framu", "gained", "mean_score", "mixed", "reduced", "rows_of", "run",
    "stops",
]  # fmt: skip

Weights = Mapping[str, NDArray[np.float32]]
LEVELS = (0.0, 0.25, 1.0)  # forget, attenuate, keep


@dataclass(frozen=True, slots=True)
class Settings:
    """The symbols of Algorithm 1, as we choose them.

    `rounds` T, `alpha` the step of Q's optimiser, `gamma` the discount, `explore` the share of random actions,
    `replays` how many minibatches DQN replays after each turn (their errors touch no score), `reduce` the influence
    of line 13. theta was chosen with five clients of each of the three series that the shipped policy learned on:
    where line 19 stops, 59 to 70 % of the slices are below it, and of the values tried that fire it costs least.
    """

    rounds: int = 30
    alpha: float = 0.01
    gamma: float = 0.9
    explore: float = 0.2
    replays: int = 4
    eta: float = 0.1
    theta: float = 0.01
    reduce: float = LEVELS[1]
    beta: float = 0.5
    epsilon: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low, high in (("beta", 0, 1), ("reduce", 0, 1), ("gamma", 0, 1), ("explore", 0, 1)):
            if not low <= getattr(self, name) <= high:
                raise FrmuError(f"framu's {name} must be from {low} to {high}, got {getattr(self, name)}")
        if self.rounds < 1 or self.eta <= 0 or self.alpha <= 0:
            raise FrmuError(
                "framu's rounds must be at least 1, eta and alpha above 0, got "
                f"rounds {self.rounds}, eta {self.eta}, alpha {self.alpha}"
            )


# -- the lines ------------------------------------------------------------------------------------------------


def gained(A: Float, d: Float, eta: float) -> Float:
    """Line 11, for one agent: scores (K, modalities) and TD errors of the same shape.

    >>> gained(np.array([[1.0]]), np.array([[-2.0]]), eta=0.5)
    array([[2.]])
    """
    return np.asarray(A + eta * np.abs(d), dtype=np.float64)


def mean_score(A: Float, agents: int) -> Float:
    """Line 13, the mean over modalities and all agents, (K,), of scores (K, modalities) that sit at one agent.

    >>> mean_score(np.array([[1.0, 3.0]]), agents=4)
    array([0.5])
    """
    return np.asarray(A.mean(axis=1) / agents, dtype=np.float64)


def reduced(mean: Float, theta: float, to: float) -> Float:
    """Line 13, the influences (K,).

    >>> reduced(np.array([0.1, 0.9]), theta=0.5, to=0.25)
    array([0.25, 1.  ])
    """
    return np.where(mean < theta, to, 1.0)


def averaged(parameters: Sequence[Weights], n: Sequence[float]) -> Weights:
    """Line 16: W, the mean of the agents' parameters by n_k / N."""
    shares = np.asarray(n, dtype=np.float64) / np.sum(n)
    return {
        name: np.asarray(sum(share * w[name] for share, w in zip(shares, parameters, strict=True)), dtype=np.float32)
        for name in parameters[0]
    }


def mixed(W: Weights, w: Weights, beta: float) -> Weights:
    """Line 18: what an agent goes on with."""
    return {name: np.asarray(beta * W[name] + (1.0 - beta) * w[name], dtype=np.float32) for name in W}


def stops(performance: Sequence[float], epsilon: float) -> bool:
    """Line 19, on P of each round so far.

    >>> stops([0.10, 0.12], 0.01), stops([0.10, 0.1001], 0.01), stops([0.1], 0.01)
    (False, True, False)
    """
    return len(performance) > 1 and abs(performance[-1] - performance[-2]) < epsilon


class Agents(Protocol):
    """Q-learning agents of a world, one a client; `frmu.policy.framu` makes them with RLlib's DQN."""

    @property
    def refits(self) -> int:
        """Refits spent by turns so far."""

    def play(self) -> list[Float]:
        """Lines 5 to 10 for every agent, one turn: the TD errors d, (K, modalities) each, in the order of names."""

    def weights(self) -> list[Weights]:
        """The parameters w_k of each agent."""

    def load(self, weights: Sequence[Weights]) -> None:
        """Give each agent parameters."""

    def greedy(self, weights: Weights, rows: Float) -> Float:
        """The levels (K,) that the greedy policy of some parameters sets, for rows (modalities, K, features)."""


AgentsOf = Callable[[World, Settings], AbstractContextManager[Agents]]


# -- the algorithm --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome, in the order of the world's names.

    `influence` (K,) is line 13's, which is framu's answer; `greedy` (K,) what Q itself would set, shown beside it.
    `scores` (K, modalities) are the A. `history` has one entry a round: P, how many slices are below theta.
    """

    influence: tuple[Float, ...]
    greedy: tuple[Float, ...]
    scores: tuple[Float, ...]
    history: tuple[Mapping[str, float], ...]
    refits: int
    seconds: float

    @property
    def rounds(self) -> int:
        """Rounds until line 19, or T."""
        return len(self.history)


def run(world: World, settings: Settings, agents_of: AgentsOf) -> Outcome:
    """Algorithm 1 over the agents of a world."""
    began = time.perf_counter()
    first = world.ask({name: Trial((1.0,) * len(keys)) for name, keys in zip(world.names, world.keys, strict=True)})
    refits = sum(seen.refits for seen in first.values())
    A = [np.zeros((len(keys), world.modalities)) for keys in world.keys]
    history: list[Mapping[str, float]] = []
    with agents_of(world, settings) as agents:
        for _ in range(settings.rounds):  # 4
            d = agents.play()  # 5-10
            A = [gained(one, error, settings.eta) for one, error in zip(A, d, strict=True)]  # 11
            w = agents.weights()  # 12
            influence = [reduced(mean_score(one, len(A)), settings.theta, settings.reduce) for one in A]  # 13
            W = averaged(w, world.n)  # 16
            agents.load([mixed(W, one, settings.beta) for one in w])  # 18
            greedy = [agents.greedy(W, rows_of(first[name])) for name in world.names]
            performance, spent = _performance(world, first, greedy)
            refits += spent
            below = sum(int(np.sum(one < 1.0)) for one in influence)
            history.append({"performance": performance, "below": below, "surprise": _mean(d), "score": _mean(A)})
            if stops([entry["performance"] for entry in history], settings.epsilon):  # 19
                break
        refits += agents.refits
    seconds = time.perf_counter() - began
    return Outcome(tuple(influence), tuple(greedy), tuple(A), tuple(history), refits, seconds)


def rows_of(seen: Seen) -> Float:
    """The rows of a turn that looked, (modalities, K, features)."""
    if seen.rows is None:
        raise FrmuError("rows must be asked for at the first observation, got none")
    return seen.rows


def _mean(arrays: Sequence[Float]) -> float:
    return float(np.mean(np.concatenate([np.abs(array).ravel() for array in arrays])))


def _performance(world: World, first: Mapping[str, Seen], levels: Sequence[Float]) -> tuple[float, int]:
    """P, and the refits it took: one an agent."""
    trials = {
        name: Trial(tuple(level.tolist()), observe=False) for name, level in zip(world.names, levels, strict=True)
    }
    then = world.ask(trials)
    saved = [1.0 - then[name].loss / (first[name].loss + 1e-12) for name in world.names]
    return float(np.average(saved, weights=world.n)), sum(seen.refits for seen in then.values())


# -- as a method ----------------------------------------------------------------------------------------------


def framu(config: Config, agents_of: AgentsOf, settings: Settings | None = None) -> Method:
    """Build the method for a config; `settings` default to the policy's seed and `Settings`.

    A round runs the whole algorithm over the records as they stand. To erase is to run it again after the purge.
    """
    chosen = settings or Settings(seed=config.policy.seed)
    fingerprint = config.fingerprint()

    def init() -> State:
        return State(fingerprint, "framu", (), (), {HEAD: np.zeros((width(config), 0))})

    def apply(federation: Federation, state: State, network: Network | None) -> Round:
        return _round(config, federation, agents_of, chosen)

    def erase(
        federation: Federation, state: State, network: Network | None, clients: tuple[str, ...], kept: None
    ) -> Round:
        # The server lets go of sums that were made of another shard: it is told the digest of each.
        return _round(config, federation, agents_of, chosen)

    return Method("framu", "none", init, apply, nothing_kept, erase)


def _round(config: Config, federation: Federation, agents_of: AgentsOf, settings: Settings) -> Round:
    held = [reply for reply in in_order(federation.run(DescribeShard())) if reply.record["rows"]]
    world = world_of(config, federation)
    outcome = run(world, settings, agents_of) if world is not None else None
    influence = _by_key(world, outcome) if world is not None and outcome is not None else {}
    outputs = outputs_of(config, {label for reply in held for label in reply.record["classes"]})
    names = tuple(reply.client for reply in held)
    replies = in_order(federation.run(Weigh(influence, outputs), on=names))
    W, keep = federation.serve(_Fold(names, config, outputs), replies)
    refits = outcome.refits if outcome is not None else 0
    rows = {reply.client: reply.record["rows"] for reply in held}
    records = {
        reply.client: {
            "rows": rows[reply.client],
            "influence": reply.record["influence"],
            "chosen_by": "framu" if reply.client in influence else "keep",
            "losses": {},
            "slices": {},
            "refits": refits if reply.client == names[0] else 0,  # they are spent for all together
        }
        for reply in replies
    }
    clients = tuple(
        ClientState(name, record["rows"], 1.0, record["influence"], record["chosen_by"])
        for name, record in records.items()
    )
    state = State(config.fingerprint(), "framu", outputs, clients, {HEAD: W})
    scores = _by_client(world, outcome) if world is not None and outcome is not None else {}
    return Round(state, keep, {name: scores.get(name, 0.0) for name in names}, records, names, refits)


def _by_key(world: World, outcome: Outcome) -> dict[str, dict[str, float]]:
    found = zip(world.names, world.keys, outcome.influence, strict=True)
    return {name: dict(zip(keys, influence.tolist(), strict=True)) for name, keys, influence in found}


def _by_client(world: World, outcome: Outcome) -> dict[str, float]:
    return {name: float(A.mean()) for name, A in zip(world.names, outcome.scores, strict=True)}


@dataclass(frozen=True, slots=True)
class _Fold:
    """The heads under the influences and under none; no checkpoint, for that file is the exact method's."""

    names: tuple[str, ...]
    config: Config
    outputs: tuple[str, ...]

    def perform(self, server: Server, payloads: Mapping[str, Payload]) -> tuple[Float, Float]:
        """Two heads (d, outputs)."""
        basis, ridge = basis_of(self.config, self.outputs), self.config.model.frozen_ridge
        weighed = total([(1, Sums(payloads[name]["fit"])) for name in self.names], basis.D)
        whole = total([(1, server.contributions[name].fit) for name in self.names], basis.D)
        heads = (basis.statistics(weighed, denominator(self.config)), basis.statistics(whole))
        return solve(heads[0].G, heads[0].b, ridge), solve(heads[1].G, heads[1].b, ridge)
