"""cluster/local for real: up with PostgreSQL and MLflow, a node killed and brought back, and down."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from machine import Cluster, ClusterError, database

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    # Not pytest's own folder: where root runs the tests, nobody else may enter that, and PostgreSQL is somebody else.
    with tempfile.TemporaryDirectory(prefix="frmu-cluster-", ignore_cleanup_errors=True) as folder:
        cluster = Cluster(folder)
        cluster.up(["a", "b"])
        try:
            yield cluster
        finally:
            everything = cluster.processes()
            cluster.down()
            assert not [process for process in everything if process.alive]


def client(cluster: Cluster, code: str) -> str:
    """What a program prints that has the cluster's environment."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_", "PG"))}
    run = subprocess.run(
        [sys.executable, "-c", code], env=inherited | cluster.environment, capture_output=True, text=True, timeout=200
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout.strip().splitlines()[-1]


def test_every_node_is_there_with_its_site(cluster: Cluster) -> None:
    nodes = cluster.nodes()
    assert {name: node["labels"]["site"] for name, node in nodes.items()} == {"a": "a", "b": "b"}
    assert nodes["b"]["resources_total"]["site:b"] == 1000
    with pytest.raises(ClusterError, match="runs a cluster already"):
        cluster.up()


def test_the_token_is_in_a_file_of_its_owner_and_nowhere_else(cluster: Cluster) -> None:
    assert stat.S_IMODE(cluster.token.stat().st_mode) == 0o600
    token = cluster.token.read_text()
    assert token not in json.dumps(cluster.environment)
    assert token not in (cluster.folder / "cluster.json").read_text()
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{cluster.state['dashboard']}/api/v0/nodes", timeout=30)


LOG = """
import mlflow
mlflow.set_experiment("e")
with mlflow.start_run():
    mlflow.log_metric("m", 1.0)
print("logged")
"""
ASK = """
import os, sqlalchemy
with sqlalchemy.create_engine(os.environ["FRMU_LEDGER"]).connect() as connection:
    print(connection.scalar(sqlalchemy.text("select 1")))
"""


def test_mlflow_and_the_ledger_answer_where_the_environment_says(cluster: Cluster) -> None:
    assert client(cluster, LOG) == "logged"
    if database.binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    assert client(cluster, ASK) == "1"


def test_a_node_that_was_killed_is_noticed_and_comes_back(cluster: Cluster) -> None:
    before = cluster.nodes()["b"]["node_id"]
    assert cluster.kill("b") >= 3
    killed = time.monotonic()
    while "b" in cluster.nodes():
        assert time.monotonic() < killed + 60
        time.sleep(0.1)
    assert cluster.add("b") != before
    with pytest.raises(ClusterError, match='site "b" has a node that runs'):
        cluster.add("b")
    cluster.stop("b")
    assert cluster.add("b") == cluster.nodes()["b"]["node_id"]


def test_a_head_that_was_killed_took_the_cluster_with_it(cluster: Cluster) -> None:
    cluster.kill("a")
    with pytest.raises(ClusterError, match="its tables went with it: `down` and `up` again"):
        cluster.add("a")
