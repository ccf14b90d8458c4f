"""What the README tells a new user to type works as it stands there."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from frmu.config import load

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("*/README.md")), ROOT / "frmu/bench/README.md"]


def complaints(errors: str) -> list[str]:
    """What is no progress: where a machine is slow, a log is told what is still being done."""
    return [line for line in errors.splitlines() if not re.match(r" *\d+ s  still ", line)]


def block(language: str, page: str = "README.md") -> str:
    found = re.search(rf"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)
    assert found
    return found[1]


@pytest.mark.cluster
def test_your_own_data(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", block("python")], cwd=tmp_path, check=True, timeout=60)
    for line in block("sh").splitlines():
        name, *arguments = shlex.split(line)
        run = subprocess.run(
            [BIN / name, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert run.returncode == 0, f"{line}\n{run.stdout}{run.stderr}"
        assert not complaints(run.stderr), f"{line}\n{run.stderr}"
        if arguments[0] == "verify":
            assert f"VERIFIED: level {'L3' if 'L3' in arguments else 'L5'}" in run.stdout
        if arguments[0] == "drain":
            assert run.stdout.count("L5") == 3


def test_the_config_by_hand_is_a_config(tmp_path: Path) -> None:
    (tmp_path / "homes.toml").write_text(block("toml", "frmu/README.md"))
    assert load(tmp_path / "homes.toml").slice_by == "month"


def test_the_law_of_whole_numbers_holds_as_it_is_written() -> None:
    exec(compile(block("python", "frmu/README.md"), "README", "exec"), {})  # noqa: S102


@pytest.mark.parametrize("line", re.findall(r"^    (.*pip install.*)$", README, re.M))
def test_the_two_commands_name_what_is_there(line: str) -> None:
    assert (ROOT / "cluster" / "constraints.txt").exists()
    assert "-c cluster/constraints.txt" in line
    assert line.split()[-1].split("/")[-1] in {"demo", "pytest"}


def test_every_command_that_is_named_exists() -> None:
    from frmu.cli import main

    for page in PAGES:
        for words in re.findall(r"`frmu ([a-z]+)", page.read_text(encoding="utf-8")):
            assert words in main.commands, page


def test_the_readme_is_for_people_in_a_hurry() -> None:
    assert len(README.splitlines()) < 200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!http)([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}, link


@pytest.mark.parametrize(
    "name", re.findall(r"^\d+\. (.*)$", (ROOT / "frmu/README.md").read_text(encoding="utf-8"), re.M)
)
def test_the_walks_go_through_files_that_are_there(name: str) -> None:
    files = re.findall(r"`([a-z_/]+\.py)`", name)
    assert files
    assert all((ROOT / "frmu" / file).exists() for file in files)


@pytest.mark.cluster
def test_the_demo_proves_what_it_says(tmp_path: Path) -> None:
    run = subprocess.run(
        [BIN / "frmu", "demo", "--dir", tmp_path / "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert not complaints(run.stderr), run.stderr
    summary = json.loads(run.stdout.strip().splitlines()[-1])
    assert summary["proven"]
    assert summary["state_digest"] == summary["never_had_digest"]
    assert summary["clients"] >= 8
    assert [receipt["level"] for receipt in summary["receipts"]] == ["L5"] * 3
    assert summary["requests"] == {"made": 3, "honoured": 3, "pending": 0}
    assert summary["policy"]["found"]["found"] == 2
    assert summary["policy"]["env_steps"] > 0
    assert "bit-identical to a federation that never had these records" in run.stdout
