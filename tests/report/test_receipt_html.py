"""The page of a receipt: whole, escaped, honest about what it proves, and one sheet of paper."""

from __future__ import annotations

import base64
import copy
import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from frmu.errors import LedgerError
from frmu.ledger.keys import Keys
from frmu.ledger.receipt import issue
from frmu.report.receipt_html import receipt_html

KEYS = Keys(b"k" * 32)
EVIL = "<script>alert('x')</script>\"'&amp;$verdict ${style} \u202eevil\x00 ﷽ 汉字 e" + "\u0301" * 40
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta"}


def digest(of: str) -> str:
    return hashlib.sha256(of.encode()).hexdigest()


PLAIN: dict[str, Any] = {
    "format": "frmu-receipt/2",
    "store": "3f9c0a1be27d4456",
    "experiment": "homes",
    "request": "r3",
    "kind": "subject",
    "outcome": "erased",
    "requester": "A. Clerk",
    "reason": "objection received",
    "received": "2026-11-23T10:00:00+00:00",
    "due": "2026-12-23T10:00:00+00:00",
    "closed": "2026-11-24T10:05:00+00:00",
    "searched": {"home 10": 424, "home 2": 412},
    "removed": {"home 2": 12},
    "level": "L5",
    "verified": True,
    "before_digest": digest("before"),
    "state_digest": digest("after"),
    "seconds": 0.1634,
    "bytes": 1363148,
    "requests_in_batch": 3,
    "evidence": {
        "digest": digest("after"),
        "digest_never_had": digest("after"),
        "tombstoned_records_left": 0,
        "records_scanned": 12345,
        "files_that_are_no_shards": [],
        "head": "the same bits",
        "numerics": "scipy 1.17, openblas 0.3 Haswell",
        "policy": digest("policy"),
        "policies_retired": [digest("old")],
        "features": "features unmoved: only the erased rows were subtracted",
    },
    "purge": {
        "clients": ["home 2"],
        "source": "rewritten",
        "source_files": ["homes.parquet"],
        "mlflow": {
            "runs": ["ab" * 16],
            "artifacts": 14,
            "versions": ["homes/1"],
            "survivors": ["federation-wide scalars of run ab12"],
        },
    },
    "proofs": [
        {
            "level": "L3",
            "passed": True,
            "time": "2026-11-25T08:00:00+00:00",
            "seeds": [0, 1, 2],
            "bar": "no attack above 0.55",
            "numbers": {"membership AUC: original": 0.97, "membership AUC: this state": 0.51},
        }
    ],
    "not_covered": ["copies of the records outside frmu", "scalars in MLflow runs from before this drain"],
}


def receipt(**changes: Any) -> dict[str, Any]:
    """A signed receipt; a dotted path is written a__b."""
    plain = copy.deepcopy(PLAIN)
    for path, value in changes.items():
        *into, last = path.split("__")
        target = plain
        for key in into:
            target = target[key]
        target[last] = value
    return issue(plain, KEYS, 17, digest("line"))


def unverified() -> dict[str, Any]:
    return receipt(verified=False, level="L1", evidence__digest_never_had=digest("other"))


def nothing_held() -> dict[str, Any]:
    return receipt(outcome="nothing held", removed={}, proofs=[])


def monster(evil: str = EVIL) -> dict[str, Any]:
    """Everything too long at once."""
    proof = {"level": "L3", "time": PLAIN["closed"], "seeds": [*range(10)], "bar": evil * 20}
    numbers = {f"{evil} {at}": at / 7 for at in range(12)}
    return receipt(
        requester=evil * 20,
        reason=evil * 20 + "W" * 500,
        experiment=evil * 5,
        kind="where",
        closed="2027-01-23T10:05:00+00:00",
        searched={f"{evil} client {at}": 10**6 + at for at in range(100)},
        removed={f"CLIENT {'W' * at} {at}": 10**6 for at in range(60)},
        requests_in_batch=10**9,
        seconds=123456.7,
        bytes=10**15,
        evidence__numerics={f"{evil}{at}": evil * 9 for at in range(20)},
        evidence__policies_retired=[digest("old")] * 40,
        purge__source_files=[f"/data/{'W' * 200}{at}.parquet" for at in range(50)],
        purge__mlflow__versions=[evil * 3] * 40,
        purge__mlflow__survivors=[f"federation-wide scalars of run {evil} {at}" for at in range(60)],
        proofs=[{**proof, "passed": at != 5, "numbers": numbers} for at in range(6)],
        not_covered=[evil * 30] * 12,
    )


