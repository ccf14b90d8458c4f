"""PostgreSQL for the ledger and for MLflow: on loopback, with a password, in a folder that outlives it.

The password stands in a file that only its owner may read (libpq's PGPASSFILE), so that the addresses which are
printed, written into configs and seen in process lists hold none.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

from machine import processes
from machine.errors import ClusterError

__all__ = ["DATABASES", "binaries", "start", "url"]

DATABASES = ("mlflow", "ledger")
USER = "frmu"
_SKIP = "--no-postgres keeps MLflow in SQLite instead"


def url(port: int, database: str) -> str:
    """The SQLAlchemy address of a database; the password comes from PGPASSFILE."""
    return f"postgresql+psycopg://{USER}@127.0.0.1:{port}/{database}"


def binaries() -> Path | None:
    """The folder that holds initdb and postgres: on PATH, or the newest that Debian installed; None without one."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name.zfill(4))[::-1]
    return next((folder for folder in folders if all((folder / n).exists() for n in ("initdb", "postgres"))), None)


def start(programs: Path, folder: Path, port: int, mark: str) -> processes.Process:
    """Start PostgreSQL on `folder`, which is made where it is not there, with a database for each purpose."""
    owner = _owner(folder)
    home, passwords = folder / "postgres", folder / "pgpass"
    data = home / "data"
    password = _password(passwords, port)
    if not (data / "PG_VERSION").exists():
        _lay(programs, home, password, owner)
    options = ["-c", "listen_addresses=127.0.0.1", "-c", f"port={port}", "-c", "unix_socket_directories="]
    options += ["-c", "timezone=UTC", "-c", "max_connections=100"]
    process = processes.start(
        "postgres",
        [str(programs / "postgres"), "-D", str(data), *options],
        {name: value for name, value in os.environ.items() if not name.startswith("PG")},
        folder / "logs" / "postgres.log",
        mark,
        signal.SIGINT,  # ends the connections, and writes out what it must
        cwd=data,
        **owner,
    )
    try:
        processes.await_(process, lambda: _answers(port, passwords), 60, _SKIP)
        _databases(port, passwords)
    except BaseException:
        processes.stop([process])
        raise
    return process


def _owner(folder: Path) -> dict[str, Any]:
    """Return who runs the server: we, or where we are root, whom PostgreSQL refuses, the user postgres or nobody."""
    if os.geteuid() != 0:
        return {}
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    user = known.get("postgres") or known.get("nobody")
    if user is None:
        raise ClusterError(f"root may not run PostgreSQL, and there is no user postgres or nobody to do so; {_SKIP}")
    folder.chmod(folder.stat().st_mode | 0o011)  # to pass through, not to look
    for parent in folder.resolve().parents:
        if not parent.stat().st_mode & 0o001:
            raise ClusterError(
                f"--dir {folder}: root may not run PostgreSQL, and the user {user.pw_name}, who does, cannot enter "
                f"{parent}; name a folder that others can enter, or {_SKIP}"
            )
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _password(file: Path, port: int) -> str:
    """The password of our user, made once; the file names the port of this run."""
    password = file.read_text().strip().rpartition(":")[2] if file.exists() else secrets.token_hex(16)
    file.touch(mode=0o600)
    file.write_text(f"127.0.0.1:{port}:*:{USER}:{password}\n")
    return password


def _lay(programs: Path, home: Path, password: str, owner: dict[str, Any]) -> None:
    """Lay a new database cluster; the password passes through a file, for a process list shows a command line."""
    home.mkdir(mode=0o700, exist_ok=True)
    secret = home / "password"
    secret.touch(mode=0o600)
    secret.write_text(password)
    for path in (home, secret) if owner else ():
        os.chown(path, owner["user"], owner["group"])
    command = [str(programs / "initdb"), "--pgdata", str(home / "data"), "--username", USER, "--pwfile", str(secret)]
    command += ["--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=home, **owner)
    secret.unlink()
    if done.returncode:
        raise ClusterError(f"initdb failed ({done.returncode}) on {home}: {done.stderr or done.stdout}; {_SKIP}")


def _connect(port: int, passwords: Path) -> Any:
    import psycopg

    where: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": port,
        "user": USER,
        "dbname": "postgres",
        "passfile": str(passwords),
    }
    return psycopg.connect(autocommit=True, connect_timeout=2, **where)


def _answers(port: int, passwords: Path) -> bool:
    import psycopg

    try:
        _connect(port, passwords).close()
    except psycopg.OperationalError:
        return False
    return True


def _databases(port: int, passwords: Path) -> None:
    with _connect(port, passwords) as connection:
        there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
        for name in DATABASES:
            if name not in there:
                connection.execute(f'CREATE DATABASE "{name}"')
