"""What goes up with a job, and what does not: secrets planted by name and by content."""

from __future__ import annotations

import os
import secrets
import sqlite3
import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from conftest import CONFIG

from frmu.cli import main
from frmu.errors import RequestError
from frmu.runtime import upload
from frmu.runtime.upload import pack


def put(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def packed(folder: Path, tmp_path: Path, *exclude: str) -> set[str]:
    file = tmp_path / "packed.zip"
    pack(folder, file, exclude)
    with zipfile.ZipFile(file) as found:
        return set(found.namelist())


def test_records_and_working_folders_stay(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    put(desk, "homes.parquet", "homes.frmu/key", "homes.frmu/shards/a.parquet", "sub/x.frmu/ledger.db", ".git/HEAD")
    put(desk, "homes.toml", "frmu/datasets/parking.parquet", "jobs/train.py")
    assert packed(desk, tmp_path) == {"homes.toml", "frmu/datasets/parking.parquet", "jobs/train.py"}


def test_a_secret_stays_whatever_it_is_called(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    put(desk, "homes.toml", "run.py")
    put(desk, "token", "sub/pgpass", "mine.key", ".env", "old/key")
    put(desk, "cluster-one/cluster.json", "cluster-one/logs/a.log", "pg/PG_VERSION", "pg/base/1/1247")
    put(desk, "notes.txt", text=secrets.token_hex(32) + "\n")
    put(desk, "lines", text="127.0.0.1:5432:*:frmu:abcdef0123456789\n")
    put(desk, "where.toml", text='ledger = "postgresql+psycopg://frmu:hush@db/ledger"\n')
    put(desk, "sub/letter.py", text="-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n")
    with sqlite3.connect(desk / "book.txt") as book:
        book.execute("CREATE TABLE lines (n)")
    book.close()
    (desk / "rows.bin").write_bytes(b"PAR1" + b"0" * 50)
    file = tmp_path / "packed.zip"
    package = pack(desk, file)
    assert package.names == {"homes.toml", "run.py"}
    assert {"token", "sub/pgpass", "notes.txt", "book.txt", "where.toml", "rows.bin"} <= set(package.kept)
    assert package.kept["book.txt"] == "a database"
    with zipfile.ZipFile(file) as found:
        assert set(found.namelist()) == {"homes.toml", "run.py"}


def test_lists_are_read_where_they_lie(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    put(desk, "a.txt", "sub/a.txt", "sub/b.txt", "deep/c.txt")
    put(desk, ".gitignore", text="deep/\n")
    put(desk, "sub/.gitignore", text="/a.txt\n")
    assert packed(desk, tmp_path, ".*") == {"a.txt", "sub/b.txt"}


def test_the_same_files_are_the_same_package(tmp_path: Path) -> None:
    desk = tmp_path / "desk"
    put(desk, "a.txt")
    pack(desk, tmp_path / "one.zip")
    os.utime(desk / "a.txt", (1, 1))
    pack(desk, tmp_path / "two.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()


def test_too_much_is_said_before_it_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "large.bin").write_bytes(secrets.token_bytes(1 << 20))
    monkeypatch.setattr(upload, "LIMIT", 1 << 19)
    with pytest.raises(RequestError, match=r"large\.bin \(1 MiB\)"):
        pack(desk, tmp_path / "packed.zip")


def test_a_config_that_would_stay_here_is_named_with_the_cause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "homes.toml", text=f'{CONFIG}\n[store]\nfolder = "{tmp_path / "work"}"\n')
    put(tmp_path, ".gitignore", text="*.toml\n")
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["submit", "train", "homes.toml", "--address", "http://127.0.0.1:1"])
    assert run.exit_code == 2
    assert "homes.toml: would not go up with the job, because .gitignore" in run.output


def test_an_encoder_that_would_stay_here_is_named_with_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CONFIG + 'encoders = { weather = "nets/a.pt2" }\n[model.files.weather]\noutputs = 6\nrange = [0.0, 1.0]\n'
    put(tmp_path, "homes.toml", text=f'{text}\n[store]\nfolder = "{tmp_path / "work"}"\n')
    put(tmp_path, "nets/a.pt2", text="a net")
    put(tmp_path, ".gitignore", text="*.pt2\n")
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["submit", "train", "homes.toml", "--address", "http://127.0.0.1:1"])
    assert run.exit_code == 2
    assert "nets/a.pt2: would not go up with the job, because .gitignore" in run.output
