"""[model] and [attention]: how records are encoded and fitted, and how clients are weighed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from frmu.config.table import Table

__all__ = ["LEARNED", "Attention", "Model"]

LEARNED = (
    "layers",
    "kind",
    "metric",
    "bandwidth",
    "bins",
    "lattice",
    "cohort",
    "hidden",
    "judges",
)  # of learned features alone
FROZEN_FEATURES = 64  # of a modality, where nothing else is said
FROZEN_RIDGE = 1e-3


class Model(Table):
    """`[model]`: an encoder for each modality and a ridge head.

    `encoder` "learned" learns which inputs matter, from sums; the others are frozen, drawn from the seed. `encoders`
    names the frozen encoder of single modalities; "hash" is for columns of text. `method` is how the federation
    unlearns: only "analytic" closes a request.

    Of learned features, "auto" is chosen by the number of records and on validation sums: the number of `features`,
    how many `layers` the metric is learned in, how many `bins` a column has for jumps along it, and the `ridge`. The
    default of `kind` is "relu", of `metric` "diagonal", of `bandwidth` 1, by which directions are multiplied. The
    metric is rounded to multiples of `lattice`, so that it rests where an erasure moves it little. It is learned from
    one record of 2^k, by a hash of their ids, with the least k that leaves about `cohort` records. One record of
    `hidden`, by another hash, is learned from a second time with a lag hidden, so that the model can do without where
    there is none (0: no record is). Slices are judged with `judges` frozen features a modality.
    """

    encoder: Literal["learned", "relu", "fourier", "linear"] = "learned"
    encoders: dict[str, Literal["relu", "fourier", "linear", "hash"]] = Field(default_factory=dict)
    features: int | Literal["auto"] = "auto"
    ridge: float | Literal["auto"] = "auto"
    seed: int = Field(default=0, ge=0)
    method: Literal["analytic", "finetune"] = "analytic"
    layers: int | Literal["auto"] = "auto"
    kind: Literal["relu", "fourier"] = "relu"
    metric: Literal["full", "diagonal"] = "diagonal"
    bandwidth: float = Field(default=1.0, gt=0, le=1000)
    bins: int | Literal["auto"] = "auto"
    lattice: float = Field(default=0.25, gt=0, le=1)
    cohort: int = Field(default=65_536, ge=256)
    hidden: int = Field(default=6, ge=0)
    judges: int = Field(default=FROZEN_FEATURES, ge=1, le=1024)

    @property
    def frozen_features(self) -> int:
        """Return the features of a modality's frozen encoder: those that judge, where the model's are learned."""
        if self.encoder == "learned":
            return self.judges
        return FROZEN_FEATURES if self.features == "auto" else self.features

    @property
    def frozen_ridge(self) -> float:
        """Return the ridge of a head over frozen features."""
        return FROZEN_RIDGE if self.ridge == "auto" else self.ridge

    @field_validator("features", "layers", "bins", "ridge", mode="before")
    @classmethod
    def _in_bounds(cls, value: object, info: object) -> object:
        name = getattr(info, "field_name", "")
        low, high = _BOUNDS[name]
        whole = isinstance(high, int)
        number = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if value == "auto" or (number and low <= value <= high):  # type: ignore[operator]
            return value if whole or value == "auto" else float(value)  # type: ignore[arg-type]
        raise ValueError(f'{name} must be {"an integer" if whole else "a number"} from {low:g} to {high:g}, or "auto"')

    @model_validator(mode="after")
    def _of_this_encoder(self) -> Model:
        if self.encoder != "learned" and (named := [name for name in LEARNED if name in self.model_fields_set]):
            raise ValueError(f'{named[0]} is for learned features; set encoder = "learned", or leave it out')
        if self.encoder == "learned" and self.method == "finetune":
            raise ValueError('method = "finetune" needs a frozen encoder: set encoder = "relu"')
        return self


_BOUNDS: dict[str, tuple[float, float]] = {
    "features": (1, 8192), "layers": (0, 8), "bins": (0, 256), "ridge": (1e-12, 1e6),
}  # fmt: skip


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
