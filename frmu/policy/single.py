"""The environment as a plain `gymnasium.Env`: one copy, one task an episode, for any learner and to look into it.

    gymnasium.make("frmu.policy.single:frmu/Slices-v0", config="homes.toml")

RLlib trains on `SliceEnv`, which steps many copies in one dispatch to the clients; this one wraps a `SliceEnv` of
one copy, so there is one environment and not two. Its rewards are what a step gained, not compared with other copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from frmu.config import load
from frmu.data.shard import clients_in
from frmu.policy.env import EnvContext, SliceEnv
from frmu.policy.training import MOST, context_of
from frmu.runtime.local import LocalFederation
from frmu.selection.network import LIMIT
from frmu.storage.workspace import Workspace

__all__ = ["SliceTask", "slice_task"]


class SliceTask(gym.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Episodes of one task each: `steps` refinements in each of up to `rounds` rounds; see `SliceEnv`.

    The observation is that of `spaces`; an action is (most,) float32 in [-1, 1], in units of the greatest logit, as
    other learners like it. `info["gain"]` is the share of the later loss that was gained against keeping everything.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 - gymnasium's own declaration

    def __init__(
        self,
        contexts: Sequence[EnvContext],
        max_slices: int = MOST,
        steps: int = 1,
        rounds: int = 1,
        forget_penalty: float = 0.02,
        seed: int = 0,
    ) -> None:
        self._env = SliceEnv(contexts, max_slices, 1, steps, rounds, forget_penalty, seed, tasks_per_episode=1)
        self.observation_space = self._env.single_observation_space
        self.action_space = gym.spaces.Box(-1.0, 1.0, (max_slices,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Draw a task; from `seed`, where one is given."""
        super().reset(seed=seed)
        observation, info = self._env.reset(seed=seed)
        return observation[0], info

    def step(self, action: NDArray[np.float32]) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Refit under the action."""
        observation, reward, terminated, truncated, info = self._env.step(LIMIT * np.asarray(action)[None])
        gain = {"gain": float(info["gain"][0])} if info else {}
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), gain


def slice_task(config: str | Path, **options: Any) -> SliceTask:
    """The environment over the shards of a config that was trained before, in this process; options as of `SliceTask`.

    `steps`, `rounds` and `forget_penalty` are the config's where they are not given. Raises `StoreError` where nothing
    was trained, `PolicyError` where no client can train it.
    """
    loaded = load(config)
    store = Workspace.existing(loaded)
    context, _ = context_of(loaded, LocalFederation(loaded, clients_in(store.shards), store.folder))
    policy = loaded.policy
    return SliceTask(
        [context], **{"steps": policy.steps, "rounds": policy.rounds, "forget_penalty": policy.forget_penalty} | options
    )


gym.register("frmu/Slices-v0", entry_point="frmu.policy.single:slice_task")
