"""The one way in which a file that must survive is written: aside, to the disk, and then under its name.

After a crash, or where the power fails, the old file or the new one is there, whole; so is its name, since the folder
goes to the disk too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

__all__ = ["put_in_place", "write_bytes", "write_file"]


def write_file(path: Path, write: Callable[[BinaryIO], object], aside: Path | None = None, mode: int = 0o666) -> None:
    """Replace a file by what `write` puts into the one it is given; `mode` is that of a new one, under the umask.

    `aside` is where the file is until it is whole, on the same disk: by default beside it, as `NAME.partial`. It is
    gone afterwards, whatever went wrong. Raises `OSError` where the disk does.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_file(Path(folder) / "a", lambda file: file.write(b"whole"))
    ...     sorted(at.name for at in Path(folder).iterdir())
    ['a']
    """
    partial = aside or path.with_name(f"{path.name}.partial")
    try:
        with open(partial, "wb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        put_in_place(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, aside: Path | None = None) -> None:
    """Replace a file by some bytes; see `write_file`."""
    write_file(path, lambda file: file.write(content), aside)


def put_in_place(whole: Path, path: Path) -> None:
    """Rename a file that was written by `write_file` over another, on the same disk."""
    whole.replace(path)
    _sync(path.parent)


def _sync(folder: Path) -> None:
    """Bring a folder's names to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
