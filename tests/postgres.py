"""A PostgreSQL of the test run's own: started on loopback in a temporary folder, and stopped by its process.

What holds on SQLite may fail on a server (types, locks, what a rolled back transaction leaves), so ledger tests want
a real one. It is made to forget: nothing is synced to disk, for no test looks at it after a power cut.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",  # a socket's path must be short, and a temporary folder's may not be
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "16MB",
    "max_connections": "50",
    "timezone": "UTC",
}
PATIENCE = 60.0  # seconds for the server to answer


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The SQLAlchemy URL of a fresh cluster's database `postgres`; skips where there is no PostgreSQL to start."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed: pip install 'psycopg[binary]'")
    binaries = _binaries()
    if binaries is None:
        pytest.skip("PostgreSQL's initdb and postgres are neither on PATH nor under /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="frmu-postgres-"))
    try:
        with _server(binaries, folder, psycopg) as url:
            yield url
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that only this test has."""
    import psycopg

    name = f"test_{secrets.token_hex(6)}"
    with psycopg.connect(_plain(postgres_url), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    try:
        yield f"{postgres_url.rpartition('/')[0]}/{name}"
    finally:
        with psycopg.connect(_plain(postgres_url), autocommit=True) as connection:
            # A pool that a test left open would hold the database.
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def _plain(url: str) -> str:
    """The URL as psycopg itself takes it."""
    return url.replace("postgresql+psycopg://", "postgresql://", 1)


def _binaries() -> Path | None:
    """The folder of initdb and postgres: what is on PATH first, then the newest of Debian's."""
    folders = []
    if found := shutil.which("initdb"):
        folders.append(Path(found).resolve().parent)
    versions = Path("/usr/lib/postgresql").glob("*/bin")
    folders += sorted(versions, key=lambda path: float(path.parent.name), reverse=True)
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def _unprivileged(folder: Path) -> dict[str, Any]:
    """How to start as somebody else where we are root, which PostgreSQL refuses; the folder is theirs then."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            os.chown(folder, user.pw_uid, user.pw_gid)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    pytest.skip("root may not run PostgreSQL, and there is no user postgres or nobody to run it as")


@contextlib.contextmanager
def _server(binaries: Path, folder: Path, psycopg: Any) -> Iterator[str]:
    password = secrets.token_hex(16)
    started_as: dict[str, Any] = {"cwd": folder, "stdin": subprocess.DEVNULL} | _unprivileged(folder)
    _initdb(binaries, folder, password, started_as)
    process, port = _start(binaries, folder, password, started_as, psycopg)
    try:
        yield f"postgresql+psycopg://postgres:{password}@127.0.0.1:{port}/postgres"
    finally:
        _stop(process)


def _initdb(binaries: Path, folder: Path, password: str, started_as: dict[str, Any]) -> None:
    # A password, though it is loopback: else anybody on the machine could read, and no test would need one in the URL.
    secret = folder / "password"
    secret.write_text(password)
    if "user" in started_as:
        os.chown(secret, started_as["user"], started_as["group"])
    secret.chmod(0o600)
    command = [binaries / "initdb", "--pgdata", folder / "data", "--username", "postgres", "--pwfile", secret]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **started_as)
    secret.unlink()
    if done.returncode:
        raise RuntimeError(f"initdb failed ({done.returncode}): {done.stderr or done.stdout}")


def _start(
    binaries: Path, folder: Path, password: str, started_as: dict[str, Any], psycopg: Any
) -> tuple[subprocess.Popen[bytes], int]:
    """Start on a free port; another process may take it in between, so more than once."""
    log = folder / "log"
    for _ in range(3):
        port = _free_port()
        options = [
            word for name, value in (SETTINGS | {"port": str(port)}).items() for word in ("-c", f"{name}={value}")
        ]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", *options], stdout=file, stderr=file, **started_as
            )
        if _answers(process, port, password, psycopg):
            return process, port
        _stop(process)
    raise RuntimeError(f"PostgreSQL did not start: {log.read_text(errors='replace')[-2000:]}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _answers(process: subprocess.Popen[bytes], port: int, password: str, psycopg: Any) -> bool:
    """Whether our server, not another's on the same port, lets us in: only ours knows the password."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(psycopg.OperationalError):
            where = {"host": "127.0.0.1", "port": port, "dbname": "postgres"}
            psycopg.connect(user="postgres", password=password, connect_timeout=2, **where).close()
            return True
        time.sleep(0.05)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)  # fast: it ends connections and writes out what it must
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
