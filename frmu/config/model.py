"""[model] and [attention]: how records are encoded and fitted, and how clients are weighed."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from frmu.config.files import SUFFIXES, EncoderFile, is_file
from frmu.config.rounds import MODULES, Rounds
from frmu.config.table import Table
from frmu.errors import near_miss

__all__ = ["LEARNED", "Attention", "Model", "share_of"]

LEARNED = (
    "layers",
    "kind",
    "metric",
    "bandwidth",
    "bins",
    "lattice",
    "hidden",
    "judges",
)  # of learned features alone
FROZEN_FEATURES = 64  # of a modality, where nothing else is said
FROZEN_RIDGE = 1e-3
FROZEN = ("relu", "fourier", "linear", "hash")  # of a modality; or a file


def share_of(records: int, enough: int) -> int:
    """Return the least k by which one of 2^k of so many records leaves about `enough`.

    >>> [share_of(records, 1000) for records in (0, 1000, 1001, 4000)]
    [0, 0, 1, 2]
    """
    return max(0, math.ceil(math.log2(max(1, records) / enough)))


class Model(Rounds):
    """`[model]`: an encoder for each modality and a ridge head; or, with `kind = "rounds"`, a module trained by rounds.

    `encoder` "learned" learns which inputs matter, from sums; the others are frozen, drawn from the seed. `encoders`
    names the frozen encoder of single modalities; "hash" is for columns of text, and a file (.pt2, .onnx, .safetensors)
    is a net of the user's own, of which `files` says more. `method` is how the federation unlearns: only "analytic"
    closes a request. For a module trained by rounds (`frmu.config.rounds`) it is "replay", the default, or "retrain",
    which give the same state and close requests, or "finetune", which does not.

    Of learned features, "auto" is chosen by the number of records and on validation sums: the number of `features`,
    how many `layers` the metric is learned in, how many `bins` a column has for jumps along it, and the `ridge`. The
    default of `kind` is "relu", of `metric` "diagonal", of `bandwidth` 1, by which directions are multiplied. The
    metric is rounded to multiples of `lattice`, so that it rests where an erasure moves it little. It is learned from
    one record of 2^k, by a hash of their ids, with the least k that leaves about `cohort` records; beside the same
    records slices are judged, with any encoder. One record of
    `hidden`, by another hash, is learned from a second time with a lag hidden, so that the model can do without where
    there is none (0: no record is). Slices are judged with `judges` frozen features a modality.
    """

    encoder: Literal["learned", "relu", "fourier", "linear"] = "learned"
    encoders: dict[str, str] = Field(default_factory=dict)
    files: dict[str, EncoderFile] = Field(default_factory=dict)
    features: int | Literal["auto"] = "auto"
    ridge: float | Literal["auto"] = "auto"
    seed: int = Field(default=0, ge=0)
    method: Literal["analytic", "finetune", "replay", "retrain"] = "analytic"
    layers: int | Literal["auto"] = "auto"
    kind: Literal["relu", "fourier", "rounds"] = "relu"
    metric: Literal["full", "diagonal"] = "diagonal"
    bandwidth: float = Field(default=1.0, gt=0, le=1000)
    bins: int | Literal["auto"] = "auto"
    lattice: float = Field(default=0.125, gt=0, le=1)
    cohort: int = Field(default=65_536, ge=256)
    hidden: int = Field(default=6, ge=0)
    judges: int = Field(default=FROZEN_FEATURES, ge=1, le=1024)

    def share(self, fitted: int) -> int:
        """Return k: of so many fitted records one in 2^k is in the cohort."""
        return share_of(fitted, self.cohort)

    @property
    def by_rounds(self) -> bool:
        """Return whether the model is a module that is trained by rounds."""
        return self.kind == "rounds"

    @property
    def unlearns(self) -> str:
        """Return the name of the method: as declared, or the exact one of the kind of model."""
        return "replay" if self.by_rounds and "method" not in self.model_fields_set else self.method

    @property
    def frozen_features(self) -> int:
        """Return the features of a modality's frozen encoder: those that judge, where the model's are learned."""
        if self.encoder == "learned":
            return self.judges
        return FROZEN_FEATURES if self.features == "auto" else self.features

    @property
    def encoder_files(self) -> dict[str, str]:
        """Return the names of the encoders that are files, by modality."""
        return {name: kind for name, kind in self.encoders.items() if is_file(kind)}

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

    @field_validator("encoders")
    @classmethod
    def _kinds_or_files(cls, encoders: dict[str, str]) -> dict[str, str]:
        for name, kind in encoders.items():
            if kind not in FROZEN and not is_file(kind):
                known = ", ".join(f'"{one}"' for one in FROZEN)
                raise ValueError(
                    f'{name} must be one of {known}, or a file that ends in {", ".join(SUFFIXES)}, got "{kind}"'
                    f"{near_miss(kind, FROZEN)}"
                )
        return encoders

    @model_validator(mode="after")
    def _files_declared(self) -> Model:
        files = self.encoder_files
        for name, file in files.items():
            if name not in self.files:
                raise ValueError(
                    f'encoders.{name} = "{file}" needs a table [model.files.{name}] with outputs and range'
                )
            if (self.files[name].architecture is None) == file.endswith(".safetensors"):
                wants = "needs" if file.endswith(".safetensors") else "has a graph of its own and takes no"
                raise ValueError(f'encoders.{name} = "{file}" {wants} files.{name}.architecture')
        for name in self.files:
            if name not in files:
                raise ValueError(f"files.{name} belongs to no file in encoders{near_miss(name, files)}")
        return self

    @model_validator(mode="after")
    def _of_this_kind(self) -> Model:
        given = self.model_fields_set
        if not self.by_rounds:
            if named := [name for name in Rounds.model_fields if name in given]:
                raise ValueError(f'{named[0]} is for a module trained by rounds; set kind = "rounds", or leave it out')
            if self.method in ("replay", "retrain"):
                raise ValueError(f'method = "{self.method}" is for a module trained by rounds; set kind = "rounds"')
            return self
        if named := [name for name in (*_OF_A_HEAD, *LEARNED) if name in given and name != "kind"]:
            raise ValueError(f'{named[0]} is not for a module trained by rounds (kind = "rounds"); leave it out')
        if "method" in given and self.method == "analytic":
            raise ValueError('method of a module trained by rounds must be "replay", "retrain" or "finetune"')
        if other := [name for name, kind in self.encoders.items() if kind != "hash"]:
            raise ValueError(f'encoders.{other[0]} must be "hash" or left out: the module is what encodes')
        if self.module not in MODULES and ":" not in self.module:
            known = ", ".join(f'"{name}"' for name in MODULES)
            raise ValueError(f'module must be one of {known}, or "FILE.py:function"{near_miss(self.module, MODULES)}')
        if self.code_file is not None and not self.allow_code:
            raise ValueError(
                f'module = "{self.module}" is code that would be run here and at every site; set allow_code = true if '
                "you wrote it"
            )
        if self.module in ("cnn", "resnet8", "tcn") and len(self.shape or ()) != (2 if self.module == "tcn" else 3):
            wants = "[channels, length]" if self.module == "tcn" else "[channels, height, width]"
            raise ValueError(f'module = "{self.module}" needs shape = {wants} of one record')
        return self

    @model_validator(mode="after")
    def _of_this_encoder(self) -> Model:
        if self.by_rounds:
            return self
        if self.encoder != "learned" and (named := [name for name in LEARNED if name in self.model_fields_set]):
            raise ValueError(f'{named[0]} is for learned features; set encoder = "learned", or leave it out')
        if self.encoder == "learned" and self.method == "finetune":
            raise ValueError('method = "finetune" needs a frozen encoder: set encoder = "relu"')
        return self


_OF_A_HEAD = ("encoder", "features", "ridge", "files")
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
