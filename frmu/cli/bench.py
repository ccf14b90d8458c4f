"""bench: measurements that the README and the policy card quote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from frmu.cli.shell import command, json_option, main, say, show, table


@main.group()
def bench() -> None:
    """Measurements that the README and the policy card quote."""


cache_option = click.option(
    "--cache", type=click.Path(file_okay=False, path_type=Path), default=Path.home() / ".cache" / "frmu",
    help="Where real data sets are kept as Parquet.",
)  # fmt: skip


@command(bench, "pretrain")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), required=True, help="The policy file to write.")
@click.option("--iterations", type=click.IntRange(1), default=150, show_default=True, help="Of 960 steps each.")
@click.option("--algorithm", type=click.Choice(["slope", "ppo"]), default="slope", show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--tasks", type=click.IntRange(2), default=400, show_default=True,
              help="Held-out tasks on which it is compared with the shipped policy.")  # fmt: skip
@cache_option
@json_option
def bench_pretrain(
    out: Path, iterations: int, algorithm: str, seed: int, tasks: int, cache: Path, as_json: bool
) -> None:
    """Train the policy that ships with frmu, by RLlib, and compare it with the one that ships now."""
    from frmu.bench.pretrain import pretrain

    result = pretrain(out, cache, iterations, seed, lambda line: click.echo(line, err=True), algorithm, tasks)
    show(as_json, result, _tell_pretrain)


def _tell_pretrain(result: dict[str, Any]) -> None:
    say(f"policy {result['policy']}, {result['env_steps']:,} steps, {result['seconds']:.0f} s")
    rows = [
        [setting, f"{of['ours']:.2f}", f"{of['other']:.2f}", f"{of['difference']:+.2f} ± {of['error']:.2f}",
         str(of["tasks"])]
        for setting, of in result["compared"].items()
    ]  # fmt: skip
    columns = ["a client", "this policy", "the shipped one", "difference", "tasks"]
    table("lower later RMSE than keeping everything, %, on held-out tasks", columns, rows)


@command(bench, "rounding")
@click.option("--set", "sets", multiple=True, help="Only some of our data sets; may be given more than once.")
@cache_option
@json_option
def bench_rounding(sets: tuple[str, ...], cache: Path, as_json: bool) -> None:
    """Fit real data sets on the grid and in float64, with the same features, and compare the test errors."""
    from frmu.bench.rounding import SETS
    from frmu.bench.rounding import bench_rounding as measure

    _known(sets, tuple(SETS))
    show(as_json, measure(sets or SETS, cache), _tell_rounding)


def _tell_rounding(result: dict[str, Any]) -> None:
    rows = [
        [row["set"], f"{row['records']:,}", f"{row['float64']:.5g}", f"{row['grid']:.5g}", f"{row['worse']:+.2f}"]
        for row in result["rows"]
    ]
    table("test RMSE", ["set", "records", "float64", "on the grid", "worse by %"], rows)


@command(bench, "policy")
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--config", "configs", multiple=True, type=click.Path(dir_okay=False, path_type=Path),
              help="A federation of your own, taken as unseen data; may be given more than once.")  # fmt: skip
@click.option("--set", "sets", multiple=True, help="Only some of our data sets; may be given more than once.")
@click.option("--only-own", is_flag=True, help="Leave our own data sets out.")
@click.option("--framu", is_flag=True, help="With FRAMU's Algorithm 1 as a row; it needs Ray, and seconds a task.")
@click.option("--many", is_flag=True, help="Only disturbances that hit many sites of a federation at once.")
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the CSV and the picture.")
@cache_option
@json_option
def bench_policy(
    seeds: int,
    configs: tuple[Path, ...],
    sets: tuple[str, ...],
    only_own: bool,
    framu: bool,
    many: bool,
    processes: int,
    out: Path | None,
    cache: Path,
    as_json: bool,
) -> None:
    """Set the learned policy beside rules, search and other selectors, by the refits that each spends."""
    if many:
        if configs or only_own or framu:
            raise click.UsageError("--many measures our own sets alone: leave out --config, --only-own and --framu")
        _many(seeds, sets, processes, out, cache, as_json)
        return
    from frmu.bench.policy import MULTI, UNSEEN
    from frmu.bench.policy import bench_policy as measure
    from frmu.bench.pretraining_tasks import SEEN

    if only_own and not configs:
        raise click.UsageError("--only-own leaves nothing to measure without --config")
    there = (*SEEN, *UNSEEN, *MULTI)
    _known(sets, there)
    chosen = () if only_own else sets or there
    show(as_json, measure(cache, seeds, configs, processes, out, chosen, framu), _tell_policy)


def _many(seeds: int, sets: tuple[str, ...], processes: int, out: Path | None, cache: Path, as_json: bool) -> None:
    from frmu.bench.many import SETS, bench_many

    _known(sets, SETS)
    show(as_json, bench_many(cache, seeds, sets or SETS, processes, out), _tell_many)


def _tell_many(result: dict[str, Any]) -> None:
    for group in dict.fromkeys(row["group"] for row in result["rows"]):
        mine = [row for row in result["rows"] if row["group"] == group]
        kinds = list(dict.fromkeys(row["kind"] for row in mine))
        by = {(r["selector"], r["kind"]): f"{r['mean']:+.2f} ± {r['error']:.2f} ({r['worst']:+.0f})" for r in mine}
        refits: dict[str, list[float]] = {}
        for row in mine:
            refits.setdefault(row["selector"], []).append(row["refits"])
        rows = [
            [name, f"{sum(spent) / len(spent):.0f}", *(by[name, kind] for kind in kinds)]
            for name, spent in refits.items()
        ]
        table(f"{group}, many sites hit at once: lower test RMSE than keeping everything, %, mean ± standard error "
              "(worst)", ["selector", "refits of all sites", *kinds], rows)  # fmt: skip
    rows = [
        [r["selector"], r["group"], r["rival"], f"{r['difference']:+.2f}", f"{r['error']:.2f}", str(r["tasks"])]
        for r in result["ahead"]
    ]
    columns = ["selector", "group", "rival", "ahead by", "error", "tasks"]
    table("where something is wrong, paired by task", columns, rows)


def _known(sets: tuple[str, ...], there: Sequence[str]) -> None:
    if unknown := [name for name in sets if name not in there]:
        raise click.BadParameter(f"no set {unknown[0]}; there are: {', '.join(there)}")


def _tell_policy(result: dict[str, Any]) -> None:
    columns = ["selector", "mean", "error", "worst", "precision", "recall", "refits", "ms", "tasks"]
    for group, setting in dict.fromkeys((row["group"], row["setting"]) for row in result["rows"]):
        rows = [
            [r["selector"], f"{r['mean']:+.2f}", f"{r['error']:.2f}", f"{r['worst']:+.1f}", _share(r["precision"]),
             _share(r["recall"]), f"{r['refits']:.0f}", f"{1000 * r['seconds']:.0f}", str(r["tasks"])]
            for r in result["rows"] if (r["group"], r["setting"]) == (group, setting)
        ]  # fmt: skip
        table(f"{group}, {setting}: lower test RMSE than keeping everything, %", columns, rows)
        kinds = [r for r in result["kinds"] if (r["group"], r["setting"]) == (group, setting)]
        families = list(dict.fromkeys(r["family"] for r in kinds))
        by = {(r["selector"], r["family"]): f"{r['mean']:+.2f} ± {r['error']:.2f} ({r['worst']:+.0f})" for r in kinds}
        rows = [
            [name, *(by[name, family] for family in families)] for name in dict.fromkeys(r["selector"] for r in kinds)
        ]
        table(f"{group}, {setting}, by kind: mean ± standard error (worst)", ["selector", *families], rows)
    rows = [
        [r["group"], r["setting"], str(r["budget"]), r["rival"], f"{r['ours']:+.2f}", f"{r['difference']:+.2f}",
         f"{r['error']:.2f}", str(r["tasks"])]
        for r in result["budgets"]
    ]  # fmt: skip
    columns = ["group", "setting", "refits", "rival", "ours", "ahead by", "error", "tasks"]
    table("learned + search against rivals of the same budget", columns, rows)


@command(bench, "scale")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=10.0, show_default=True, help="For one choice.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True)
@click.option("--processes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the picture.")
@cache_option
@json_option
def bench_scale(seconds: float, seeds: int, processes: int, out: Path | None, cache: Path, as_json: bool) -> None:
    """Selectors on 24, 240 and 2,400 slices of one long series, each with the same time."""
    from frmu.bench.scale import bench_scale as measure

    columns = ["selector", "slices", "mean", "error", "worst", "refits", "seconds", "tasks"]
    show(as_json, measure(cache, seconds, seeds, processes, out), lambda result: table(
        f"lower test RMSE than keeping everything, %, in {result['seconds']:g} s", columns,
        [[str(row[column]) for column in columns] for row in result["rows"]],
    ))  # fmt: skip


@command(bench, "rounds")
@click.option("--clients", type=click.IntRange(1), multiple=True, help="10, 100 and 1,000 by default.")
@click.option("--rounds", type=click.IntRange(1), default=10, show_default=True)
@click.option("--address", help='"local": in this process; by default a private Ray.')
@click.option("--replay", is_flag=True, help="What replay trains beside retraining, instead.")
@click.option("--images", is_flag=True, help="A network on 5,000 digits at ten sites and in one place, instead.")
@cache_option
@json_option
def bench_rounds(
    clients: tuple[int, ...], rounds: int, address: str | None, replay: bool, images: bool, cache: Path, as_json: bool
) -> None:
    """A module trained by rounds: a round's cost beside plain torch; what an erasure trains again; what is learned."""
    from frmu.bench import rounds as measured

    if replay:
        found = measured.bench_replay(clients[0] if clients else 30, rounds)
        columns = ["schedule", "mean", "median", "half", "tried", "equal", "checkpoint_bytes"]
        title = "samples of replay, as a share of retraining's, by client"
    elif images:
        accuracy = measured.bench_images(cache, rounds)
        found = accuracy | {"rows": [{"where": name, "accuracy": value} for name, value in accuracy["rows"].items()]}
        columns, title = ["where", "accuracy"], f"test accuracy after {rounds} rounds of one epoch"
    else:
        found = measured.bench_rounds(clients or (10, 100, 1000), rounds, address)
        columns = ["clients", "way", "seconds", "cpu", "memory", "grown"]
        title = f"one round of {measured.SAMPLES} records a client"
    show(as_json, found, lambda result: table(
        title, columns, [[_figure(row[column]) for column in columns] for row in result["rows"]],
    ))  # fmt: skip


