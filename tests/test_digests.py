"""The digests of a fixed set of configs: a change that is not about numbers changes none of them.

Sums are whole numbers, so a digest is the same on every processor. `python tests/test_digests.py` writes the file anew,
which a change of numbers must say in its message.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from conftest import CONFIG, drain, homes, put, train

from frmu import api
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")

# A kernel of AVX-512 is an illegal instruction where the processor has none.
OTHERS = ("Haswell", *(["SkylakeX"] if "avx512f" in Path("/proc/cpuinfo").read_text() else []))
FILE = Path(__file__).with_suffix(".json")
ATTENDED = "\n[attention]\nrule = "
CASES = {
    "relu": CONFIG,
    "fourier": CONFIG.replace('"relu"', '"fourier"'),
    "linear": CONFIG.replace('"relu"', '"linear"'),
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
    assert digests(tmp_path / "homes", CASES[name]) == json.loads(FILE.read_text())[name]


@pytest.mark.parametrize("kernel", ["Nehalem", *(pytest.param(name, marks=pytest.mark.cluster) for name in OTHERS)])
def test_another_processor_gives_the_same(tmp_path: Path, kernel: str) -> None:
    """Another kernel of the BLAS, and as many threads as there are: the last bits of a solve differ, no digest does."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import test_digests as t; t.show({str(tmp_path)!r}, 'relu')"
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"OPENBLAS_CORETYPE": kernel}, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert json.loads(run.stdout.splitlines()[-1]) == json.loads(FILE.read_text())["relu"]


def show(folder: str, name: str) -> None:
    """Print the digests of a case."""
    print(json.dumps(digests(Path(folder), CASES[name])))  # noqa: T201


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        found = {name: digests(Path(scratch) / name, text) for name, text in CASES.items()}
    FILE.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
    sys.stdout.write(f"{len(found)} configs\n")
