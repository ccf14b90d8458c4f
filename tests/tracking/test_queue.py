"""What waits for MLflow, as a file: whole wherever a job is killed, gone where it is purged, told where it is wrong."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import train

from frmu.cli import main
from frmu.config import Config
from frmu.errors import RequestError, StoreError
from frmu.tracking import database
from frmu.tracking.folders import take_over
from frmu.tracking.queue import Op, Queue, key, unexpected_files
from frmu.tracking.sync import Taint, empty, give_up, left_in


def filled(folder: Path) -> Queue:
    """Two runs of `ada`, the second with numbers of single clients, and one of `bob`."""
    outbox = Queue(folder / "outbox")
    (folder / "state.safetensors").write_bytes(b"state")
    for name, owner, more in (("train", "ada", {}), ("slices", "ada", {"frmu.detail": "true"}), ("train", "bob", {})):
        box = outbox.begin(key(), name, more, None, 1, None)
        box.add(Op("tags", {"frmu.holds.0": owner}))
        box.add(Op("metrics", {"entries": [["rmse", 1.0, 2, 0]]}))
        box.add(Op("file", {}, folder / "state.safetensors"))
        box.add(Op("model", {"state": owner, "tags": {}}, folder / "state.safetensors"))
        box.add(Op("end", {"status": "FINISHED", "time": 3}))
    return outbox


def has(folder: Path, words: list[str]) -> list[str]:
    """Which of some words stand in the files of a folder."""
    content = b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())
    return [word for word in words if word.encode() in content]


# -- kept in order --------------------------------------------------------------------------------------------


def test_what_is_put_in_comes_out_and_its_file_only_for_as_long_as_it_is_used(tmp_path: Path) -> None:
    outbox, scratch = Queue(tmp_path / "outbox", tmp_path / "scratch"), tmp_path / "scratch"
    scratch.mkdir()
    (tmp_path / "a picture.png").write_bytes(b"\0\1\2")
    box = outbox.begin(key(), "train", {"a": "1"}, "parent", 7, None)
    steps = [Op("tags", {"b": "2"}), Op("file", {}, tmp_path / "a picture.png"), Op("end", {"time": 3})]
    for step in steps:
        box.add(step)
    (tmp_path / "a picture.png").unlink()  # it was copied
    (again,) = Queue(tmp_path / "outbox", scratch).waiting()
    assert again == box
    assert again.lineage() == {"a": "1", "b": "2"}
    assert again.files() == ["a picture.png"]
    seen = []
    for step in again.ops():
        seen.append((step.kind, step.body))
        if step.kind == "file":
            assert step.data is not None
            assert (step.data.name, step.data.read_bytes()) == ("a picture.png", b"\0\1\2")
        assert bool(list(scratch.iterdir())) == (step.kind == "file")
    assert seen == [(step.kind, step.body) for step in steps]
    with closing(again.ops()) as ops:
        assert [next(ops).kind, next(ops).kind] == ["tags", "file"]
    assert list(scratch.iterdir()) == []


def test_a_name_of_a_file_leads_nowhere_else(tmp_path: Path) -> None:
    with Queue(tmp_path / "outbox").laid_out("../../x", b"") as path:
        assert path is not None
        assert path.name == "x"
        assert path.parent.name.startswith("frmu-")


def test_runs_wait_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    first, second, third = outbox.waiting()
    second.remove()
    assert second.began("x").run == "x"  # what is gone does not come back by it
    assert [box.key for box in outbox.waiting()] == [first.key, third.key]
    fourth = outbox.begin(key(), "train", {}, None, 1, None)
    assert [box.key for box in outbox.waiting()] == [first.key, third.key, fourth.key]
    assert first.began("9d5a") == outbox.waiting()[0]
    assert outbox.count() == 3


def test_a_server_is_met_once_and_nothing_is_made_by_asking(tmp_path: Path) -> None:
    outbox = Queue(tmp_path / "outbox")
    assert (outbox.met("a:1"), outbox.count(), outbox.waiting()) == (False, 0, [])
    outbox.scrub()
    assert not outbox.folder.exists()
    for _ in range(2):
        outbox.meet("a:1")
    assert (outbox.met("a:1"), outbox.met("a:2")) == (True, False)
    assert outbox.folder.stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in outbox.folder.iterdir()} == {0o600}
    assert unexpected_files(outbox.folder) == []


# -- killed ---------------------------------------------------------------------------------------------------

ADD = """
import sys
from pathlib import Path
from frmu.tracking.queue import Op, Queue

