"""A module that is trained by rounds: the same bits wherever its clients are, and erased as if it had never known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from conftest import CONFIG, drain, homes, hosted, put, train

from frmu import api
from frmu.cli import main
from frmu.clients.tasks.rounds import TrainLocally
from frmu.config import Config
from frmu.errors import ClientsUnavailableError, FederationError, RoundLostError
from frmu.methods.choice import method_of
from frmu.models.weights import key_of
from frmu.runtime.local import LocalFederation
from frmu.server.rounds import StepWeights
from frmu.services.prediction import _load_pyfunc, predict
from frmu.storage.checkpoint import load_state
from frmu.types import Selection

pytestmark = pytest.mark.usefixtures("memory_tracking")
HEAD = 'encoder = "relu"\nfeatures = 8\n'
ROUNDS = 'kind = "rounds"\nrounds = 4\nwidths = [8]\n'
CLASSES = CONFIG.replace('target = "load"', 'target = "band"').replace("regression", "classification")


def by_rounds(more: str = "", text: str = CONFIG) -> str:
    assert HEAD in text
    return text.replace(HEAD, ROUNDS + more)


def rebuilt(config: Config, size: int) -> str:
    """The digest of a federation with so many clients a host, from nothing."""
    method = method_of(config.bare())
    return method.apply(hosted(config, size), method.init(), None).state.digest


SETTINGS = {
    "plain": "",
    "size": '[attention]\nrule = "size"\n',
    "adam": 'optimizer = "fedadam"\n[attention]\nrule = "size"\n',
    "prox": 'optimizer = "fedprox"\nepochs = 2\n',
    "some": "participation = 0.4\n",
    "double": 'precision = "float64"\n',
}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_same_bits_however_clients_are_hosted(tmp_path: Path, table: pd.DataFrame, name: str) -> None:
    config = put(tmp_path / "homes", table, by_rounds(SETTINGS[name]))
    digest = train(config)["state_digest"]
    assert {rebuilt(config, size) for size in (1, 3, 4)} == {digest}


@pytest.mark.parametrize("text", [CONFIG, CLASSES], ids=["regression", "classes"])
def test_it_learns(tmp_path: Path, table: pd.DataFrame, text: str) -> None:
    first = train(put(tmp_path / "first", table, by_rounds("", text).replace("rounds = 4", "rounds = 1")))["metrics"]
    last = train(put(tmp_path / "last", table, by_rounds("", text).replace("rounds = 4", "rounds = 12")))["metrics"]
    if text is CONFIG:
        assert last["validation_rmse"] < 0.6 < first["validation_rmse"]
    else:
        assert last["validation_accuracy"] > 0.8


@pytest.mark.parametrize("method", ["replay", "retrain"])
@pytest.mark.parametrize("more", ["", "participation = 0.4\n"], ids=["all", "some"])
def test_what_is_erased_was_never_there(tmp_path: Path, table: pd.DataFrame, method: str, more: str) -> None:
    text = by_rounds(f'method = "{method}"\n{more}')
    config = put(tmp_path / "homes", table, text)
    train(config)
    before = {path.name for path in (config.folder / "rounds").iterdir()}
    api.erase(config, Selection("subject", subject="p2"))
    api.erase(config, Selection("client", client="home 1"))
    drained = drain(config)
    assert drained["verified"]
    assert {receipt["level"] for receipt in drained["receipts"]} == {"L5"}
    never = put(tmp_path / "never", table[(table.person != "p2") & (table.home != "home 1")], text)
    assert train(never)["state_digest"] == drained["state_digest"]
    after = {path.name for path in (config.folder / "rounds").iterdir()}
    assert not before & after  # everybody lost something: nothing of before is kept
    assert after == {path.name for path in (never.folder / "rounds").iterdir()}


def test_finetuning_closes_no_request(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, by_rounds('method = "finetune"\n'))
    train(config)
    before = load_state(config.folder / "state.safetensors")
    api.erase(config, Selection("subject", subject="p2"))
    run = CliRunner().invoke(main, ["drain", str(config.file), "--address", "local"])
    assert run.exit_code == 1
    assert 'set model.method = "replay"' in run.output
    after = load_state(config.folder / "state.safetensors")
    assert before is not None
    assert after is not None
    assert before.digest != after.digest
    assert (
        after.digest != train(put(tmp_path / "never", table[table.person != "p2"], config_text(config)))["state_digest"]
    )
    assert not list((config.folder / "rounds").iterdir())


def config_text(config: Config) -> str:
    return config.file.read_text().partition("\n[store]")[0]


def test_replay_begins_where_nobody_who_lost_records_had_taken_part(tmp_path: Path) -> None:
    table = homes(clients=6, days=200)
    config = put(
        tmp_path / "homes",
        table,
        by_rounds('participation = 0.34\nschedule = "cohorts"\n').replace("rounds = 4", "rounds = 6"),
    )
    train(config)
    names = sorted(path.name for path in (config.folder / "rounds").iterdir())
    method = method_of(config.bare())
    turns = method.apply(hosted(config, 6), method.init(), None).took_part
    late = max(turns, key=lambda name: (int(turns[name], 16) & -int(turns[name], 16), name))
    first = (int(turns[late], 16) & -int(turns[late], 16)).bit_length() - 1
    assert first >= 2
    record = table[(table.home == late) & (table.ts < "2025-05-01")].record.iloc[0]
    api.erase(config, Selection("records", records=(record,)))
    drained = drain(config)
    assert drained["verified"]
    after = sorted(path.name for path in (config.folder / "rounds").iterdir())
    assert after[:first] == names[:first]
    assert not set(after[first:]) & set(names)
    assert drained["state_digest"] == rebuilt(config, 2)


def test_a_checkpoint_of_other_records_is_found_by_the_proof(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, by_rounds())
    train(config)
    kept = next((config.folder / "rounds").iterdir())
    (kept.parent / f"000001-{'0' * 64}.safetensors").write_bytes(kept.read_bytes())
    with api.Experiment(config, "local") as experiment:
        told = experiment.verify()
    assert not told["verified"]
    assert told["files_that_are_no_shards"] == [f"../rounds/000001-{'0' * 64}.safetensors"]


def test_a_training_that_was_killed_goes_on(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(put(tmp_path / "whole", table, by_rounds()))
    config = put(tmp_path / "killed", table, by_rounds())
    asked: list[int] = []

    prepare = TrainLocally.prepare

    def dies(self: TrainLocally, clients: list) -> None:
        asked.append(self.number)
        if self.number == 2 and asked.count(2) == 1:
            raise KeyboardInterrupt
        prepare(self, clients)

    monkeypatch.setattr(TrainLocally, "prepare", dies)
    with pytest.raises(KeyboardInterrupt):
        train(config)
    assert train(config)["state_digest"] == whole["state_digest"]
    assert asked == [0, 1, 2, 2, 3]


def test_it_stops_where_the_validation_loss_rests(tmp_path: Path, table: pd.DataFrame) -> None:
    text = by_rounds("tolerance = 0.5\n").replace("rounds = 4", "rounds = 30")
    config = put(tmp_path / "homes", table, text)
    told = train(config)
    assert told["rounds"] < 30
    assert rebuilt(config, 2) == told["state_digest"]


def test_predictions_come_from_the_registry(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, by_rounds().replace("rounds = 4", "rounds = 12"))
    train(config)
    out = tmp_path / "out.parquet"
    told = predict(config, tmp_path / "homes" / "homes.parquet", out, interval=0.9)
    found = pd.read_parquet(out)
    assert told["rows"] == len(table)
    judged = ((table.ts >= "2025-05-01") & (table.ts < "2025-06-01")).to_numpy()
    truth = table.load.to_numpy()[judged]
    held = (found.low[judged] <= truth) & (truth <= found.high[judged])
    assert 0.88 < held.mean() < 0.95
    assert np.sqrt(np.mean((found.prediction[judged] - truth) ** 2)) < 0.6


def test_an_update_that_goes_astray_is_left_out_and_named(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The round goes on as if its client had not taken part; where too few are left, nothing does."""
    from frmu.modules.training import Trainer

    some, broken = Trainer._train_some, {"home 2"}

    def astray(self: Trainer, start: dict, places: list, clients: list, number: int) -> object:
        keys = {key_of(name, 0): name for name in broken}
        for found in some(self, start, places, clients, number):
            for at, place in enumerate(found.places):
                if clients[place].key in keys:
                    found.steps[at] = np.nan if number % 2 else 2.0**40
            yield found

    monkeypatch.setattr(Trainer, "_train_some", astray)
    config = put(tmp_path / "homes", table, by_rounds('[attention]\nrule = "size"\n'))
    digest = train(config)["state_digest"]
    assert (
        "Round 0 goes on without updates that went astray (client home 2: its update moves a weight by" in caplog.text
    )
    assert "(client home 2: its update is not a number)" in caplog.text
    assert rebuilt(config, 1) == digest
    broken |= {"home 0"}
    with pytest.raises(FederationError, match=r"round 0: 2 of 4 updates went astray .* lower model\.lr, now 0\.1"):
        train(put(tmp_path / "more", table, by_rounds()))


