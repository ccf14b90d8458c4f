"""What comes from outside names no code to run: configs, requests, policy files, checkpoints, what lies in MLflow."""

from __future__ import annotations

import ast
import pickle
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from conftest import CONFIG, train

from frmu import api
from frmu.config import Config, parse
from frmu.errors import ConfigError, FrmuError, LedgerError, PolicyError, RequestError, StoreError
from frmu.policy.checkpoint import lineage_of, read_progress
from frmu.selection.network import read_policy
from frmu.services.prediction import load_model, predict
from frmu.services.requests import check_selection
from frmu.types import Selection

ROOT = Path(__file__).parents[1]

# What turns bytes or a name into code. `eval` as a method is of others: a model's, a frame's.
RUNS_CODE = {
    "load_model", "read_pickle", "load_pickle", "import_module", "Unpickler", "unsafe_load", "full_load", "run_path",
    "run_module", "exec_module",
}  # fmt: skip
BARE = {"eval", "exec", "compile", "__import__"}
OF = {
    "load": {"pickle", "cloudpickle", "dill", "joblib", "torch", "marshal", "yaml", "np", "numpy", "skops"},
    "loads": {"pickle", "cloudpickle", "dill", "marshal"},
    "open": {"shelve"},
}
MEANT = {
    ("frmu/datasets/archives.py", "read_pickle"),  # run only where its SHA-256 is that of one that was read
    ("frmu/bench/images.py", "import_module"),  # of a name that stands beside it
    ("frmu/services/prediction.py", "load_model"),  # our own: a safetensors file
    ("frmu/modules/build.py", "exec"),  # a module of the user's own, where the config says allow_code
    ("frmu/modules/build.py", "compile"),
    ("frmu/services/importance.py", "load_model"),  # the same
    ("frmu/bench/told.py", "load_model"),
    ("frmu/bench/encoder.py", "load_model"),
    ("frmu/bench/opendataval_worker.py", "np.load"),  # arrays of our own, and nothing pickled
}


def _calls(tree: ast.AST) -> Iterator[str]:
    """Calls that may run what they are given, by name."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(name) if name in BARE | RUNS_CODE:
                yield name
            case ast.Attribute(ast.Name(module), name) if module in OF.get(name, ()):
                yield f"{module}.{name}"
            case ast.Attribute(_, name) if name in RUNS_CODE:
                yield name


@pytest.mark.parametrize(
    "line", ["pickle.loads(x)", "exec(x)", "mlflow.pyfunc.load_model(x)", "np.load(x)", "yaml.load(x)"]
)
def test_the_gate_sees(line: str) -> None:
    assert list(_calls(ast.parse(line)))


def test_nothing_here_runs_what_it_reads() -> None:
    files = [file for room in ("frmu", "jobs", "cluster") for file in (ROOT / room).rglob("*.py")]
    found = {
        (file.relative_to(ROOT).as_posix(), name) for file in files for name in _calls(ast.parse(file.read_text()))
    }
    assert found <= MEANT


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module that leaves a file behind when it is imported, and by a class when it is unpickled."""
    sprung = tmp_path / "sprung"
    (tmp_path / "trap_of_frmu.py").write_text(f"open({str(sprung)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "trap_of_frmu"
    assert not sprung.exists()
    assert "trap_of_frmu" not in sys.modules


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("trap_of_frmu",)


def test_the_trap_springs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what does not spring it would prove nothing."""
    (tmp_path / "trap_of_frmu.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    pickle.loads(pickle.dumps(_Bomb()))
    assert (tmp_path / "sprung").exists()
    del sys.modules["trap_of_frmu"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('encoder = "relu"', 'encoder = "trap_of_frmu"'),
        ('encoder = "relu"', 'encoder = "trap_of_frmu:Encoder"'),
        ("[model]\n", '[attention]\nrule = "trap_of_frmu.rule"\n[model]\n'),
        ('encoder = "relu"\nfeatures = 8\n', 'kind = "rounds"\nmodule = "trap_of_frmu.py:module"\n'),
        ("[model]\n", '[policy]\nselector = "trap_of_frmu"\n[model]\n'),
        ("[model]\n", '[ray]\naddress = "trap_of_frmu://x"\n[model]\n'),
        ("[model]\n", '[ray]\nruntime_env = { worker_process_setup_hook = "trap_of_frmu" }\n[model]\n'),
        ('by = "month"', 'by = "__import__(\'trap_of_frmu\')"'),
        ('back = "1d"', 'back = "__import__(\'trap_of_frmu\')"'),
    ],
)  # fmt: skip
def test_a_config_names_no_code(tmp_path: Path, trap: str, old: str, new: str) -> None:
    assert old in CONFIG
    try:
        config = parse(tomllib.loads(CONFIG.replace(old, new)), tmp_path / "homes.toml")
    except ConfigError:
        return
    with pytest.raises(FrmuError), api.Experiment(config, "local") as experiment:  # a column that nobody has
        experiment.train()


@pytest.mark.parametrize("url", ["trap_of_frmu://x", "sqlite+trap_of_frmu:///x", "postgresql+trap_of_frmu://a@b/c"])
@pytest.mark.parametrize("key", ["ledger", "tracking", "witness"])
def test_a_url_names_no_code(config: Config, trap: str, key: str, url: str) -> None:
    store = config.store.model_copy(update={key: url})
    with pytest.raises(FrmuError), api.Experiment(config.model_copy(update={"store": store}), "local") as experiment:
        experiment.train()


@pytest.mark.parametrize("where", ["__import__('trap_of_frmu')", "trap_of_frmu", "load = __import__('trap_of_frmu')"])
def test_a_request_names_no_code(config: Config, trap: str, where: str) -> None:
    with pytest.raises(RequestError):
        check_selection(config, Selection("where", where=where))


def test_a_pickle_in_the_place_of_a_file_is_refused_unread(tmp_path: Path, trap: str, config: Config) -> None:
    file = tmp_path / "file.safetensors"
    file.write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(PolicyError):
        read_policy(file)
    with pytest.raises(PolicyError):
        read_progress(file)
    assert lineage_of(file)[1] is None
    with pytest.raises(StoreError):
        load_model(file)
    train(config)
    (config.folder / "state.safetensors").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(StoreError), api.Experiment(config, "local") as experiment:
        experiment.drain() if experiment.session.ledger.pending() else experiment.session.state()


def test_what_lies_in_mlflow_is_read_as_numbers(tmp_path: Path, trap: str, config: Config, table: pd.DataFrame) -> None:
    """A version that somebody has rewritten to load code of theirs is served by its state, or not at all."""
    train(config)
    [model] = list(config.folder.rglob("MLmodel"))
    text = model.read_text()
    assert "loader_module: frmu.services.prediction" in text
    model.write_text(text.replace("frmu.services.prediction", trap))
    (model.parent / "python_model.pkl").write_bytes(pickle.dumps(_Bomb()))
    rows = tmp_path / "rows.parquet"
    table.head(5).to_parquet(rows)
    assert predict(config, rows, tmp_path / "out.parquet")["rows"] == 5
    (model.parent / "state.safetensors").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(StoreError):
        predict(config, rows, tmp_path / "out.parquet")


def test_a_ledger_and_an_anchor_are_read_as_text(trap: str, config: Config) -> None:
    train(config)
    (config.folder / "anchor").write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises((StoreError, LedgerError)), api.Experiment(config, "local"):
        pass
