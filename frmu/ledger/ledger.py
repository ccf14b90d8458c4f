"""The ledger: requests, their stages and receipts, written before anything is done.

What the chain holds for good names nobody: hashes keyed with the store's secret, counts, digests. Whatever could
name somebody - what a request means, who asked and why, the receipt - is sealed under keys of that request, which
stand in a table beside the chain: the key of its meaning is deleted when the request is closed, the other when
`shred` is asked to, and the chain still checks.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, get_args

from sqlalchemy.engine import Connection

from frmu.errors import LedgerError, RequestError, near_miss
from frmu.ledger.chain import Chain, Line, Writer
from frmu.ledger.history import STANDING, History, unsearched
from frmu.ledger.keys import Keys, canonical, new_key, seal, unseal
from frmu.ledger.receipt import Receipt, issue
from frmu.ledger.request import OPEN, EraseRequest, Stage
from frmu.ledger.rows import FILE, MEANING, Found, Rows
from frmu.types import Selection

__all__ = ["Ledger", "Line"]

STAGES: tuple[str, ...] = get_args(Stage)


def _utc() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class Ledger:
    """The ledger at a SQLAlchemy URL; `secret` is the store's, `clock` gives aware UTC times.

    With `make` one that is not there is made; a `LedgerError` otherwise.
    """

    def __init__(self, url: str, secret: bytes, clock: Callable[[], dt.datetime] = _utc, make: bool = True) -> None:
        self._keys = Keys(secret)
        self._clock = clock
        self._rows = Rows(self._keys)
        self._chain = Chain(url, self._keys, clock, make)
        self.history = History(self.lines)

    def close(self) -> None:
        """Let go of the database."""
        self._chain.close()

    def now(self) -> dt.datetime:
        """The ledger's clock."""
        return self._clock()

    @property
    def public_key(self) -> str:
        """Return what receipts are checked with, 64 hex digits."""
        return self._keys.public

    @property
    def store_id(self) -> str:
        """Return what this store is known by in receipts and tags, 16 hex digits."""
        return hashlib.sha256(bytes.fromhex(self._keys.public)).hexdigest()[:16]

    def head(self) -> tuple[int, str]:
        """The number and the digest of the last line; 0 where there is none."""
        with self._chain.reading() as connection:
            return self._chain.last(connection)

    def follows(self, number: int, digest: str) -> bool:
        """Return whether a line that stood here once still does: if not, an older copy of the ledger was put in its
        place."""
        with self._chain.reading() as connection:
            return number == 0 or self._chain.digest_of(connection, number) == digest

    def owner(self, client: str) -> str:
        """The code that stands for a client in the ledger and in lineage tags, 32 hex digits."""
        return self._keys.keyed(f"client {client}")[:32]

    # -- requests ---------------------------------------------------------------------------------------------

    def receive(
        self,
        selection: Selection,
        reason: str = "",
        due_days: int = 30,
        requester: str = "",
        found: Mapping[str, Iterable[str]] | None = None,
    ) -> EraseRequest:
        """Write a request down, with the tombstones by client of what is known to be meant; it is pending now."""
        if not 0 <= due_days <= 36500:
            raise RequestError(f"due must be a number of days from now, 0 to 36500, got {due_days}")
        received = self.now()
        due = received + dt.timedelta(days=due_days)
        about = f"subject {selection.subject}" if selection.subject is not None else None
        with self._chain.writing() as writer:
            request = f"r{self._chain.count(writer.connection, 'received') + 1}"
            file, meaning = new_key(), new_key()
            self._rows.keep(writer.connection, request, FILE, file, about)
            self._rows.keep(writer.connection, request, MEANING, meaning)
            self._rows.add_tombstones(writer.connection, {request: found or {}}, self.owner)
            body = {
                "kind": selection.kind,
                "tombstones": self._rows.digest(self._rows.tombstones(writer.connection, request)),
                "due": due.isoformat(timespec="seconds"),
                "file": seal(file, {"reason": reason, "requester": requester}, f"{request} {FILE}"),
                "meaning": seal(meaning, selection.to_json(), f"{request} {MEANING}"),
            }
            writer.append("received", request, body)
        return EraseRequest(request, selection.kind, selection, reason, requester, received, due, "received")

    def withdraw(self, request: str) -> None:
        """Take a request back; raises `RequestError` where its drain has begun, or it is closed."""
        with self._chain.writing() as writer:
            stages = self._chain.stages(writer.connection, STAGES)
            if request not in stages:
                raise RequestError(f'no request "{request}"{near_miss(request, stages)}')
            if stages[request] != "received":
                raise RequestError(
                    f"request {request} is {stages[request]}; only one that is received can be withdrawn"
                )
            writer.append("withdrawn", request, {})
            self._rows.remove_tombstones(writer.connection, request)
            self._rows.forget(writer.connection, [request], MEANING)
        self._scrub()

    def add_tombstones(self, found: Found) -> None:
        """Write tombstones, by request and client: before the records are purged, so that none can come back.

        A request that was planned already, and means more now, is planned anew; one that is over is passed over, unless
        it is standing.
        """
        if not any(names for clients in found.values() for names in clients.values()):
            return
        with self._chain.writing() as writer:
            stages = self._chain.stages(writer.connection, STAGES)
            standing = self._standing(writer.connection)
            mine = {r: clients for r, clients in found.items() if stages.get(r) in OPEN or r in standing}
            told = self._told(writer.connection)
            before = {request: self._planned(writer, request) for request in mine}
            for request, body in before.items():
                if body["tombstones"] != told[request].body["tombstones"]:
                    raise LedgerError(_TOMBSTONES.format(request, told[request].number))
            self._rows.add_tombstones(writer.connection, mine, self.owner)
            for request in mine:
                if (body := self._planned(writer, request)) != before[request]:
                    late = stages[request] in ("received", "closed")
                    # Stored ledgers have lines of this kind, so the word stays.
                    writer.append("buried" if late else "planned", request, body)

    def plan(self, requests: Iterable[str]) -> dict[str, dict[str, int]]:
        """Write what requests take, and the digest of their tombstones; by request, records by client.

        From here on a request cannot be withdrawn; one that was, meanwhile, is not in what is returned.
        """
        planned = {}
        with self._chain.writing() as writer:
            stages = self._chain.stages(writer.connection, STAGES)
            told = self._told(writer.connection)
            names = self._rows.names(writer.connection)
            for request in requests:
                if stages.get(request) not in OPEN:
                    continue
                body = self._planned(writer, request)
                if body["tombstones"] != told[request].body["tombstones"] or set(body["records"]) - set(names):
                    raise LedgerError(_TOMBSTONES.format(request, told[request].number))
                writer.append("planned", request, body)
                planned[request] = body["records"]
        return {request: {names[o]: n for o, n in sorted(counts.items())} for request, counts in planned.items()}

    def _told(self, connection: Connection) -> dict[str, Line]:
        """The last line of each request that tells its tombstones."""
        return {line.request: line for line in self._chain.lines(connection, ["received", "buried", "planned"])}

    def _planned(self, writer: Writer, request: str) -> dict[str, Any]:
        tombstoned = self._rows.tombstones(writer.connection, request)
        counts = {owner: len(names) for owner, names in tombstoned.items()}
        return {"records": counts, "tombstones": self._rows.digest(tombstoned)}

    def advance(self, requests: Iterable[str], stage: Stage, body: Mapping[str, Any]) -> None:
        """Write that some requests reached a stage; before the work of that stage's successor begins."""
        with self._chain.writing() as writer:
            for request in requests:
                writer.append(stage, request, body)

    def close_requests(self, receipts: Iterable[Receipt], unsearched: Collection[str] = ()) -> list[dict[str, Any]]:
        """Sign and file receipts, and forget what their requests meant; the receipts as plain JSON types.

        Where clients, by the first 8 digits of their codes, could not be searched, the requests stand: their meaning is
        kept until each of those was searched (`searched`) or has left for good.
        """
        filed = []
        with self._chain.writing() as writer:
            for receipt in receipts:
                filed.append(self._file(writer, "closed", receipt.to_json()))
                if unsearched:
                    writer.append("standing", receipt.request, {"clients": sorted(unsearched)})
            if not unsearched:
                self._rows.forget(writer.connection, [receipt["request"] for receipt in filed], MEANING)
        self._scrub()
        return filed

    def unsearched(self) -> dict[str, frozenset[str]]:
        """Return for each standing request, by the first 8 digits of their codes, the clients not searched yet."""
        with self._chain.reading() as connection:
            kept = self._standing(connection)
        remaining = unsearched(self.lines(STANDING))
        return {request: codes for request, codes in remaining.items() if request in kept}

    def standing(self) -> list[EraseRequest]:
        """Return the closed requests that still mean something, oldest first: not every client has been searched."""
        return [request for request in self.requests(["closed"]) if request.selection is not None]

    def searched(self, clients: Iterable[str]) -> None:
        """Note that clients were searched, at an import, for what standing requests mean; forget what nobody needs."""
        codes = {self.owner(client)[:8] for client in clients}
        before = self.unsearched()
        if not before:
            return
        with self._chain.writing() as writer:
            for request, remaining in before.items():
                if now := remaining & codes:
                    writer.append("searched", request, {"clients": sorted(now)})
            self._rows.forget(
                writer.connection, [request for request, remaining in before.items() if remaining <= codes], MEANING
            )
        self._scrub()

    def prove(self, request: str, proof: Mapping[str, Any]) -> dict[str, Any]:
        """Add what a later verification found to a request's receipt, and sign and file it anew."""
        before = {receipt["request"]: receipt for receipt in self.receipts()}
        if request not in before:
            raise RequestError(f'no receipt "{request}"{near_miss(request, before)}')
        receipt = {name: value for name, value in before[request].items() if name != "signature"}
        receipt["proofs"] = [*receipt["proofs"], dict(proof)]
        with self._chain.writing() as writer:
            return self._file(writer, "proven", receipt)

    def _file(self, writer: Writer, kind: str, receipt: Mapping[str, Any]) -> dict[str, Any]:
        """A line holds a receipt sealed, and in clear only what names nobody."""
        signed = issue(receipt, self._keys, writer.number, writer.digest)
        key = self._rows.keys_of(writer.connection, FILE, {signed["request"]}).get(signed["request"])
        open_part = {name: signed[name] for name in ("outcome", "level", "verified", "state_digest")}
        body = {**open_part, "receipt": self._keys.keyed(canonical(signed).decode())}
        writer.append(kind, signed["request"], body | ({"sealed": seal(key, signed, signed["request"])} if key else {}))
        return signed

    def shred(self, request: str | None = None, subject: str | None = None) -> list[str]:
        """Destroy the keys of one request, or of all of a subject; what was sealed with them cannot be read again.

        Gives the requests. Tombstones stay: keyed hashes of record ids, without which the records could come back.
        Raises `RequestError` where nothing is there to shred, or a request is still open.
        """
        about = self._keys.keyed(f"subject {subject}") if subject is not None else None
        with self._chain.writing() as writer:
            requests = sorted(self._rows.find(writer.connection, request, about), key=_number)
            if not requests:
                raise RequestError(f"the ledger holds no key of {request or 'this subject'}: nothing is left to shred")
            stages = self._chain.stages(writer.connection, STAGES)
            if still := [name for name in requests if stages[name] in OPEN]:
                raise RequestError(f"request {still[0]} is open; drain or withdraw it before its key is shredded")
            # What a standing request means is needed until every client was searched: it goes with the last of them.
            standing = self._standing(writer.connection)
            self._rows.forget(writer.connection, [name for name in requests if name in standing], FILE)
            self._rows.forget(writer.connection, [name for name in requests if name not in standing])
            for name in requests:
                writer.append("shredded", name, {})
        if not self._scrub():
            raise LedgerError(
                f"the keys of {', '.join(requests)} are deleted, but still stand in the ledger's write-ahead log: "
                "another program reads the ledger. End it and run `frmu ledger check`"
            )
        return requests

    def note(self, kind: str, body: Mapping[str, Any]) -> None:
        """Write a line that belongs to no request, such as a policy that was retired."""
        with self._chain.writing() as writer:
            writer.append(kind, "", body)

    def _standing(self, connection: Connection) -> set[str]:
        """The closed requests whose meaning is kept."""
        stages = self._chain.stages(connection, STAGES)
        return {name for name in self._rows.requests_with(connection, MEANING) if stages.get(name) == "closed"}

    def _scrub(self) -> bool:
        """Return whether what was deleted is gone from the write-ahead log, or from dead rows, too.

        It is not while another program reads the ledger; then the next check does it.
        """
        with self._chain.aside() as connection:
            if connection.dialect.name != "sqlite":
                connection.exec_driver_sql("VACUUM frmu_key")
                return True
            return not connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]

    # -- reading ----------------------------------------------------------------------------------------------

    def requests(self, stages: Collection[str] = STAGES) -> list[EraseRequest]:
        """Requests in some stages, oldest first; raises `LedgerError` where what one means was changed."""
        with self._chain.reading() as connection:
            reached = self._chain.stages(connection, STAGES)
            lines = [line for line in self._chain.lines(connection, ["received"]) if reached[line.request] in stages]
            names = {line.request for line in lines}
            files, meanings = (self._rows.keys_of(connection, purpose, names) for purpose in (FILE, MEANING))
        return [self._request(line, reached[line.request], files, meanings) for line in lines]

    def pending(self) -> list[EraseRequest]:
        """The requests that are neither closed nor withdrawn, oldest first."""
        return self.requests(OPEN)

    def _request(
        self, line: Line, stage: str, files: Mapping[str, bytes], meanings: Mapping[str, bytes]
    ) -> EraseRequest:
        name, body = line.request, line.body
        file = unseal(files[name], body["file"], f"{name} {FILE}") if name in files else {"reason": "", "requester": ""}
        selection = None
        if stage in OPEN or (stage == "closed" and name in meanings):
            try:
                selection = Selection.from_json(unseal(meanings[name], body["meaning"], f"{name} {MEANING}"))
            except (KeyError, LedgerError):
                raise LedgerError(
                    f"what request {name} means was changed or removed in the ledger's database; it is not acted "
                    "on. Restore the ledger from a backup"
                ) from None
        received, due = (dt.datetime.fromisoformat(text) for text in (line.time, body["due"]))
        return EraseRequest(
            name, body["kind"], selection, file["reason"], file["requester"], received, due, stage  # type: ignore[arg-type]
        )  # fmt: skip

    def receipts(self) -> list[dict[str, Any]]:
        """The receipt of every closed request as it was last filed, oldest first; without those shredded."""
        with self._chain.reading() as connection:
            last = {line.request: line for line in self._chain.lines(connection, ["closed", "proven"])}
            files = self._rows.keys_of(connection, FILE, set(last))
        return [
            unseal(files[name], line.body["sealed"], name)
            for name, line in sorted(last.items(), key=lambda pair: _number(pair[0]))
            if name in files
        ]

    def tombstones(
        self, clients: Iterable[str], request: str | None = None, begun: bool = False
    ) -> dict[str, frozenset[str]]:
        """Return the records of these clients that must not come in, as keyed hashes; all, or those of one request.

        With `begun` without those of requests that no drain has begun with: their records are still held.
        """
        with self._chain.reading() as connection:
            stages = self._chain.stages(connection, STAGES) if begun else {}
            waiting = {name for name, stage in stages.items() if stage == "received"}
            tombstoned = self._rows.tombstones(connection, request, waiting)
        owners = {client: self.owner(client) for client in clients}
        return {client: frozenset(tombstoned[owner]) for client, owner in owners.items() if owner in tombstoned}

    def holding(self, requests: Collection[str]) -> set[str]:
        """Keep of some requests those that have tombstones: somebody holds, or held, what they mean."""
        with self._chain.reading() as connection:
            return set(self._rows.counts(connection)) & set(requests)

    def meant(self, requests: Collection[str]) -> dict[str, int]:
        """Return how many records some requests mean, as far as they were found; those that mean none are left out."""
        requests = set(requests)
        with self._chain.reading() as connection:
            return {name: of for name, of in self._rows.counts(connection).items() if name in requests}

    def has_tombstones(self) -> bool:
        """Return whether there is any tombstone."""
        with self._chain.reading() as connection:
            return bool(self._rows.counts(connection))

    def lines(self, kinds: Collection[str] | None = None) -> list[Line]:
        """Lines in order, all or those of some kinds."""
        with self._chain.reading() as connection:
            return self._chain.lines(connection, kinds)

    def check(self) -> int:
        """The number of lines, if the chain holds; else a `LedgerError` that names what was touched."""
        self._scrub()
        with self._chain.reading() as connection:
            number = self._chain.check(connection)
            told = self._told(connection)
            over = {name for name, stage in self._chain.stages(connection, STAGES).items() if stage == "withdrawn"}
            found = self._rows.by_request(connection)
        for request, line in told.items():
            if request not in over and line.body["tombstones"] != self._rows.digest(found.get(request, {})):
                raise LedgerError(_TOMBSTONES.format(request, line.number))
        if strange := sorted(name for name in found if name not in told or name in over):
            raise LedgerError(f"there are tombstones of {strange[0]}, which has none: they were put into the database")
        return number


_TOMBSTONES = (
    "the tombstones of request {} are not those of line {}: they were changed; restore the ledger from a backup"
)


def _number(request: str) -> int:
    return int(request[1:])