(box,) = Queue(Path(sys.argv[1])).waiting()
while True:
    box.add(Op("file", {}, Path(sys.argv[2])))
    print("added", flush=True)
"""


@pytest.mark.parametrize("many", [1, 2, 4])
def test_a_job_that_is_killed_leaves_a_step_or_nothing(tmp_path: Path, many: int) -> None:
    outbox, content = Queue(tmp_path / "outbox"), random.Random(many).randbytes(5_000_000)
    (tmp_path / "a").write_bytes(content)
    outbox.begin(key(), "train", {}, None, 1, None)
    command = [sys.executable, "-c", ADD, str(outbox.folder), str(tmp_path / "a")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        for _ in range(many):
            assert job.stdout.readline() == "added\n"
            assert outbox.count() == 1  # at any moment of it
        job.kill()
        more = job.stdout.read().count("added")
    (box,) = outbox.waiting()
    assert len(box.files()) in (many + more, many + more + 1)
    assert all(op.data is not None and op.data.read_bytes() == content for op in box.ops())
    box.add(Op("end", {}))
    assert [op.kind for op in box.ops()][-1] == "end"


# SQLite may write to the file before the end of a change, and is killed then.
SPILL = """
import os, signal, sys, sqlite3
change = sqlite3.connect(sys.argv[1], isolation_level=None)
change.execute("PRAGMA cache_size = 1")
change.execute("BEGIN IMMEDIATE")
change.execute("UPDATE steps SET content = randomblob(length(content) + 1000000)")
change.execute("DELETE FROM steps WHERE number = 1")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_job_had_begun_is_taken_back_by_who_counts(tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    before = [[(op.kind, op.body) for op in box.ops()] for box in outbox.waiting()]
    run = subprocess.run([sys.executable, "-c", SPILL, str(outbox.file)], check=False)
    assert run.returncode == -signal.SIGKILL
    assert outbox.file.with_name("queue.db-journal").stat().st_size > 0
    assert outbox.count() == 3
    assert [[(op.kind, op.body) for op in box.ops()] for box in outbox.waiting()] == before
    assert unexpected_files(outbox.folder) == []


def test_who_counts_does_not_wait_for_who_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "_GLANCE", 0.1)
    outbox = filled(tmp_path)
    with database.changing(outbox.file) as change:
        change.execute("UPDATE steps SET content = zeroblob(20000000) WHERE content IS NOT NULL")
        assert outbox.count() == 3
        with closing(sqlite3.connect(outbox.file, 0)) as other, pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("DELETE FROM steps")
    with closing(sqlite3.connect(outbox.file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match=r"queue\.db: another process is at work on it; wait"):
            outbox.count()


# -- purged ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_what_waits_is_purged_by_lineage(tmp_path: Path, whole: bool) -> None:
    outbox = filled(tmp_path)
    taint = Taint(["ada"], clean=["bob"])
    ada, _, bob = outbox.waiting()
    assert left_in(outbox, taint)[0] == (
        f'state.safetensors, state.safetensors of run "train" ({ada.key}) in {outbox.file}, which waits'
    )
    gone = empty(outbox, taint, whole)
    assert (len(gone.runs), gone.files) == (2, 4)
    assert left_in(outbox, taint) == []
    left = [(box.name, [op.kind for op in box.ops()], len(box.files())) for box in outbox.waiting()]
    stripped = ("train", ["tags", "metrics", "end"], 0)
    assert left == [*([] if whole else [stripped]), ("train", ["tags", "metrics", "file", "model", "end"], 2)]
    assert empty(outbox, Taint(["ada"], clean=["bob"]), whole).files == 0
    assert empty(outbox, Taint(["eve"], clean=[]), whole).files == 1  # a state that is not clean, whoever is in it
    by_name = Taint(known=[bob.key], keep=[])
    assert empty(outbox, by_name, whole).files == 1


def test_a_file_that_is_dropped_is_not_in_the_folder_any_more(tmp_path: Path) -> None:
    outbox, (small, large) = Queue(tmp_path / "outbox"), (tmp_path / "small.png", tmp_path / "large.safetensors")
    small.write_bytes(b"small of ada")
    large.write_bytes(b"large of ada" * 500_000)
    box = outbox.begin(key(), "train", {}, None, 1, None)
    for file in (small, large):
        box.add(Op("file", {}, file))
    words = ["small of ada", "large of ada", "small.png", "large.safetensors"]
    assert has(outbox.folder, words) == words
    assert box.drop("file", "model") == 2
    assert has(outbox.folder, words) == []
    assert outbox.count() == 1


@pytest.mark.parametrize("seed", [1, 22])  # of the few that leave copies in SQLite 3.40
def test_nothing_of_what_is_purged_is_left_in_the_folder(tmp_path: Path, seed: int) -> None:
    """Rows that SQLite has moved meanwhile leave copies, which it overwrites only where the file is written anew."""
    outbox, chance = Queue(tmp_path / "outbox"), random.Random(seed)
    boxes, words = [], dict[str, list[str]]()
    for number in range(150):
        if not boxes or chance.random() < 0.3:
            owner = chance.choice(["ada", "bob"])
            boxes.append((owner, outbox.begin(key(), "slices", {"frmu.holds.0": owner}, None, 1, None)))
        owner, box = chance.choice(boxes)
        word = f"{owner}-{number}-{chance.randbytes(8).hex()}"
        words.setdefault(owner, []).append(word)
        (tmp_path / word).write_bytes(word.encode() * chance.choice([1, 100, 10_000]))
        box.add(Op("metrics", {word: word * chance.choice([1, 4, 60])}))
        box.add(Op("file", {}, tmp_path / word))
        if chance.random() < 0.2:
            boxes.remove((owner, box))
            box.remove()  # as a delivery does
    empty(outbox, Taint(["ada"]), delete_runs=True)
    assert has(outbox.folder, words["ada"]) == []
    assert {box.lineage()["frmu.holds.0"] for box in outbox.waiting()} == {"bob"}
    kept = [word for box in outbox.waiting() for word in box.files()]
    assert has(outbox.folder, kept) == kept


def test_a_run_is_given_up_by_its_key(tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    first, second, third = outbox.waiting()
    assert give_up(outbox, second.key) == second
    assert outbox.waiting() == [first, third]
    with pytest.raises(RequestError, match=rf'no run "{first.key}x" waits in .*queue\.db; did you mean "{first.key}"'):
        give_up(outbox, f"{first.key}x")


# -- damaged --------------------------------------------------------------------------------------------------


def _other(file: Path) -> None:
    file.unlink()
    with closing(sqlite3.connect(file)) as other:
        other.execute("CREATE TABLE runs (number INTEGER)")


def _newer(file: Path) -> None:
    with closing(sqlite3.connect(file)) as other:
        other.execute("PRAGMA user_version = 2")


def _garbled(file: Path) -> None:
    with closing(sqlite3.connect(file)) as other, other:
        other.execute("UPDATE runs SET tags = '{'")
        other.execute("UPDATE steps SET body = '[]'")


def _torn(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[4096:] = bytes(len(raw) - 4096)
    file.write_bytes(raw)


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda file: file.write_bytes(b"no database" * 1000), "file is not a database; restore it from a backup, or"),
        (_torn, "malformed; restore it from a backup, or move it away to give up the runs that wait"),
        (_other, "it is another program's database; restore it from a backup"),
        (_newer, "is of version 2, and this frmu reads 1; use the frmu that wrote it"),
        (_garbled, "Expecting property name"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_and_left_as_it_is(
    tmp_path: Path, spoil: Callable[[Path], object], why: str
) -> None:
    outbox = filled(tmp_path)
    box = outbox.waiting()[0]
    spoil(outbox.file)
    before = outbox.file.read_bytes()
    with pytest.raises(StoreError, match=why) as caught:
        outbox.waiting()
    assert str(caught.value).startswith(f"{outbox.file}: ")
    if spoil is not _garbled:
        with pytest.raises(StoreError, match=why):
            box.add(Op("end", {}))
    else:
        with pytest.raises(StoreError, match="is no JSON object"):
            list(box.ops())
    assert outbox.file.read_bytes() == before


def test_a_damaged_file_ends_a_command_with_two(config: Config) -> None:
    train(config)
    (config.folder / "outbox").mkdir()
    (config.folder / "outbox" / "queue.db").write_bytes(b"no database")
    for command in (["status", config.file], ["deliver", config.file, "--json"]):
        run = CliRunner().invoke(main, list(map(str, command)))
        assert run.exit_code == 2, run.output
        assert f"{config.folder / 'outbox' / 'queue.db'}: cannot be read: file is not a database" in run.output
    assert json.loads(run.stdout.splitlines()[-1])["kind"] == "StoreError"
    assert (config.folder / "outbox" / "queue.db").read_bytes() == b"no database"


def test_a_disk_that_is_full_is_told_as_that(tmp_path: Path) -> None:
    outbox = filled(tmp_path)
    (tmp_path / "a").write_bytes(bytes(5_000_000))
    fill = """
import resource, sys
from pathlib import Path
from frmu.errors import StoreError
from frmu.tracking.queue import Op, Queue

resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    Queue(Path(sys.argv[1])).waiting()[0].add(Op("file", {}, Path(sys.argv[2])))
except StoreError as error:
    print(error)
"""
    command = [sys.executable, "-c", fill, str(outbox.folder), str(tmp_path / "a")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"{outbox.file}: cannot be used: ")
    assert "make room on its disk" in told
    assert [len(list(box.ops())) for box in outbox.waiting()] == [5, 5, 5]


# -- the format of before -------------------------------------------------------------------------------------


def old(folder: Path) -> list[str]:
    """An outbox of folders, as a job that was killed left it: the keys of the runs that wait in it."""
    keys = [f"outbox-{number:016x}" for number in (3, 1, 2)]
    for at, name in enumerate(keys, 1):
        place = folder / f"{at:06d}-{name}"
        (place / "0010").mkdir(parents=True)
        (place / "0010" / "a picture.png").write_bytes(name.encode())
        header = {"key": name, "name": f"run {at}", "parent": None, "start": at, "run": None, "tags": {"at": str(at)}}
        (place / "run.json").write_text(json.dumps(header))
        (place / "0009.json").write_text(json.dumps({"kind": "tags", "body": {"frmu.holds.0": "ada"}}))
        (place / "0010.json").write_text(json.dumps({"kind": "file", "body": {}}))
    (folder / f"000001-{keys[0]}" / "0011").mkdir()
    (folder / f"000001-{keys[0]}" / "0011" / "half").write_bytes(b"of a step")
    (folder / f"000003-{keys[2]}" / "run.json").unlink()  # was being removed
    (folder / "met.json").write_text('["a:1", "b:2"]')
    return keys[:2]


def test_an_outbox_of_folders_is_taken_over(tmp_path: Path) -> None:
    outbox = Queue(tmp_path / "outbox")
    waits = outbox.begin(key(), "waits already", {}, None, 1, None)
    keys = old(outbox.folder)
    backup = shutil.copytree(outbox.folder, tmp_path / "backup")
    for _ in range(2):
        take_over(outbox)
        assert [box.key for box in outbox.waiting()] == [waits.key, *keys]
        for at, box in enumerate(outbox.waiting()[1:], 1):
            assert (box.name, box.start, box.tags) == (f"run {at}", at, {"at": str(at)})
            assert box.lineage() == {"at": str(at), "frmu.holds.0": "ada"}
            assert [(op.kind, op.data and op.data.read_bytes()) for op in box.ops()] == [
                ("tags", None), ("file", box.key.encode()),
            ]  # fmt: skip
        assert outbox.met("a:1")
        assert outbox.met("b:2")
        assert sorted(file.name for file in outbox.folder.iterdir()) == ["queue.db", "queue.db-journal"]
        # a job that was killed between the two leaves both: once more, it is there once
        shutil.copytree(backup, outbox.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("queue.db*"))
        assert len(unexpected_files(outbox.folder)) == 4


def test_folders_that_cannot_be_read_are_left_as_they_are(tmp_path: Path) -> None:
    outbox = Queue(tmp_path / "outbox")
    keys = old(outbox.folder)
    step = outbox.folder / f"000002-{keys[1]}" / "0009.json"
    for text, why in (("{", "cannot be read: Expecting"), ("{}", "cannot be read: 'kind'")):
        step.write_text(text)
        with pytest.raises(StoreError, match=rf"000002-{keys[1]}.*{why}.*remove its folder to give it up"):
            take_over(outbox)
        assert outbox.count() == 0
        assert not outbox.met("a:1")
        assert (outbox.folder / f"000001-{keys[0]}" / "run.json").exists()
    shutil.rmtree(step.parent)
    take_over(outbox)
    assert [box.key for box in outbox.waiting()] == keys[:1]


def test_a_job_takes_over_what_it_finds(config: Config) -> None:
    train(config)
    old(config.folder / "outbox")
    run = CliRunner().invoke(main, ["deliver", str(config.file), "--json"])
    assert run.exit_code == 0, run.output
    assert json.loads(run.stdout.splitlines()[-1])["delivered"] == 2
    assert unexpected_files(config.folder / "outbox") == []
