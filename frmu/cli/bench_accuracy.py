"""bench accuracy, moves and unmoved: test errors beside other models, how often features move, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import click

from frmu.cli.bench import bench, cache_option
from frmu.cli.progress import steps
from frmu.cli.shell import command, json_option, say, show, table


@command(bench, "accuracy")
@click.option("--set", "sets", multiple=True, help="Only some of our data sets; may be given more than once.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    help='Only some methods; may be given more than once. There are more than are measured without it: "frozen, 512", '
    '"one layer", "lattice of 1/4" and "no lattice".',
)
@click.option("--widths", is_flag=True, help="Learned features of 512 to 4,096 instead of the methods.")
@click.option("--fit-only", is_flag=True, help="Erase nothing, and compare errors.")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Lines as they come: goes on from there.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="A PNG to write.")
@cache_option
@json_option
def bench_accuracy(
    sets: tuple[str, ...], methods: tuple[str, ...], widths: bool, fit_only: bool, seeds: int, out: Path | None,
    picture: Path | None, cache: Path, as_json: bool,
) -> None:  # fmt: skip
    """Fit real data sets, each at its own sites, beside boosted trees and networks on all records in one place."""
    from frmu.bench.accuracy import KNOWN, METHODS, SETS, WIDTHS, draw_accuracy
    from frmu.bench.accuracy import bench_accuracy as measure

    known("set", sets, SETS)
    known("method", methods, KNOWN)
    chosen = (list(sets or SETS), [*methods, *WIDTHS] if widths else list(methods or METHODS))
    with steps(len(chosen[0]) * len(chosen[1]) * seeds) as tell:
        lines = measure(*chosen, seeds, cache, out, tell, erase=not fit_only)
    rows = summed_up(lines)
    if picture is not None:
        draw_accuracy(rows, picture)
    show(as_json, {"lines": lines, "rows": rows}, _tell_accuracy)


def known(what: str, named: Sequence[str], there: Sequence[str]) -> None:
    """Refuse a name that is none of those there are."""
    if unknown := [name for name in named if name not in there]:
        raise click.BadParameter(f"no {what} {unknown[0]}; there are: {', '.join(there)}")


def summed_up(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row a set and method: mean and standard error over seeds, and how much above boosted trees, in percent."""
    rows = []
    for name, method in dict.fromkeys((line["set"], line["method"]) for line in lines):
        mine = [line for line in lines if (line["set"], line["method"]) == (name, method)]
        trees = [line["error"] for line in lines if (line["set"], line["method"]) == (name, "boosted trees")]
        errors, erasures = ([line[of] for line in mine] for of in ("error", "erase"))
        holds = [line["holds"] for line in mine if line.get("holds") is not None]
        rows.append(
            {
                "set": name, "method": method, "seeds": len(mine), "error": mean(errors),
                "spread": stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else None,
                "against": 100.0 * (mean(errors) / mean(trees) - 1.0) if trees and mean(trees) else None,
                "fit": mean(line["fit"] for line in mine), "erase": None if None in erasures else mean(erasures),
                "exact": None if mine[0]["exact"] is None else all(line["exact"] for line in mine),
                "holds": mean(holds) if holds else None,
            }
        )  # fmt: skip
    return rows


def _tell_accuracy(result: dict[str, Any]) -> None:
    for name in dict.fromkeys(row["set"] for row in result["rows"]):
        rows = [
            [r["method"], f"{r['error']:.4f}" + ("" if r["spread"] is None else f" ± {r['spread']:.4f}"),
             "" if r["against"] is None else f"{r['against']:+.1f}", f"{r['fit']:.1f}",
             "" if r["erase"] is None else f"{r['erase']:.2f}",
             "" if r["exact"] is None else "yes" if r["exact"] else "NO",
             "" if r["holds"] is None else f"{100 * r['holds']:.1f}"]
            for r in result["rows"] if r["set"] == name
        ]  # fmt: skip
        columns = ["", "test error", "against trees, %", "fit, s", "erase, s", "exact", "90 % interval holds, %"]
        table(f"{name}: RMSE in standard deviations of what is fitted, or % of wrong classes", columns, rows)


@command(bench, "moves")
@click.option("--set", "sets", multiple=True, help="Only some of our data sets; may be given more than once.")
@click.option("--kind", "kinds", multiple=True, help="Only some kinds of erasures; may be given more than once.")
@click.option("--times", type=click.IntRange(1), default=67, show_default=True, help="Erasures of each kind, a set.")
@cache_option
@json_option
def bench_moves(sets: tuple[str, ...], kinds: tuple[str, ...], times: int, cache: Path, as_json: bool) -> None:
    """Take records out of real federations, and count how often their learned features are others then."""
    from frmu.bench.accuracy import SETS
    from frmu.bench.moves import KINDS
    from frmu.bench.moves import bench_moves as measure

    regressions = [name for name in SETS if name not in ("views", "mnist")]
    known("set", sets, regressions)
    known("kind", kinds, list(KINDS))
    chosen = sets or regressions, kinds or list(KINDS)
    with steps(len(chosen[0]) * len(chosen[1])) as tell:
        rows = measure(*chosen, times, cache, tell)
    show(as_json, {"rows": rows}, _tell_moves)


