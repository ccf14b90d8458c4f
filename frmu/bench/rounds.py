"""Rounds of training at a size, beside what else trains the same: one module, clients of 64 records, one epoch a round.

Interleaved, on the same machine and the same arrays: frmu on Ray, one process that maps the gradient over all clients
(torch.func), and a plain loop of torch, client by client. Seconds are medians over rounds; processor seconds are of the
whole tree of processes, Ray's own among them.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil

from frmu.bench.images import config_of_images, mnist, table_of_images
from frmu.clients.tasks.importing import CommitShard, DescribeShard, StageShard
from frmu.config import Config, load
from frmu.data.sites import SiteLocation
from frmu.federation import Federation
from frmu.methods.choice import method_of
from frmu.methods.rounds import schedule_of
from frmu.report.figures import measure
from frmu.runtime.local import LocalFederation

__all__ = ["bench_images", "bench_replay", "bench_rounds"]

COLUMNS, SAMPLES, CLASSES = 64, 64, 10
WARM = 2  # rounds that are not counted
MODEL = 'kind = "rounds"\nmodule = "mlp"\nwidths = [64]\nbatch = 32\nlr = 0.1\n'
SPLIT = "validation = 1e-9\nlater = 1e-9\ntest = 1e-9"  # every record is fitted


def bench_rounds(sizes: Sequence[int], rounds: int, address: str | None) -> dict[str, Any]:
    """Seconds, processor seconds and memory of a round at each number of clients."""
    rows = []
    for clients in sizes:
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            config = _task(Path(folder), clients, rounds)
            ways = (
                _by_frmu(config, clients, address),
                _by_torch(config, clients, True),
                _by_torch(config, clients, False),
            )
            rows += [{"clients": clients, **way} for way in ways]
    return {"rounds": rounds, "rows": rows}


def _task(folder: Path, clients: int, rounds: int) -> Config:
    """A config over clients with `SAMPLES` records each of random columns, and labels that follow from them."""
    rng = np.random.default_rng(0)
    n = clients * SAMPLES
    X = rng.uniform(-1.0, 1.0, (n, COLUMNS)).astype(np.float32)
    labels = np.argmax(X @ rng.normal(size=(COLUMNS, CLASSES)), axis=1).astype(str)
    names = [f"x{at:02d}" for at in range(COLUMNS)]
    table = pd.DataFrame(X, columns=names)
    table.insert(0, "client", np.repeat([f"c{at:05d}" for at in range(clients)], SAMPLES))
    table.insert(1, "record", [f"r{at:07d}" for at in range(n)])
    table.insert(2, "label", labels)
    table.to_parquet(folder / "data.parquet", index=False)
    text = config_of_images(names, 1.0, SPLIT, f"{MODEL}rounds = {rounds}\n")
    (folder / "config.toml").write_text(text)
    return load(folder / "config.toml")


def _federation(config: Config, names: Sequence[str], address: str | None) -> Federation:
    folder = config.file.parent / "shards"
    folder.mkdir(exist_ok=True)
    if address == "local":
        return LocalFederation(config, names, folder)
    from frmu.runtime.ray import RayFederation

    places = {name: SiteLocation("", config, folder) for name in names}
    return RayFederation(config, places, dict.fromkeys(names, SAMPLES))


def _connected(address: str | None) -> Any:
    if address == "local":
        return nullcontext()
    from frmu.runtime.connect import cluster

    return cluster(address)


def _imported(federation: Federation) -> None:
    list(federation.run(StageShard({}, b"bench")))
    list(federation.run(CommitShard(True)))


def _by_frmu(config: Config, clients: int, address: str | None) -> dict[str, Any]:
    names = [f"c{at:05d}" for at in range(clients)]
    with _connected(address):
        federation = _federation(config, names, address)
        try:
            _imported(federation)
            method = method_of(config)
            one = config.model_copy(update={"model": config.model.model_copy(update={"rounds": WARM})})
            method_of(one).apply(federation, method.init(), None)  # imports torch, reads shards
            held, before = _memory(), _processor()
            done = method.apply(federation, method.init(), None)
            spent = _processor() - before
            grown = _memory() - held
        finally:
            federation.close()
    seconds = [figures["seconds"] for figures in done.history]
    return {
        "way": "frmu" if address != "local" else "frmu, in process", "seconds": statistics.median(seconds),
        "cpu": spent / len(seconds), "memory": held, "grown": grown, "loss": done.history[-1]["training_loss"],
    }  # fmt: skip


def _by_torch(config: Config, clients: int, mapped: bool) -> dict[str, Any]:
    """One process: the gradient mapped over all clients, or client by client with torch's own optimizer."""
    import torch

    table = pd.read_parquet(config.source)
    X = table[[f"x{at:02d}" for at in range(COLUMNS)]].to_numpy(np.float32).reshape(clients, SAMPLES, COLUMNS)
    y = table["label"].to_numpy().astype(np.int64).reshape(clients, SAMPLES)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(COLUMNS, 64), torch.nn.ReLU(), torch.nn.Linear(64, CLASSES))
    weights = {name: value.detach().clone() for name, value in module.named_parameters()}
    way: Callable[..., Mapping[str, Any]] = _mapped if mapped else _looped
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds, cpu = [], []
        for number in range(config.model.rounds + WARM):
            if not mapped and clients > 1_000 and number > WARM:  # seconds each: a few are enough
                break
            began, before = time.perf_counter(), time.process_time()
            weights = dict(way(module, weights, torch.tensor(X), torch.tensor(y), config.model.batch, config.model.lr))
            if number >= WARM or (not mapped and clients > 1_000):
                seconds.append(time.perf_counter() - began)
                cpu.append(time.process_time() - before)
    finally:
        torch.set_num_threads(threads)
    return {
        "way": "torch.func, one process" if mapped else "loop of torch, one process",
        "seconds": statistics.median(seconds), "cpu": statistics.median(cpu), "memory": None, "grown": None,
        "loss": None,
    }  # fmt: skip


