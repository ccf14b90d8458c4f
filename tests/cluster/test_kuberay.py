"""The Kubernetes files: strictly by KubeRay's and Kubernetes' own schemas, and at one with the rest of cluster/."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import kubernetes_validate
import pytest
from jsonschema import Draft202012Validator, ValidationError
from manifests import CLUSTER, ROOT, crd, documents, kind

FILES = ["kuberay/raycluster.yaml", "kuberay/rayjob.yaml", "kuberay/redis.yaml", "kuberay/mlflow.yaml"]
IMAGE = f"frmu:{tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']['version']}"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def raycluster() -> Draft202012Validator:
    return crd("rayclusters.yaml")


@pytest.fixture(scope="module")
def rayjob() -> Draft202012Validator:
    return crd("rayjobs.yaml")


def test_the_cluster_is_one(raycluster: Draft202012Validator) -> None:
    raycluster.validate(kind("kuberay/raycluster.yaml", "RayCluster"))


def test_the_job_is_one(rayjob: Draft202012Validator) -> None:
    rayjob.validate(kind("kuberay/rayjob.yaml", "RayJob"))


def _head(document: dict[str, Any]) -> dict[str, Any]:
    return document["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["spec"].update(rayVersoin="2.60.0"), id="a typo"),
        pytest.param(lambda d: d["spec"]["authOptions"].update(mode="tokens"), id="no such mode"),
        pytest.param(lambda d: d["spec"].pop("headGroupSpec"), id="no head"),
        pytest.param(lambda d: d["spec"]["workerGroupSpecs"][0].update(replicas="one"), id="a word for a number"),
        pytest.param(lambda d: d["spec"]["workerGroupSpecs"][0].pop("groupName"), id="a group without a name"),
        pytest.param(lambda d: d["spec"]["autoscalerOptions"].update(version="v3"), id="no such autoscaler"),
        pytest.param(lambda d: _head(d).update(imge="frmu"), id="a typo in a container"),
        pytest.param(lambda d: _head(d)["securityContext"].update(privileged="no"), id="a word for a truth"),
    ],
)
def test_a_cluster_with_a_slip_is_refused(raycluster: Draft202012Validator, change: Change) -> None:
    document = copy.deepcopy(kind("kuberay/raycluster.yaml", "RayCluster"))
    change(document)
    with pytest.raises(ValidationError):
        raycluster.validate(document)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda d: d["spec"].update(entrypiont="x"), id="a typo"),
        pytest.param(lambda d: d["spec"].update(backoffLimit="none"), id="a word for a number"),
        pytest.param(lambda d: d["spec"].update(entrypoint=["python"]), id="a list for a line"),
    ],
)
def test_a_job_with_a_slip_is_refused(rayjob: Draft202012Validator, change: Change) -> None:
    document = copy.deepcopy(kind("kuberay/rayjob.yaml", "RayJob"))
    change(document)
    with pytest.raises(ValidationError):
        rayjob.validate(document)


def _plain() -> Iterator[dict[str, Any]]:
    for name in FILES:
        yield from (one for one in documents(name) if not one["apiVersion"].startswith("ray.io/"))


@pytest.mark.parametrize("document", list(_plain()), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_what_is_kubernetes_own_is_valid(document: dict[str, Any]) -> None:
    kubernetes_validate.validate(document, "1.30", strict=True)
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate({**document, "sepc": {}}, "1.30", strict=True)


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod's spec, with the name of what it belongs to."""
    for name in FILES:
        for document in documents(name):
            yield from _pods(document["metadata"]["name"], document)


