"""bench home: measurements of how the policy learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from frmu.cli.bench import bench
from frmu.cli.shell import command, json_option, say, show, table

lines_option = click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path),
    help="A file of lines to write, one a measurement, and to go on from where it is there.",
)  # fmt: skip


@command(bench, "home")
@click.option("--federation", "names", type=click.Choice(["desks", "huts"]), multiple=True, default=("desks", "huts"),
              show_default=True, help="May be given several times.")  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True, help="Federations of a kind.")
@click.option("--iterations", type=click.IntRange(1), default=20, show_default=True, help="Of each training.")
@lines_option
@json_option
def bench_home(names: tuple[str, ...], seeds: int, iterations: int, out: Path | None, as_json: bool) -> None:
    """Train the policy on at home, on federations unlike those it learned on; compare it with the shipped one."""
    from frmu.bench.home import bench_home as measure

    show(as_json, measure(names, seeds, iterations, out, lambda line: click.echo(line, err=True)), _tell_home)


def _tell_home(result: dict[str, Any]) -> None:
    say(f"from policy {result['policy'][:16]}")
    rows = [
        [row["federation"], row["split"], f"{row['keep']['mean']:.2f}",
         *(_plus_minus(row[who]) for who in ("rules", "shipped", "home", "difference", "rehearsals")),
         f"{row['kept']} of {row['seeds']}"]
        for row in result["rows"]
    ]  # fmt: skip
    columns = [
        "federation", "records", "keep all", "best rule", "shipped", "at home", "home less shipped", "on rehearsals",
        "kept",
    ]  # fmt: skip
    table("error with everything kept (RMSE, or % of classes), and by how many % less it is", columns, rows)


def _plus_minus(one: Mapping[str, float | None]) -> str:
    error = "" if one["error"] is None else f" ± {one['error']:.2f}"
    return f"{one['mean']:+.2f}{error}"
