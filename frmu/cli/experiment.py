"""demo, init, train, explain, predict, status."""

from __future__ import annotations

import datetime as dt
import json as jsonlib
from pathlib import Path
from typing import Any

import click

from frmu.cli.outbox import waiting
from frmu.cli.progress import working
from frmu.cli.shell import (
    address_option,
    command,
    config_argument,
    count,
    json_option,
    main,
    read_config,
    read_trained,
    say,
    show,
    stop_signal,
    table,
    ui,
)  # fmt: skip


@command(main)
@click.option(
    "--dir",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("frmu-demo"),
    show_default=True,
)
@click.option("--sites", type=click.IntRange(8, 29), default=10, show_default=True, help="Car parks, each a Ray actor.")
@json_option
def demo(folder: Path, sites: int, as_json: bool) -> int:
    """Car parks train, a policy finds the sensor that lied, three requests are honoured and proven."""
    from frmu.demo import run_demo

    result = run_demo(folder, sites, lambda line: say(line))
    if as_json:
        print(jsonlib.dumps(result))
    return 0 if result["proven"] else 1


@command(main)
@click.argument("parquet", nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The config to write."
)
@click.option("--client", help="The column that names the client.")
@click.option("--record", help="The column that names the record.")
@click.option("--target", help="The column to predict.")
@click.option("--subject", help="The column that names the person.")
@click.option("--time", help="The column of times.")
@click.option("--private", help="The column of booleans that says which records must not be learned from.")
@click.option("--force", is_flag=True, help="Overwrite a config that is there.")
@json_option
def init(parquet: tuple[str, ...], out: Path, force: bool, as_json: bool, **named: str | None) -> None:
    """Propose a config from Parquet files: columns, ranges, dates of the split, slice rule."""
    from frmu.data.inference import infer_config

    result = infer_config(parquet, out, {key: value for key, value in named.items() if value is not None}, force)
    show(as_json, result, lambda r: say(f"Wrote {r['config']}:", "", r["text"], *r["notes"]))


@command(main)
@config_argument
@click.option(
    "--until",
    metavar="DAY",
    type=click.DateTime(["%Y-%m-%d"]),
    help='The day that a split with until = "today" is counted back from; default: today, in UTC.',
)
@click.option("--follow", is_flag=True, help="Stay, and train again whenever the files of data.path have changed.")
@click.option("--every", default="60s", show_default=True, metavar="DURATION", help="How often --follow looks.")
@click.option("--rounds", type=click.IntRange(1), help="End --follow after so many rounds.")
@click.option("--drain", is_flag=True, help="With --follow: drain what is pending after a round, and while waiting.")
@address_option
@json_option
def train(
    config: Path, until: dt.datetime | None, follow: bool, every: str, rounds: int | None, drain: bool,
    address: str | None, insecure: bool, as_json: bool,
) -> int | None:  # fmt: skip
    """Import the records that remain and train: one exact round.

    With --follow a round whenever the data change, one line each. Ctrl-C or SIGTERM ends it after the round under way,
    with exit code 0; a second one at once.
    """
    from frmu.api import Experiment

    day = until.date() if until is not None else None
    if follow:
        return _follow(config, day, every, rounds, drain, address, insecure, as_json)
    if rounds is not None or drain:
        raise click.UsageError("--rounds and --drain go with --follow")
    with working(), Experiment(read_config(config), address, insecure) as experiment:
        result = experiment.train(day)
    show(as_json, result, _tell_train)
    return 0


def _follow(
    config: Path, until: dt.date | None, every: str, rounds: int | None, drain: bool, address: str | None,
    insecure: bool, as_json: bool,
) -> int:  # fmt: skip
    """Rounds as they come, a line each, and a summary as the last."""
    from frmu.config import parse_duration
    from frmu.services.continual import Follow, kept

    try:
        follow = Follow(config, address, parse_duration(every), rounds, until, drain, insecure)
    except ValueError as error:
        raise click.UsageError(f"--every: {error}") from None
    done, failed, digest = 0, 0, ""
    with kept(read_config(config), address, insecure), stop_signal() as stopped:
        for told in follow.run(stopped):
            done, digest = told["round"], told.get("state_digest", digest)
            failed += told.get("verified") is False
            show(as_json, told, _tell_round)
    summary = {"rounds": done, "state_digest": digest, "stopped_by": "signal" if stopped() else "rounds"}
    show(as_json, summary, lambda s: say(f"{count(s['rounds'], 'round')}; state {s['state_digest'][:16]}"))
    return 1 if failed else 0


def _tell_round(told: dict[str, Any]) -> None:
    now = dt.datetime.now().isoformat(sep=" ", timespec="seconds")
    if told["kind"] == "error":
        say(f"{now}  {told['error']}")
    elif told["kind"] == "away":
        say(f"{now}  {_in_words_away(told)}")
    elif told["kind"] == "deliver":
        say(f"{now}  MLflow is back: {count(told['delivered'], 'run')} delivered")
    elif told["kind"] == "drain":
        receipts = ", ".join(f"{r['request']} {r['level']}" for r in told["receipts"])
        say(f"{now}  drained: {receipts or 'nothing yet, waiting for erasure.min_batch'}")
    else:
        say(f"{now}  round {told['round']}: {_in_a_line(told)}")


