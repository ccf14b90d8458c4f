"""The part of [model] that is for a module trained by rounds: what it is, how clients train it, who takes part."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from frmu.config.table import Table

__all__ = ["MODULES", "UNSEEN", "Rounds"]

MODULES = ("mlp", "cnn", "resnet8", "tcn", "fusion")
# They change no bit of a state: how many clients train in one call, what is kept of a training, where it runs.
UNSEEN = {"clients_per_call", "checkpoint_every", "device", "allow_code"}


class Rounds(Table):
    """Settings of `kind = "rounds"`: a torch module, trained by local updates at the clients, round by round.

    `module` names one that ships, with `widths` of its layers, and `shape` of one record of a picture (channels,
    height, width) or a series (channels, length); or "FILE.py:function" of the user's own, where `allow_code` is true.
    In each of `rounds` the clients that take part train for `epochs` over their records in batches of `batch` at the
    rate `lr`. `optimizer` "fedavg" averages what comes back, "fedprox" holds clients to the global weights by
    `proximal`, "fedadam" lets the server step by Adam at `server_lr`. A share `participation` of the clients takes part
    in a round: drawn anew each round (`schedule` "random"), or in turns, each cohort for so many rounds on end
    ("cohorts"). Training ends early where the validation loss changes from one round to the next by less than a share
    `tolerance` (0: never).

    `precision` is that of weights. `clients_per_call` train in one call where the module lets them, and
    `checkpoint_every` so many rounds one is kept, for a job that is killed and for `method = "replay"`.
    """

    module: str = "mlp"
    allow_code: bool = False
    widths: list[Annotated[int, Field(ge=1, le=65_536)]] = Field(default=[64], max_length=16)
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=3)] | None = None
    rounds: int = Field(default=20, ge=1, le=100_000)
    epochs: int = Field(default=1, ge=1, le=1000)
    batch: int = Field(default=32, ge=1, le=65_536)
    lr: float = Field(default=0.1, gt=0, le=100)
    optimizer: Literal["fedavg", "fedprox", "fedadam"] = "fedavg"
    proximal: float = Field(default=0.01, ge=0, le=1000)
    server_lr: float = Field(default=0.01, gt=0, le=100)
    participation: float = Field(default=1.0, gt=0, le=1)
    schedule: Literal["random", "cohorts"] = "random"
    tolerance: float = Field(default=0.0, ge=0, lt=1)
    precision: Literal["float32", "float64"] = "float32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    clients_per_call: int | Literal["auto"] = "auto"
    checkpoint_every: int = Field(default=1, ge=1)

    @property
    def code_file(self) -> str | None:
        """The file of the user's own that the module is in; None where it ships."""
        return None if self.module in MODULES else self.module.rpartition(":")[0]

    @field_validator("lr", "proximal", "server_lr", "participation", "tolerance", mode="before")
    @classmethod
    def _whole_numbers_too(cls, value: object) -> object:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("clients_per_call")
    @classmethod
    def _some_clients(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError(f'clients_per_call must be at least 1 or "auto", got {value}')
        return value
