"""deliver: what was kept while MLflow was away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from frmu.cli.shell import command, config_argument, count, json_option, main, read_trained, say, show

__all__ = ["deliver", "waiting"]


def waiting(outbox: dict[str, Any]) -> list[str]:
    """Say in a line what waits for MLflow; say nothing where nothing does."""
    if not outbox["runs"]:
        return []
    wait = f"{count(outbox['runs'], 'run')} {'waits' if outbox['runs'] == 1 else 'wait'} in {outbox['folder']}"
    line = f"{wait} for `frmu deliver` or the next job that reaches MLflow"
    return [f"MLflow is away, and {line}: {outbox['away']}" if outbox.get("away") else line]


@command(main)
@config_argument
@click.option(
    "--give-up",
    "key",
    metavar="RUN",
    help="Remove this run, by the key that its refusal names, instead: what MLflow does not have of it is lost.",
)
@json_option
def deliver(config: Path, key: str | None, as_json: bool) -> None:
    """Deliver to MLflow what was kept while it was away, as any job does that reaches it."""
    from frmu.api import Experiment
    from frmu.errors import TrackingError

    with Experiment(read_trained(config), "local") as experiment:
        if key is not None:
            gone = {**experiment.give_up(key), **experiment.session.waiting()}
            show(as_json, gone, _tell_gone)
            return
        told = experiment.deliver()
        result = {"delivered": told.runs, **experiment.session.waiting()}
        if told.refused:
            raise TrackingError(told.refused[0])
        if result["outbox"]["runs"]:
            experiment.session.tracker.need()
    show(as_json, result, _tell)


def _tell_gone(result: dict[str, Any]) -> None:
    say(f'run "{result["name"]}" ({result["given_up"]}) is given up', *waiting(result["outbox"]))


def _tell(result: dict[str, Any]) -> None:
    say(f"{count(result['delivered'], 'run')} delivered")
    if held := result["outbox"]["runs"]:
        say(f"{count(held, 'run')} held back until the drain that was begun is finished: it may have to purge them")
