"""A receipt as a page of paper: one HTML document that stands alone and prints on one A4 sheet.

A data-protection officer files it next to the JSON receipt, which is what was signed. So the page says nothing that
the receipt does not say, explains every word of ours that it uses, and says in words when it is no proof: where the
receipt is not verified, contradicts itself, or bears a signature that does not hold. Names and reasons come from
strangers: all are escaped, stripped of what steers a display, kept from mixing directions, and cut to a length, since
a page that spills or lies by its layout is no certificate. A browser prints it to PDF.

This module decides what is said and how much of it; receipt.html.j2 beside it lays it out, receipt.css sets the type.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from frmu.errors import LedgerError
from frmu.ledger.receipt import FORMAT, check_receipt

__all__ = ["receipt_html", "write_receipt"]

_KINDS = {
    "records": "a list of records",
    "subject": "every record of one person",
    "client": "everything that one client holds",
    "between": "the records of a span of time",
    "slice": "one slice: records that stand or fall together",
    "where": "the records that meet a condition",
}

_MODELS = (": this state", ": retrained", ": original")  # of a test's figures, in the order of their weight

_LEVELS = {
    "L0": ("Located", "The records that the request means were found and counted, client by client."),
    "L1": ("Purged", "They are gone from disk, and a keyed fingerprint of each refuses it if it is imported again."),
    "L2": ("Close to retraining", "The model errs about as much as one that was trained again without them."),
    "L3": ("Attacks fail", "Who tries to tell from the model whether it had learned from them, cannot."),
    "L4": ("Relearned as slowly", "Teaching them to the model takes as long as if it had never seen them."),
    "L5": ("Identical", "The model equals, in every bit, that of a federation that never had them."),
}

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
# by standing: the heading, the line below it, the two words of the seal; an empty word is the level
_FACES = {
    "erased": ("Certificate of erasure", "of learned records", "verified", ""),
    "nothing": ("Nothing was held", "a search, no erasure", "erased", "0"),
    "unverified": ("Not verified", "no proof of erasure", "no", "proof"),
}
_TESTS = 4  # shown on the page
_DENSE = 3800  # letters from which the type is set smaller
_HERE = Path(__file__).parent


def write_receipt(receipt: Mapping[str, Any], path: Path) -> None:
    """Write a receipt as what was signed (.json) or as a page to file (.html); raises `LedgerError` otherwise."""
    if path.suffix not in (".json", ".html"):
        raise LedgerError(f"{path}: a receipt is written as .json or .html")
    if path.exists() and not path.is_file():
        raise LedgerError(f"{path}: is not a regular file; give another name")
    text = json.dumps(receipt, indent=2, ensure_ascii=False)
    path.write_text(text if path.suffix == ".json" else receipt_html(receipt, receipt["public_key"]), encoding="utf-8")


def receipt_html(receipt: Mapping[str, Any], public_key: str) -> str:
    """Return the receipt as an HTML document that needs nothing else.

    `public_key` is the one the federation is known by. A receipt that is whole but proves nothing gives a page that
    says so. Raises `LedgerError` where this is no receipt of this frmu:

    >>> receipt_html({"format": "invoice"}, "")
    Traceback (most recent call last):
    frmu.errors.LedgerError: not a receipt of this frmu: its format is 'invoice', not 'frmu-receipt/2'
    """
    if receipt.get("format") != FORMAT:
        raise LedgerError(f"not a receipt of this frmu: its format is {receipt.get('format')!r}, not {FORMAT!r}")
    try:
        return _page(receipt, public_key.strip().lower())
    except (jinja2.UndefinedError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LedgerError(f"the receipt is not what frmu writes: {error!r}; ask for it again") from None


def _page(receipt: Mapping[str, Any], public_key: str) -> str:
    signature = _signature(receipt, public_key)
    doubts = _doubts(receipt, signature)
    # what lies on disk was looked at even where the model is in doubt; of a forged receipt nothing holds
    claimed = len(_LEVELS) if not doubts else 2 if signature == _HOLDS else 0
    held = receipt["outcome"] == "erased"
    standing = "unverified" if doubts else "erased" if held else "nothing"
    heading, sub, *seal = _FACES[standing]
    name, meaning = _LEVELS[_level(receipt)]
    style = (_HERE / "receipt.css").read_text(encoding="utf-8")
    return _template().render(
        _request(receipt) | _done(receipt) | _tests(receipt["proofs"]),
        receipt=receipt,
        standing=standing,
        heading=heading,
        sub=sub,
        seal=[word or receipt["level"] for word in seal],
        doubts=doubts,
        notes=_notes(receipt),
        level={"name": name, "meaning": meaning, "scoped": _plain(receipt["level"], 24)},
        rungs=_rungs(receipt, claimed) if held else [],
        signature=signature,
        holds=signature == _HOLDS,
        public_key=public_key,
        fingerprint=_fingerprint(public_key),
        dense_from=_DENSE,
        style=Markup(style),  # the project's own; escaped, its quotes would be lost
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
    )


def _template() -> jinja2.Template:
    """Return the page's template, in which every value is escaped and a missing one is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "hidden": _hidden, "counted": _count, "date": _date, "size": _size}
    return environment.get_template("receipt.html.j2")