def _mapped(module: Any, weights: Mapping[str, Any], X: Any, y: Any, batch: int, lr: float) -> Mapping[str, Any]:
    import torch
    from torch.func import functional_call, grad, vmap

    def loss(params: Mapping[str, Any], x: Any, t: Any) -> Any:
        return torch.nn.functional.cross_entropy(functional_call(module, dict(params), (x,)), t)

    params = {name: value.expand(len(X), *value.shape).clone() for name, value in weights.items()}
    step = vmap(grad(loss))
    for at in range(0, X.shape[1], batch):
        slopes = step(params, X[:, at : at + batch], y[:, at : at + batch])
        params = {name: value - lr * slopes[name] for name, value in params.items()}
    return {name: value.mean(0) for name, value in params.items()}


def _looped(module: Any, weights: Mapping[str, Any], X: Any, y: Any, batch: int, lr: float) -> Mapping[str, Any]:
    import torch

    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for x, t in zip(X, y, strict=True):
        with torch.no_grad():
            for name, value in module.named_parameters():
                value.copy_(weights[name])
        for at in range(0, len(x), batch):
            module.zero_grad()
            torch.nn.functional.cross_entropy(module(x[at : at + batch]), t[at : at + batch]).backward()
            with torch.no_grad():
                for value in module.parameters():
                    value -= lr * value.grad
        for name, value in module.named_parameters():
            total[name] += value.detach()
    return {name: value / len(X) for name, value in total.items()}


def _tree() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def _processor() -> float:
    """Processor seconds of this process and all below it, those that ended among them."""
    total = 0.0
    for one in _tree():
        try:
            times = one.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def _memory() -> int:
    """Bytes that this process and all below it have for themselves alone."""
    total = 0
    for one in _tree():
        try:
            total += one.memory_full_info().uss
        except psutil.Error:
            continue
    return total


# -- erasing --------------------------------------------------------------------------------------------------


