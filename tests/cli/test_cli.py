"""The command line as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner, Result
from conftest import put

from frmu import __version__
from frmu.cli import main
from frmu.cli.shell import SECTIONS, command, json_option
from frmu.config import Config, load


def frmu(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def last(result: Result) -> dict:
    assert result.exit_code == 0, result.output
    return json.loads(result.output.strip().splitlines()[-1])


def test_a_day_at_the_desk(config: Config, tmp_path: Path) -> None:
    trained = last(frmu("train", config.file, "--address", "local", "--json"))
    assert trained.keys() >= {
        "state_digest", "metrics", "rounds", "seconds", "bytes_up", "bytes_down", "clients", "run_id",
    }  # fmt: skip
    ids = tmp_path / "ids.txt"
    ids.write_text("h0-1\nh1-2\n\n")
    assert last(frmu("erase", config.file, "--records", ids, "--json"))["records"] == 2
    assert last(frmu("erase", config.file, "--subject", "p1", "--reason", "asked", "--due", "3", "--json"))["request"]
    window = ("--between", "2025-02-01", "2025-02-03", "--client", "home 3")
    assert last(frmu("erase", config.file, *window, "--json"))["records"] == 4
    status = last(frmu("status", config.file, "--json"))
    assert [entry["days_left"] for entry in status["pending"]] == [30, 3, 30]
    drained = last(frmu("drain", config.file, "--address", "local", "--json"))
    for receipt in drained["receipts"]:
        assert receipt.keys() >= {"request", "level", "verified", "state_digest", "seconds", "bytes"}
        assert receipt["level"] == "L5"
    verified = last(frmu("verify", config.file, drained["receipts"][0]["request"], "--json"))
    assert verified["verified"]
    assert last(frmu("ledger", "check", config.file, "--json"))["whole"]
    assert len(json.loads(frmu("ledger", "show", config.file, "--json").output)["lines"]) == (
        verified["ledger_lines"] + 1  # what was proven stands there too
    )
    assert last(frmu("policy", "show", config.file, "--json"))["policy_learned_here_from"] == []


@pytest.mark.parametrize(
    "command",
    [("train", "--address", "local"), ("status",), ("policy", "show"), ("ledger", "show"), ("ledger", "check")],
)
def test_the_same_for_people(config: Config, command: tuple[str, ...]) -> None:
    assert frmu("train", config.file, "--address", "local").exit_code == 0
    result = frmu(*command, config.file)
    assert result.exit_code == 0
    assert result.output.strip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("erase", "CONFIG"), "say what to erase"),
        (("erase", "CONFIG", "--subject", "p1", "--between", "2025-01-01", "2025-01-02"), "one of --subject"),
        (("erase", "CONFIG", "--client", "home 9"), 'no client "home 9"'),
        (("withdraw", "CONFIG", "r99"), 'no request "r99"'),
        (("requests", "CONFIG", "--state", "closd"), 'did you mean "closed"'),
        (("receipt", "show", "CONFIG", "r99"), 'no receipt "r99"'),
        (("receipt", "check", "/nowhere"), "cannot be read as a receipt"),
        (("ledger", "shred", "CONFIG"), "whose keys"),
        (("erase", "CONFIG", "--due", "x"), "not a valid integer"),
        (("nosuch",), "No such command"),
        (("erase", "CONFIG", "--subject", ""), "cannot be a subject: it is empty"),
        (("predict", "CONFIG", "/nowhere.parquet", "-o", "/dev/full"), "not a regular file"),
        (("receipt", "check", "/dev/null"), "cannot be read as a receipt"),
        (("train", "CONFIG", "--address", "127.0.0.1:1"), "no Ray cluster at 127.0.0.1:1"),
        (("predict", "CONFIG", "/nowhere.parquet", "-o", "/tmp/x.parquet"), "no such file"),
        (("erase", "CONFIG", "--between", "soon", "2025-01-02"), '"soon" is not a time'),
        (("erase", "CONFIG", "--records", "/nowhere"), "cannot be read"),
        (("verify", "CONFIG", "r99"), 'no receipt "r99"'),
        (("policy", "train", "CONFIG", "--address", "local"), "RLlib on Ray"),
        (("policy", "train", "CONFIG", "--resume"), "no training to resume"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(config: Config, arguments: tuple[str, ...], message: str) -> None:
    assert frmu("train", config.file, "--address", "local").exit_code == 0
    result = frmu(*(str(config.file) if a == "CONFIG" else a for a in arguments))
    assert result.exit_code == 2
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_an_error_is_json_too(config: Config) -> None:
    result = frmu("status", config.file, "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["kind"] == "StoreError"


@pytest.mark.parametrize("arguments", [("erase", "x.toml", "--due", "x", "--json"), ("drain", "--json")])
def test_what_click_refuses_is_json_too(arguments: tuple[str, ...]) -> None:
    result = frmu(*arguments)
    assert result.exit_code == 2
    assert json.loads(result.stdout)["kind"] == "UsageError"


def test_an_interrupt_is_told(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("frmu.api.requests", interrupt)
    result = frmu("requests", config.file, "--json")
    assert result.exit_code == 130
    assert json.loads(result.stdout)["kind"] == "Interrupted"


def test_a_receipt_in_which_two_could_be_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.json"
    for text, message in (
        ('{"a": 1, "a": 2}', "stands in it twice"),
        ("[" * 100_000, "cannot be read"),
        ('{"a": NaN}', "NaN"),
    ):
        file.write_text(text)
        result = frmu("receipt", "check", file)
        assert result.exit_code == 2
        assert message in result.output


def test_a_key_that_everybody_may_read_is_refused(config: Config) -> None:
    assert frmu("train", config.file, "--address", "local").exit_code == 0
    config.key_file.chmod(0o644)
    result = frmu("status", config.file)
    assert result.exit_code == 2
    assert "chmod 600" in result.output


def test_a_tracking_server_that_is_away_is_waited_for_and_no_password_told(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "away", table)
    text = config.file.read_text().split("[store]")[0]
    config.file.write_text(text + '[store]\ntracking = "http://ada:secret@127.0.0.1:9"\n')
    result = frmu("train", config.file, "--address", "local")
    assert result.exit_code == 0
    assert "MLflow is away" in result.output
    assert "secret" not in result.output
    assert list((config.folder / "outbox").iterdir())


def test_init_proposes_a_config_that_trains(config: Config, tmp_path: Path) -> None:
    source = config.file.parent / "homes.parquet"
    out = tmp_path / "proposed.toml"
    proposed = last(frmu("init", source, "-o", out, "--target", "load", "--json"))
    assert proposed["roles"] == {
        "client": "home", "record": "record", "subject": "person", "time": "ts", "target": "load",
    }  # fmt: skip
    assert load(out).slice_by == "week"
    assert last(frmu("train", out, "--address", "local", "--json"))["clients"] == 4
    assert frmu("init", source, "-o", out).exit_code == 2


def test_init_says_what_it_cannot_tell(config: Config, tmp_path: Path) -> None:
    result = frmu("init", config.file.parent / "homes.parquet", "-o", tmp_path / "p.toml")
    assert result.exit_code == 2
    assert "--target COLUMN" in result.output


def test_help_and_imports_are_light() -> None:
    """What makes `frmu --help` slow is what it imports."""
    code = (
        "import sys, frmu.cli; print([m for m in ('ray', 'torch', 'mlflow', 'numpy', 'pyarrow') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_sigterm_ends_a_command_as_ctrl_c_does_and_a_second_at_once_breaks_nothing_off() -> None:
    closed = []

    @command(click.Group(), "work")
    @json_option
    def work(as_json: bool) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            closed.append("never")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # as `timeout` does
            closed.append("store")

    before = signal.getsignal(signal.SIGTERM)
    result = CliRunner().invoke(work, ["--json"])
    assert (result.exit_code, closed) == (143, ["store"])
    assert json.loads(result.stdout) == {
        "error": "interrupted; the same command again goes on from here",
        "kind": "Interrupted",
    }
    assert signal.getsignal(signal.SIGTERM) is before


def test_help_says_of_every_command_what_it_does_under_a_heading() -> None:
    shown = frmu("--help").output
    listed = [name for commands in SECTIONS.values() for name in commands]
    assert sorted(listed) == sorted(main.commands)
    assert "..." not in shown.replace("[ARGS]...", "")
    assert all(f"\n{heading}:\n" in shown for heading in SECTIONS)
    assert max(map(len, shown.splitlines())) <= 80
    for heading in ("client", "policy", "receipt", "ledger", "bench"):
        assert "..." not in frmu(heading, "--help").output.partition("Commands:")[2]


def test_python_runs_the_package_as_the_script_does() -> None:
    run = subprocess.run([sys.executable, "-m", "frmu", "--version"], capture_output=True, text=True, check=True)
    assert __version__ in run.stdout
