"""Small sets of images: digits of scikit-learn, and 5,000 of MNIST."""

from __future__ import annotations

import importlib
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

__all__ = ["Images", "Labels", "digits", "mnist", "module"]
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


def module(name: str, package: str) -> Any:
    """Import what only this benchmark needs; raises with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}); install {package}") from None
