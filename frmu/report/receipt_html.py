"""A receipt as a page of paper: one HTML document that stands alone and prints on one A4 sheet.

A data-protection officer files it next to the JSON receipt, which is what was signed. So the page says nothing that
the receipt does not say, explains every word of ours that it uses, and says in words when it is no proof: where the
receipt is not verified, contradicts itself, or bears a signature that does not hold. Names and reasons come from
strangers: all are escaped, stripped of what steers a display, kept from mixing directions, and cut to a length, since
a page that spills or lies by its layout is no certificate. A browser prints it to PDF.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

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
_DENSE = 2900  # letters from which the type is set smaller
_MORE = "the JSON receipt lists all"


def write_receipt(receipt: Mapping[str, Any], path: Path) -> None:
    """Write a receipt as what was signed (.json) or as a page to file (.html); raises `LedgerError` otherwise."""
    if path.suffix not in (".json", ".html"):
        raise LedgerError(f"{path}: a receipt is written as .json or .html")
    if path.exists() and not path.is_file():
        raise LedgerError(f"{path}: is not a regular file; give another name")
    text = json.dumps(receipt, indent=2, ensure_ascii=False)
    path.write_text(text if path.suffix == ".json" else receipt_html(receipt, receipt["public_key"]), encoding="utf-8")


def receipt_html(receipt: Mapping[str, Any], public_key: str) -> str:
    """The receipt as an HTML document that needs nothing else; `public_key` is the one the federation is known by.

    Raises `LedgerError` where this is no receipt of this frmu. One that is whole but proves nothing gives a page that
    says so.
    """
    if receipt.get("format") != FORMAT:
        raise LedgerError(f"not a receipt of this frmu: its format is {receipt.get('format')!r}, not {FORMAT!r}")
    try:
        return _page(receipt, public_key.strip().lower())
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise LedgerError(f"the receipt is not what frmu writes: {error!r}; ask for it again") from None


def _page(receipt: Mapping[str, Any], public_key: str) -> str:
    doubts = _doubts(receipt, public_key)
    # what lies on disk was looked at even where the model is in doubt; of a forged receipt nothing holds
    claimed = len(_LEVELS) if not doubts else 2 if _signature(receipt, public_key) == _HOLDS else 0
    held = receipt["outcome"] == "erased"
    standing = "unverified" if doubts else "erased" if held else "nothing"
    heading, sub, *seal = _FACES[standing]
    told = {
        "request": _tell(receipt["request"], 12),
        "experiment": _tell(receipt["experiment"], 32),
        "store": _tell(receipt["store"], 16),
        "seal": "".join(f"<span>{word or receipt['level']}</span>" for word in seal),
        "verdict": _verdict(receipt, doubts, standing),
        "asked": _facts(_asked(receipt)),
        "done": _facts(_done(receipt)),
        "levels": _levels(receipt, claimed) if held else _no_level(receipt),
        "evidence": _facts(_evidence(receipt)),
        "proofs": _proofs(receipt["proofs"]),
        "outside": _outside(receipt),
        "anchor": _facts(_anchor(receipt, public_key)),
    }
    letters = sum(len(re.sub("<[^>]*>", "", text)) for text in told.values())
    return _DOCUMENT.substitute(
        told,
        policy=f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'",
        style=_STYLE,
        face=f"{standing} dense" if letters > _DENSE else standing,
        title=escape(f"Receipt {_plain(receipt['request'], 12)}: {heading.lower()}"),
        heading=heading,
        sub=sub,
    )


# -- does it stand? -------------------------------------------------------------------------------------------


def _doubts(receipt: Mapping[str, Any], public_key: str) -> list[str]:
    """Why the receipt proves nothing, in plain words; empty where it does."""
    if receipt["outcome"] not in ("erased", "nothing held"):
        raise ValueError(f"outcome {receipt['outcome']!r}")
    evidence = receipt["evidence"]
    digests = {receipt["state_digest"], evidence["digest"], evidence["digest_never_had"]}
    left, strange = evidence["tombstoned_records_left"], len(evidence["files_that_are_no_shards"])
    signature = _signature(receipt, public_key)
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
    """What the signature is worth, by the key that the federation is known by."""
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


def _verdict(receipt: Mapping[str, Any], doubts: Sequence[str], standing: str) -> str:
    """The page in three sentences."""
    searched = f"{_count(sum(receipt['searched'].values()), 'record')} at {_count(len(receipt['searched']), 'client')}"
    removed = f"{_count(sum(receipt['removed'].values()), 'record')} at {_count(len(receipt['removed']), 'client')}"
    failed = sum(1 for proof in receipt["proofs"] if not proof["passed"])
    notes = [
        f"{_count(failed, 'later test')} of {len(receipt['proofs'])} did not pass; see the tests below." * bool(failed),
        "The deadline was missed." * (_verified(receipt) and _time(receipt["closed"]) > _time(receipt["due"])),
    ]
    note = "".join(f" <b>{text}</b>" for text in notes if text)
    if standing == "unverified":
        reasons = "".join(f"<li>{escape(text)}</li>" for text in doubts)
        lead = (
            f"According to the receipt, {removed} {_were(sum(receipt['removed'].values()))} removed"
            if receipt["removed"]
            else "No record was found to remove"
        )
        return (
            "<p><b>This page is not a proof of erasure. Do not rely on it.</b> "
            f"{lead}, but it is not shown that the model has forgotten what was asked for:{note}</p><ul>{reasons}</ul>"
        )
    if standing == "nothing":
        return (
            f"<p><b>No record was erased, because none was held.</b> {searched} were looked through, and none is what "
            f"the request means. This page documents a search, not an erasure.{note}</p>"
        )
    name, meaning = _LEVELS[_level(receipt)]
    verb = _were(sum(receipt["removed"].values()))
    return (
        f"<p><b>{removed} {verb} erased, and the erasure is verified</b> to level "
        f"{receipt['level']}, “{name.lower()}”: {meaning[0].lower()}{meaning[1:]}{note}</p>"
    )


# -- the parts of the page ------------------------------------------------------------------------------------


def _asked(receipt: Mapping[str, Any]) -> dict[str, str]:
    kind = _KINDS.get(receipt["kind"])
    verified = _verified(receipt)
    return {
        "Asked by": _tell(receipt["requester"] or "not stated", 60),
        "Reason": _tell(receipt["reason"] or "not stated", 110),
        "To erase": f"{kind} (“{escape(receipt['kind'])}”)" if kind else _tell(receipt["kind"], 40),
        "Received": _date(receipt["received"]),
        "To be done by": _date(receipt["due"]),
        "Closed" if verified else "Last tried": _date(receipt["closed"]),
        "Deadline": _deadline(receipt) if verified else "<b>open</b>: a request closes only once it is verified",
    }


def _deadline(receipt: Mapping[str, Any]) -> str:
    spare = _time(receipt["due"]) - _time(receipt["closed"])
    days = abs(spare).days
    text = _count(days, "day") if days else "less than a day"
    return f"met, with {text} to spare" if spare >= dt.timedelta() else f"<b>missed</b>, by {text}"


def _done(receipt: Mapping[str, Any]) -> dict[str, str]:
    """What was looked through and what went; a client is where records stay."""
    purge = receipt["purge"]
    facts = {
        "Searched": _counts(receipt["searched"], 105),
        "Removed": _counts(receipt["removed"], 95) if receipt["removed"] else "<b>nothing</b>: no record matched",
    }
    if purge.get("source"):
        facts["Original files"] = _source(purge)
    if any(purge.get("mlflow", {}).get(key) for key in ("runs", "artifacts", "versions", "outbox")):
        facts["Experiment log"] = _log(purge["mlflow"])
    batch = receipt["requests_in_batch"]
    together = f", for {batch:,} requests together" if batch != 1 else ""
    facts["Effort"] = f"{receipt['seconds']:,.2f} s and {_size(receipt['bytes'])} moved{together}"
    return facts


def _counts(counts: Mapping[str, int], room: int) -> str:
    names = sorted(counts, key=_natural)
    whole = f"<b>{_count(sum(counts.values()), 'record')}</b> at {_count(len(counts), 'client')}"
    return f"{whole}: {_fold((f'{_plain(n, 30)} ({counts[n]:,})' for n in names), len(names), room, 'client')}"


def _source(purge: Mapping[str, Any]) -> str:
    files = purge.get("source_files", [])
    if purge["source"] == "rewritten":
        return f"rewritten without them: {_fold((_plain(f, 40) for f in files), len(files), 60, 'file')}"
    if purge["source"] == "out of scope":
        return "those the records were read from are as they were (out of scope)"
    return _tell(purge["source"], 60)


def _log(mlflow: Mapping[str, Any]) -> str:
    versions = mlflow.get("versions", [])
    named = f" ({_fold((_plain(v, 24) for v in versions), len(versions), 40, 'version')})" if versions else ""
    runs, files = _count(len(mlflow.get("runs", [])), "run"), _count(mlflow.get("artifacts", 0), "file")
    waited = f", and {_count(mlflow['outbox'], 'file')} that waited for it" if mlflow.get("outbox") else ""
    return f"MLflow: {runs}, {files} and {_count(len(versions), 'model version')}{named} purged{waited}"


def _levels(receipt: Mapping[str, Any], claimed: int) -> str:
    """The ladder; from the rung `claimed` on, nothing but the receipt's own word stands for it."""
    reached = list(_LEVELS).index(_level(receipt))
    rows = []
    for at, (level, (name, meaning)) in enumerate(_LEVELS.items()):
        word = "not reached" if at > reached else "included" if at < reached else "reached"
        if claimed <= at <= reached:
            word = "only claimed"
        tests = [bool(proof["passed"]) for proof in receipt["proofs"] if proof["level"] == level and _tells(proof)]
        if tests:
            word = f"{word}, test passed" if all(tests) else "test FAILED"
        mark = "now" if at == reached and at < claimed else "off" if at > reached else "on"
        rows.append(
            f'<tr class="{mark}"><th scope="row">{level}</th><td>{name}</td><td>{meaning}</td><td>{word}</td></tr>'
        )
    return f'<table class="levels">{"".join(rows)}</table>'