def _figure(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


@command(bench, "surrogates")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--set", "sets", multiple=True, help="One of the six; may be given more than once; default: all.")
@click.option("--without-framu", is_flag=True, help="Leave out FRAMU, which needs Ray and most of the time.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="A folder for the JSON and the CSV.")
@cache_option
@json_option
def bench_surrogates(
    seeds: int, sets: tuple[str, ...], without_framu: bool, out: Path | None, cache: Path, as_json: bool
) -> None:
    """Outdated, irrelevant and private records on surrogates for the paper's data; FRAMU, rules and ours."""
    from frmu.bench.scenario import SETS
    from frmu.bench.surrogates import ROWS
    from frmu.bench.surrogates import bench_surrogates as measure

    _known(sets, tuple(SETS))
    rows = [row for row in ROWS if not (without_framu and row == "FRAMU")]
    result = measure(cache, seeds, sets or tuple(SETS), rows, out, lambda line: click.echo(line, err=True))
    show(as_json, result, _tell_surrogates)


def _tell_surrogates(result: dict[str, Any]) -> None:
    columns = ["row", "MSE", "MAE", "lower MSE %", "worst", "gap %", "on the erased %", "equal", "refits", "s"]
    for name, kind in dict.fromkeys((row["set"], row["kind"]) for row in result["rows"]):
        rows = [_surrogate(r) for r in result["rows"] if (r["set"], r["kind"]) == (name, kind)]
        table(f"{name}, {kind}", columns, rows)
    for modalities, kind in dict.fromkeys((row["modalities"], row["kind"]) for row in result["kinds"]):
        rows = [_surrogate(r) for r in result["kinds"] if (r["modalities"], r["kind"]) == (modalities, kind)]
        table(f"all {modalities} sets, {kind}", columns, rows)
    say(f"policy {result['policy'][:16]}, {result['seeds']} seeds, {result['seconds']:.0f} s")


def _surrogate(r: dict[str, Any]) -> list[str]:
    error = "" if r["error"] is None else f" ± {r['error']:.2f}"
    erased = "-" if r["gap_erased"] is None else f"{r['gap_erased']:.3g}"
    equal = "-" if r["exact"] is None else f"{r['exact']} of {r['scenarios']}"
    return [
        r["row"], f"{r['mse']:.4f}", f"{r['mae']:.4f}", f"{r['gain']:+.2f}{error}", f"{r['worst']:+.1f}",
        f"{r['gap']:.3g}", erased, equal, f"{r['refits']:.0f}", f"{r['seconds']:.1f}",
    ]  # fmt: skip


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


@command(bench, "federate")
@click.option(
    "--set",
    "sets",
    type=click.Choice(["air", "bikes", "power"]),
    multiple=True,
    default=("air", "bikes"),
    show_default=True,
    help="Series whose periods are the sites; repeatable.",
)
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True)
@click.option("--sites", type=click.IntRange(2), default=6, show_default=True, help="That train, of each set.")
@click.option("--env-steps", type=click.IntRange(960), default=19_200, show_default=True, help="For each policy.")
@click.option("--tasks", type=click.IntRange(10), default=200, show_default=True, help="To measure on, a set.")
@click.option("--scratch", is_flag=True, help="Start from nothing instead of the shipped policy.")
@cache_option
@json_option
def bench_federate(
    sets: tuple[str, ...], sites: int, seeds: int, env_steps: int, tasks: int, scratch: bool, cache: Path, as_json: bool
) -> None:
    """Compare one policy trained on all sites with the average of one a site, at equal steps."""
    from frmu.bench.federate import bench_federate as measure

    result = measure(cache, sets, sites, seeds, env_steps, tasks, scratch, lambda line: click.echo(line, err=True))
    show(as_json, result, _tell_federate)


def _tell_federate(result: dict[str, Any]) -> None:
    rows = [
        [
            name,
            f"{result['start'].get(name, 0.0):+.2f}",
            *(f"{by[mode]['mean']:+.2f} ± {by[mode]['error']:.2f}" for mode in ("shared", "federated", "difference")),
        ]
        for name, by in result["rows"].items()
    ]
    columns = ["set", "at the start", "one shared policy", "average of the sites'", "difference"]
    table("lower later RMSE than keeping everything, %: mean and standard error over seeds", columns, rows)


@command(bench, "attention")
@click.option(
    "--set", "sets", type=click.Choice(["mnist, even", "mnist, two classes", "parking", "air"]), multiple=True,
    help="May be given several times; all by default.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--jobs", type=click.IntRange(1), help="Processes; as many as there are cores by default.")
@cache_option
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
