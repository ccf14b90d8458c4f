"""The working folder: shards, checkpoint, policies, key, and the lock that keeps two jobs from meeting there.

<folder>/shards/<client>.parquet     the clients' own copies of their records
         state.safetensors           the checkpoint
         policies/<n>-<digest>.safetensors
         training.safetensors        how far the training of a policy has come, while it is not done
         rounds/<n>-<key>.safetensors   checkpoints of a training by rounds: see frmu.storage.rounds
         ledger.db  mlflow.db  mlartifacts/
         outbox/queue.db             runs that wait for an MLflow server that is away
         anchor                      which ledger this is, and its last line after the last job
         scratch/                    what an audit puts back, while it runs
         key                         the secret behind keyed hashes, seals and signatures; mode 0600
"""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from frmu.config import Config
from frmu.errors import StoreError
from frmu.storage.atomic import write_bytes
from frmu.storage.fence import FENCE, next_token
from frmu.storage.rounds import Checkpoints

__all__ = ["Anchor", "Workspace"]

_OURS = {
    "shards", "policies", "mlartifacts", "scratch", "state.safetensors", "training.safetensors", "key", "anchor",
    "outbox", ".lock", FENCE, "homes.json", "away.json", "server", "rounds",
}  # fmt: skip
_DATABASES = ("ledger.db", "mlflow.db")


@dataclass(frozen=True, slots=True)
class Anchor:
    """The folder's anchor for its ledger: whose it is, and a line that must be in it.

    A ledger from a backup is whole in itself; only what stands outside of it can tell that it is old.
    """

    home: str
    number: int
    digest: str

    @staticmethod
    def read(path: Path) -> Anchor:
        """Read one; raises `OSError`, `ValueError` or `TypeError` where there is none, or it is broken."""
        return Anchor(**json.loads(path.read_text(encoding="utf-8")))

    def write(self, path: Path, aside: Path) -> None:
        """Write it, atomically."""
        write_bytes(path, json.dumps(asdict(self)).encode(), aside=aside)


