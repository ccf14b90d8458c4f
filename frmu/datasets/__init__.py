"""Real data for the demo and the benchmarks, read out of pinned packages and kept as Parquet in a cache.

Each set comes with the config that describes it. A folder of the cache carries the version of the makers in its
name: what an older version made is never read, and goes when the set is made again.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from frmu.datasets.archives import member_of
from frmu.datasets.dataset import DataSet
from frmu.datasets.images import IMAGES
from frmu.datasets.retail import RETAIL_SETS
from frmu.datasets.series import SERIES
from frmu.datasets.surrogates import SURROGATES
from frmu.errors import DataError

__all__ = ["DATA_SETS", "DataSet", "cached", "member_of"]

VERSION = 6  # raise it with every change to what a maker gives or to a config
DATA_SETS = SERIES | RETAIL_SETS | SURROGATES | IMAGES


def cached(name: str, cache: Path) -> Path:
    """The folder of one data set, holding `data.parquet` and `config.toml`; made once for each version.

    A set with a column `slot` has a `slots.toml` as well: the same config with 24 equal slices; one with `slot2400` a
    `slot2400.toml`. Raises `DataError` for an unknown name, or where the package cannot be had or is not the one
    expected.
    """
    if name not in DATA_SETS:
        raise DataError(f"no data set {name}; there are: {', '.join(DATA_SETS)}")
    folder = cache / f"{name}.v{VERSION}"
    if not folder.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _make(DATA_SETS[name], folder)
        _sweep(name, cache)
    return folder


def _make(data_set: DataSet, folder: Path) -> None:
    """Fill a folder aside and move it into place whole: one that is killed, or not alone, leaves nothing half-made."""
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as aside:
        part = Path(aside) / folder.name
        part.mkdir()
        data_set.table().to_parquet(part / "data.parquet", index=False)
        for file, text in data_set.configs().items():
            (part / file).write_text(text, encoding="utf-8")
        with contextlib.suppress(OSError):
            part.rename(folder)
    if not folder.exists():
        raise DataError(f"{folder}: could not be moved into place; is the cache writable?")


def _sweep(name: str, cache: Path) -> None:
    """Remove what older versions made of a set; nothing but a folder of that very name is touched."""
    for old in cache.iterdir():
        found = re.fullmatch(rf"{re.escape(name)}\.v(\d+)", old.name)
        if found and int(found[1]) < VERSION:
            shutil.rmtree(old, ignore_errors=True)
