"""The doors: what is entered and what is not, told within moments, against real heads."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, put
from heads import FRMU, free_ports, last_json, running_head

from frmu.cli import main
from frmu.config import parse
from frmu.errors import ConfigError, FederationError

Head = dict[str, str]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.cluster  # most of them start a head

# One process asks at every door: a Ray that was imported before would not look at the environment again.
PREFLIGHT = """
import json, os, sys, time
from frmu.errors import FederationError
from frmu.runtime.connect import _reread_token
from frmu.runtime.preflight import preflight
told = []
for address, insecure, environment in json.load(sys.stdin):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USE_TLS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    _reread_token()
    began = time.monotonic()
    try:
        answer = preflight(address, insecure)
    except FederationError as error:
        answer = str(error)
    told.append((answer, time.monotonic() - began))
json.dump(told, sys.stdout)
"""


def preflight(head: Head, *cases: tuple[str, bool, dict[str, str]]) -> list[tuple[str, float]]:
    run = subprocess.run(
        [sys.executable, "-c", PREFLIGHT], input=json.dumps(cases), env=head, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_a_cluster_that_demands_its_token_is_entered_with_it_alone(head: Head) -> None:
    mine = {name: head[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    wrong = mine | {"RAY_AUTH_TOKEN": "0" * 64}
    dashboard = head["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
    nothing = f"127.0.0.1:{free_ports(1)[0]}"
    told = preflight(
        head,
        (head["GCS"], False, mine), (head["GCS"], False, wrong), (head["GCS"], False, {}), (head["GCS"], True, wrong),
        (head["CLIENT"], False, mine), (head["CLIENT"], False, wrong), (dashboard, False, mine),
        (nothing, False, mine), (head["GCS"], False, mine | {"RAY_USE_TLS": "1"}),
    )  # fmt: skip
    answers = [answer for answer, _ in told]
    assert answers[0] == head["GCS"]
    assert answers[1] == answers[3]  # --insecure opens no lock
    assert "demands its token, and the one here is not the one: set RAY_AUTH_MODE=token" in answers[1]
    assert "demands its token, and the one here is missing" in answers[2]
    assert answers[4] == head["CLIENT"]
    assert "is not the one" in answers[5]
    assert "does not answer as a Ray head does" in answers[6]
    assert "RAY_USE_TLS=1" in answers[6]
    assert f"no Ray cluster at {nothing}" in answers[7]
    assert "RAY_TLS_CA_CERT" in answers[8]
    assert max(seconds for _, seconds in told) < 10
    assert not [answer for answer in answers if head["RAY_AUTH_TOKEN"] in answer]


def certified(folder: Path, *hosts: str) -> dict[str, str]:
    """Certificates under an authority of their own, and the environment that uses those of the first host."""
    options = [option for host in hosts for option in ("--host", host)]
    subprocess.run([sys.executable, ROOT / "cluster" / "tls.py", folder, *options], check=True, capture_output=True)
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
        "RAY_TLS_SERVER_CERT": str(folder / f"{hosts[0]}.crt"),
        "RAY_TLS_SERVER_KEY": str(folder / f"{hosts[0]}.key"),
    }


@pytest.mark.long
def test_nodes_that_speak_tls_and_clients_that_do_not(tmp_path: Path, table: pd.DataFrame) -> None:
    """A driver attaches with certificates of the authority; others are told why not, where Ray would hang."""
    config = put(tmp_path / "homes", table)
    ours, others = certified(tmp_path / "ours", "127.0.0.1", "head.example"), certified(tmp_path / "other", "127.0.0.1")
    assert (tmp_path / "ours" / "ca.key").stat().st_mode & 0o777 == 0o600
    with running_head(**ours) as head:
        mine = {name: head[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
        cases = [mine | ours, mine, mine | others, ours]
        told = preflight(head, *[(head["GCS"], False, case) for case in cases])
        answers = [answer for answer, _ in told]
        assert answers[0] == head["GCS"]
        assert "if its nodes speak TLS, set RAY_USE_TLS=1" in answers[1]
        assert "certificates of the same authority" in answers[2]
        assert "demands its token" in answers[3]
        assert max(seconds for _, seconds in told) < 15
        command = [FRMU, "train", config.file, "--json", "--address", head["GCS"]]
        run = subprocess.run(command, env=head, capture_output=True, text=True, timeout=180, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert last_json(run.stdout)["clients"] == 4


METADATA = """
import sys
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
print(client.internal_kv_get(b"CLUSTER_METADATA", b"cluster").decode())
client.internal_kv_put(b"CLUSTER_METADATA", sys.argv[2].encode(), True, b"cluster")
"""


def test_a_cluster_that_lets_everybody_in_is_not_entered_unless_that_is_meant(open_head: Head) -> None:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    doors = (open_head["GCS"], open_head["CLIENT"])
    cases = [(door, insecure, mine) for door in doors for insecure in (False, True) for mine in ({}, token)]
    answers = [answer for answer, _ in preflight(open_head, *cases)]
    for (door, insecure, _), answer in zip(cases, answers, strict=True):
        assert answer == door if insecure else f"cluster at {door} asks for no token" in answer
        assert insecure or "--insecure" in answer
    run = CliRunner().invoke(main, ["submit", "train", "/x.toml", "--address", open_head["RAY_API_SERVER_ADDRESS"]])
    assert run.exit_code == 2
    assert "asks for no token" in run.output
    assert "--insecure" in run.output


def test_another_ray_or_python_is_named(open_head: Head) -> None:
    """The head is made to say, for a moment, that it is another."""
    put = [sys.executable, "-c", METADATA, open_head["GCS"]]
    other = json.dumps({"ray_version": "2.9.0", "python_version": "3.9.1"})
    before = subprocess.run([*put, other], env=open_head, capture_output=True, text=True, timeout=60, check=True).stdout
    [(answer, _)] = preflight(open_head, (open_head["GCS"], True, {}))
    subprocess.run([*put, before], env=open_head, capture_output=True, timeout=60, check=True)
    assert "runs Ray 2.9.0 on Python 3.9.1, this process Ray" in answer
    assert "cluster/constraints.txt" in answer


@pytest.mark.parametrize(("token", "said"), [("0" * 64, "is not the one"), ("", "is missing")], ids=["wrong", "none"])
def test_a_job_is_not_sent_with_the_wrong_token(
    head: Head, monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    from frmu.runtime.connect import _reread_token
    from frmu.runtime.submit import Cluster

    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token" if token else "disabled")
        patch.setenv("RAY_AUTH_TOKEN", token)
        _reread_token()
        with pytest.raises(FederationError, match=said):
            Cluster(head["RAY_API_SERVER_ADDRESS"])
    _reread_token()


def test_a_job_is_sent_to_no_address_that_names_code_and_to_none_that_is_silent() -> None:
    from frmu.runtime.submit import Cluster

    with pytest.raises(FederationError, match="must begin with http"):
        Cluster("os://head")
    with pytest.raises(FederationError, match="no Ray dashboard at"):
        Cluster(f"http://127.0.0.1:{free_ports(1)[0]}")


def test_a_port_that_is_not_the_dashboards_is_one_sentence(head: Head) -> None:
    """What answers at Ray's own port speaks no HTTP."""
    from frmu.runtime.submit import Cluster

    with pytest.raises(FederationError, match="no Ray dashboard at") as told:
        Cluster(f"http://{head['GCS']}")
    assert "\n" not in str(told.value)