def _pods(name: str, value: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(value, dict):
        if "containers" in value:
            yield name, value
        for one in value.values():
            yield from _pods(name, one)
    elif isinstance(value, list):
        for one in value:
            yield from _pods(value[0].get("groupName", name) if isinstance(value[0], dict) else name, one)


@pytest.mark.parametrize(("name", "pod"), list(pods()))
def test_a_pod_is_nobody_special(name: str, pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        assert container["resources"]["limits"]["memory"]
        assert container["image"] in (IMAGE, "postgres:17", "redis:7.4")


def test_there_is_one_image_and_one_version_of_ray() -> None:
    pins = (CLUSTER / "constraints.txt").read_text().splitlines()
    assert f"ray=={kind('kuberay/raycluster.yaml', 'RayCluster')['spec']['rayVersion']}" in pins
    assert f"-t {IMAGE} " in (CLUSTER / "docker" / "Dockerfile").read_text()


def test_whoever_comes_needs_the_token() -> None:
    auth = kind("kuberay/raycluster.yaml", "RayCluster")["spec"]["authOptions"]
    assert auth == {"mode": "token", "secretName": "frmu-ray"}
    [submitter] = kind("kuberay/rayjob.yaml", "RayJob")["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["env"] == [
        {"name": "RAY_AUTH_MODE", "value": "token"},
        {
            "name": "RAY_AUTH_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": auth["secretName"], "key": "auth_token"}},
        },
    ]


def test_a_secret_is_named_where_it_is_told_how_to_make_it_and_its_value_nowhere() -> None:
    told = (CLUSTER / "kuberay" / "raycluster.yaml").read_text()
    for name in FILES:
        for document in documents(name):
            assert document["kind"] != "Secret"
            for reference in _under(document, "secretKeyRef"):
                assert f"secret generic {reference['name']} --from-literal={reference['key']}=" in told
            for entry in (one for env in _under(document, "env") for one in env):
                assert "value" not in entry or not any(word in entry["name"] for word in ("PASSWORD", "AUTH_TOKEN"))


def _under(value: Any, name: str) -> Iterator[Any]:
    """Whatever stands under a name, anywhere."""
    if isinstance(value, dict):
        yield from (one for key, one in value.items() if key == name)
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _under(one, name)


def test_what_is_named_is_there() -> None:
    """Claims, services, scripts, databases: each name that one document says, another one has."""
    everything = [document for name in FILES for document in documents(name)]
    names = {(document["kind"], document["metadata"]["name"]) for document in everything}
    for claim in _under(everything, "persistentVolumeClaim"):
        assert ("PersistentVolumeClaim", claim["claimName"]) in names
    spec = kind("kuberay/raycluster.yaml", "RayCluster")["spec"]
    assert ("Service", spec["gcsFaultToleranceOptions"]["redisAddress"].partition(":")[0]) in names
    assert {
        entry["value"] for env in _under(spec, "env") for entry in env if entry["name"] == "MLFLOW_TRACKING_URI"
    } == {"http://frmu-mlflow:5000"}
    job = kind("kuberay/rayjob.yaml", "RayJob")["spec"]
    assert job["clusterSelector"] == {
        "ray.io/cluster": kind("kuberay/raycluster.yaml", "RayCluster")["metadata"]["name"]
    }
    assert (ROOT / job["entrypoint"].split()[1].removeprefix("/opt/frmu/")).exists()
    [server] = kind("kuberay/mlflow.yaml", "Deployment")["spec"]["template"]["spec"]["containers"]
    assert (ROOT / server["command"][0].removeprefix("/opt/frmu/")).exists()
    databases = kind("kuberay/mlflow.yaml", "ConfigMap")["data"]["databases.sql"]
    assert databases == (CLUSTER / "docker" / "databases.sql").read_text()


def test_each_site_has_a_group_of_its_own_and_the_elastic_one_has_none() -> None:
    groups = {
        one["groupName"]: one for one in kind("kuberay/raycluster.yaml", "RayCluster")["spec"]["workerGroupSpecs"]
    }
    elastic = groups.pop("elastic")
    for name, group in groups.items():
        site = name.removeprefix("site-")
        pod = group["template"]["spec"]
        assert group["labels"] == pod["nodeSelector"] == {"site": site}
        assert group["minReplicas"] == group["maxReplicas"] == 1
        assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": f"frmu-site-{site}"}
    assert (elastic["minReplicas"], elastic["maxReplicas"]) == (0, 4)
    assert "labels" not in elastic
