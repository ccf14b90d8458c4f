"""Small sets of images: digits of scikit-learn, and 5,000 of MNIST."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from frmu.datasets import cached
from frmu.datasets.images import MNIST_SIDE, columns
from frmu.errors import ConfigError
from frmu.types import Float

__all__ = ["Images", "Labels", "config_of_images", "digits", "mnist", "module", "table_of_images"]
Labels = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Images:
    """Images of digits: pixels (n, side, side) from 0 (black) to 1 (white), and labels (n,) str."""

    pixels: Float
    labels: Labels

    @property
    def side(self) -> int:
        """Pixels a side."""
        return self.pixels.shape[1]


def digits() -> Images:
    """The 1,797 digits of 8 x 8 pixels that come with scikit-learn."""
    found = module("sklearn.datasets", "scikit-learn, which comes with mlflow").load_digits()
    return Images(found.images / 16.0, found.target.astype(str))


def mnist(cache: Path) -> Images:
    """5,000 digits of 28 x 28 pixels, 500 of each: the data set `mnist`."""
    table = pd.read_parquet(cached("mnist", cache) / "data.parquet")
    values = table[columns(MNIST_SIDE)].to_numpy(np.float64) / 255.0
    return Images(values.reshape(-1, MNIST_SIDE, MNIST_SIDE), table["digit"].to_numpy(dtype=str))


def table_of_images(
    pixels: Float, clients: Any, numbers: NDArray[np.intp], labels: Labels | None = None
) -> pd.DataFrame:
    """One row an image, (n, side, side): its client (one for all, or one each), its number as record id, its label."""
    frame = pd.DataFrame(pixels.reshape(len(pixels), -1), columns=columns(pixels.shape[1]))
    frame.insert(0, "client", clients)
    frame.insert(1, "record", [f"digit-{number:04d}" for number in numbers])
    if labels is not None:
        frame.insert(2, "label", labels)
    return frame


def config_of_images(names: Sequence[str], limit: float, split: str, model: str) -> str:
    """Return a config over such a table, of pixels from -limit to limit; everything is kept and clients count by size.

    `split` and `model` are the lines of those tables.
    """
    ranges = "\n".join(f"{name} = [-{limit}, {limit}]" for name in names)
    return f"""
[data]
path = "data.parquet"
client = "client"
record = "record"
target = "label"
task = "classification"
classes = {json.dumps([str(digit) for digit in range(10)])}

[data.modalities]
image = {json.dumps(list(names))}

[data.ranges]
{ranges}

[slices]
buckets = 1

[split]
{split}

[policy]
selector = "keep"

[attention]
rule = "size"

[model]
{model}
"""


def module(name: str, package: str) -> Any:
    """Import what only this benchmark needs; raises with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}); install {package}") from None