def test_a_rate_that_is_too_high_is_named(tmp_path: Path, table: pd.DataFrame) -> None:
    with pytest.raises(FederationError, match=r"updates went astray .* lower model\.lr, now 100"):
        train(put(tmp_path / "homes", table, by_rounds("lr = 100\n")))


def test_a_client_that_harms_the_others_counts_for_nothing(tmp_path: Path, table: pd.DataFrame) -> None:
    clean = put(tmp_path / "clean", table, by_rounds())
    train(clean)
    assert {client.attention for client in load_state(clean.folder / "state.safetensors").clients} == {1.0}
    bad = table.home == "home 3"
    table.loc[bad, "load"] = 10.0 - table.load[bad]
    config = put(tmp_path / "attended", table, by_rounds())
    train(config)
    state = load_state(config.folder / "state.safetensors")
    assert state is not None
    by = {client.name: client.attention for client in state.clients}
    assert by == {"home 0": 1.328125, "home 1": 1.328125, "home 2": 1.328125, "home 3": 0.0}
    assert rebuilt(config, 1) == state.digest


def test_curves_by_round_are_in_mlflow_and_lineage_in_the_ledger(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, by_rounds("participation = 0.5\n"))
    seen: list[tuple[str, float, int]] = []
    with api.Experiment(config, "local") as experiment:
        backend = experiment.session.tracker.backend
        apply = backend.apply
        backend.apply = lambda run, op: (  # type: ignore[method-assign]
            seen.extend((key, value, step) for key, value, _, step in op.body.get("entries", ())),
            apply(run, op),
        )
        told = experiment.train()
        [line] = experiment.session.ledger.lines(["trained"])
    curves = {name: [step for key, _, step in seen if key == f"round/{name}"] for name in
              ("validation_loss", "training_loss", "update_norm", "participants", "records_a_second")}  # fmt: skip
    assert set(map(tuple, curves.values())) == {(0, 1, 2, 3)}
    lineage = line.body["rounds"]
    assert (lineage["done"], lineage["from"], lineage["checkpoints"]) == (4, 0, 4)
    assert lineage["checkpoint_bytes"] == sum(path.stat().st_size for path in (config.folder / "rounds").iterdir())
    took_part = [sum(int(bits, 16) >> t & 1 for bits in lineage["took_part"].values()) for t in range(4)]
    assert took_part == [value for key, value, _ in seen if key == "round/participants"]
    assert told["rounds"] == 4


