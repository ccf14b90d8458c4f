"""The digests of a fixed set of configs: a change that is not about numbers changes none of them.

They hold for the numerics that the file names (numpy, scipy, processor); elsewhere nothing can be said, and the test is
skipped. `python tests/test_digests.py` writes the file anew, which a change of numbers must say in its message.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.models.statistics import numerics
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

FILE = Path(__file__).with_suffix(".json")
ATTENDED = "\n[attention]\nrule = "
CASES = {
    "relu": CONFIG,
    "fourier": CONFIG + 'encoder = "fourier"\n',
    "linear": CONFIG + 'encoder = "linear"\n',
    "classes": CONFIG.replace('target = "load"', 'target = "band"').replace("regression", "classification"),
    "rules": CONFIG + '\n[policy]\nselector = "rules"\n',
    "keep": CONFIG + '\n[policy]\nselector = "keep"\n',
    "trusted": CONFIG + f'{ATTENDED}"trusted"\n',
    "size": CONFIG + f'{ATTENDED}"size"\n',
    "searched": CONFIG + "\n[policy]\nbudget = 60\n",
}


def digests(folder: Path, text: str) -> list[str]:
    """Of the state as trained, after a person and a window were erased, and trained again."""
    config = put(folder, homes(), text)
    first = train(config)["state_digest"]
    api.erase(config, Selection("subject", subject="p2"))
    api.erase(config, Selection("client", client="home 1"))
    drained = drain(config)
    assert drained["verified"]
    return [first, drained["state_digest"], train(config)["state_digest"]]


@pytest.mark.parametrize("name", CASES)
def test_a_digest_is_what_it_was(tmp_path: Path, name: str) -> None:
    known = json.loads(FILE.read_text())
    if known["numerics"] != numerics():
        pytest.skip(f"digests were written under {known['numerics']}, here are {numerics()}")
    assert digests(tmp_path / "homes", CASES[name]) == known["digests"][name]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: digests(Path(scratch) / name, text) for name, text in CASES.items()}
    FILE.write_text(json.dumps({"numerics": numerics(), "digests": found}, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(found)} configs\n")
