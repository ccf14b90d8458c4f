"""Files that must survive are written by one function: whoever goes past it is found here."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from frmu.storage.atomic import write_bytes, write_file

ROOT = Path(__file__).parents[1] / "frmu"
ALLOWED = {
    "storage/atomic.py": "it is the function",
    "storage/fence.py": "the fence is a number under a lock, and a job without it takes the time",
    "storage/workspace.py": "the key is made where none is, never replaced; the lock's file holds a name",
    "runtime/upload.py": "a package is in a temporary folder, and gone after it was sent",
    "data/inference.py": "a config that init proposes is read before it takes its name",
    "report/receipt_html.py": "a copy of a receipt that the ledger has",
    "tracking/database.py": "SQLite is a durable writer itself: a journal, one transaction a change, FULL",
    "tracking/queue.py": "a step's file in a temporary folder, for MLflow to copy",
    "tracking/registry.py": "an artifact in a temporary folder, for MLflow to copy; MLflow's own database, for vacuum",
    "tracking/tracker.py": "an artifact in a temporary folder, for MLflow to copy",
    "datasets/__init__.py": "a cache that is made again",
    "demo.py": "a demo's own folder",
    "cli/bench_erasure.py": "a table that can be made again",
    "bench/accuracy.py": "lines of a benchmark that can be made again",
}


def writers(path: Path) -> list[int]:
    """Lines of a module that write a file or put one in another's place."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        opens = name in ("open", "fdopen") and any(set(mode) & set("wax+") and len(mode) <= 3 for mode in modes)
        moves = name in ("replace", "rename") and len(node.args) == 1 and not node.keywords
        connects = isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "sqlite3.connect"
        writes = name in ("write_text", "write_bytes") and isinstance(node.func, ast.Attribute)
        if opens or moves or connects or writes:
            found.append(node.lineno)
    return found


def test_nobody_writes_past_the_one_function() -> None:
    paths = [path for path in ROOT.rglob("*.py") if "bench" not in path.relative_to(ROOT).parts[:1]]
    past = {str(path.relative_to(ROOT)): lines for path in paths if (lines := writers(path))}
    assert set(past) <= set(ALLOWED), {name: lines for name, lines in past.items() if name not in ALLOWED}


def test_a_file_is_old_or_new_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, b"old")

    def fail(file: object) -> None:
        file.write(b"ne")  # type: ignore[attr-defined]
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_file(path, fail)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_the_folder_goes_to_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bool] = []
    sync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda at: (synced.append(Path(f"/proc/self/fd/{at}").resolve().is_dir()), sync(at))
    )
    write_bytes(tmp_path / "a", b"x")
    assert synced == [False, True]


def test_a_new_file_can_be_for_its_owner_alone(tmp_path: Path) -> None:
    write_file(tmp_path / "a", lambda file: file.write(b"x"), mode=0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