# -- does it stand? -------------------------------------------------------------------------------------------


def _doubts(receipt: Mapping[str, Any], signature: str) -> list[str]:
    """Return why the receipt proves nothing, in plain words; empty where it proves something."""
    if receipt["outcome"] not in ("erased", "nothing held"):
        raise ValueError(f"outcome {receipt['outcome']!r}")
    evidence = receipt["evidence"]
    digests = {receipt["state_digest"], evidence["digest"], evidence["digest_never_had"]}
    left, strange = evidence["tombstoned_records_left"], len(evidence["files_that_are_no_shards"])
    because = {
        "The receipt says that the erasure could not be verified; the request stays open.": not _verified(receipt),
        "The model is not the one of a federation without the records: the digests differ.": (
            _level(receipt) == "L5" or not _verified(receipt)
        )
        and len(digests) > 1,
        f"{_count(left, 'record')} that should be gone {_were(left)} found again on disk.": left != 0,
        f"{_count(strange, 'file')} in the data folder {_were(strange)} not written by frmu.": strange != 0,
        "The receipt claims clients that were not searched.": receipt["level"] == "L5"
        and bool(receipt.get("not_searched")),
        "The receipt contradicts itself on what was removed.": (receipt["outcome"] == "erased")
        != bool(receipt["removed"]),
        f"{signature}.": signature != _HOLDS,
    }
    return [text for text, holds in because.items() if holds]


def _level(receipt: Mapping[str, Any]) -> str:
    """Return the level without its scope: "L5" of "L5 of those searched"."""
    return str(receipt["level"]).partition(" ")[0]


def _verified(receipt: Mapping[str, Any]) -> bool:
    return receipt["verified"] is True


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _signature(receipt: Mapping[str, Any], public_key: str) -> str:
    """Return what the signature proves, by the key that the federation is known by."""
    if not receipt.get("signature"):
        return "The receipt is not signed"
    if receipt.get("public_key") != public_key:
        return "The receipt was signed with another key than this federation’s: it is from elsewhere, or forged"
    try:
        check_receipt(receipt)
    except LedgerError:
        return "The signature does not hold: the receipt was changed after it was signed"
    return _HOLDS


_HOLDS = "The signature held when this page was made"


# -- the parts of the page ------------------------------------------------------------------------------------


class _Fold(NamedTuple):
    """The items that there is room for, and how many more there are."""

    shown: list[str]
    rest: int


def _notes(receipt: Mapping[str, Any]) -> list[str]:
    """Return what the verdict must not leave unsaid."""
    passed = [bool(proof["passed"]) for proof in receipt["proofs"]]
    failed = passed.count(False)
    notes = {
        f"{_count(failed, 'later test')} of {len(passed)} did not pass; see the tests below.": failed > 0,
        "The deadline was missed.": _verified(receipt) and _spare(receipt) < dt.timedelta(),
    }
    return [text for text, holds in notes.items() if holds]


def _request(receipt: Mapping[str, Any]) -> dict[str, Any]:
    spare = _spare(receipt)
    days = abs(spare).days
    return {
        "kind": _KINDS.get(receipt["kind"]),
        "verified": _verified(receipt),
        "late": spare < dt.timedelta(),
        "spare": _count(days, "day") if days else "less than a day",
    }


def _spare(receipt: Mapping[str, Any]) -> dt.timedelta:
    return _time(receipt["due"]) - _time(receipt["closed"])


