"""The image and the compose file: by the schema of the compose specification, and by what they name."""

from __future__ import annotations

import copy
import io
import json
import re
from importlib.resources import files
from typing import Any

import psycopg
import pytest
from dockerfile_parse import DockerfileParser
from jsonschema import Draft202012Validator, ValidationError
from manifests import CLUSTER, ROOT, documents, script

SCHEMA = json.loads((files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json").read_text())
[COMPOSE] = documents("docker/compose.yaml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
NODES = [name for name in SERVICES if name == "head" or name.startswith("site-")]


def test_the_compose_file_is_one() -> None:
    Draft202012Validator(SCHEMA).validate(COMPOSE)


@pytest.mark.parametrize(
    ("service", "change"),
    [
        ("head", {"comand": ["cluster/node"]}),
        ("head", {"ports": "8265"}),
        ("site-a", {"depends_on": {"head": {"condition": "service_well"}}}),
        ("postgres", {"healthcheck": {"test": 1}}),
    ],
)
def test_a_slip_in_it_is_refused(service: str, change: dict[str, Any]) -> None:
    wrong = copy.deepcopy(COMPOSE)
    wrong["services"][service].update(change)
    with pytest.raises(ValidationError):
        Draft202012Validator(SCHEMA).validate(wrong)


def test_only_this_machine_can_reach_it() -> None:
    assert COMPOSE["networks"]["inside"] == {"internal": True}
    for name, service in SERVICES.items():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        assert "no-new-privileges:true" in service["security_opt"]
        assert bool(service.get("ports")) == ("outside" in service["networks"]), name


@pytest.mark.parametrize("name", NODES)
def test_a_node_wants_the_token_and_starts_by_the_line_that_all_share(name: str) -> None:
    from ray.scripts import scripts

    service = SERVICES[name]
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
    assert "ray_token" in service["secrets"]
    command, *words = service["command"]
    assert (ROOT / command).stat().st_mode & 0o111
    node = script("node")
    options = scripts.start.make_context("start", node.line(*node.parser().parse_known_args(words))[1:]).params
    assert options["block"]
    site = name.removeprefix("site-")
    assert options["labels"] == ("" if name == "head" else f"site={site}")
    assert options["address"] == (None if name == "head" else "head:6379")


def test_what_the_compose_file_names_is_there() -> None:
    for name, service in SERVICES.items():
        assert set(service.get("secrets", [])) <= set(COMPOSE["secrets"]), name
        assert set(service["networks"]) <= set(COMPOSE["networks"]), name
        for volume in service["volumes"]:
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or (CLUSTER / "docker" / source).exists(), volume
        assert all(secret not in json.dumps(service) for secret in ("PASSWORD:", "RAY_AUTH_TOKEN:"))
    build = SERVICES["head"]["build"]
    assert (CLUSTER / "docker" / build["context"] / build["dockerfile"]).samefile(CLUSTER / "docker" / "Dockerfile")
    images = {service["image"] for name, service in SERVICES.items() if name != "postgres"}
    assert len(images) == 1
    assert f"-t {images.pop()} " in (CLUSTER / "docker" / "Dockerfile").read_text()


def test_the_ledgers_database_is_made(postgres_url: str) -> None:
    statement = (CLUSTER / "docker" / "databases.sql").read_text().strip().removesuffix(";")
    with psycopg.connect(postgres_url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(statement)
        assert connection.execute("SELECT 1 FROM pg_database WHERE datname = 'ledger'").fetchone()
        connection.execute("DROP DATABASE ledger")


@pytest.fixture(scope="module")
def instructions() -> list[dict[str, Any]]:
    parser = DockerfileParser(fileobj=io.BytesIO((CLUSTER / "docker" / "Dockerfile").read_bytes()))
    return [one for one in parser.structure if one["instruction"] != "COMMENT"]


def values(instructions: list[dict[str, Any]], wanted: str) -> list[str]:
    return [one["value"] for one in instructions if one["instruction"] == wanted]


def test_the_image_is_made_of_what_is_there(instructions: list[dict[str, Any]]) -> None:
    known = {"FROM", "ARG", "ENV", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "HEALTHCHECK", "CMD"}
    assert {one["instruction"] for one in instructions} == known
    for value in values(instructions, "COPY"):
        *sources, _ = value.split()
        assert all((ROOT / source).exists() for source in sources), value
    assert all((ROOT / path).exists() for path in json.loads(values(instructions, "CMD")[0]))


def test_the_image_installs_by_the_constraints_and_runs_as_nobody_special(instructions: list[dict[str, Any]]) -> None:
    installs = [line for line in values(instructions, "RUN") if "pip install" in line]
    assert installs
    assert all("-c cluster/constraints.txt" in line for line in installs)
    assert values(instructions, "USER") == ["1000"]
    assert values(instructions, "FROM") == ["python:3.11-slim-bookworm"]
    text = " ".join(one["value"] for one in instructions)
    assert not re.search(r"(password|token|secret)\s*=\s*(?!token\b)\S", text, re.I)