@pytest.mark.long
def test_a_head_whose_agent_has_no_port_is_named_with_the_knob(head: Head, tmp_path: Path) -> None:
    """Ray starts it without a word, and answers every job with an error of its server."""
    with running_head(agent=head["AGENT"]) as second:
        run = subprocess.run(
            [FRMU, "submit", "drain", "/x.toml"], cwd=tmp_path, env=second, capture_output=True, text=True, timeout=120,
            check=False,
        )  # fmt: skip
    assert run.returncode == 2
    assert "--dashboard-agent-listen-port" in run.stderr


def test_a_job_does_not_work_in_the_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "homes.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    run = CliRunner().invoke(main, ["submit", "train", "homes.toml", "--address", "http://127.0.0.1:1"])
    assert run.exit_code == 2
    assert "absolute path that the cluster sees" in run.output


@pytest.mark.parametrize("address", ["os://head", "frmu.demo://x", "http://127.0.0.1:8265", "/tmp/x", "a b:1", ""])
def test_an_address_names_a_place_and_never_a_module(tmp_path: Path, address: str) -> None:
    """Ray imports what stands before :// where it knows no such scheme."""
    import tomllib

    with pytest.raises(ConfigError, match=r"ray\.address: an address of Ray must be"):
        parse(tomllib.loads(f'{CONFIG}\n[ray]\naddress = "{address}"\n'), tmp_path / "homes.toml")