def _done(receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was looked through and what went, and what was purged."""
    purge = receipt["purge"]
    mlflow = purge.get("mlflow", {})
    return {
        "searched": _counts(receipt["searched"], 105),
        "removed": _counts(receipt["removed"], 95),
        "files": _fold(purge.get("source_files", []), 60, lambda file: _plain(file, 40)),
        "mlflow": mlflow,
        "versions": _fold(mlflow.get("versions", []), 40, lambda version: _plain(version, 24)),
        "survivors": _fold(mlflow.get("survivors", []), 120, lambda text: _plain(text, 60)),
        "ledger": receipt.get("ledger") or {},
    }


def _counts(counts: Mapping[str, int], room: int) -> dict[str, Any]:
    """Return records by client in words; a client is where records stay."""
    total, names = sum(counts.values()), sorted(counts, key=_natural)
    records, clients = _count(total, "record"), _count(len(counts), "client")
    named = _fold(names, room, lambda name: f"{_plain(name, 30)} ({counts[name]:,})")
    amount = f"{records} at {clients}"
    return {"records": records, "clients": clients, "amount": amount, "were": _were(total), "names": named}


def _rungs(receipt: Mapping[str, Any], claimed: int) -> list[dict[str, str]]:
    """Return the ladder; from the rung `claimed` on, nothing but the receipt's own word stands for it."""
    reached = list(_LEVELS).index(_level(receipt))
    rungs = []
    for at, (level, (name, meaning)) in enumerate(_LEVELS.items()):
        word = "not reached" if at > reached else "included" if at < reached else "reached"
        if claimed <= at <= reached:
            word = "only claimed"
        tests = [bool(proof["passed"]) for proof in receipt["proofs"] if proof["level"] == level and _tells(proof)]
        if tests:
            word = f"{word}, test passed" if all(tests) else "test FAILED"
        mark = "now" if at == reached and at < claimed else "off" if at > reached else "on"
        rungs.append({"mark": mark, "level": level, "name": name, "meaning": meaning, "word": word})
    return rungs


def _tests(proofs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the tests; failed ones come first, so that folding never hides one behind passed ones."""
    order = sorted(proofs, key=lambda proof: (bool(proof["passed"]), str(proof["level"])))
    rest = [bool(proof["passed"]) for proof in order[_TESTS:]]
    shown = [_proof(proof) for proof in order[:_TESTS]]
    return {"proofs": shown, "proofs_left": len(rest), "failed_left": rest.count(False)}


def _proof(proof: Mapping[str, Any]) -> dict[str, Any]:
    numbers, seeds = proof.get("numbers", {}), len(proof.get("seeds", []))
    again = f", {_count(seeds, 'run')}" if seeds else ""
    return {
        "level": proof["level"],
        "tested": _day(proof["time"]) + again if proof.get("time") else "not stated",
        "figures": _figures(numbers) if numbers else None,
        "bar": proof.get("bar") or "not stated",
        "passed": proof["passed"],
        "result": ("passed" if proof.get("telling", True) else "passed, says nothing") if proof["passed"] else "FAILED",
    }


def _figures(numbers: Mapping[str, object]) -> _Fold:
    def weight(name: str) -> int:
        return next((at for at, model in enumerate(_MODELS) if name.endswith(model)), len(_MODELS))

    return _fold(sorted(numbers, key=weight), 112, lambda name: f"{_plain(name, 40)} {_number(numbers[name])}")


def _tells(proof: Mapping[str, Any]) -> bool:
    """Return False of a test that passes whatever the model is: it has not tested it. One that failed has."""
    return bool(proof.get("telling", True)) or not proof["passed"]


def _fingerprint(public_key: str) -> str:
    """Return the first half of the key's SHA-256 in groups of four, as one reads it out."""
    try:
        digest = hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]
    except ValueError:
        return "none: this is no key"
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


# -- words and numbers ----------------------------------------------------------------------------------------


def _fold(items: Sequence[str], room: int, show: Callable[[str], str]) -> _Fold:
    """Return as many items as there is room for, each as it is shown; one at the least."""
    shown: list[str] = []
    for item in map(show, items):
        room -= _width(item) + 2
        if shown and room < 0:
            break
        shown.append(item)
    return _Fold(shown, len(items) - len(shown))


def _hidden(value: object, room: int) -> int:
    """Return how many characters `_plain` leaves out."""
    text = _clean(str(value))
    kept = _plain(text, room)
    return len(text) - len(kept) + 1 if kept != text else 0


def _plain(value: object, room: int) -> str:
    """Return clean text of at most so many columns."""
    text = _clean(str(value))
    if _width(text) <= room:
        return text
    text = text[:room]
    while _width(text) > room - 2:
        text = text[:-1]
    return text.rstrip() + "…"


def _clean(text: str) -> str:
    """Return one line without what steers a display; a letter keeps three marks, so that none climbs the page."""
    kept: list[str] = []
    marks = 0
    for letter in " ".join(text.split()):
        kind = unicodedata.category(letter)
        marks = marks + 1 if kind.startswith("M") else 0
        if kind.startswith("C") and letter not in "\u200c\u200d":  # these two join letters and emoji
            kept.append("\ufffd")
        elif marks <= 3:
            kept.append(letter)
    return "".join(kept)


def _width(text: str) -> int:
    """Return the columns that a text takes on paper: generous, because fonts differ."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" or c.isupper() or c in "mw@%—…" or c > "\uffff" else 1
        for c in text
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """Return a key that sorts home 2 before home 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if at % 2 else (0, part) for at, part in enumerate(parts)]


def _count(number: int, noun: str, plural: str | None = None) -> str:
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _plain(value, 12)


def _size(count: int) -> str:
    value, units = float(count), iter(("bytes", "kB", "MB", "GB", "TB"))
    unit = next(units)
    while value >= 1000 and unit != "TB":
        value, unit = value / 1000, next(units)
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def _time(text: str) -> dt.datetime:
    time = dt.datetime.fromisoformat(text)
    return time.replace(tzinfo=dt.UTC) if time.tzinfo is None else time.astimezone(dt.UTC)


def _day(text: str) -> str:
    time = _time(text)
    return f"{time.day} {_MONTHS[time.month - 1]} {time.year}"


def _date(text: str) -> str:
    time = _time(text)
    return f"{_day(text)}, {time:%H:%M} UTC" if text else "not stated"
