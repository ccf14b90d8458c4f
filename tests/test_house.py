"""The house keeps its own rules where a linter cannot."""

from __future__ import annotations

import ast
import importlib
import pickle
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import frmu
from frmu import errors

MODULES = [info.name for info in pkgutil.walk_packages(frmu.__path__, "frmu.")]
ROOT = Path(__file__).parents[1]

# A reader scans first words: they say what a thing does or is, and ask nothing.
ASKING = {"what", "whether", "who", "whom", "whose", "how", "where", "which", "when", "why", "those"}
SOURCES = [
    path.relative_to(ROOT).as_posix() for room in ("frmu", "cluster") for path in sorted((ROOT / room).rglob("*.py"))
]


@pytest.mark.parametrize("name", [name for name in errors.__all__ if name.endswith("Error")])
def test_an_error_survives_pickling_and_stands_in_the_tree(name: str) -> None:
    error = getattr(errors, name)("what; where; knob")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again)) == (type(error), str(error))
    assert name in (errors.__doc__ or "")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_what_it_is_and_what_it_gives(name: str) -> None:
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip()
    for public in getattr(module, "__all__", []):
        value = getattr(module, public)
        if callable(value) and getattr(value, "__module__", "").startswith("frmu"):
            assert (value.__doc__ or "").strip(), f"{name}.{public}"


def test_importing_frmu_loads_no_heavy_neighbour() -> None:
    code = "import sys, frmu, frmu.api; print([m for m in ('ray', 'torch', 'mlflow', 'gymnasium') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_there_is_no_room_without_a_name() -> None:
    nameless = {"utils", "core", "common", "base", "helpers", "misc"}
    assert not [path for path in (ROOT / "frmu").rglob("*.py") if path.stem in nameless]


def test_tests_stand_in_the_room_that_they_test() -> None:
    rooms = {path.name for path in (ROOT / "frmu").iterdir() if path.is_dir()} | {"cluster", "jobs", "mutation"}
    assert {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")} <= rooms


def test_no_module_is_a_hall() -> None:
    long = {str(path): n for path in (ROOT / "frmu").rglob("*.py") if (n := len(path.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("name", SOURCES)
def test_a_docstring_begins_with_a_verb_or_names_the_thing(name: str) -> None:
    assert not [f"{name}: {line}" for line in _asking((ROOT / name).read_text(encoding="utf-8"))]


def test_a_docstring_that_asks_is_found() -> None:
    asks = '"""Why it is so."""\ndef f():\n    """What it gives."""\nclass C:\n    """Hold a thing."""\n'
    plain = '"""The reasons."""\ndef f():\n    """Hold the lock."""\ndef _g():\n    """Whatever it gives."""\n'
    assert _asking(asks) == ["Why it is so.", "What it gives.", "Hold a thing."]
    assert _asking(plain) == []


def _asking(source: str) -> list[str]:
    """First lines of docstrings of public things that begin with a question or the like."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text or getattr(node, "name", "").startswith("_"):
            continue
        line = text.splitlines()[0]
        first = line.split()[0].strip(",.:;").lower()
        holds = isinstance(node, ast.ClassDef) and first == "hold"
        if first in ASKING or line.lower().startswith("the same") or line.endswith("?") or holds:
            found.append(line)
    return found
