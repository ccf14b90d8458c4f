"""bench: measurements that the README and the policy card quote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.shell import address_option, command, json_option, main, say, show, table


@main.group()
def bench() -> None:
    """Measurements that the README and the policy card quote."""


_cache = click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=Path.home() / ".cache" / "frmu",
    help="Where real data sets are kept as Parquet.",
)  # fmt: skip


@command(bench, "pretrain")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The policy file to write.")
@click.option("--iterations", type=click.IntRange(1), default=250, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@_cache
@json_option
def bench_pretrain(out: Path, iterations: int, seed: int, cache: Path, as_json: bool) -> None:
    """Train the policy that ships with frmu, and measure it on data it never saw."""
    from frmu.bench.pretrain import pretrain

    result = pretrain(out, cache, iterations, seed, lambda line: click.echo(line, err=True))
    show(as_json, result, _tell_pretrain)


def _tell_pretrain(result: dict[str, Any]) -> None:
    say(f"policy {result['policy']}, {result['env_steps']:,} steps, {result['seconds']:.0f} s")
    for name, found in result["tables"].items():
        rows = [
            [selector, f"{r['mean']:+.2f}", f"{r['error']:.2f}", f"{r['worst']:+.2f}", str(r["tasks"])]
            for selector, r in found.items()
        ]
        table(
            f"{name}: lower later RMSE than keeping everything, %",
            ["selector", "mean", "error", "worst", "tasks"],
            rows,
        )


@command(bench, "erasure")
@click.option("--data", type=click.Choice(["parking", "retail"]), default="retail", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@_cache
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


@command(bench, "drain")
@click.option("--clients", type=click.IntRange(2), default=100, show_default=True)
@click.option("--requests", type=click.IntRange(1), default=1000, show_default=True, help="In one batch.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="Single requests, one by one.")
@address_option
@json_option
def bench_drain(clients: int, requests: int, repeats: int, address: str | None, as_json: bool) -> int:
    """Time a drain on a live federation: one subject, and many requests in one batch."""
    from frmu.bench.drain import bench_drain as measure

    result = measure(clients, requests, repeats, address)
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


@command(bench, "forgetting")
@click.option("--setup", type=click.Choice(["backdoor", "canary", "both"]), default="both", show_default=True)
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--outside", is_flag=True, help="Try an outside membership test as well; needs the extra frmu[audit].")
@_cache
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


@command(bench, "attention")
@click.option(
    "--set", "sets", type=click.Choice(["mnist, even", "mnist, two classes", "parking", "air"]), multiple=True,
    help="May be given several times; all by default.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as there are cores by default.")
@_cache
@json_option
def bench_attention(sets: tuple[str, ...], seeds: int, jobs: int | None, cache: Path, as_json: bool) -> int:
    """Give some clients bad labels or faulty sensors; compare attention with robust aggregation and an oracle."""
    from frmu.bench.attention import SETS
    from frmu.bench.attention import bench_attention as measure

    result = measure(sets or SETS, cache, seeds, jobs)
    show(as_json, result, _tell_attention)
    return 0 if result["passed"] else 1


def _tell_attention(result: dict[str, Any]) -> None:
    for name, case in result["cases"].items():
        digits = 1 if case["measure"] == "accuracy %" else 4
        rows = [
            [
                row,
                f"{found['mean']:.{digits}f} ± {found['std']:.{digits}f}",
                f"{found['ahead_mean']:+.2f} ± {found['ahead_std']:.2f}",
                found["variant"].removeprefix(row).strip(" ()"),
            ]
            for row, found in case["rows"].items()
        ]
        table(
            f"{name}; {case['clients']} clients, {result['seeds']} seeds",
            ["aggregation", case["measure"], "ours is ahead by %", "best of its variants"],
            rows,
        )
        say(*(f"{'met   ' if met else 'MISSED'}  {bar}" for bar, met in case["bars"].items()))
        if case["oracle_below_mean"]:
            say("the oracle is below the mean here: bad clients hold what nobody else does")
        say("")
    say(f"{result['wall_seconds']:.0f} s")