def worst() -> dict[str, Any]:
    """A monster that nothing speaks for."""
    return monster() | {
        "verified": False,
        "level": "L0",
        "evidence": monster()["evidence"]
        | {"digest": digest("other"), "tombstoned_records_left": 5, "files_that_are_no_shards": ["x"] * 9},
        "public_key": "e" * 200,
        "signature": "W" * 2000,
    }


def crowded() -> dict[str, Any]:
    """Many short lines: the most that is set in the larger type."""
    proof = {"level": "L3", "passed": True, "time": PLAIN["closed"], "bar": "no attack scores above 0.55"}
    return receipt(proofs=[proof | {"numbers": {"AUC": 0.5}}] * 4, not_covered=["copies of the records"] * 4)


class Reader(HTMLParser):
    """Tags in order, text, and whether every tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, tuple[str, ...]]] = []
        self.open: list[str] = []
        self.pieces: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, tuple(name for name, _ in attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.pieces).split())


def read(of: dict[str, Any], key: str = KEYS.public) -> str:
    return Reader(receipt_html(of, key)).text


@pytest.mark.parametrize("of", [receipt(), unverified(), nothing_held(), monster(), worst()])
def test_it_is_well_formed_and_stands_alone(of: dict[str, Any]) -> None:
    text = receipt_html(of, KEYS.public)
    reader = Reader(text)
    assert not reader.open
    assert text.startswith("<!DOCTYPE html>")
    assert not {tag for tag, _ in reader.tags} & {"script", "link", "img", "iframe", "a", "form"}
    assert not {name for _, names in reader.tags for name in names} & {"src", "href", "style", "onload", "onclick"}
    assert "url(" not in text
    assert "@import" not in text


def test_every_field_appears() -> None:
    text = read(receipt())
    shown = [
        *("r3", "homes", "3f9c0a1be27d4456", "A. Clerk", "objection received", "every record of one person"),
        *("23 Nov 2026, 10:00 UTC", "23 Dec 2026, 10:00 UTC", "24 Nov 2026, 10:05 UTC", "met, with 28 days to spare"),
        *("836 records at 2 clients: home 2 (412), home 10 (424)", "12 records at 1 client: home 2 (12)"),
        *("rewritten without them: homes.parquet", "1 run, 14 files and 1 model version (homes/1) purged"),
        *("0.16 s", "1.36 MB", "3 requests", "verified to level L5", "openblas 0.3 Haswell", "12,345 records on disk"),
        *(digest("before"), digest("after"), "equal to “after”", digest("policy")[:16], "1 earlier one"),
        *("membership AUC: original 0.97", "no attack above 0.55", "25 Nov 2026, 3 runs", "passed"),
        *("copies of the records outside frmu", "federation-wide scalars of run ab12", "line 17", digest("line")),
        *(receipt()["signature"], KEYS.public, "frmu receipt check FILE --public-key KEY", "frmu verify CONFIG r3"),
    ]
    assert not [piece for piece in shown if piece not in text]
    assert "not a proof" not in text


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from leaves(inner, (*path, key))
    if isinstance(value, str):
        yield path


@pytest.mark.parametrize("path", list(leaves(receipt())), ids=lambda path: ".".join(map(str, path)))
def test_a_hostile_text_in_any_place_is_shown_as_text_or_refused(path: tuple[Any, ...]) -> None:
    of = copy.deepcopy(receipt())
    target = of
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = EVIL + "\ud800"
    try:
        text = receipt_html(of, KEYS.public)
    except LedgerError:
        assert path[-1] in {"format", "outcome", "level", "received", "due", "closed", "time"}
        return
    assert not {tag for tag, _ in Reader(text).tags} & {"script"}
    assert "<script" not in text
    assert "\u202e" not in text
    assert "\x00" not in text
    text.encode()  # no lone surrogate is left that a file could not hold


def test_names_are_escaped_cleaned_and_kept_from_turning_the_line_round() -> None:
    text = receipt_html(receipt(requester="<b>&\u202eX\x07", searched={"<i>": 1}, removed={"<i>": 1}), KEYS.public)
    assert "<bdi>&lt;b&gt;&amp;\ufffdX\ufffd</bdi>" in text
    assert "<bdi>&lt;i&gt; (1)</bdi>" in text
    assert max(map(len, re.findall("\u0301+", receipt_html(receipt(reason=EVIL), KEYS.public)))) == 3


def test_a_value_is_no_template_and_the_policy_lets_the_style_through() -> None:
    assert "{{ 7 * 7 }}{% raw %}" in read(receipt(requester="{{ 7 * 7 }}{% raw %}"))
    page = receipt_html(receipt(), KEYS.public)
    style = re.findall("<style>(.*?)</style>", page, re.DOTALL)[0]
    assert f"'sha256-{base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()}'" in page


def test_what_is_long_is_folded_and_says_so() -> None:
    homes = {f"home {at}": 1 for at in range(100)}
    text = read(receipt(searched=homes, removed=homes, reason="9" * 500))
    shown = re.findall(r"100 clients: (home 0 .*?) and (\d+) more clients; the JSON receipt lists all", text)
    assert [len(names.split(", ")) + int(more) for names, more in shown] == [100, 100]
    assert re.search(r"9… \(and 3\d\d more characters in the JSON receipt\)", text)
    assert len(read(monster())) < 7000


def test_folding_hides_no_failed_test() -> None:
    text = read(monster("odd "))
    assert "1 later test of 6 did not pass" in text
    assert "FAILED" in text
    assert "and 2 more tests, 0 of them failed" in text


def test_a_receipt_that_is_not_verified_says_so_in_words() -> None:
    text = read(unverified())
    for piece in ("Not verified", "This page is not a proof of erasure. Do not rely on it.", "the request stays open"):
        assert piece in text
    assert "differs from “after”" in text
    assert "Last tried" in text
    assert "Certificate" not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evidence__digest_never_had": digest("other")}, "the digests differ"),
        ({"evidence__tombstoned_records_left": 1}, "1 record that should be gone was found again on disk"),
        ({"evidence__files_that_are_no_shards": ["a", "b"]}, "2 files in the data folder were not written by frmu"),
        ({"removed": {}}, "contradicts itself"),
        ({"verified": "yes"}, "could not be verified"),
    ],
)
def test_a_receipt_that_contradicts_itself_is_no_certificate(changes: dict[str, Any], words: str) -> None:
    text = read(receipt(**changes))
    assert words in text
    assert "Not verified" in text


def test_a_signature_that_does_not_hold_makes_no_certificate() -> None:
    assert "it is from elsewhere, or forged" in read(receipt(), Keys(b"o" * 32).public)
    assert "changed after it was signed" in read(receipt() | {"requester": "B. Clerk"})
    assert "The receipt is not signed" in read(PLAIN)
    assert "only claimed" in read(receipt() | {"requester": "B. Clerk"})
    assert "The signature held when this page was made" in read(receipt(), f" {KEYS.public.upper()}\n")


def test_nothing_held_is_no_erasure() -> None:
    text = read(nothing_held())
    assert "No record was erased, because none was held. 836 records at 2 clients were looked through" in text
    assert "a search, not an erasure" in text
    assert "Certificate" not in text


def test_a_missed_deadline_is_told_twice() -> None:
    text = read(receipt(closed="2026-12-25T10:00:00+00:00"))
    assert "The deadline was missed." in text
    assert "missed, by 2 days" in text


@pytest.mark.parametrize("change", [{"format": "frmu-receipt/1"}, {"level": "L9"}, {"due": "soon"}, {"purge": None}])
def test_what_is_no_receipt_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(LedgerError):
        receipt_html(receipt() | change, KEYS.public)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium to print")
@pytest.mark.parametrize("of", [receipt(), crowded(), unverified(), nothing_held(), monster(), worst()])
def test_it_prints_on_one_sheet(of: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(receipt_html(of, KEYS.public), encoding="utf-8")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += " --disable-component-update --disable-sync --no-pdf-header-footer"
    paths = [f"--user-data-dir={tmp_path / 'user'}", f"--print-to-pdf={tmp_path / 'page.pdf'}"]
    where = (tmp_path / "page.html").as_uri()
    subprocess.run([str(CHROMIUM), *flags.split(), *paths, where], check=True, capture_output=True, timeout=120)
    pdf = (tmp_path / "page.pdf").read_bytes()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
