"""drain, verify."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.outbox import waiting as unsent
from frmu.cli.progress import working
from frmu.cli.shell import (
    address_option,
    command,
    config_argument,
    count,
    json_option,
    main,
    read_trained,
    say,
    show,
    table,
)  # fmt: skip

# -- drain, verify --------------------------------------------------------------------------------------------


@command(main)
@config_argument
@click.option("--now", is_flag=True, help="Do not wait for erasure.min_batch requests.")
@click.option("--replay", is_flag=True, help="Remove again what came back with a backup that was restored.")
@address_option
@json_option
def drain(config: Path, now: bool, replay: bool, address: str | None, insecure: bool, as_json: bool) -> int:
    """Honour what is pending, in one batch, and print receipts."""
    from frmu.api import Experiment

    with working(), Experiment(read_trained(config), address, insecure) as experiment:
        result = experiment.replay() if replay else experiment.drain(now)
    show(as_json, result, _tell_replay if replay else _tell_drain)
    return 1 if result["verified"] is False else 0


def _tell_replay(result: dict[str, Any]) -> None:
    back = sum(result["came_back"].values())
    say(
        f"{count(back, 'erased record')} had come back and {'is' if back == 1 else 'are'} gone again",
        f"state {result['state_digest']}",
        f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}",
    )


def _tell_drain(result: dict[str, Any]) -> None:
    waiting = f"{count(result['waiting'], 'request')} waiting for erasure.min_batch to be reached; --now overrules it"
    if not result["receipts"]:
        say(waiting if result["waiting"] else "Nothing is pending.")
        return
    rows = [
        [
            r["request"],
            f"{sum(r['removed'].values()):,}" if r["removed"] else "nothing held",
            str(len(r["removed"])),
            f"{sum(r['searched'].values()):,}",
            r["level"],
            "yes" if r["verified"] else "NO",
            r["due"][:10],
        ]
        for r in result["receipts"]
    ]
    table("Receipts", ["request", "records", "clients", "searched", "level", "verified", "due"], rows)
    first = result["receipts"][0]
    survivors = first["purge"]["mlflow"]["survivors"]
    say(
        f"state           {first['state_digest']}",
        f"never had them  {first['evidence']['digest_never_had']}",
        *([first["evidence"]["features"]] if "features" in first["evidence"] else []),
        *(f"not covered: {line}" for line in first["not_covered"]),
        *(f"left in MLflow: {line}" for line in survivors[:5]),
        *([f"left in MLflow: {len(survivors) - 5} more; the receipt lists all"] if len(survivors) > 5 else []),
        f"{count(len(result['receipts']), 'request')} in one batch: {result['seconds']:.2f} s to the new state, "
        f"{result['verify_seconds']:.2f} s to prove it, {result['bytes']:,} bytes moved",
        *([waiting] if result["waiting"] else []),
        *unsent(result["outbox"]),
    )
    if not result["verified"]:
        again = "the requests stay open. Run `frmu train` and `frmu drain` again, and `frmu verify`."
        say(f"NOT VERIFIED: {result.get('why_open') or again}")


@command(main)
@config_argument
@click.argument("receipt", required=False)
@click.option(
    "--level",
    default="L5",
    show_default=True,
    metavar="L1|L2|L3|L4|L5",
    help="L1 purge, L2 gap to retraining, L3 attacks, L4 relearn time, L5 bit-identical to never had.",
)
@click.option(
    "--forget",
    metavar="PARQUET",
    type=click.Path(path_type=Path),
    help="The erased records, for L2 to L4, where data.path holds them no more.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of shadow models and rehearsals.")
@click.option("--quick", is_flag=True, help="Rebuild nothing: are shards and state those that were last written?")
@address_option
@json_option
def verify(
    config: Path, receipt: str | None, level: str, forget: Path | None, seed: int, quick: bool, address: str | None,
    insecure: bool, as_json: bool,
) -> int:  # fmt: skip
    """Prove the state again, or one receipt: what is found is added to the receipt."""
    from frmu.api import Experiment
    from frmu.errors import RequestError

    if quick and (receipt is not None or forget is not None):
        raise RequestError("--quick looks at the state in force: leave RECEIPT and --forget out")
    with working(), Experiment(read_trained(config), address, insecure) as experiment:
        result = experiment.standing_check() if quick else experiment.verify(receipt, level, forget, seed)
    show(as_json, result, _tell_quick if quick else _tell_attacks if "proofs" in result else _tell_exact)
    return 0 if result["verified"] else 1


_ALONE = "no witness: a working folder that is put back as a whole would not be noticed (store.witness)"
_STRANGE = "no line of the ledger says that this state was made and proven: run `frmu train`, or finish the drain"


def _watched(result: dict[str, Any]) -> str:
    if not result["witness"]:
        return _ALONE
    if result["witness_away"]:
        return f"the witness could not be asked whether the working folder was put back: {result['witness_away']}"
    return f"witness: the ledger has the line that it saw last ({result['witness_place']})"


def _tell_exact(result: dict[str, Any]) -> None:
    say(
        f"state                     {result['state_digest']}",
        f"rebuilt from what remains {result['digest_never_had']}",
        f"erased records found: {result['tombstoned_records_left']} in {result['records_scanned']:,} scanned; "
        f"ledger: {result['ledger_lines']} lines, chain whole",
        *(f"left in the folder: {name}" for name in result["files_that_are_no_shards"]),
        *(f"left in MLflow: {line}" for line in result["left_in_mlflow"]),
        *([] if result["state_in_ledger"] else [_STRANGE]),
        _watched(result),
        f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}",
    )


def _tell_quick(result: dict[str, Any]) -> None:
    say(
        f"state {result['state_digest']}",
        f"erased records found: {result['tombstoned_records_left']} in {result['records_scanned']:,} scanned; "
        f"ledger: {result['ledger_lines']} lines, chain whole",
        *(f"not as it was written: the shard of {client}" for client in result["shards_changed"]),
        *(f"missing: the shard of {client}" for client in result["shards_missing"]),
        *([] if result["state_in_ledger"] else [_STRANGE]),
        _watched(result),
        "UNCHANGED since it was proven; nothing was rebuilt: `frmu verify` does that"
        if result["verified"]
        else "CHANGED since it was proven",
    )


def _tell_attacks(result: dict[str, Any]) -> None:
    for proof in result["proofs"]:
        models = ["original", "fine-tuned", "this state", "retrained"]
        measures = list(dict.fromkeys(name.split(": ")[0] for name in proof["numbers"]))
        spread = "spread of retraining"
        if any(name.endswith(spread) for name in proof["numbers"]):
            models.append(spread)
        rows = [
            [measure, *(_number(proof["numbers"].get(f"{measure}: {model}")) for model in models)]
            for measure in measures
        ]
        outcome = "passed" if proof["passed"] else "FAILED"
        telling = "" if proof["telling"] else "; it says nothing here: the original passes as well"
        table(f"{proof['level']} {proof['check']}: {outcome}{telling}", ["", *models], rows)
        say(f"the bar: {proof['bar']}", "")
    by = [proof["check"] for proof in result["proofs"] if proof["telling"]]
    why = f", by {', '.join(by)}" if by else ": nothing here tells the original from a retrained model"
    say(f"{'VERIFIED' if result['verified'] else 'NOT VERIFIED'}: level {result['level']}{why}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if float(value).is_integer() and value > 1 else f"{value:.4g}"
