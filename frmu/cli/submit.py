"""submit: any job of this experiment, run by a cluster."""

from __future__ import annotations

import json as jsonlib
import os
import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frmu.cli.shell import command, insecure_option, json_option, main, read_config, say
from frmu.errors import ConfigError

if TYPE_CHECKING:
    from frmu.runtime.upload import Package

_COMMANDS = {
    "train": (("train",),),
    "erase": (("erase",), ("drain",)),
    "drain": (("drain",),),
    "verify": (("verify",),),
    "policy": (("policy", "train"),),
    "benchmark": (("bench",),),
}


@command(main, "submit", context_settings={"ignore_unknown_options": True})
@click.argument("job", type=click.Choice(list(_COMMANDS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CONFIG [OPTIONS OF THE JOB]...")
@click.option("--address", metavar="URL", help="The dashboard of the cluster; default: RAY_API_SERVER_ADDRESS.")
@insecure_option
@click.option("--wait/--no-wait", default=True, help="Show what the job prints and exit as it does; the default.")
@click.option("--id", "name", metavar="ID", help="The submission id; one that was used before is refused.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out of the upload, as in a .gitignore.")
@click.option("--python", default="python", show_default=True, help="The interpreter on the cluster that has frmu.")
@json_option
def submit(
    job: str, arguments: tuple[str, ...], address: str | None, insecure: bool, wait: bool, name: str | None,
    exclude: tuple[str, ...], python: str, as_json: bool,
) -> int:  # fmt: skip
    """Run a job on a cluster that demands its token: the current folder goes up, and the exit code comes back.

    Up goes what .gitignore does not name, without *.frmu, .venv, .git and *.parquet, 100 MiB at most; keys, tokens,
    ledgers and databases stay by their names and by what they hold, and are named. Records stay too, so CONFIG and
    what it names must be where the cluster sees them. The command line stands in Ray's list of jobs in clear: ask for
    an erasure by `frmu erase`, and submit `drain`. Ctrl-C leaves the job running.
    """
    from frmu.runtime.submit import Cluster
    from frmu.runtime.upload import pack

    if job != "benchmark":
        _seen_there(arguments)
    line = _line(job, arguments, python, insecure)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "folder.zip"
        package = pack(Path.cwd(), file, exclude)
        if job != "benchmark":
            _goes_up(arguments[0], package)
        if package.kept:
            click.echo(f"frmu: kept here, as secrets or records: {_few(package.kept)}", err=True)
        cluster = Cluster(address, insecure)
        found = cluster.submit(line, file if package.names else None, name, **{"frmu.job": job})
    told = {"job": found, "page": cluster.page(found)}
    if not wait:
        _tell(as_json, told, f"job {found}: {told['page']}")
        return 0
    output: list[str] = []
    try:
        done = cluster.follow(found, lambda text: _pass_on(text, as_json, output))
    except KeyboardInterrupt:
        click.echo(f"frmu: job {found} goes on; `ray job logs -f {found}`, `ray job stop {found}`", err=True)
        return 130
    outcome = {"status": done.status, "exit_code": done.exit_code, "seconds": done.seconds}
    _tell(as_json, told | outcome | {"result": _last("".join(output))}, _in_words(done))
    return done.exit_code


def _seen_there(arguments: tuple[str, ...]) -> None:
    """Raise `ConfigError` where the job would work in the copy of this folder, which goes when the job does."""
    if not arguments or arguments[0].startswith("-"):
        raise click.UsageError("which CONFIG? It comes first, after the job")
    path = Path(arguments[0])
    if path.is_absolute() or not path.exists():
        return
    folder = read_config(path).store.folder
    if folder is None or not Path(folder).is_absolute():
        raise ConfigError(
            f"{path}: its working folder would lie in the upload, which goes when the job does; give CONFIG by an "
            "absolute path that the cluster sees, or set store.folder to one"
        )


def _goes_up(config: str, package: Package) -> None:
    """Raise `ConfigError` where the job would look in its folder for a config that stays here."""
    path = Path(os.path.normpath(config))
    if path.is_absolute() or not path.exists():
        return
    files = [path.parent / name for name in read_config(path).model.encoder_files.values()]
    for file in [path, *(Path(os.path.normpath(name)) for name in files if not name.is_absolute())]:
        if why := package.why_not(file.as_posix()):
            raise ConfigError(
                f"{file}: would not go up with the job, because {why}; mend that, or give an absolute path "
                "that the cluster sees"
            )


def _few(kept: Mapping[str, str]) -> str:
    names = [f"{name} ({what})" if what else name for name, what in sorted(kept.items())]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _line(job: str, arguments: tuple[str, ...], python: str, insecure: bool) -> str:
    """The command line of a job; what `erase` asks for is drained in the same job."""
    given = [arguments, *[arguments[:1]] * (len(_COMMANDS[job]) - 1)]
    lines = [
        shlex.join([python, "-m", "frmu", *words, *rest, *["--insecure"] * (insecure and _attaches(words, rest))])
        for words, rest in zip(_COMMANDS[job], given, strict=True)
    ]
    return " && ".join(f"{line} --json" for line in lines)


def _attaches(words: tuple[str, ...], rest: tuple[str, ...]) -> bool:
    """Tell if a command goes to a cluster at all."""
    return words != ("erase",) and (words != ("bench",) or rest[:1] == ("drain",))


def _pass_on(text: str, as_json: bool, output: list[str]) -> None:
    """Show what the job printed; where JSON is wanted, beside it."""
    output.append(text)
    stream = sys.stderr if as_json else sys.stdout
    stream.write(text)
    stream.flush()


def _last(output: str) -> Any:
    """The job's own JSON object, its last line of that kind."""
    for line in reversed(output.splitlines()):
        if line.startswith("{"):
            try:
                return jsonlib.loads(line)
            except ValueError:
                return None
    return None


def _tell(as_json: bool, result: dict[str, Any], words: str) -> None:
    if as_json:
        print(jsonlib.dumps(result), flush=True)
    else:
        say(words)


def _in_words(done: Any) -> str:
    why = "" if done.exit_code == 0 else f" (exit code {done.exit_code})"
    return f"job {done.id} {done.status.lower()}{why} after {done.seconds:.1f} s"
