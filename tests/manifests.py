"""Reading what lies under cluster/ as the tools that it is for would."""

from __future__ import annotations

import os
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
CRDS = Path(os.environ.get("FRMU_KUBERAY_CRD", ROOT.parent / "shared" / "kuberay-crd"))


def documents(name: str) -> list[dict[str, Any]]:
    """All documents of a YAML file under cluster/."""
    return list(yaml.safe_load_all((CLUSTER / name).read_text()))


def kind(name: str, wanted: str) -> dict[str, Any]:
    """The one document of a kind."""
    [found] = [document for document in documents(name) if document["kind"] == wanted]
    return found


def script(name: str) -> ModuleType:
    """A script without a suffix, as a module."""
    loader = SourceFileLoader(f"cluster_{name}", str(CLUSTER / name))
    spec = spec_from_loader(loader.name, loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def crd(file: str) -> Draft202012Validator:
    """Judges a custom resource by its schema, made strict; skips where the definitions are not at hand."""
    path = CRDS / file
    if not path.exists():
        pytest.skip(f"KubeRay's resource definitions are not there: {path}")
    definition = yaml.load(path.read_text(), Loader=yaml.CSafeLoader)
    [version] = [version for version in definition["spec"]["versions"] if version["name"] == "v1"]
    return Draft202012Validator(strict(version["schema"]["openAPIV3Schema"]))


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema that refuses a field which it does not know, as the server would only drop it."""
    made = {name: _strict(value) for name, value in schema.items()}
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    return made if open_ended or "properties" not in schema else {**made, "additionalProperties": False}


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return strict(value) if not _is_table(value) else {name: strict(one) for name, one in value.items()}
    return [_strict(one) for one in value] if isinstance(value, list) else value


def _is_table(value: dict[str, Any]) -> bool:
    """Whether this is what stands under `properties`: every value a schema, by the name of the field."""
    return bool(value) and all(isinstance(one, dict) for one in value.values())