def _no_level(receipt: Mapping[str, Any]) -> str:
    name = _LEVELS[_level(receipt)][0].lower()
    return (
        "<p>Nothing was erased for this request, so no level of erasure is claimed for it. The receipt bears "
        f"{receipt['level']} (“{name}”) for the model as a whole.</p>"
    )


def _evidence(receipt: Mapping[str, Any]) -> dict[str, str]:
    evidence = receipt["evidence"]
    before, after, never = receipt["before_digest"], receipt["state_digest"], evidence["digest_never_had"]
    same = "equal to “after”" if after == never else "<b>differs from “after”</b>"
    changed = "unlike “after”" if after != before else "same as “after”"
    strange = len(evidence["files_that_are_no_shards"])
    retired = len(evidence["policies_retired"])
    policy = (
        f"{_code(evidence['policy'][:16])} decides how much records count" if evidence["policy"] else "none learned"
    )
    policy += f"; {_count(retired, 'earlier one')} that had learned at these clients withdrawn" if retired else ""
    numerics = evidence["numerics"]
    made = _fold((_plain(f"{key} {numerics[key]}", 36) for key in sorted(numerics)), len(numerics), 90, "entry")
    return {
        "Model before": f"{_code(before)} {changed}",
        "Model after": _code(after),
        "Never had them": f"{_code(never)} {same}",
        "Read again": f"{_count(evidence['records_scanned'], 'record')} on disk: "
        f"{evidence['tombstoned_records_left']:,} that should be gone, {_count(strange, 'unknown file')}",
        "Policy": policy,
        "Computed with": f"{made}; digests compare only where these agree",
    }


