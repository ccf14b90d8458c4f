"""policy train, policy show."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from frmu.cli.outbox import waiting
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
    table,
)  # fmt: skip


@main.group()
def policy() -> None:
    """The learned policy: what each slice should count."""


@command(policy, "train")
@config_argument
@click.option("--iterations", type=click.IntRange(1), help="Iterations; default: policy.iterations.")
@click.option("--scratch", is_flag=True, help="Start from nothing instead of the policy in force.")
@click.option(
    "--resume/--no-resume",
    default=None,
    help="Go on with a training that was interrupted, or never do. Default: where there is one of the same settings.",
)
@click.option(
    "--adopt",
    type=click.Choice(["better", "always"]),
    default="better",
    show_default=True,
    help="Put it in force where it is ahead of the policy in force on rehearsals, or in any case.",
)
@address_option
@json_option
def policy_train(
    config: Path,
    iterations: int | None,
    scratch: bool,
    resume: bool | None,
    adopt: str,
    address: str | None,
    insecure: bool,
    as_json: bool,
) -> None:
    """Train the policy on this federation with RLlib; if it is better, the next `frmu train` applies it."""
    from frmu.api import Experiment

    logging.getLogger("frmu.progress").setLevel(logging.INFO)  # it takes minutes: a line an iteration
    with Experiment(read_trained(config), address, insecure) as experiment:
        result = experiment.learn(iterations, "scratch" if scratch else "current", resume, adopt)
    show(as_json, result, _tell_training)


def _tell_training(result: dict[str, Any]) -> None:
    runners = count(result["env_runners"], "env runner") if result["env_runners"] else "in this process"
    resumed = f", gone on with after iteration {result['resumed_at']}" if result["resumed_at"] else ""
    compared = result["compared"]
    say(
        f"policy {result['trained'][:16]} after {result['iterations']} iterations{resumed}, {result['env_steps']:,} "
        f"steps, {runners}, {result['seconds']:.1f} s",
        f"gain on later records: {100 * result['gain_first']:.2f} % at first, "
        f"{100 * result['gain_last']:.2f} % at last{_held_out(result)}",
        f"{compared['rehearsals']} rehearsals: {100 * compared['trained']:+.2f} % by it, "
        f"{100 * compared['in_force']:+.2f} % by the policy in force; ahead by {100 * compared['difference']:+.2f} ± "
        f"{100 * compared['error']:.2f}: {_outcome(result)}",
    )
    for client, number in result["slices_left_out"].items():
        say(f"of {client} the newest 64 slices trained it; {count(number, 'older slice')} took no part")
    rows = [[client, key, f"{score:.2f}"] for client, of in result["below_theta"].items() for key, score in of.items()]
    if rows:
        table(
            f"Attention below theta = {result['theta']:g}: would be attenuated; shown only, it steers no state",
            ["client", "slice", "score"],
            rows,
        )
    say(*waiting(result["outbox"]))


def _held_out(result: dict[str, Any]) -> str:
    gain = result["evaluation_gain"]
    return "" if gain is None else f"; {100 * gain:.2f} % on tasks that no training drew"


def _outcome(result: dict[str, Any]) -> str:
    if result["adopted"]:
        return "it is in force"
    return f"noise alone may give as much, so {result['policy'][:16]} stays in force"


@command(policy, "show")
@config_argument
@json_option
def policy_show(config: Path, as_json: bool) -> None:
    """Say which policy is in force, what it learned from, and what it does here."""
    from frmu import api

    result = api.status(read_config(config))
    show(as_json, result, _tell_policy)


def _tell_policy(result: dict[str, Any]) -> None:
    learned = result["policy_learned_here_from"]
    where = (
        f"learned here from {len(learned)} clients" if learned else "came with frmu; it has seen none of these records"
    )
    say(f"policy {result['policy'][:16]}: {where}")
    rows = [
        [client, key, "forgotten" if value == 0 else f"attenuated to {value:g}"]
        for client, slices in result["forgotten"].items()
        for key, value in slices.items()
    ]
    table("Slices that do not count in full", ["client", "slice", "influence"], rows)
