"""No change of a room passes its tests, but for those that are named with a reason: `pytest -m mutation -k ledger`.

rooms.toml says what is mutated and which tests judge it, survivors.toml which mutants survive and why they may.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
ROOMS: dict[str, Any] = tomllib.loads((HERE / "rooms.toml").read_text())
SEED, WITHOUT = ROOMS.pop("seed"), ROOMS.pop("without")
COPIED = ("frmu", "tests", "cluster", "jobs", "pyproject.toml", "README.md")
# What mypy says of the code that mutmut puts around a mutant, not of the mutant.
UNASKED = ("import-not-found", "unused-ignore", "untyped-decorator", "has-type", "misc")

pytestmark = [
    pytest.mark.mutation,
    pytest.mark.skipif(
        find_spec("mutmut") is None or find_spec("mypy") is None,
        reason="mutmut is not here: pip install -c cluster/constraints.txt -e '.[test,mutation]'",
    ),
]


def settings(room: dict[str, Any]) -> str:
    """The setup.cfg of a room; mutmut reads it in the folder that it works in."""
    disabled = [word for code in UNASKED for word in ("--disable-error-code", code)]
    several = {
        "source_paths": ["frmu"],
        "only_mutate": room["modules"],
        "also_copy": [name for name in COPIED if name not in ("frmu", "tests")],
        "pytest_add_cli_args": ["-n", "0", "-p", "no:cacheprovider", "-k", f"not ({WITHOUT})"],
        "pytest_add_cli_args_test_selection": room["tests"],
        "type_check_command": [sys.executable, "-m", "mypy", "-p", "frmu", "--output", "json", *disabled],
    }
    one = {
        "use_git_change_detection": "false",
        "track_dependencies": "false",
        "timeout_multiplier": "5",
        "timeout_constant": "5",
    }
    lines = ["[mutmut]", *(f"{key} = {value}" for key, value in one.items())]
    for key, values in several.items():
        lines += [f"{key} =", *(f"    {value}" for value in values)]
    return "\n".join(lines) + "\n"


def mutate(name: str, folder: Path) -> dict[str, Any]:
    """Mutate one room in a copy of this checkout; see room.py."""
    room = ROOMS[name]
    for part in COPIED:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, folder / part)
    (folder / "setup.cfg").write_text(settings(room))
    (folder / "room.json").write_text(json.dumps(room | {"seed": SEED}))
    command = [sys.executable, str(HERE / "room.py"), "room.json", "result.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads((folder / "result.json").read_text())


def covers(entry: dict[str, Any], mutant: dict[str, str]) -> bool:
    """Return whether a named survivor is this one; an entry without `into` names every change of its line."""
    same = (entry["function"], entry["line"]) == (mutant["function"], mutant["line"])
    return same and mutant["into"] in entry.get("into", [mutant["into"]])


def told(mutant: dict[str, str]) -> str:
    return f"{mutant['function']} ({mutant['why']})\n  - {mutant['line']}\n  + {mutant['into']}"


@pytest.mark.parametrize("name", sorted(ROOMS))
def test_a_mutant_that_survives_is_named_with_its_reason(name: str, tmp_path: Path) -> None:
    result = mutate(name, tmp_path)
    named = [
        entry for entry in tomllib.loads((HERE / "survivors.toml").read_text())["survivor"] if entry["room"] == name
    ]
    unnamed = [mutant for mutant in result["survivors"] if not any(covers(entry, mutant) for entry in named)]
    stale = [entry for entry in named if not any(covers(entry, mutant) for mutant in result["survivors"])]
    assert result["tried"] > 0
    assert not unnamed, f"{len(unnamed)} of {result['tried']} survive unnamed:\n" + "\n".join(map(told, unnamed))
    assert not stale, f"named, but found by now: {[(entry['function'], entry['line']) for entry in stale]}"


def test_every_survivor_has_a_reason_and_a_room() -> None:
    for entry in tomllib.loads((HERE / "survivors.toml").read_text())["survivor"]:
        assert entry["room"] in ROOMS
        assert len(entry["reason"]) > 10
