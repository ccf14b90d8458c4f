"""Modules that cannot be trained exactly are refused, each with one sentence; those that ship are not."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import CONFIG, put, train

from frmu import api
from frmu.errors import ConfigError
from frmu.modules.build import build, initial_weights
from frmu.modules.spec import ModuleSpec
from frmu.services.prediction import load_model, predict
from frmu.types import Selection

FIELDS = {
    "columns": (6, 3), "outputs": 2, "classes": True, "seed": 0, "widths": (8,), "shape": None, "epochs": 1, "batch": 4,
    "lr": 0.1, "proximal": 0.0, "precision": "float32",
}  # fmt: skip
HEAD = 'encoder = "relu"\nfeatures = 8\n'
OWN = """
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self, columns, outputs):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(own, outputs) for own in columns)
        BODY
    def forward(self, *modalities):
        return sum(layer(x) for layer, x in zip(self.layers, modalities)) RESULT

def module(columns, outputs):
    RETURN
"""


def own(body: str = "pass", result: str = "", returns: str = "return Two(columns, outputs)") -> ModuleSpec:
    code = OWN.replace("BODY", body).replace("RESULT", result).replace("RETURN", returns)
    return ModuleSpec(module="own.py:module", code=code.encode(), **FIELDS)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet8", "tcn", "fusion"])
def test_what_ships_is_built_and_drawn_from_its_seed(name: str) -> None:
    shape = {"cnn": (1, 8, 8), "resnet8": (1, 8, 8), "tcn": (4, 16)}.get(name)
    columns = (64, 3) if shape else (6, 3)
    spec = ModuleSpec(module=name, **FIELDS | {"shape": shape, "columns": columns})
    first = {key: value.tobytes() for key, value in initial_weights(spec).items()}
    build.cache_clear()
    torch.rand(3)
    assert {key: value.tobytes() for key, value in initial_weights(spec).items()} == first
    other = initial_weights(ModuleSpec(module=name, **FIELDS | {"shape": shape, "columns": columns, "seed": 1}))
    assert {key: value.tobytes() for key, value in other.items()} != first


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (own(returns="return nn.ReLU()"), "has no parameters"),
        (own(body="self.norm = nn.BatchNorm1d(outputs)"), "has batch norm"),
        (own(result="+ nn.functional.dropout(modalities[0][:, :1], 0.5)"), "draws random numbers"),
        (own(result="[:, :1]"), r"gives \[2, 1\] for two records, and must give \[2, 2\]"),
        (own(returns="return 3"), "gives a int"),
        (own(returns="raise ValueError(3)"), r"raises ValueError\(3\)"),
        (own(returns="import random; m = Two(columns, outputs); nn.init.constant_(m.layers[0].bias, random.random())"
             "; return m"), "has other weights each time"),
        (own(body="self.register_buffer('seen', torch.zeros(1))", result="+ self.seen.add_(1.0)"), "keeps something"),
        (own(result="@ torch.zeros(9, 9)"), "raises .* when it is called"),
        (ModuleSpec(module="own.py:other", code=OWN.encode(), **FIELDS), "cannot be run"),
        (ModuleSpec(module="cnn", **FIELDS | {"shape": (1, 5, 5)}), r"model.shape = \[1, 5, 5\]"),
    ],
)  # fmt: skip
def test_a_module_that_cannot_be_trained_exactly_is_refused(spec: ModuleSpec, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        build(spec)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ('kind = "rounds"\nmodule = "mpl"\n', 'did you mean "mlp"'),
        ('kind = "rounds"\nmodule = "own.py:module"\n', "allow_code = true"),
        ('kind = "rounds"\nfeatures = 8\n', "features is not for a module"),
        ('kind = "rounds"\nmethod = "analytic"\n', 'must be "replay"'),
        ('kind = "rounds"\nmodule = "cnn"\n', "needs shape"),
        ("rounds = 3\n", 'set kind = "rounds"'),
        ('method = "replay"\n', 'set kind = "rounds"'),
        ('kind = "rounds"\nparticipation = 0\n', "participation"),
        ('kind = "rounds"\nlearning_rate = 0.1\n', "unknown key"),
    ],
)
def test_a_config_that_means_nothing_is_refused(tmp_path: Path, table: pd.DataFrame, model: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        put(tmp_path / "homes", table, CONFIG.replace(HEAD, model))


@pytest.mark.usefixtures("memory_tracking")
def test_a_module_of_ones_own(tmp_path: Path, table: pd.DataFrame) -> None:
    folder = tmp_path / "homes"
    folder.mkdir()
    code = own(result="* 1.0").code
    (folder / "own.py").write_bytes(code)
    text = CONFIG.replace(HEAD, 'kind = "rounds"\nmodule = "own.py:module"\nallow_code = true\nrounds = 2\n')
    config = put(folder, table, text)
    trained = train(config)
    (folder / "own.py").unlink()  # it went with the config, and lies in the checkpoint
    api.erase(config, Selection("subject", subject="p2"))
    with api.Experiment(config, "local") as experiment:
        assert experiment.drain()["verified"]
    state = config.folder / "state.safetensors"
    assert load_model(state).config.contents == {"own.py:module": code}
    from frmu.errors import RequestError, StoreError
    from frmu.services.prediction import _load_pyfunc

    with pytest.raises(StoreError, match="MLflow must not run"):
        _load_pyfunc(str(state))
    forbidden = config.model_copy(update={"model": config.model.model_copy(update={"allow_code": False})})
    with pytest.raises(RequestError, match="allow_code"):
        predict(forbidden, folder / "homes.parquet", tmp_path / "out.parquet")
    assert predict(config, folder / "homes.parquet", tmp_path / "out.parquet")["rows"] == len(table)
    (folder / "own.py").write_bytes(code + b"# other\n")
    assert train(put(folder, table, text))["state_digest"] != trained["state_digest"]  # the digest of the code counts
    (folder / "own.py").unlink()
    with pytest.raises(ConfigError, match=r"own\.py: cannot be read"):
        train(put(folder, table, text))