def bench_replay(clients: int, rounds: int) -> dict[str, Any]:
    """The samples that replay trains on beside retraining, by client, where each takes part in a tenth of the rounds.

    For one client of each cohort the state is made both ways, and the digests are compared.
    """
    rows = []
    for schedule in ("random", "cohorts"):
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            rows.append(_replayed(Path(folder), clients, rounds, schedule))
    return {"clients": clients, "rounds": rounds, "rows": rows}


def _replayed(folder: Path, clients: int, rounds: int, schedule: str) -> dict[str, Any]:
    from frmu.storage.rounds import Checkpoints

    config = _task(folder, clients, rounds)
    model = config.model.model_copy(update={"participation": 0.1, "schedule": schedule})
    config = config.model_copy(update={"model": model})
    names = [f"c{at:05d}" for at in range(clients)]
    federation = _federation(config, names, "local")
    _imported(federation)
    kept = Checkpoints(folder / "rounds")
    method_of(config, kept).apply(federation, method_of(config).init(), None)
    plan = schedule_of(config, federation.run(DescribeShard()))
    took = [plan.participants(number) for number in range(rounds)]
    turns = {name: bits for name, bits in plan.turns(rounds).items() if bits}
    shares = []
    for bits in turns.values():
        first, own = (bits & -bits).bit_length() - 1, bits.bit_count()
        shares.append((sum(map(len, took[first:])) - own) / (sum(map(len, took)) - own))
    late = [name for name, bits in turns.items() if not bits & 1]
    tried = late[:: max(1, len(late) // 3)]
    equal = all(_both_ways(config, federation, kept, names, name) for name in tried)
    return {
        "schedule": schedule, "mean": float(np.mean(shares)), "median": float(np.median(shares)),
        "half": float(np.mean(np.array(shares) <= 0.5)), "tried": len(tried), "equal": equal,
        "checkpoint_bytes": kept.nbytes,
    }  # fmt: skip


def _both_ways(config: Config, federation: Federation, kept: Any, names: Sequence[str], gone: str) -> bool:
    """The digests of a federation without a client, from a checkpoint and from nothing, are equal."""
    import shutil

    copy = type(kept)(kept.folder.parent / "copy")
    shutil.rmtree(copy.folder, ignore_errors=True)
    shutil.copytree(kept.folder, copy.folder)
    rest = _federation(config, [name for name in names if name != gone], "local")
    states = [method_of(config, some).apply(rest, method_of(config).init(), None) for some in (copy, None)]
    return states[0].state.digest == states[1].state.digest and states[0].begun > 0


# -- what is learned ------------------------------------------------------------------------------------------


def bench_images(cache: Path, rounds: int, module: str = "cnn") -> dict[str, Any]:
    """5,000 digits at ten sites, by rounds, beside the same module on all records in one place at equal samples."""
    images = mnist(cache)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(images.labels))
    rows = {}
    for where, clients in (("ten sites", 10), ("one place", 1)):
        with tempfile.TemporaryDirectory(prefix="frmu-") as folder:
            owner = np.array([f"c{at % clients}" for at in range(len(order))])
            table = table_of_images(images.pixels[order], owner, order, images.labels[order])
            table.to_parquet(Path(folder) / "data.parquet", index=False)
            side = images.side
            model = (
                f'kind = "rounds"\nmodule = "{module}"\nshape = [1, {side}, {side}]\nwidths = [8, 16]\nlr = 0.1\n'
                f"batch = 32\nrounds = {rounds}\n"
            )
            names = [name for name in table.columns if name not in ("client", "record", "label")]
            text = config_of_images(names, 1.0, "validation = 1e-9\nlater = 1e-9\ntest = 0.2", model)
            (Path(folder) / "config.toml").write_text(text)
            config = load(Path(folder) / "config.toml")
            federation = _federation(config, sorted(set(owner)), "local")
            _imported(federation)
            done = method_of(config).apply(federation, method_of(config).init(), None)
            rows[where] = measure(federation, done)["test_accuracy"]
    return {"rounds": rounds, "module": module, "rows": rows}
