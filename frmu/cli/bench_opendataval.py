"""bench opendataval: the values that frmu gives single records, in another benchmark's protocol."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.bench import bench, cache_option
from frmu.cli.bench_accuracy import known
from frmu.cli.progress import steps
from frmu.cli.shell import command, json_option, say, show, table

BEATEN = ("KNN Shapley", "Data-OOB", "DVRL")


@command(bench, "opendataval")
@click.option("--set", "sets", multiple=True, help="Only some sets; may be given more than once.")
@click.option("--evaluator", "evaluators", multiple=True, help="Only some evaluators; may be given more than once.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option(
    "--models", type=click.IntRange(2), default=1000, show_default=True,
    help="Fitted by Data-OOB and Influence, and by AME at each of its four proportions.",
)  # fmt: skip
@click.option(
    "--venv", type=click.Path(file_okay=False, path_type=Path),
    help="Where OpenDataVal 1.3.0 is, or is installed; by default in the cache.",
)  # fmt: skip
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Lines as they come: goes on from there.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="A PNG to write.")
@cache_option
@json_option
def bench_opendataval(
    sets: tuple[str, ...], evaluators: tuple[str, ...], seeds: int, models: int, venv: Path | None, out: Path | None,
    picture: Path | None, cache: Path, as_json: bool,
) -> None:  # fmt: skip
    """Find noisy labels, record by record, beside the evaluators of OpenDataVal and by its own figures."""
    from frmu.bench.opendataval import EVALUATORS, KNOWN, SETS, draw_opendataval, summed_up
    from frmu.bench.opendataval import bench_opendataval as measure

    known("set", sets, tuple(KNOWN))
    known("evaluator", evaluators, EVALUATORS)
    chosen = (list(sets or SETS), list(evaluators or EVALUATORS))
    where = venv or cache / "opendataval-1.3.0.venv"
    with steps(len(chosen[0]) * len(chosen[1]) * seeds) as tell:
        lines = measure(*chosen, seeds, models, cache, where, out, tell)
    rows = summed_up(lines)
    if picture is not None:
        draw_opendataval(rows, picture)
    show(as_json, {"lines": lines, "rows": rows}, _tell)


def _tell(result: dict[str, Any]) -> None:
    rows = result["rows"]
    columns = ["evaluator", "F1", "in the lowest fifth", "lowest first", "highest first", "CPU s", "seeds"]
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        table(name, columns, [
            [row["evaluator"], *(_spread(row, figure) for figure in ("f1", "found", "low_first", "high_first")),
             f"{row['seconds']:.1f}", str(row["seeds"])]
            for row in mine
        ])  # fmt: skip
        of = {row["evaluator"]: row["f1"] for row in mine}
        against = [one for one in BEATEN if one in of]
        if "frmu" in of and against:
            ahead = [one for one in against if of["frmu"] > of[one]]
            say(f"{name}: frmu is above {', '.join(ahead) or 'none'} of {', '.join(against)}", "")


def _spread(row: dict[str, Any], figure: str) -> str:
    error = row[f"{figure}_error"]
    return f"{row[figure]:.3f}" + ("" if error is None else f" ± {error:.3f}")
