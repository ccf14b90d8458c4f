"""A virtual environment of its own for OpenDataVal 1.3.0, whose own pins are of years ago and would not install beside.

What both sides compute with has the versions that frmu runs with here; OpenDataVal comes without its dependencies, and
those that its offline sets and evaluators need are named.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from frmu.errors import FrmuError
from frmu.storage.atomic import write_bytes

__all__ = ["PINNED", "SHARED", "environment", "pins"]

SHARED = (
    "torch", "numpy", "scipy", "pandas", "matplotlib", "scikit-learn", "requests", "pydantic", "safetensors",
    "threadpoolctl",
)  # fmt: skip
PINNED = ("tqdm==4.70.1", "geomloss==0.2.6", "opendataval==1.3.0")
MARK = "frmu.json"
TAIL = 600  # characters of what went wrong


def pins() -> list[str]:
    """Return what is installed, `NAME==VERSION` each; a local label such as `+cpu` is left to the index.

    Raises `FrmuError` where frmu itself runs without one of them.
    """
    try:
        shared = [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in SHARED]
    except importlib.metadata.PackageNotFoundError as error:
        raise FrmuError(f"{error.name} is not installed; install the extra frmu[bench] first") from None
    return [*shared, *PINNED]


def environment(folder: Path, tell: Callable[[str], None]) -> Path:
    """Return the interpreter of the environment in a folder, made where it is not there or was made of other versions.

    Raises `FrmuError` where the folder is somebody else's, or pip fails.
    """
    python, mark, wanted = folder / "bin" / "python", folder / MARK, pins()
    there = json.loads(mark.read_text(encoding="utf-8")) if mark.exists() else {}
    if there.get("ready") == wanted and python.exists():
        return python
    if folder.exists() and not mark.exists() and any(folder.iterdir()):
        raise FrmuError(f"{folder}: not an environment that this command made; give --venv a folder that is not there")
    tell(f"  making a virtual environment for OpenDataVal in {folder}: a minute or two, about 1 GB")
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(mark, json.dumps({"ready": None}).encode())  # what was begun may be begun again
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    write_bytes(mark, json.dumps({"ready": None}).encode())
    _install(python, wanted)
    write_bytes(mark, json.dumps({"ready": wanted}).encode())
    return python


def _install(python: Path, wanted: list[str]) -> None:
    """Install what is shared with what it needs under those very versions, then the rest without."""
    alone = [pin for pin in wanted if pin in PINNED]
    shared = [pin for pin in wanted if pin not in PINNED]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    with tempfile.TemporaryDirectory(prefix="frmu-") as aside:
        held = Path(aside) / "constraints.txt"
        held.write_text("\n".join(shared) + "\n", encoding="utf-8")
        _run([*pip, "-c", str(held), *shared])
    _run([*pip, "--no-deps", *alone])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise FrmuError(
            f"{' '.join(command[:4])} ended with {done.returncode}: {done.stderr.strip()[-TAIL:]}. Is a package index "
            "in reach?"
        )
