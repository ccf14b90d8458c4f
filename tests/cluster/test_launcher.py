"""Ray's cluster launcher file, judged by Ray's own schema, and its start lines by Ray's own command line."""

from __future__ import annotations

import copy
import re
import shlex
from typing import Any

import click
import pytest
from jsonschema import ValidationError
from manifests import CLUSTER, ROOT, documents, script


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """What the launcher makes of it; raises what the launcher would."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    made = prepare_config(copy.deepcopy(config))
    validate_config(made)
    return made


def test_the_launcher_takes_it() -> None:
    [config] = documents("ray.yaml")
    made = prepared(config)
    [node] = made["available_node_types"].values()
    assert node["min_workers"] == node["max_workers"] == len(config["provider"]["worker_ips"]) == 3


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"cluster_nam": "frmu"}, "'cluster_nam' was unexpected"),
        ({"auth": {"ssh_usr": "frmu"}}, "'ssh_usr' was unexpected"),
        ({"idle_timeout_minutes": "an hour"}, "is not of type 'number'"),
        ({"upscaling_speed": "fast"}, "is not of type 'number'"),
        ({"provider": {"type": "lokal"}}, "Unsupported node provider: lokal"),
        ({"provider": {"type": "local", "head_ip": "head"}}, "worker_ips"),
    ],
)
def test_a_slip_is_refused(change: dict[str, Any], complaint: str) -> None:
    [config] = documents("ray.yaml")
    with pytest.raises((ValidationError, NotImplementedError, click.ClickException), match=complaint):
        prepared({**config, **change})


def lines(name: str) -> list[list[str]]:
    """The words behind cluster/node in the commands of a list."""
    [config] = documents("ray.yaml")
    words = [shlex.split(line) for line in config[name]]
    return [line[line.index(node) + 1 :] for line in words for node in line if node.endswith("frmu/cluster/node")]


@pytest.mark.parametrize("name", ["head_start_ray_commands", "worker_start_ray_commands"])
def test_its_start_lines_are_such_as_ray_takes(name: str) -> None:
    [words] = lines(name)
    words = [word.replace("$(cat /etc/frmu/site)", "a") for word in words]
    options = accepted(words)
    assert not options["block"]
    assert options["dashboard_host"] in (None, "127.0.0.1", "localhost")
    assert options["head"] == (name == "head_start_ray_commands")
    assert options["labels"] == ("" if options["head"] else "site=a")


def accepted(words: list[str]) -> dict[str, Any]:
    """What `ray start` understands by the line that cluster/node makes of these words."""
    from ray.scripts import scripts

    node = script("node")
    return scripts.start.make_context("start", node.line(*node.parser().parse_known_args(words))[1:]).params


def test_its_token_lies_where_it_says() -> None:
    [config] = documents("ray.yaml")
    assert config["file_mounts"]["~/.frmu/token"] == "~/.frmu/token"
    for line in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert "cluster/node" not in line or line.startswith("export RAY_AUTH_TOKEN_PATH=~/.frmu/token ")


def test_what_its_commands_name_is_there() -> None:
    text = (CLUSTER / "ray.yaml").read_text()
    named = set(re.findall(r"(?:~/frmu/)?(cluster/[a-z]+(?:\.[a-z]+)?)", text))
    assert named >= {"cluster/node", "cluster/tracking", "cluster/constraints.txt"}
    assert all((ROOT / name).exists() for name in named)
