"""[model] and [attention]: how records are encoded and fitted, and how clients are weighed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from frmu.config.table import Table

__all__ = ["Attention", "Model"]


class Model(Table):
    """`[model]`: a frozen encoder for each modality and a ridge head.

    `encoders` names the encoder of single modalities; "hash" is for columns of text. `method` is how the
    federation unlearns: only "analytic" closes a request.
    """

    encoder: Literal["relu", "fourier", "linear"] = "relu"
    encoders: dict[str, Literal["relu", "fourier", "linear", "hash"]] = Field(default_factory=dict)
    features: int = Field(default=64, ge=1, le=8192)
    ridge: float = Field(default=1e-3, gt=0)
    seed: int = Field(default=0, ge=0)
    method: Literal["analytic", "finetune"] = "analytic"


class Attention(Table):
    """`[attention]`: how the server weighs clients; `cut` and `temperature` are in fair shares, 1 / clients.

    "counterfactual" takes weight from a client without which the others gain, "trusted" searches for a majority that
    explains itself, which finds many bad clients that mask each other and takes longer, "size" is n_k / N: only then
    the server sees no sum of a single client, but one a host.
    """

    rule: Literal["counterfactual", "trusted", "size"] = "counterfactual"
    cut: float = Field(default=0.5, ge=0)
    temperature: float = Field(default=0.5, gt=0)

    @property
    def by_client(self) -> bool:
        """Return whether the rule asks for the sums of single clients; else a host sends one for all of its own."""
        return self.rule != "size"
