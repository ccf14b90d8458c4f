"""The description of a module that is trained by rounds: all that its bits depend on, but for records. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["STEPS", "ModuleSpec"]

STEPS = 2.0**30  # of one: updates are whole numbers of them, so that their sums are exact in any order


@dataclass(frozen=True, slots=True)
class ModuleSpec:
    """A module, the shape of what goes into it and comes out, and how it is trained; hashable, so it is built once.

    `columns` of each modality, in the order of the config; `outputs` numbers a record, scores of classes where
    `classes`. `code` is the content of the user's own file, empty where the module ships.
    """

    module: str
    columns: tuple[int, ...]
    outputs: int
    classes: bool
    seed: int
    widths: tuple[int, ...]
    shape: tuple[int, ...] | None
    epochs: int
    batch: int
    lr: float
    proximal: float
    precision: str
    device: str = "auto"
    code: bytes = field(default=b"", repr=False)

    @property
    def imaged(self) -> int:
        """The place of the modality that `shape` is of: the first with as many columns; -1 where there is none."""
        size = 1
        for side in self.shape or ():
            size *= side
        return next((at for at, own in enumerate(self.columns) if self.shape and own in (size, size + 1)), -1)
