"""The torch twin of `influence.network`, as an RLlib module: same shapes, same names, same file."""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchMultiCategorical
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from frmu.influence.network import BLOCKS, WIDTH
from frmu.influence.observation import FEATURES
from frmu.influence.task import KEEP, LEVELS

__all__ = ["SliceModule", "SliceNetwork"]

_NEVER = -1e9


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        scores = query @ key.transpose(-1, -2) / WIDTH**0.5
        attention = scores.masked_fill(~mask[:, None, :], _NEVER).softmax(dim=-1)
        x = x + self.out(attention @ value)
        return x + self.down(self.up(self.norm2(x)).relu())


class SliceNetwork(nn.Module):
    """Rows (batch, K, features) and a mask (batch, K) to logits (batch, K, 3), value (batch,), pooling (batch, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(len(FEATURES), WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head, self.pool, self.value = (
            nn.Linear(WIDTH, len(LEVELS)),
            nn.Linear(WIDTH, 1),
            nn.Linear(WIDTH, 1),
        )
        with torch.no_grad():  # an untrained policy mostly keeps
            self.head.weight *= 0.1
            self.head.bias[KEEP] += 1.5

    def forward(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        x = self.embed(rows)
        for block in self.blocks:
            x = block(x, mask)
        x = self.norm(x)
        pool = self.pool(x)[..., 0].masked_fill(~mask, _NEVER).softmax(dim=-1)
        value = self.value((pool[..., None] * x).sum(dim=1))[:, 0]
        return self.head(x), value, pool


class SliceModule(TorchRLModule, ValueFunctionAPI):
    """`SliceNetwork` over the observations of `SliceEnv`, for PPO."""

    def setup(self) -> None:
        """Build the network; RLlib calls this."""
        most = self.action_space.shape[0]
        self.network = SliceNetwork()
        self.action_dist_cls = TorchMultiCategorical.get_partial_dist_cls(
            space=self.action_space, input_lens=[len(LEVELS)] * most
        )

    def look(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, value and pooling for observations (batch, most + 1, features + 1)."""
        rows, mask = observation[:, :-1, : len(FEATURES)], observation[:, :-1, len(FEATURES)] > 0.5
        logits, value, pool = self.network(rows, mask)
        # A row without a slice is kept for certain: it has no part in entropy or likelihood.
        certain = torch.full_like(logits, _NEVER)
        certain[..., KEEP] = 0.0
        return torch.where(mask[..., None], logits, certain), value, pool

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        logits, _, _ = self.look(batch[Columns.OBS])
        return {Columns.ACTION_DIST_INPUTS: logits.flatten(1)}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """The value of each observation, (batch,)."""
        return self.look(batch[Columns.OBS])[1]
