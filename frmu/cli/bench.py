"""bench: measurements that the README and the policy card quote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.shell import command, json_option, main, say, show, table


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