@dataclass(frozen=True, slots=True)
class Workspace:
    """Paths under the working folder, and the key, which may lie elsewhere."""

    folder: Path
    key_file: Path

    @staticmethod
    def of(config: Config) -> Workspace:
        """The store of a config; the folder is made if it is not there."""
        try:
            config.folder.parent.mkdir(parents=True, exist_ok=True)
            config.folder.mkdir(mode=0o700, exist_ok=True)  # records lie here: its owner's alone
            (config.folder / "shards").mkdir(exist_ok=True)
            (config.folder / "policies").mkdir(exist_ok=True)
        except OSError as error:
            raise StoreError(f"{config.folder}: cannot be written: {error.strerror}; set store.folder") from None
        return Workspace(config.folder, config.key_file)

    @staticmethod
    def existing(config: Config) -> Workspace:
        """The store of a config that was trained before, or a `StoreError`."""
        store = Workspace(config.folder, config.key_file)
        if not store.state.exists():
            raise StoreError(f"{config.folder}: nothing trained here yet; run `frmu train {config.file.name}` first")
        return store

    @property
    def shards(self) -> Path:
        """The folder of the clients' shards."""
        return self.folder / "shards"

    @property
    def state(self) -> Path:
        """The checkpoint."""
        return self.folder / "state.safetensors"

    @property
    def policies(self) -> Path:
        """The folder of policies trained here."""
        return self.folder / "policies"

    @property
    def training(self) -> Path:
        """The checkpoint of a policy's training that is under way, or was interrupted."""
        return self.folder / "training.safetensors"

    @property
    def rounds(self) -> Checkpoints:
        """The checkpoints of a training by rounds."""
        return Checkpoints(self.folder / "rounds")

    @property
    def scratch(self) -> Path:
        """The folder of what lasts no longer than a job."""
        return self.folder / "scratch"

    @property
    def outbox(self) -> Path:
        """The folder of runs that wait for MLflow."""
        return self.folder / "outbox"

    def sweep(self) -> None:
        """Remove what an audit that was killed left behind: erased records, put back for it. For the lock's holder."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.scratch.mkdir(mode=0o700)

    def unexpected_files(self) -> list[str]:
        """Files in the folder and among its policies that frmu did not put there, as paths from the shards' folder.

        Nobody looks after what is in them. Rooms that keep a folder of their own within it look there themselves.
        """
        ours = _OURS | {f"{name}{suffix}" for name in _DATABASES for suffix in ("", "-wal", "-shm", "-journal")}
        strange = [file.name for file in self.folder.iterdir() if file.name not in ours]
        policies = [file.name for file in self.policies.iterdir() if file.suffix != ".safetensors"]
        return [*(f"../{name}" for name in strange), *(f"../policies/{name}" for name in policies)]

    def next_fencing_token(self) -> int:
        """A number higher than that of any job before, on this machine or another; see `frmu.storage.fence`."""
        return next_token(self.folder)

    def orphaned_server(self) -> str:
        """The cluster on which a job that was killed left its server; empty where none did."""
        path = self.folder / "server"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def note_server(self, address: str) -> None:
        """Remember that a server of ours is on a cluster that outlives us; an empty address: that it is no more."""
        path = self.folder / "server"
        if address:
            write_bytes(path, address.encode(), aside=self.scratch / "server")
        else:
            path.unlink(missing_ok=True)

    def client_sites(self) -> dict[str, str]:
        """The site of every client, as it was last seen: where somebody who is away would be."""
        path = self.folder / "homes.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def keep_client_sites(self, homes: Mapping[str, str]) -> None:
        """Remember the sites of clients, atomically."""
        content = json.dumps(dict(homes), sort_keys=True).encode()
        write_bytes(self.folder / "homes.json", content, aside=self.scratch / "homes")

    def away(self) -> dict[str, dict[str, str]]:
        """Return the sites that were away when somebody last looked: since when, in UTC, and why."""
        path = self.folder / "away.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def note_away(self, gone: Mapping[str, str]) -> dict[str, dict[str, str]]:
        """Remember the sites that are away, each with why, atomically; a site that was away is so since it was."""
        before = self.away()
        now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        after = {
            site: {"since": before.get(site, {}).get("since", now), "why": why} for site, why in sorted(gone.items())
        }
        if after != before:
            self.scratch.mkdir(mode=0o700, exist_ok=True)
            content = json.dumps(after, sort_keys=True).encode()
            write_bytes(self.folder / "away.json", content, aside=self.scratch / f"away-{os.getpid()}")
        return after

    def anchor(self) -> Anchor | None:
        """The anchor, or None in a folder that is new; raises `StoreError` where it must have been there."""
        try:
            return Anchor.read(self.folder / "anchor")
        except FileNotFoundError:
            if self.state.exists() or any(self.shards.glob("*.parquet")):
                raise StoreError(f"{self.folder / 'anchor'}: is gone; restore it from a backup") from None
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StoreError(f"{self.folder / 'anchor'}: cannot be read: {error}; restore it from a backup") from None

    def drop_anchor(self, anchor: Anchor) -> None:
        """Write the anchor, atomically."""
        anchor.write(self.folder / "anchor", aside=self.scratch / "anchor")

    def ledger_url(self, config: Config) -> str:
        """Return the address of the ledger: as declared, else SQLite in the folder."""
        return config.store.ledger or f"sqlite:///{self.folder / 'ledger.db'}"

    def tracking_uri(self, config: Config) -> str:
        """Return the address of MLflow: as declared, else SQLite in the folder."""
        return config.store.tracking or f"sqlite:///{self.folder / 'mlflow.db'}"

    def key(self) -> bytes:
        """The secret of this store; made on first use, readable by its owner alone."""
        if self.state.exists() and not self.key_file.exists():
            raise StoreError(
                f"{self.key_file}: the key is gone, and with it what keeps erased records out; restore it from a backup"
            )
        try:
            descriptor = os.open(self.key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self.existing_key()
        except OSError as error:
            raise StoreError(f"{self.key_file}: cannot be written: {error.strerror}; check store.key") from None
        with os.fdopen(descriptor, "wb") as file:
            key = secrets.token_bytes(32)
            file.write(key)
            file.flush()
            os.fsync(file.fileno())
        return key

    def existing_key(self) -> bytes:
        """The secret of a store that is there, or a `StoreError`."""
        try:
            if (mode := self.key_file.stat().st_mode) & 0o007:
                raise StoreError(f"{self.key_file}: everybody may use it ({mode & 0o777:o}); chmod 600 it")
            key = self.key_file.read_bytes()
        except OSError as error:
            raise StoreError(f"{self.key_file}: no key there: {error.strerror}; check store.key") from None
        if len(key) != 32:
            raise StoreError(f"{self.key_file}: not a key of 32 bytes; restore it from a backup")
        return key

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for a job that changes it; another one gets a `StoreError` at once."""
        try:
            file = (self.folder / ".lock").open("a+")  # not "w": that would take away the name of who holds it
        except OSError as error:
            raise StoreError(f"{self.folder}: cannot be written: {error.strerror}; set store.folder") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip()
                raise StoreError(
                    f"{self.folder}: another job is at work in this folder{f' ({holder})' if holder else ''}; wait for "
                    "it to end"
                ) from None
            file.truncate(0)
            file.write(_myself())
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def _myself() -> str:
    """Return how this process is found: its command without what it was given, its number, machine and time."""
    program, *rest = sys.argv or [""]
    first = rest[0] if rest and rest[0].isidentifier() else ""
    command = f"{'frmu' if program.endswith('__main__.py') else Path(program).name} {first}".strip() or "python"
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    return f"{command}, process {os.getpid()} on {socket.gethostname()}, since {now}"
