"""The package that goes up with a job: what the folder holds, without records, keys, tokens, ledgers and databases.

Ray keeps a package for as long as its head lives and unpacks it on every node that runs the job, so a secret is kept
here by its name and by its content alike: a name can be anything. What was kept is returned, to be said. The package
is made here and not by Ray, which asks no more than a list of patterns and tells its size after it was sent.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pathspec import GitIgnoreSpec

from frmu.errors import RequestError

__all__ = ["EXCLUDED", "LIMIT", "Package", "pack"]

EXCLUDED = ("*.frmu", ".venv", ".git", "*.parquet", "!frmu/datasets/*.parquet")  # the last: of a checkout of frmu
LIMIT = 100 << 20  # bytes of a package that Ray takes
_LISTS = (".gitignore", ".rayignore")
KEY_BYTES = 32  # of the key of a store, and of most others
_READ = 1 << 16  # bytes of a file that are looked at
_HOME = frozenset({"cluster.json", "PG_VERSION"})  # a folder that holds one of these is a cluster's or a database's
_NAMES = GitIgnoreSpec.from_lines(
    ["token", "*_token", "*.token", "pgpass", ".pgpass", ".netrc", ".env", ".env.*", "key", "*.key", "*.pem", "*.p12",
     "*.pfx", "id_rsa*", "id_ed25519*", "id_ecdsa*", "anchor", "*.db", "*.db-wal", "*.db-shm", "*.db-journal",
     "*.sqlite", "*.sqlite3", "credentials", "credentials.json"]
)  # fmt: skip
_STARTS = {
    b"SQLite format 3\0": "a database",
    b"PAR1": "records",
    b"ARROW1": "records",
    b"PGDMP": "a copy of a database",
}
_HOLDS = (
    (re.compile(rb"^-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----", re.M), "a private key"),
    (re.compile(rb"\A\s*[0-9a-fA-F]{32,128}\s*\Z"), "a key or token"),
    (re.compile(rb"^[\w.*-]+:(\d+|\*):[^:\s]+:[^:\s]+:[^:\s]+$", re.M), "a password"),
    (re.compile(rb"^[^#\n]*\w+(\+\w+)?://[^:/@\s\"'{}]+:[^@/\s\"'{}]+@", re.M), "an address with a password"),
)
_CODE = frozenset({".py", ".md", ".rst", ".yaml", ".yml"})  # may speak of passwords; a key in them is one


@dataclass(frozen=True, slots=True)
class Package:
    """A package: the names in it, and the secrets that were kept here, by name, each with what it holds."""

    names: frozenset[str]
    kept: dict[str, str]

    def why_not(self, name: str) -> str:
        """Return why a file of the folder is not in the package; empty where it is."""
        if name in self.names:
            return ""
        if name in self.kept:
            return f"it holds {self.kept[name]}" if self.kept[name] else "its name is that of a secret"
        return ".gitignore, .rayignore or --exclude names it"


def pack(folder: Path, file: Path, exclude: Sequence[str] = ()) -> Package:
    """Write a zip of a folder to `file`, without what .gitignore, EXCLUDED and `exclude` name, and without secrets.

    Raises `RequestError` where the zip is larger than LIMIT, with the largest files.
    """
    names: list[str] = []
    kept: dict[str, str] = {}
    lists = (("", GitIgnoreSpec.from_lines([*EXCLUDED, *exclude])),)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, name in _files(folder, "", lists):
            secret = _secret(path, name)
            if secret is not None:
                kept[name] = secret
                continue
            names.append(name)
            info = zipfile.ZipInfo(name)  # with a date of its own: the same files are the same package
            info.external_attr = (path.stat().st_mode & 0o777) << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            with path.open("rb") as source, packed.open(info, "w") as target:
                while block := source.read(1 << 20):
                    target.write(block)
    if (size := file.stat().st_size) > LIMIT:
        largest = sorted(names, key=lambda name: -(folder / name).stat().st_size)[:3]
        told = ", ".join(f"{name} ({(folder / name).stat().st_size >> 20} MiB)" for name in largest)
        raise RequestError(
            f"{folder}: {size >> 20} MiB would go up, and Ray takes {LIMIT >> 20}; name what is not needed by "
            f"--exclude or .gitignore. The largest are {told}"
        )
    return Package(frozenset(names), kept)


def _files(folder: Path, prefix: str, lists: tuple[tuple[str, GitIgnoreSpec], ...]) -> Iterator[tuple[Path, str]]:
    """Yield what no list names, folder by folder; a folder of a cluster or a database is passed over whole."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if _HOME & {entry.name for entry in entries}:
        return
    for entry in entries:
        if entry.name in _LISTS and entry.is_file():
            lines = Path(entry.path).read_text(encoding="utf-8", errors="replace").splitlines()
            lists = (*lists, (prefix, GitIgnoreSpec.from_lines(lines)))
    for entry in entries:
        name = prefix + entry.name
        inside = entry.is_dir(follow_symlinks=False)
        if any(spec.match_file(name[len(base) :] + "/" * inside) for base, spec in lists):
            continue
        if inside:
            yield from _files(Path(entry.path), f"{name}/", lists)
        elif entry.is_file():
            yield Path(entry.path), name


def _secret(path: Path, name: str) -> str | None:
    """Return what must not leave this machine in a file; empty where its name says so, None where nothing does."""
    if name.startswith("frmu/datasets/") and name.endswith(".parquet"):
        return None
    if _NAMES.match_file(path.name):
        return ""
    with path.open("rb") as file:
        head = file.read(_READ)
    for start, what in _STARTS.items():
        if head.startswith(start):
            return what
    if len(head) == KEY_BYTES and not head.isascii():
        return "a key"
    looked = _HOLDS[:2] if path.suffix in _CODE else _HOLDS
    return next((what for pattern, what in looked if pattern.search(head)), None)
