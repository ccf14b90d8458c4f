"""The demo: real car parks, a sensor that lies, three requests, one proof. What it prints, it has just computed.

The records are the Birmingham parking set that ships with frmu (`datasets/parking.md`). One thing is done to them,
and said: for two weeks one car park's counter reports at random.
"""

from __future__ import annotations

import datetime as dt
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from frmu import api
from frmu.config import Config, load
from frmu.datasets.parking import CONFIG
from frmu.report.receipt_html import write_receipt
from frmu.types import Selection, State

__all__ = ["run_demo"]

LIAR, LIED = "Broad Street", ("2016-W43", "2016-W44")
LIE_FROM, LIE_TO = dt.datetime(2016, 10, 24), dt.datetime(2016, 11, 7)
SITES = (
    LIAR, "BHMBCCMKT01", "BHMBCCTHL01", "BHMEURBRD01", "BHMNCPHST01", "BHMNCPNST01", "Bull Ring", "Others-CCCPS8",
    "Shopping", "NIA South",
)  # fmt: skip
WINDOW = (dt.datetime(2016, 10, 10), dt.datetime(2016, 10, 24))


def run_demo(folder: Path, sites: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run it in a folder; `tell` gets each line as it becomes true. The summary, as plain JSON types."""
    began = time.perf_counter()
    config = _prepare(folder, sites, tell)
    with api.Experiment(config) as experiment, experiment.session.run("demo") as run:
        clock = _Clock(tell)
        first = experiment.train()
        clock(
            f"{first['clients']} car parks, each a Ray actor with its own shard: {first['records']:,} records, 1 round"
        )
        learned = experiment.learn(iterations=4)
        clock(
            f"RLlib trained the policy on for {learned['iterations']} iterations, {learned['env_steps']:,} steps on "
            f"the client actors; mean TD error {learned['td_error']:.2f}; "
            + ("better on rehearsals, so in force" if learned["adopted"] else "no better on rehearsals, so let go")
        )
        trained = experiment.train()
        found = _found(experiment.session.state())
        clock(_tell_found(found))
        requests = _request(config, trained)
        drained = experiment.drain()
        clock(
            f"{len(requests)} requests honoured in one batch: {sum(r['records'] for r in requests):,} records gone in "
            f"{drained['seconds']:.2f} s; policy learned from them retired: {_retired(drained)}"
        )
        _file(drained, folder / "receipts")
        again = experiment.train()
        clock(
            f"retraining from the source for comparison: {again['seconds']:.2f} s; "
            f"it refused {again['refused']:,} records"
        )
        never = _never_had(config, folder)
        clock("a second federation trained that never had the records")
        summary = _summary(config, first, learned, trained, found, requests, drained, again, never)
        summary["seconds"] = round(time.perf_counter() - began, 1)
        summary["run_id"] = run.id
        run.tags({"frmu.proven": str(summary["proven"])})
        run.json(summary, "summary.json")
    _tell_summary(summary, tell)
    return summary


class _Clock:
    """Prefixes each line with the seconds since the last."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell, self._last = tell, time.perf_counter()

    def __call__(self, line: str) -> None:
        now = time.perf_counter()
        self._tell(f"{now - self._last:5.1f} s  {line}")
        self._last = now


def _prepare(folder: Path, sites: int, tell: Callable[[str], None]) -> Config:
    """Write the records and the config; what an earlier demo left in the folder goes."""
    for name in ("parking.frmu", "never-had", "receipts"):
        shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(Path(__file__).parent / "datasets" / "parking.parquet")
    others = [name for name in pc.unique(table["site"]).to_pylist() if name not in SITES and name != "BHMBRTARC01"]
    names = [*SITES, *others][:sites]
    table = table.filter(pc.is_in(table["site"], pa.array(names)))
    lying = pc.and_(pc.equal(table["site"], LIAR), _between(table["ts"], LIE_FROM, LIE_TO))
    noise = pa.array(np.random.default_rng(0).uniform(0.0, 1.0, table.num_rows))
    rate = pc.if_else(lying, noise, table["rate"])
    table = table.set_column(table.column_names.index("rate"), "rate", rate)
    pq.write_table(table, folder / "parking.parquet")
    (folder / "parking.toml").write_text(CONFIG, encoding="utf-8")
    tell(
        f"Birmingham car parks (CC BY 4.0), half hours of autumn 2016; "
        f"the counter of {LIAR} reports at random in {' and '.join(LIED)}"
    )
    return load(folder / "parking.toml")


def _between(times: Any, first: dt.datetime, last: dt.datetime) -> Any:
    return pc.and_(pc.greater_equal(times, pa.scalar(first, times.type)), pc.less(times, pa.scalar(last, times.type)))


def _found(state: State) -> dict[str, Any]:
    """Return what the federation decided of the slices that lied, and of all others."""
    below = [(c.name, key) for c in state.clients for key, value in c.influence.items() if value < 1.0]
    liar = next(client for client in state.clients if client.name == LIAR)
    return {
        "site": LIAR,
        "slices": list(LIED),
        "influence": {key: liar.influence[key] for key in LIED},
        "chosen_by": liar.chosen_by,
        "found": sum(liar.influence[key] < 1.0 for key in LIED),
        "others_below_one": len([pair for pair in below if pair not in [(LIAR, key) for key in LIED]]),
        "slices_in_all": sum(len(client.influence) for client in state.clients),
    }


def _tell_found(found: dict[str, Any]) -> str:
    weights = ", ".join(f"{key} -> {value:.2f}" for key, value in found["influence"].items())
    return (
        f"influences applied: {found['found']} of {len(LIED)} lying weeks of {LIAR} found ({weights}; chosen by: "
        f"{found['chosen_by']}); "
        f"{found['others_below_one']} of the other {found['slices_in_all'] - len(LIED)} slices count less"
    )


def _request(config: Config, trained: dict[str, Any]) -> list[dict[str, Any]]:
    """A window at one site, some record ids, a whole client."""
    table = pq.read_table(config.source, columns=["record", "site"])
    ids = table.filter(pc.equal(table["site"], "Bull Ring"))["record"].to_pylist()[10:60]
    selections = [
        (Selection("between", client="BHMNCPNST01", between=WINDOW), "counter replaced"),
        (Selection("records", records=tuple(ids)), "objection by the operator"),
        (Selection("client", client="Shopping"), "contract ended"),
    ]
    return [api.erase(config, selection, reason) for selection, reason in selections]


def _file(drained: dict[str, Any], folder: Path) -> None:
    """Each receipt as the signed JSON and as the page that a data-protection officer files."""
    folder.mkdir()
    for receipt in drained["receipts"]:
        for suffix in (".json", ".html"):
            write_receipt(receipt, folder / f"{receipt['request']}{suffix}")


def _never_had(config: Config, folder: Path) -> dict[str, Any]:
    """Train another federation, in process and in a folder of its own, on a Parquet without the records."""
    table = pq.read_table(config.source)
    ids = table.filter(pc.equal(table["site"], "Bull Ring"))["record"].to_pylist()[10:60]
    gone = pc.or_(
        pc.and_(pc.equal(table["site"], "BHMNCPNST01"), _between(table["ts"], *WINDOW)),
        pc.or_(pc.is_in(table["record"], pa.array(ids)), pc.equal(table["site"], "Shopping")),
    )
    other = folder / "never-had"
    other.mkdir()
    pq.write_table(table.filter(pc.invert(gone)), other / "parking.parquet")
    (other / "parking.toml").write_text(CONFIG, encoding="utf-8")
    with api.Experiment(load(other / "parking.toml"), "local") as experiment:
        return experiment.train()


def _retired(drained: dict[str, Any]) -> int:
    return len(drained["receipts"][0]["evidence"]["policies_retired"])


def _summary(
    config: Config, first: dict[str, Any], learned: dict[str, Any], trained: dict[str, Any], found: dict[str, Any],
    requests: list[dict[str, Any]], drained: dict[str, Any], again: dict[str, Any], never: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    digests = {drained["state_digest"], again["state_digest"], never["state_digest"]}
    return {
        "proven": len(digests) == 1 and drained["verified"] and never["records"] == again["records"],
        "state_digest": drained["state_digest"],
        "never_had_digest": never["state_digest"],
        "clients": first["clients"],
        "records": first["records"],
        "utility": {
            "unit": "test RMSE of the occupancy rate",
            "nothing_forgotten": trained["metrics"]["keep_test_rmse"],
            "as_learned": trained["metrics"]["test_rmse"],
            "after_erasure": drained["metrics"]["test_rmse"],
        },
        "policy": {"iterations": learned["iterations"], "env_steps": learned["env_steps"], "found": found},
        "erasure": {
            "seconds": drained["seconds"],
            "retraining_seconds": again["seconds"],
            "bytes": drained["bytes"],
            "retraining_bytes": again["bytes_up"] + again["bytes_down"],
            "proof_seconds": drained["verify_seconds"],
        },
        "requests": {
            "made": len(requests),
            "honoured": len(drained["receipts"]),
            "pending": drained["pending"],
        },
        "receipts": [
            {
                "request": r["request"],
                "level": r["level"],
                "verified": r["verified"],
                "removed": r["removed"],
                "due": r["due"],
            }
            for r in drained["receipts"]
        ],
        "not_covered": list(drained["receipts"][0]["not_covered"]),
        "tracking": first["tracking"],
        "folder": str(config.folder),
        "receipt_pages": str(config.file.parent / "receipts"),
    }


def _tell_summary(summary: dict[str, Any], tell: Callable[[str], None]) -> None:
    utility, erasure, requests = summary["utility"], summary["erasure"], summary["requests"]
    tell("")
    tell(
        f"Utility     {utility['unit']}: {utility['nothing_forgotten']:.4f} with nothing forgotten, "
        f"{utility['as_learned']:.4f} as learned; {utility['after_erasure']:.4f} after the erasures, on what remains"
    )
    tell(
        f"Operation   {erasure['seconds']:.2f} s and {erasure['bytes'] / 1e6:.2f} MB for the batch, "
        f"{erasure['retraining_seconds']:.2f} s and {erasure['retraining_bytes'] / 1e6:.2f} MB for retraining; "
        f"proof {erasure['proof_seconds']:.2f} s"
    )
    tell(f"Obligation  {requests['honoured']} of {requests['made']} requests honoured, {requests['pending']} pending")
    for receipt in summary["receipts"]:
        what = ", ".join(f"{number:,} records of {client}" for client, number in receipt["removed"].items())
        proof = (
            "bit-identical to a federation that never had these records"
            if receipt["verified"] and summary["proven"]
            else "NOT PROVEN"
        )
        tell(f"  receipt {receipt['request']}: {what}: {receipt['level']}, {proof}")
    tell(f"  after the erasures {summary['state_digest']}")
    tell(f"  never had them     {summary['never_had_digest']}")
    for line in summary["not_covered"]:
        tell(f"  not covered: {line}")
    tell("")
    tell(f"The signed receipts, each also as a page to file: {summary['receipt_pages']}")
    tell(f"{summary['seconds']:.0f} s in all. Look at it: mlflow ui --backend-store-uri {summary['tracking']}")
