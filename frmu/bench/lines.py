"""Lines of a long measurement in a file, one as it comes: a run goes on from those that were made as it makes them.

Each line carries a digest of what it hangs on: the version of frmu and the code of a model, the settings of a model or
the version of a library, and the version of the data. A line under another digest is passed over, and stays in the
file.
"""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from frmu import __version__
from frmu.datasets import VERSION

__all__ = ["Lines", "code_digest", "digest_of_line"]

CODE = (
    "data/*.py",
    "models/*.py",
    "methods/analytic.py",
    "methods/features.py",
    "methods/guard.py",
    "clients/layers.py",
    "server/*.py",
)
Line = dict[str, Any]


def digest_of_line(settings: Mapping[str, Any]) -> str:
    """A digest of the settings of a model, under this version of frmu and of its data sets."""
    text = json.dumps({"frmu": __version__, "data": VERSION, **settings}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def code_digest(*patterns: str) -> str:
    """A digest of some code, by default that which makes a model: without comments, docstrings and layout."""
    root = Path(__file__).parent.parent
    sha = hashlib.sha256()
    for file in sorted(file for pattern in patterns or CODE for file in root.glob(pattern)):
        sha.update(_bare(file.read_text(encoding="utf-8")).encode())
    return sha.hexdigest()[:16]


def _bare(source: str) -> str:
    """The code of a module, without its comments and docstrings.

    >>> _bare('"A"\\nx  =  1  # one') == _bare('"B"\\nx = 1')
    True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            del node.body[0]
    return ast.dump(tree)


class Lines:
    """The lines of a file, by the names that tell them apart; without a file, those of this run."""

    def __init__(self, out: Path | None, keys: Sequence[str], tell: Callable[[str], None]) -> None:
        self._out, self._keys = out, tuple(keys)
        self._found: dict[tuple[Any, ...], list[Line]] = {}
        self._passed_over = False
        self._tell = tell
        for line in _whole(out, tell):
            self._found.setdefault(self._key(line), []).append(line)

    def get(self, digest: str, **named: Any) -> Line | None:
        """Return the line of a name that was made under a digest, None where there is none."""
        key = self._key(named)
        lines = self._found.get(key, [])
        found = next((line for line in reversed(lines) if line.get("digest") == digest), None)
        if found is None and lines and not self._passed_over:
            self._passed_over = True
            one = ", ".join(map(str, key))
            self._tell(f"{self._out}: lines of other settings, code or data are passed over, that of {one} among them")
        return found

    def put(self, line: Line) -> None:
        """Keep a line, in the file as well."""
        self._found.setdefault(self._key(line), []).append(line)
        if self._out is not None:
            with self._out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _key(self, line: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(line.get(name) for name in self._keys)


def _whole(out: Path | None, tell: Callable[[str], None]) -> list[Line]:
    """The lines of a file; one at its end that was cut off is dropped, from the file as well, and that is said."""
    if out is None or not out.exists():
        return []
    raw = out.read_bytes()
    whole, _, rest = raw.rpartition(b"\n")
    if rest:
        tell(f"{out}: its last line was cut off, and is dropped")
        with out.open("rb+") as file:
            file.truncate(len(raw) - len(rest))
    return [json.loads(line) for line in whole.splitlines() if line.strip()]
