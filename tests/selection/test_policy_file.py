"""A policy file is read whole or refused by name, and the policy in force is the newest that was not retired."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from frmu.errors import PolicyError
from frmu.selection.network import Network, current_policy, nearness, read_policy, shapes, shipped, write_policy
from frmu.selection.observation import VERSION


def weights(value: float = 0.0) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value, dtype=np.float64) for name, shape in shapes().items()}


def write(path: Path, value: float, *clients: str) -> Network:
    return write_policy(weights(value), {"clients": list(clients), "parent": "p"}, path)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    written = write(path, 0.5, "home 1")
    read = read_policy(path)
    assert read.lineage == written.lineage == {"clients": ["home 1"], "parent": "p"}
    assert read.digest == written.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert all(weight.dtype == np.float32 and (weight == 0.5).all() for weight in read.weights.values())
    assert sorted(tmp_path.iterdir()) == [path]  # nothing is left aside


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no such policy file"):
        read_policy(tmp_path / "none")


def test_a_file_that_is_not_whole_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a", 0.5)
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    with pytest.raises(PolicyError, match="not a whole safetensors file"):
        read_policy(tmp_path / "a")


@pytest.mark.parametrize("version", [None, str(VERSION + 1), f"{VERSION}0"])
def test_a_file_for_other_features_is_named(version: str | None, tmp_path: Path) -> None:
    metadata = {"lineage": "{}"} | ({"features": version} if version is not None else {})
    save_file(weights(), tmp_path / "a", metadata)
    with pytest.raises(PolicyError, match=f"observation version {version}, this frmu computes version {VERSION}"):
        read_policy(tmp_path / "a")
    save_file(weights(), tmp_path / "b")
    with pytest.raises(PolicyError, match="observation version None"):
        read_policy(tmp_path / "b")


def spoiled(change: str) -> dict[str, np.ndarray]:
    found = weights()
    if change == "wider":
        found["head.bias"] = np.zeros(2)
    elif change == "fewer":
        del found["head.bias"]
    elif change == "more":
        found["tail.bias"] = np.zeros(1)
    else:
        found["head.bias"][:] = np.inf
    return found


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("wider", r"head\.bias has \(2,\) and not \(1,\)"), ("fewer", r"head\.bias is missing, which has \(1,\)"),
        ("more", r"tail\.bias is none of its weights"), ("endless", r"head\.bias is not finite"),
    ],
)  # fmt: skip
def test_a_file_of_another_network_is_named(change: str, why: str, tmp_path: Path) -> None:
    save_file(spoiled(change), tmp_path / "a", {"features": str(VERSION)})
    with pytest.raises(PolicyError, match=f"not a policy of this frmu: {why}; leave policy.file out, or name another"):
        read_policy(tmp_path / "a")


@pytest.mark.parametrize("lineage", ["{half", "[]", "3"])
def test_a_file_whose_lineage_nobody_can_read_is_named(lineage: str, tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a", {"features": str(VERSION), "lineage": lineage})
    with pytest.raises(PolicyError, match="nobody can tell what it learned from"):
        read_policy(tmp_path / "a")


def test_a_file_without_a_lineage_has_an_empty_one(tmp_path: Path) -> None:
    save_file(weights(), tmp_path / "a", {"features": str(VERSION)})
    assert read_policy(tmp_path / "a").lineage == {}
    save_file(weights(), tmp_path / "b", {"features": str(VERSION), "lineage": json.dumps({"clients": ["x"]})})
    assert read_policy(tmp_path / "b").lineage == {"clients": ["x"]}


def test_the_policy_in_force_is_the_one_named_else_the_newest_else_the_shipped_one(tmp_path: Path) -> None:
    folder = tmp_path / "policies"
    none = frozenset[str]()
    assert current_policy(None, folder, none).digest == read_policy(shipped()).digest
    folder.mkdir()
    old, new = write(folder / "1.safetensors", 1.0), write(folder / "2.safetensors", 2.0)
    (folder / "3.partial").write_bytes(b"half")  # is none
    named = write(tmp_path / "named", 3.0)
    assert current_policy(None, folder, none).digest == new.digest
    assert current_policy(tmp_path / "named", folder, none).digest == named.digest
    assert current_policy(tmp_path / "named", folder, frozenset({named.digest})).digest == new.digest
    assert current_policy(None, folder, frozenset({new.digest})).digest == old.digest
    both = frozenset({new.digest, old.digest})
    assert current_policy(None, folder, both).digest == read_policy(shipped()).digest


def test_slices_are_the_less_near_the_further_apart_they_stand() -> None:
    found = nearness(3)
    near, far = np.exp(-1.0), np.exp(-2.0)
    assert np.allclose(found, [[1, near, far], [near, 1, near], [far, near, 1]])
