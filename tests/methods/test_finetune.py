"""Fine-tuning guarantees nothing: it forgets next to nothing, and closes no request."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from click.testing import CliRunner
from conftest import CONFIG, drain, put, train

from frmu import api
from frmu.cli import main
from frmu.config import load
from frmu.storage.checkpoint import load_state
from frmu.types import Selection

TUNED = CONFIG + 'method = "finetune"\n'


def test_no_request_is_closed_until_an_exact_method_has_proven_it(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, TUNED)
    train(config)
    before = load_state(config.folder / "state.safetensors")
    api.erase(config, Selection("subject", subject="p2"))
    run = CliRunner().invoke(main, ["drain", str(config.file), "--address", "local"])
    assert run.exit_code == 1
    assert 'the method "finetune" guarantees nothing that could close a request' in run.output
    assert [row["stage"] for row in api.requests(config)] == ["verified"]
    after = load_state(config.folder / "state.safetensors")
    assert before is not None
    assert after is not None
    assert not np.array_equal(before.W, after.W)
    exact = table[table.person != "p2"]
    assert after.digest != train(put(tmp_path / "never", exact, TUNED))["state_digest"]

    config.file.write_text(config.file.read_text().replace('method = "finetune"', 'method = "analytic"'))
    config = load(config.file)
    train(config)
    [receipt] = drain(config)["receipts"]
    assert (receipt["level"], receipt["verified"]) == ("L5", True)
    assert receipt["state_digest"] == train(put(tmp_path / "exact", exact))["state_digest"]


def test_the_default_method_leaves_the_fingerprint_as_it_was(tmp_path: Path, table: pd.DataFrame) -> None:
    named = put(tmp_path / "named", table, CONFIG + 'method = "analytic"\n')
    assert named.fingerprint() == put(tmp_path / "silent", table).fingerprint()
    assert named.fingerprint() != put(tmp_path / "tuned", table, TUNED).fingerprint()