def test_a_client_that_is_lost_was_never_there(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had taken part in two rounds: these are trained again without it."""
    run, asked = LocalFederation.run, []

    def loses(self: LocalFederation, work: object, on: object = None) -> object:
        if isinstance(work, TrainLocally):
            asked.append(work.number)
            if work.number == 2 and "home 1" not in self.away:
                raise ClientsUnavailableError.of({"home 1": "its host died"})
        return run(self, work, on)

    monkeypatch.setattr(LocalFederation, "run", loses)
    told = train(put(tmp_path / "homes", table, by_rounds()))
    assert told["away"] == {"home 1": "its host died"}
    assert asked == [0, 1, 2, 0, 1, 2, 3]
    never = train(put(tmp_path / "never", table[table.home != "home 1"], by_rounds()))
    assert told["state_digest"] == never["state_digest"]


def test_a_round_whose_server_was_lost_begins_again(
    tmp_path: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(put(tmp_path / "whole", table, by_rounds()))
    serve, lost = LocalFederation.serve, []

    def loses(self: LocalFederation, task: object, replies: object = ()) -> object:
        if isinstance(task, StepWeights) and len(lost) < 2:
            lost.append(task)
            raise RoundLostError("a host was lost")
        return serve(self, task, replies)

    monkeypatch.setattr(LocalFederation, "serve", loses)
    assert train(put(tmp_path / "lost", table, by_rounds()))["state_digest"] == whole["state_digest"]
    assert len(lost) == 2


def test_mlflow_loads_it_without_unpickling(tmp_path: Path, table: pd.DataFrame) -> None:
    config = put(tmp_path / "homes", table, by_rounds("", CLASSES))
    train(config)
    found = _load_pyfunc(str(config.folder / "state.safetensors")).predict(table.head(7))
    assert set(found.columns) == {"home", "record", "prediction", "score high", "score low"}
    assert set(found.prediction) <= {"high", "low"}