def _in_words_away(told: dict[str, Any]) -> str:
    """Say who is away since when and why, who is back, and what that means for rounds."""
    parts = [f"site {site} is back" for site in told["back"]]
    parts += [
        f"site {site} ({', '.join(of['clients']) or 'no client'}) is away since {of['since']}: {of['why']}"
        for site, of in told["away"].items()
    ]
    if told["away"]:
        waits = told["waits"]
        parts.append(f"rounds wait, for {waits}; the folder is free meanwhile" if waits else "rounds go on without it")
    return "; ".join(parts)


def _in_a_line(told: dict[str, Any]) -> str:
    """A training in one line."""
    metrics = told["metrics"]
    name = next((name for name in ("test_rmse", "test_accuracy", *metrics) if name in metrics), None)
    kept = f" ({metrics[f'keep_{name}']:.4f} with nothing forgotten)" if f"keep_{name}" in metrics else ""
    parts = [
        count(told["clients"], "client"),
        count(told["records"], "record"),
        *([f"{name} {metrics[name]:.4f}{kept}"] if name is not None else []),
        f"{count(sum(map(len, told['forgotten'].values())), 'slice')} not in full",
        *([f"{told['private']:,} private"] if told["private"] else []),
        *_clipped(told),
        *([f"without {', '.join(told['away'])}"] if told["away"] else []),
        *([f"{count(told['pending'], 'request')} pending"] if told["pending"] else []),
        *([f"MLflow is away, {count(told['outbox']['runs'], 'run')} waiting"] if told["outbox"]["away"] else []),
        *([f"split back from {told['split_until']}"] if told["split_until"] else []),
        f"{told['seconds']:.2f} s",
        f"state {told['state_digest'][:16]}",
    ]
    return ", ".join(parts)


def _clipped(result: dict[str, Any]) -> list[str]:
    """A sentence for each range beyond which there were values."""
    at = result["clipped_at"]
    return [
        f"clipped: {name} {count(values, 'value')} at {count(at[name], 'client')}"
        for name, values in result["clipped"].items()
    ]


def _tell_train(result: dict[str, Any]) -> None:
    say(
        f"{count(result['clients'], 'client')}, {count(result['records'], 'record')}, "
        f"{count(result['rounds'], 'round')} in {result['seconds']:.2f} s",
        f"state {result['state_digest'][:16]}",
        *([f"features: {result['features']}"] if result["features"] else []),
    )
    for name, why in result["away"].items():
        say(f"without {name}: {why}; it is asked again in the next round")
    if result["refused"]:
        say(f"{result['refused']} records were refused: they have been erased before")
    if result["private"]:
        say(f"{count(result['private'], 'private record')}: never to be learned from")
    for line in _clipped(result):
        say(line)
    for request in result["private_requests"]:
        say(f"request {request} was filed for private records that had been learned from: `frmu drain` honours it")
    metrics = result["metrics"]
    rows = [
        [name, f"{metrics[f'keep_{name}']:.4f}", f"{value:.4f}"]
        for name, value in metrics.items()
        if f"keep_{name}" in metrics
    ]
    table("Measured on records that were not fitted", ["", "nothing forgotten", "as learned"], rows)
    below = sum(len(slices) for slices in result["forgotten"].values())
    say(
        f"forgotten or attenuated: {count(below, 'slice')} at {count(len(result['forgotten']), 'client')}",
        ui(result["tracking"]),
        *waiting(result["outbox"]),
    )


@command(main)
@config_argument
@click.option("--client", metavar="ID", help="Only one client's slices.")
@click.option("--slice", "slice_", metavar="KEY", help="Only one slice, in full.")
@click.option("--features", is_flag=True, help="Instead: which inputs the learned features lean on, by layer.")
@click.option("--picture", metavar="FILE", type=click.Path(path_type=Path), help="A PNG to write.")
@json_option
def explain(
    config: Path, client: str | None, slice_: str | None, features: bool, picture: Path | None, as_json: bool
) -> None:
    """Say why each slice counts as it does: features, proposals, what would be without it, history.

    With --features say which inputs the model leans on, as one reads the importances of a tree. That needs the
    checkpoint and no federation.
    """
    from frmu.api import Experiment

    if features:
        if client is not None or slice_ is not None:
            raise click.UsageError("--features is of the whole model; leave --client and --slice out")
        _explain_features(config, picture, as_json)
        return
    with Experiment(read_trained(config), "local") as experiment:
        result = experiment.explain(client, slice_, picture)
    show(as_json, result, lambda r: _tell_why(r, slice_ is not None))


def _explain_features(config: Path, picture: Path | None, as_json: bool) -> None:
    from frmu.cli.importance import tell_importances
    from frmu.services.importance import explain_features

    show(as_json, explain_features(read_trained(config), picture), tell_importances)


