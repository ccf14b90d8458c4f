"""bench: what an erasure costs, what it leaves, and how a federation recovers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.bench import bench, cache_option
from frmu.cli.progress import steps
from frmu.cli.shell import address_option, command, json_option, say, show, table


@command(bench, "erasure")
@click.option("--data", type=click.Choice(["parking", "retail"]), default="retail", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@cache_option
@json_option
def bench_erasure(data: str, seeds: int, cache: Path, as_json: bool) -> int:
    """Erase subjects, windows and clients of a real data set; compare with never having had them."""
    from frmu.bench.erasure import bench_erasure as measure

    result = measure(data, cache, seeds)
    rows = [[str(r["seed"]), f"{r['records']:,}", f"{r['erased']:,}", str(r["requests"]), f"{r['train_seconds']:.2f}",
             f"{r['drain_seconds']:.2f}", "equal" if r["equal"] else "DIFFERENT"] for r in result["runs"]]  # fmt: skip
    columns = ["seed", "records", "erased", "requests", "train s", "erase s", "digest against never-had"]
    show(
        as_json,
        result,
        lambda _: table(f"{data}: erased, against a federation that never had them", columns, rows),
    )
    return 0 if result["equal"] else 1


@command(bench, "recovery")
@click.option("--clients", type=click.IntRange(1, 32), default=8, show_default=True)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True)
@address_option
@json_option
def bench_recovery(clients: int, repeats: int, address: str | None, insecure: bool, as_json: bool) -> int:
    """Time until a federation is whole again: a host killed, the server killed, a client joined."""
    from frmu.bench.recovery import bench_recovery as measure

    result = measure(clients, repeats, address, insecure)
    show(as_json, result, _tell_recovery)
    return 0 if result["equal"] else 1


def _tell_recovery(result: dict[str, Any]) -> None:
    rows = [
        ["a host killed: all clients have answered", *(f"{result['host'][name]:.2f}" for name in ("median", "worst"))],
        ["the server killed: the next state", *(f"{result['server'][name]:.2f}" for name in ("median", "worst"))],
        ["a client joined: the state with it", f"{result['joined']['seconds']:.2f}", ""],
    ]
    table(f"{result['clients']} clients on Ray, seconds", ["", "median", "worst"], rows)
    say("every state is that of the undisturbed federation" if result["equal"] else "A STATE DIFFERS")


@command(bench, "drain")
@click.option("--clients", type=click.IntRange(2), default=100, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True, help="In one batch.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Single requests, one by one.")
@address_option
@json_option
def bench_drain(clients: int, requests: int, repeats: int, address: str | None, insecure: bool, as_json: bool) -> int:
    """Time a drain on a live federation: one subject, and many requests in one batch."""
    from frmu.bench.drain import bench_drain as measure

    result = measure(clients, requests, repeats, address, insecure)
    show(as_json, result, _tell_drain)
    return 0 if result["proven"] else 1


def _tell_drain(result: dict[str, Any]) -> None:
    one, batch = result["one"], result["batch"]
    table(
        f"{result['clients']} clients, {result['records']:,} records; trained in {result['train_seconds']:.2f} s",
        ["requests", "records erased", "drain to new state s", "proof s"],
        [
            [
                "1",
                f"{one['records']:g}",
                f"{one['seconds']:.3f} (worst {one['worst']:.3f})",
                f"{one['proof_seconds']:.2f}",
            ],
            [
                str(batch["requests"]),
                f"{batch['records']:,}",
                f"{batch['seconds']:.3f}",
                f"{batch['proof_seconds']:.2f}",
            ],
        ],
    )
    say(f"the batch costs {result['ratio']:.1f} times one request; {'all L5' if result['proven'] else 'NOT PROVEN'}")


@command(bench, "speed")
@click.option("--sites", multiple=True, type=click.IntRange(3), default=(10, 100, 300, 1000, 10000), show_default=True,
              help="Federations of so many sites; may be given more than once.")  # fmt: skip
@click.option("--each", type=click.IntRange(50), default=200, show_default=True, help="Records of each of their sites.")
@click.option("--records", multiple=True, type=click.IntRange(5000), default=(10_000, 100_000, 1_000_000),
              show_default=True, help="Federations of 100 sites with so many records in all.")  # fmt: skip
@click.option("--rows", type=click.IntRange(1024), default=2**18, show_default=True, help="Rows of the bare product.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True)
@click.option("--encoder", type=click.Choice(["relu", "learned"]), default="relu", show_default=True)
@click.option("--features", type=click.IntRange(1), help="How many; of learned ones all is chosen without.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the JSON and the picture.")
@json_option
def bench_speed(
    sites: tuple[int, ...], each: int, records: tuple[int, ...], rows: int, repeats: int, encoder: str,
    features: int | None, out: Path | None, as_json: bool,
) -> int:  # fmt: skip
    """Time sums, training, erasing and proving, against float64 and against training again, as federations grow."""
    import json

    from frmu.bench.speed import bench_product, draw_speed
    from frmu.bench.speed import bench_speed as measure

    model = f'encoder = "{encoder}"' + (f"\nfeatures = {features}" if features else "")
    model += "\nlayers = 2" if features and encoder == "learned" else ""
    with steps(2 + len(sites) + len(records)) as tell:
        tell("the bare product")
        product = bench_product(rows, 576, repeats)
        result = {"model": model, "product": product, **measure(sites, records, each, repeats, tell, model)}
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "speed.json").write_text(json.dumps(result, indent=2), encoding="utf-8")
        draw_speed(result, out / "speed.png")
    show(as_json, result, _tell_speed)
    return 0 if all(row["proven"] for row in [*result["sites"], *result["records"]]) else 1


def _tell_speed(result: dict[str, Any]) -> None:
    product = result["product"]
    table(
        f"sums of {product['rows']:,} records of {product['d']} integers, one thread",
        ["", "seconds", "of F.T @ F in float64"],
        [
            [label, f"{product[name]:.2f}", f"{product[name] / product['float64']:.2f}"]
            for name, label in (("float64", "F.T @ F"), ("sums", "sums"), ("features_and_sums", "features and sums"))
        ],
    )
    for along in ("sites", "records"):
        rows = [
            [f"{row['sites']:,}", f"{row['records']:,}",
             *(f"{row[name]:.1f} ({row[f'{name}_memory'] / 2**30:.1f})" for name in ("train", "drain", "verify")),
             f"{row['warm_subject']:.2f} ({row['warm_subject_proof']:.2f})",
             *(f"{row[f'ratio_{name}']:.2f}" for name in ("record", "subject", "window", "site"))]
            for row in result[along]
        ]  # fmt: skip
        if rows:
            columns = ["sites", "records", "train s (GiB)", "erase, prove", "verify", "warm s (proof)"]
            table(f"by {along}: cold commands; warm", [*columns, "record", "person", "window", "site"], rows)
        if along in result["growth"]:
            told = [f"{name} n^{fit['exponent']:.2f}" for name, fit in result["growth"][along].items()]
            say(f"growth with {along}: {', '.join(told)}")
    say("record, person, window, site: an erasure on a living federation against training it again")


@command(bench, "continual")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="A JSON file to write, with every curve.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="A PNG to write.")
@cache_option
@json_option
def bench_continual(seeds: int, out: Path | None, picture: Path | None, cache: Path, as_json: bool) -> None:
    """Train month by month on series that age; compare the policy with windows, decay and rules."""
    import json

    from frmu.bench.continual import bench_continual as measure
    from frmu.bench.continual import draw_continual

    result = measure(cache, seeds, told=lambda line: click.echo(line, err=True))
    if out is not None:
        out.write_text(json.dumps(result), encoding="utf-8")
    if picture is not None:
        draw_continual(result, picture)
    shown = {name: value for name, value in result.items() if name != "curves"}
    show(as_json, shown, _tell_continual)


def _tell_continual(result: dict[str, Any]) -> None:
    kinds = list(result["tables"])
    ways = list(result["tables"][kinds[0]])
    rows = [
        [way, *(f"{(f := result['tables'][kind][way])['gain']:+.1f} ± {f['standard_error']:.1f}" for kind in kinds),
         f"{min(result['tables'][kind][way]['worst_site'] for kind in kinds):+.1f}"]
        for way in ways
    ]  # fmt: skip
    title = (
        f"lower RMSE on the month to come than keeping all, %, {len(result['sites'])} sites x {result['seeds']} seeds"
    )
    table(title, ["", *kinds, "worst site"], rows)
    unseen, found = result["unseen"], result["tables"]
    rows = [[way, *(f"{_over(found[kind][way]['by_site'], unseen):+.1f}" for kind in kinds)] for way in ways]
    names = ", ".join(result["sites"][at] for at in unseen)
    table(f"the same, on what the policy did not learn from: {names}", ["", *kinds], rows)
    say("± is the standard error over sites. How far the product is ahead of the best rule:")
    for kind in kinds:
        others = {way: figures for way, figures in found[kind].items() if not way.startswith(("product", "changed"))}
        best = max(others, key=lambda way: others[way]["gain"])
        say(f"  {kind}: {others[best]['product_ahead']:+.1f} ± {others[best]['product_ahead_error']:.1f} ({best})")
    say(f"policy {result['policy'][:16]}, {result['seconds']:.0f} s")


def _over(numbers: list[float], at: list[int]) -> float:
    """The mean of some of them."""
    return sum(numbers[one] for one in at) / len(at)


@command(bench, "forgetting")
@click.option("--setup", type=click.Choice(["backdoor", "canary", "both"]), default="both", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--outside", is_flag=True, help="Try an outside membership test as well; needs the extra frmu[audit].")
@cache_option
@json_option
def bench_forgetting(setup: str, seeds: int, outside: bool, cache: Path, as_json: bool) -> int:
    """Erase a backdoored client and mislabelled records; compare with models trained again or only fine-tuned."""
    from frmu.bench.forgetting import bench_forgetting as measure

    result = measure(("backdoor", "canary") if setup == "both" else (setup,), cache, seeds, outside)
    show(as_json, result, _tell_forgetting)
    return 0 if result["passed"] else 1


_MEASURES = {
    "accuracy": "accuracy %", "attack": "attack success %", "auc": "canary AUC",
    "membership": "U-LiRA AUC", "outside": "ART AUC", "gap": "score gap", "seconds": "seconds",
}  # fmt: skip


def _tell_forgetting(result: dict[str, Any]) -> None:
    for name, found in result["setups"].items():
        runs, measures = found["runs"], [key for key in _MEASURES if key in found["rows"]["erased"]]
        rows = [
            [row, *(_plus_minus(by[key], key) for key in measures), _same_digest(runs, row)]
            for row, by in found["rows"].items()
        ]
        title = f"{name}: {runs[0]['erased']:,} of {runs[0]['records']:,} records erased, mean over {len(runs)} seeds"
        table(title, ["model", *(_MEASURES[key] for key in measures), "digest equal"], rows)
        if audits := [run["audit"] for run in runs if run.get("audit")]:
            say(f"frmu verify --level L3, membership: telling on {sum(a['telling'] for a in audits)} of {len(audits)}")
        say(*(f"{'met   ' if met else 'MISSED'}  {bar}" for bar, met in found["bars"].items()))
        say(f"{found['wall_seconds']:.0f} s", "")


def _plus_minus(found: dict[str, float], key: str) -> str:
    mean, std = found["mean"], found["std"]
    if key in ("accuracy", "attack"):
        return f"{100 * mean:.1f} ± {100 * std:.1f}"
    return f"{mean:.2f} ± {std:.2f}" if key == "seconds" else f"{mean:.3f} ± {std:.3f}"


def _same_digest(runs: list[dict[str, Any]], row: str) -> str:
    """On how many seeds a model's digest is that of the one trained again."""
    if row == "retrained":
        return "-"
    same = sum(run["digests"][row] == run["digests"]["retrained"] for run in runs)
    return f"{same} of {len(runs)}"