def _proofs(proofs: Sequence[Mapping[str, Any]]) -> str:
    """Failed tests come first, so that folding never hides one behind passed ones."""
    if not proofs:
        return "<p>None was asked for. Tests of the levels L2 to L4 can be added to a receipt at any time.</p>"
    order = sorted(proofs, key=lambda proof: (bool(proof["passed"]), str(proof["level"])))
    shown = order[:_TESTS]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Level", "Tested", "Measured", "Bar to pass", "Result"))
    rows = "".join(f"<tr>{''.join(f'<td><div>{cell}</div></td>' for cell in _proof(proof))}</tr>" for proof in shown)
    rest = order[_TESTS:]
    failed = sum(1 for proof in rest if not proof["passed"])
    more = f"<p>and {_count(len(rest), 'more test')}, {failed} of them failed; {_MORE}</p>" if rest else ""
    return f'<table class="proofs"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}'


def _proof(proof: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = proof.get("numbers", {})
    order = sorted(
        numbers, key=lambda name: next((at for at, m in enumerate(_MODELS) if name.endswith(m)), len(_MODELS))
    )
    told = (f"{_plain(name, 40)} {_number(numbers[name])}" for name in order)
    seeds = len(proof.get("seeds", []))
    again = f", {_count(seeds, 'run')}" if seeds else ""
    return (
        _tell(proof["level"], 4),
        _day(proof["time"]) + again if proof.get("time") else "not stated",
        _fold(told, len(numbers), 112, "figure", more="") if numbers else "not stated",
        _mark(_plain(proof.get("bar") or "not stated", 64)),
        "<b>FAILED</b>" if not proof["passed"] else "passed" if proof.get("telling", True) else "passed, says nothing",
    )


def _tells(proof: Mapping[str, Any]) -> bool:
    """A test that passes whatever the model is has not tested it; one that failed has."""
    return bool(proof.get("telling", True)) or not proof["passed"]


def _outside(receipt: Mapping[str, Any]) -> str:
    survivors = receipt["purge"].get("mlflow", {}).get("survivors", [])
    items = [_mark(_plain(text, 150)) for text in receipt["not_covered"][:4]]
    if rest := len(receipt["not_covered"]) - len(items):
        items.append(f"and {_count(rest, 'more entry', 'more entries')}; {_MORE}")
    if survivors:
        kept = _fold((_plain(text, 60) for text in survivors), len(survivors), 120, "item")
        items.append(f"left in the experiment log: {kept}")
    return "".join(f"<li>{item}</li>" for item in items) or "<li>nothing is named</li>"


def _anchor(receipt: Mapping[str, Any], public_key: str) -> dict[str, str]:
    ledger = receipt.get("ledger") or {}
    line = f"line {ledger['line']:,}, {_code(ledger['digest'])}" if ledger else "<b>not in the ledger</b>"
    own = receipt.get("public_key", "")
    foreign = f"; <b>the receipt names another</b>: {_code(own)}" if own != public_key else ""
    state = _signature(receipt, public_key)
    signed = f"{state}." if state == _HOLDS else f"<b>{state}.</b>"
    return {
        "Ledger": line,
        "Signature": f"{_code(receipt.get('signature') or 'none', 128)} {signed}",
        "Public key": f"{_code(public_key)} (Ed25519){foreign}",
        "Fingerprint": f"{_code(_fingerprint(public_key))} of the public key, to compare over the telephone",
    }


def _fingerprint(public_key: str) -> str:
    """The first half of the key's SHA-256 in groups of four, as one reads it out."""
    try:
        digest = hashlib.sha256(bytes.fromhex(public_key)).hexdigest()[:32]
    except ValueError:
        return "none: this is no key"
    return " ".join(digest[at : at + 4] for at in range(0, 32, 4))


# -- words and numbers ----------------------------------------------------------------------------------------


def _facts(facts: Mapping[str, str]) -> str:
    return "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in facts.items())


def _fold(items: Iterable[str], total: int, room: int, noun: str, more: str = f"; {_MORE}") -> str:
    """As many items as there is room for, escaped, and how many more there are; one at the least."""
    shown: list[str] = []
    for item in items:
        room -= _width(item) + 2
        if shown and room < 0:
            break
        shown.append(item)
    text = ", ".join(_mark(item) for item in shown) or "none"
    rest = total - len(shown)
    plural = {"entry": "entries"}.get(noun)
    return f"{text} and {_count(rest, f'more {noun}', f'more {plural}' if plural else None)}{more}" if rest else text


def _tell(value: object, room: int) -> str:
    """A stranger's text: cut, cleaned, escaped, and kept from turning its surroundings round."""
    text = _clean(str(value))
    kept = _plain(text, room)
    left = len(text) - len(kept) + 1
    note = f" (and {_count(left, 'more character')} in the JSON receipt)" if kept != text and room >= 40 else ""
    return _mark(kept) + note


def _mark(text: str) -> str:
    return f"<bdi>{escape(text)}</bdi>"


def _code(text: object, room: int = 64) -> str:
    return f"<code>{escape(_plain(text, room))}</code>"


def _plain(value: object, room: int) -> str:
    """Clean text of at most so many columns."""
    text = _clean(str(value))
    if _width(text) <= room:
        return text
    text = text[:room]
    while _width(text) > room - 2:
        text = text[:-1]
    return text.rstrip() + "…"


def _clean(text: str) -> str:
    """One line without what steers a display; a letter keeps three marks at most, so that none climbs the page."""
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
    """Columns that a text takes on paper: generous, because fonts differ."""
    return sum(
        2 if unicodedata.east_asian_width(c) in "WF" or c.isupper() or c in "mw@%—…" or c > "\uffff" else 1
        for c in text
    )


def _natural(name: str) -> list[tuple[int, str]]:
    """home 2 before home 10."""
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


# -- the sheet ------------------------------------------------------------------------------------------------

# Every clamp below is a second net under the cuts above: a sign wider than its column count must not turn the page.
_STYLE = """
@page { size: A4 portrait; margin: 9mm 10mm; }
* { box-sizing: border-box; margin: 0; padding: 0; }
html { background: #fff; color: #14171c; -webkit-text-size-adjust: 100%; }
body { font: 8pt/1.34 "Palatino Linotype", Palatino, "URW Palladio L", "Book Antiqua", "Liberation Serif",
  Georgia, "Times New Roman", serif; font-size-adjust: .465; }
main { width: 189mm; min-height: 274mm; margin: 0 auto; padding: 6mm 9mm 5mm; border: 1pt solid #14171c;
  outline: .4pt solid #14171c; outline-offset: -1.6mm; display: flex; flex-direction: column;
  justify-content: space-between; gap: 2mm; overflow-wrap: anywhere; }
header { display: flex; justify-content: space-between; align-items: center; gap: 8mm; }
h1 { font-size: 23pt; font-weight: 400; line-height: 1.1; letter-spacing: .01em; }
h1 small { display: block; font-size: 11pt; font-style: italic; letter-spacing: 0; padding-top: .6mm; }
.of { font-size: 8.2pt; letter-spacing: .04em; padding-bottom: 1.6mm; }
.seal { flex: none; width: 22mm; height: 22mm; border: 2.4pt double #14171c; border-radius: 50%; display: flex;
  flex-direction: column; align-items: center; justify-content: center; line-height: 1.05; }
.seal span:first-child { font-size: 7pt; font-style: italic; }
.seal span:last-child { font-size: 17pt; }
.verdict { font-size: 10.2pt; line-height: 1.38; border-top: .8pt solid #14171c; border-bottom: .8pt solid #14171c;
  padding: 2mm 0; }
.verdict li { -webkit-line-clamp: none; }
.verdict ul { font-size: 9.2pt; padding-top: 1mm; }
h2 { font-size: 1.05em; font-weight: 600; letter-spacing: .07em; text-transform: uppercase; padding-bottom: .7mm; }
h2 small { font-size: .92em; font-weight: 400; font-style: italic; letter-spacing: 0; text-transform: none; }
.pair { display: grid; grid-template-columns: 9fr 11fr; gap: 6mm; }
.pair dl { grid-template-columns: 20mm 1fr; }
dl { display: grid; grid-template-columns: 21mm 1fr; gap: .35mm 2mm; }
dt { color: #4a505a; font-style: italic; white-space: nowrap; }
th, .levels td:nth-child(2), .levels td:last-child { white-space: nowrap; }
dd { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 3; overflow: hidden; }
.pair dd { -webkit-line-clamp: 4; } .wide dd { -webkit-line-clamp: 2; }
li { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
code { font: .82em/1.2 "DejaVu Sans Mono", Menlo, Consolas, "Liberation Mono", monospace; font-size-adjust: none; }
table { width: 100%; border-collapse: collapse; }
td, th { text-align: left; vertical-align: baseline; padding: .35mm 2.4mm .35mm 0; border-bottom: .3pt solid #c3c7ce; }
td:last-child { padding-right: 0; }
.levels th { width: 7mm; } .levels td:nth-child(2) { width: 29mm; }
.levels td:last-child { width: 30mm; text-align: right; }
.levels th { font-weight: 400; }
.levels .now { font-weight: 700; } .levels .now th { font-weight: 700; } .levels .off { color: #6a707a; }
.proofs th { font-weight: 400; font-style: italic; color: #4a505a; }
.proofs td:nth-child(1) { width: 9mm; } .proofs td:nth-child(2) { width: 28mm; }
.proofs td div { display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; overflow: hidden; }
.proofs td:nth-child(4) { width: 42mm; }
.proofs th:last-child, .proofs td:last-child { width: 15mm; text-align: right; }
li::before { content: "– "; }
.foot { border-top: .8pt solid #14171c; padding-top: 1.6mm; }
.nothing main { border-width: .8pt; outline: none; }
.nothing .seal { border-style: dotted; }
.unverified main { border: 3pt dashed #14171c; outline: none; }
.unverified h1 { text-transform: uppercase; font-weight: 700; letter-spacing: .06em; }
.unverified h1 small { text-transform: none; font-weight: 400; }
.unverified .seal { border: 2.4pt dashed #14171c; border-radius: 0; }
.unverified .verdict { border: 2pt solid #14171c; padding: 2.4mm 3mm; }
.dense { font-size: 7.1pt; line-height: 1.24; }
.dense main { padding: 4mm 8mm 3.5mm; gap: 1.2mm; }
.dense h1 { font-size: 18pt; } .dense h1 small { font-size: 9pt; } .dense .seal { width: 19mm; height: 19mm; }
.dense .seal span:last-child { font-size: 14pt; }
.dense .verdict { font-size: 8.8pt; line-height: 1.28; padding: 1.2mm 0; } .dense .verdict ul { font-size: 7.9pt; }
.dense.unverified .verdict { padding: 1.4mm 3mm; }
.dense section:not(.verdict) li { -webkit-line-clamp: 1; }
@media screen { body { padding: 8mm 4mm; } }
@media screen and (max-width: 720px) {
  main { width: auto; min-height: 0; padding: 6mm 4mm; } .pair { grid-template-columns: 1fr; } body { padding: 2mm; }
}
"""
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

_DOCUMENT = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body class="$face">
<main>
<header>
<div>
<p class="of">Request $request &middot; experiment $experiment &middot; federation $store</p>
<h1>$heading <small>$sub</small></h1>
</div>
<div class="seal">$seal</div>
</header>
<section class="verdict">$verdict</section>
<div class="pair">
<section><h2>The request</h2><dl>$asked</dl></section>
<section><h2>What was done <small>client: a site with its own records</small></h2><dl>$done</dl></section>
</div>
<section><h2>Level of proof <small>each level asks for more than the one before</small></h2>$levels</section>
<section class="wide"><h2>Evidence <small>a digest is a fingerprint: models with the same digest agree in every \
bit</small></h2><dl>$evidence</dl></section>
<section><h2>Further tests <small>an attack that scores 0.5 (its AUC) only guesses; one that scores 1 knows\
</small></h2>$proofs</section>
<section><h2>Not covered <small>what this page does not vouch for</small></h2><ul>$outside</ul></section>
<section class="wide foot"><h2>Anchor and signature <small>the lines of the ledger are chained, so that a change \
to one shows</small></h2><dl>$anchor</dl></section>
<section><h2>How to check it <small>this page only restates the JSON receipt; that file is what was signed</small></h2>
<dl>
<dt>Anywhere</dt><dd><code>frmu receipt check FILE --public-key KEY</code> needs no network, only the JSON receipt as \
FILE; get KEY from the federation by another way than this page</dd>
<dt>There</dt><dd><code>frmu verify CONFIG $request</code> at the federation rebuilds the model without the records \
and compares again</dd>
</dl></section>
</main>
</body>
</html>
""")
