"""bench home, curve, clean and applied: how the policy learns, and what it does to a federation that uses it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from frmu.cli.bench import bench, cache_option
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


@command(bench, "curve")
@click.option("--iterations", type=click.IntRange(2), default=20, show_default=True,
              help="Along the slope, of 960 steps; the others have the processor seconds that these take.")  # fmt: skip
@click.option("--tasks", type=click.IntRange(20), default=300, show_default=True, help="Held-out tasks that judge.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@lines_option
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="A PNG to write.")
@cache_option
@json_option
def bench_curve(
    iterations: int, tasks: int, seed: int, out: Path | None, picture: Path | None, cache: Path, as_json: bool
) -> None:
    """Learn the policy along the slope, by PPO and by random search, for the same processor seconds each."""
    from frmu.bench.curve import bench_curve as measure
    from frmu.bench.curve import draw_curve

    result = measure(cache, iterations, tasks, seed, out, lambda line: click.echo(line, err=True))
    if picture is not None:
        draw_curve(result, picture)
    show(as_json, result, _tell_curve)


def _tell_curve(result: dict[str, Any]) -> None:
    settings = tuple(result["shipped"])
    rows = [["shipped", "", "", *(cell for at in settings for cell in (_plus_minus(result["shipped"][at]), ""))]]
    rows += [
        [line["learner"], str(line["iteration"]), f"{line['seconds']:.0f}",
         *(cell for at in settings for cell in (_plus_minus(line[at]), _plus_minus(line[at]["difference"])))]
        for line in result["lines"]
    ]  # fmt: skip
    columns = ["", "iterations", "processor s", *(cell for at in settings for cell in (at, "less the shipped one"))]
    table(f"lower later RMSE than keeping everything, %, on {result['tasks']} held-out tasks", columns, rows)


@command(bench, "clean")
@click.option("--federations", type=click.IntRange(2), default=100, show_default=True)
@click.option("--encoder", type=click.Choice(["learned", "relu"]), default="learned", show_default=True)
@click.option("--significance", type=click.FloatRange(0, 1, min_open=True), help="Of the guard; 1: a margin is all.")
@cache_option
@json_option
def bench_clean(federations: int, encoder: str, significance: float | None, cache: Path, as_json: bool) -> None:
    """Small federations in which nothing is wrong: what choosing influences costs there."""
    from frmu.bench.applied import bench_clean as measure

    told = measure(cache, federations, encoder, significance, lambda line: click.echo(line, err=True))
    show(as_json, told, lambda r: say(
        f"test RMSE is lower by {r['mean']:.2f} ± {r['error']:.2f} % on the mean of {len(r['rows'])} federations, "
        f"{r['worst']:+.1f} % in the worst and {r['best']:+.1f} % in the best; in {r['changed']} a slice counts less"
    ))  # fmt: skip


@command(bench, "applied")
@click.option("--federations", type=click.IntRange(2), default=20, show_default=True)
@click.option("--sites", type=click.IntRange(1), help="Of each federation; default: two to ten.")
@click.option("--significance", type=click.FloatRange(0, 1, min_open=True), help="Of the guard; 1: a margin is all.")
@cache_option
@json_option
def bench_applied(federations: int, sites: int | None, significance: float | None, cache: Path, as_json: bool) -> None:
    """Federations in which something is wrong: what influences gain as applied, with learned and frozen features."""
    from frmu.bench.applied import bench_applied as measure

    told = measure(cache, federations, sites, significance, lambda line: click.echo(line, err=True))
    show(as_json, told, _tell_applied)


def _tell_applied(result: dict[str, Any]) -> None:
    columns = ["features", "lower test RMSE %", "worst", "best", "changed"]
    rows = [
        [name, f"{one['mean']:.2f} ± {one['error']:.2f}", *(f"{one[end]:+.1f}" for end in ("worst", "best")),
         str(one["changed"])]
        for name, one in result.items() if name != "difference"
    ]  # fmt: skip
    table("Influences as applied", columns, rows)
    said = (
        "learned less frozen: {mean:+.2f} ± {error:.2f} points; errors with learned features, all in all: {all:+.1f} %"
    )
    say(said.format(**result["difference"]))