def _tell_why(result: dict[str, Any], in_full: bool) -> None:
    for name, told in result["clients"].items():
        losses = ", ".join(f"{who} {loss:.4g}" for who, loss in told["proposals"].items())
        say(
            f"{name}: {count(told['records'], 'record')}; attention {told['attention']:.2f}, score {told['score']:.3g}",
            f"  followed: {told['chosen_by']}. Validation loss by proposal: {losses or 'nothing was weighed'}",
            *([f"  drawn back: {told['drawn_back']}"] if told["drawn_back"] else []),
        )
        if not in_full:
            _tell_slices(result["features"], told["slices"])
        else:
            for key, one in told["slices"].items():
                _tell_slice(key, one)
    found = result["history_from"]
    away = ", which is away now" if result["away"] else ""
    say(f"history from {count(found['policies'], 'policy run')} and {count(found['rounds'], 'round')} in MLflow{away}")
    if "picture" in result:
        say(f"Wrote {result['picture']}")


def _tell_slices(features: list[str], slices: dict[str, Any]) -> None:
    """A line a slice, with those features that tell slices apart best; `--slice` and `--json` give all."""
    seen = [one["features"] for one in slices.values() if one["features"]]
    spread = {name: max(one[name] for one in seen) - min(one[name] for one in seen) for name in features if seen}
    best = sorted(spread.keys() - {"influence"}, key=lambda name: (-spread[name], name))[:6]
    telling = [name for name in features if name in best and spread[name] > 0.0]
    rows = [
        [key, f"{one['records']:,}", f"{one['influence']:.2g}", *_changes(one)]
        + [f"{one['features'][name]:.2f}" for name in telling]
        for key, one in slices.items()
    ]
    table("", ["slice", "records", "influence", "without it %", "in full %", *telling], rows)


def _changes(one: dict[str, Any]) -> list[str]:
    """Say what leaving a slice out would change, where it counts; what counting it in full would, where it does not."""
    out, full = one["without_percent"], one["in_full_percent"]
    return [_signed(out if one["influence"] > 0.0 else None), _signed(full if one["influence"] < 1.0 else None)]


def _signed(percent: float | None) -> str:
    return "" if percent is None else f"{percent:+.2f}"


def _tell_slice(key: str, one: dict[str, Any]) -> None:
    say(f"  {key}, {count(one['records'], 'record')}: {one['why']}.")
    rows = [[name, f"{value:.3f}"] for name, value in one["features"].items()]
    table("", ["feature", "under the applied influences"], rows)
    for what, history in (
        ("score in the training of a policy", one["scores"]),
        ("influence in a round", one["rounds"]),
    ):
        if history:
            table("", ["UTC", what], [[time[:19].replace("T", " "), f"{number:.3f}"] for time, number in history])


@command(main)
@config_argument
@click.argument("parquet", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The Parquet to write."
)
@click.option("--version", metavar="N", help="A version of the model registry; default: the champion.")
@click.option("--interval", type=float, metavar="SHARE", help="Also low and high: within them so many, such as 0.9.")
@json_option
def predict(config: Path, parquet: Path, out: Path, version: str | None, interval: float | None, as_json: bool) -> None:
    """Predict for rows of a Parquet file, with a state that no erasure has overtaken."""
    from frmu.services.prediction import predict as write

    result = write(read_config(config), parquet, out, version, interval)
    show(as_json, result, lambda r: say(
        f"Wrote {count(r['rows'], 'prediction')} to {r['out']}, by version {r['version']}, "
        f"state {r['state_digest'][:16]}", *_clipped(r), *waiting(r["outbox"])
    ))  # fmt: skip


@command(main)
@config_argument
@json_option
def status(config: Path, as_json: bool) -> None:
    """Show where an experiment stands: its state, what is pending and by when."""
    from frmu import api

    result = api.status(read_config(config))
    show(as_json, result, _tell_status)


def _tell_status(result: dict[str, Any]) -> None:
    say(
        f"state {result['state_digest'][:16]}: {result['clients']} clients, {result['records']:,} records"
        + ("" if result["trained_with_this_config"] else "; trained with ANOTHER config, run `frmu train`"),
        f"{sum(len(s) for s in result['forgotten'].values())} slices do not count in full; "
        f"policy {result['policy'][:16]}",
        *([] if result["state_is_clean"] else ["an erasure has overtaken this state, so it is not served"]),
        f"{result['receipts']} receipts filed, {len(result['pending'])} requests pending"
        + (f", by which {count(result['private_to_go'], 'private record')} must go" * bool(result["private_to_go"])),
        *(f"  {r['request']} ({r['kind']}, {r['stage']}): {r['days_left']} days left" for r in result["pending"]),
        *(f"  site {site} is away since {of['since']}: {of['why']}" for site, of in result["away"].items()),
        *waiting(result["outbox"]),
        f"folder {result['folder']}; receipts are signed with the key {result['public_key']}",
        ui(result["tracking"]),
    )
