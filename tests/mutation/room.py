"""Mutate one room, in the copy of a checkout that is the working directory, and write down what survived.

`python room.py ROOM.json RESULT.json`, started by test_mutation.py. mutmut makes the mutants, asks mypy which of them
would not pass the gates, and runs the tests that call what was changed. Two changes are added to those it knows: a call
whose answer nobody uses is left out, and so is a `raise`.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import libcst as cst
from mutmut import __main__ as mutmut
from mutmut.mutation import mutators

SURVIVED = {0: "survived", 5: "no test calls it", 33: "no test calls it"}  # by the exit code that mutmut notes
_TYPED = re.compile(r",(?: dtype=(?:np\.float64|None))?\s*(?=\))")  # what an array is called, which it is already
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def _left_out(node: cst.Expr | cst.Raise) -> Iterator[cst.Pass]:
    if isinstance(node, cst.Raise) or isinstance(node.value, cst.Call):
        yield cst.Pass()


def _wording(old: str, new: str) -> bool:
    """Return whether a change lies within a sentence, or names a type: tests are not for how a message is worded."""

    def blank(text: str) -> str:
        return _TYPED.sub("", _STRING.sub(lambda found: '""' if " " in found[0] else found[0], text))

    return blank(old) == blank(new)


def _changes(module: str) -> dict[str, tuple[str, str, str]]:
    """The mutants of a module by mutmut's name: the function, the lines that were changed, what they became."""
    text = Path("mutants", module).read_text()
    lines, dotted = text.splitlines(), module.removesuffix(".py").replace("/", ".")
    spans = {n.name: lines[n.lineno - 1 : n.end_lineno] for n in ast.walk(ast.parse(text)) if isinstance(n, _FUNCTIONS)}
    found = {}
    for name, body in spans.items():
        mangled, _, number = name.rpartition("__mutmut_")
        if not number.isdigit():
            continue
        original = [line.replace(f"{mangled}__mutmut_orig", name) for line in spans[f"{mangled}__mutmut_orig"]]
        told = list(difflib.ndiff(original, body))
        old, new = (" / ".join(line[2:].strip() for line in told if line.startswith(sign)) for sign in ("- ", "+ "))
        readable = mangled.removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
        found[f"{dotted}.{name}"] = (f"{dotted}.{readable}", old, new)
    return found


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def _generate() -> None:
    Path("mutants").mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.setup_source_paths()
    mutmut.create_mutants(1)


def _unsaid(change: tuple[str, str, str]) -> bool:
    """Return whether a call is left out."""
    return change[2] == "pass" and not change[1].startswith("raise")


def _chosen(seed: str, share: float, change: tuple[str, str, str]) -> bool:
    if _wording(*change[1:]):
        return False
    return int(hashlib.sha256("\n".join((seed, *change)).encode()).hexdigest()[:8], 16) < share * 2**32


def main() -> None:
    """Write the survivors of a room as JSON, and how many mutants there were, were tried, and were killed."""
    room: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    mutators.mutation_operators.extend([(cst.Expr, _left_out), (cst.Raise, _left_out)])  # type: ignore[attr-defined]
    _generate()
    metas = [path for path in sorted(Path("mutants").rglob("*.py.meta")) if "tests" not in path.parts]
    changes: dict[str, tuple[str, str, str]] = {}
    chosen: list[str] = []
    for meta in metas:
        module = str(meta.relative_to("mutants")).removesuffix(".meta")
        here = _changes(module)
        share = 1.0 if module in room["whole"] else room["share"]
        chosen += [
            name
            for name, change in here.items()
            if (room.get("calls") and _unsaid(change)) or _chosen(room["seed"], share, change)
        ]
        changes |= here
    mutmut._run(chosen, 1)
    codes: dict[str, int | None] = {}
    for meta in metas:
        codes |= json.loads(meta.read_text())["exit_code_by_key"]
    tried = [name for name in chosen if codes[name] is not None]
    survivors = [
        dict(zip(("function", "line", "into"), changes[name], strict=True)) | {"why": SURVIVED[codes[name]]}
        for name in tried
        if codes[name] in SURVIVED
    ]
    result = {
        "mutants": len(changes),
        "tried": len(tried),
        "rejected by mypy": sum(codes[name] == 37 for name in tried),
        "survivors": survivors,
    }
    Path(sys.argv[2]).write_text(json.dumps(result, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
