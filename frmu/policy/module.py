"""The torch twin of `influence.network`, as an RLlib module: same shapes, same names, same file.

An action is a logit a slice; what influence it means, `influence.network.influence_of` says. Sampled logits are
normal around the network's, with a spread that does not learn: exploration ends where training ends.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import TorchDiagGaussian
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import Tensor, nn

from frmu.selection.network import BLOCKS, HEADS, RELATIONS, WIDTH
from frmu.selection.observation import FEATURES

__all__ = ["SPREAD", "Seen", "SliceModule", "SliceNetwork", "seen"]

SPREAD = 0.4  # of sampled logits
_NEVER = -1e9
Seen = tuple[Tensor, Tensor, Tensor]  # rows (batch, K, 2 features), relations (batch, 2, K, K), mask (batch, K)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.bias = nn.Parameter(0.5 * torch.randn(HEADS, RELATIONS))

    def forward(self, x: Tensor, relations: Tensor, mask: Tensor) -> Tensor:
        batch, slices, _ = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, slices, 3, HEADS, WIDTH // HEADS)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5
        scores = scores + torch.einsum("brst,hr->bhst", relations, self.bias)
        attention = scores.masked_fill(~mask[:, None, None, :], _NEVER).softmax(dim=-1)
        x = x + self.out((attention @ value).transpose(1, 2).reshape(batch, slices, WIDTH))
        return x + self.down(self.up(self.norm2(x)).relu())


class SliceNetwork(nn.Module):
    """A network from what is `Seen` to logits (batch, K), value (batch,) and pooling (batch, K)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2 * len(FEATURES), WIDTH)
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        self.head, self.pool, self.value = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)
        with torch.no_grad():  # an untrained policy mostly keeps
            self.head.weight *= 0.1
            self.head.bias += 2.5

    def forward(self, rows: Tensor, relations: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the class."""
        at = torch.arange(rows.shape[1], dtype=rows.dtype)
        near = torch.exp(-(at[:, None] - at[None, :]).abs()).expand(len(rows), 1, -1, -1)
        relations = torch.cat([relations, near], dim=1)
        x = self.embed(rows)
        for block in self.blocks:
            x = block(x, relations, mask)
        x = self.norm(x)
        pool = self.pool(x)[..., 0].masked_fill(~mask, _NEVER).softmax(dim=-1)
        value = self.value((pool[..., None] * x).sum(dim=1))[:, 0]
        return self.head(x)[..., 0], value, pool


def seen(observation: Tensor) -> Seen:
    """The parts of observations (batch, most + 1, ...) as `SliceEnv` lays them out."""
    features, max_slices = 2 * len(FEATURES), observation.shape[1] - 1
    table = observation[:, :-1]
    first, now = table[..., features + 1 : features + 1 + max_slices], table[..., features + 1 + max_slices :]
    return table[..., :features], torch.stack([first, now], dim=1), table[..., features] > 0.5


class SliceModule(TorchRLModule, ValueFunctionAPI):
    """`SliceNetwork` over the observations of `SliceEnv`, for PPO and for `frmu.policy.slope`."""

    def setup(self) -> None:
        """Build the network; RLlib calls this."""
        self.network = SliceNetwork()
        self.action_dist_cls = TorchDiagGaussian

    def look(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, value and pooling for observations; a row without a slice has logit 0, which has no slope."""
        rows, relations, mask = seen(observation)
        logits, value, pool = self.network(rows, relations, mask)
        return torch.where(mask, logits, 0.0), value, pool

    def _forward(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        logits, _, _ = self.look(batch[Columns.OBS])
        spread = torch.full_like(logits, SPREAD).log()
        return {Columns.ACTION_DIST_INPUTS: torch.cat([logits, spread], dim=-1)}

    def _forward_train(self, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        logits, value, _ = self.look(batch[Columns.OBS])
        spread = torch.full_like(logits, SPREAD).log()
        return {Columns.ACTION_DIST_INPUTS: torch.cat([logits, spread], dim=-1), Columns.VF_PREDS: value}

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """The value of each observation, (batch,)."""
        return self.look(batch[Columns.OBS])[1]