def _tell_moves(result: dict[str, Any]) -> None:
    rows = [
        [r["set"], r["kind"], *(str(r[name]) for name in ("times", "layers", "metric", "choice")),
         f"{r['exact']} of {r['sample']}", f"{r['seconds']:.2f}"]
        for r in result["rows"] if r["times"]
    ]  # fmt: skip
    columns = ["set", "kind", "erasures", "layers", "metric", "anything", "exact", "s each"]
    table("Erasures that moved features", columns, rows)
    say("anything: a metric, or a choice of layer, ramps, width or ridge")
    say("exact: features, metrics and total are those of a federation built from nothing on what is left")


@command(bench, "encoder")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--only", type=click.Choice(["digits", "text"]), help="One of the two; both by default.")
@cache_option
@json_option
def bench_encoder(seeds: int, only: str | None, cache: Path, as_json: bool) -> int:
    """Freeze a net that was trained on other digits, and the hash of words; federate, erase, compare with neither."""
    from frmu.bench.encoder import bench_encoder as measure
    from frmu.bench.encoder import bench_text

    result: dict[str, Any] = {}
    tell: Callable[[str], None] = lambda line: click.echo(line, err=True)  # noqa: E731
    if only != "text":
        result["digits"] = measure(cache, seeds, tell)
    if only != "digits":
        result["text"] = bench_text(cache, tell)
    show(as_json, result, _tell_encoder)
    return 0 if result.get("digits", {"equal": True})["equal"] else 1


def _tell_encoder(result: dict[str, Any]) -> None:
    if digits := result.get("digits"):
        rows = [[name, f"{row['mean']:.1f} ± {row['deviation']:.1f}"] for name, row in digits["rows"].items()]
        table(f"digits of MNIST, {digits['seeds']} seeds", ["encoder", "accuracy %"], rows)
        say("a client erased: every digest equals never-had" if digits["equal"] else "A DIGEST DIFFERS")
    if text := result.get("text"):
        rows = [[name, f"{row['rmse']:.4f}", f"{row['seconds']:.1f}"] for name, row in text["rows"].items()]
        table("lines of a wholesaler, the text hashed", ["encoder", "test RMSE", "train s"], rows)


@command(bench, "unmoved")
@click.option("--set", "sets", multiple=True, help="Only some of our data sets; may be given more than once.")
@click.option("--model", "models", multiple=True, help="Only some models; may be given more than once.")
@click.option("--times", type=click.IntRange(1), default=9, show_default=True, help="Erasures of one record, a model.")
@cache_option
@json_option
def bench_unmoved(sets: tuple[str, ...], models: tuple[str, ...], times: int, cache: Path, as_json: bool) -> None:
    """Time erasures of one record from 1,024 learned features, beside as many frozen ones, and every part of them."""
    from frmu.bench.accuracy import SETS as KNOWN
    from frmu.bench.unmoved import MODELS, SETS
    from frmu.bench.unmoved import bench_unmoved as measure

    known("set", sets, KNOWN)
    known("model", models, list(MODELS))
    chosen = sets or SETS, models or list(MODELS)
    with steps(len(chosen[0]) * len(chosen[1])) as tell:
        rows = measure(*chosen, times, cache, tell)
    show(as_json, {"rows": rows}, _tell_unmoved)


def _tell_unmoved(result: dict[str, Any]) -> None:
    of = {(row["set"], row["model"]): row["seconds"] for row in result["rows"]}
    rows = []
    for r in result["rows"]:
        against = [of.get((r["set"], model)) for model in ("frozen", "fixed")]
        longest = sorted(r["parts"].items(), key=lambda one: -one[1])[:5]
        rows.append(
            [r["set"], r["model"], str(r["integers"]), f"{r['seconds']:.3f}",
             *("" if base is None else f"{r['seconds'] / base:.2f}" for base in against), str(r["moved"]),
             ", ".join(f"{name} {1000 * seconds:.0f}" for name, seconds in longest)]
        )  # fmt: skip
    columns = ["set", "features", "integers", "s", "against frozen", "against fixed", "moved", "parts, ms"]
    table("Erasures of one record: the median, and what took longest in it", columns, rows)
