"""Local training: clients in one call are each as if alone, to the last bit, and as in a plain loop of torch."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.modules.build import build, initial_weights
from frmu.modules.order import orders
from frmu.modules.spec import ModuleSpec
from frmu.modules.training import STEPS, Records, Trainer, trainer

MLP = ModuleSpec(
    module="mlp", columns=(5, 3), outputs=3, classes=True, seed=0, widths=(7,), shape=None, epochs=2, batch=4, lr=0.2,
    proximal=0.0, precision="float32",
)  # fmt: skip
KINDS = {
    "classes": MLP,
    "regression": replace(MLP, outputs=1, classes=False),
    "prox": replace(MLP, proximal=0.5),
    "double": replace(MLP, precision="float64"),
    "fusion": replace(MLP, module="fusion"),
    "cnn": replace(MLP, module="cnn", columns=(64, 3), shape=(1, 8, 8), widths=(4, 4), epochs=1),
    "tcn": replace(MLP, module="tcn", columns=(12, 3), shape=(3, 4), epochs=1),
}
UNBATCHED = b"""
import torch
class Odd(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 3)
    def forward(self, a, b):
        out = self.layer(torch.cat([a, b], 1))
        return out * 1.0 if out.sum().item() == out.sum().item() else out
def module(columns, outputs):
    return Odd()
"""


def records(spec: ModuleSpec, sizes: list[int], seed: int = 0) -> list[Records]:
    rng = np.random.default_rng(seed)
    found = []
    for key, n in enumerate(sizes):
        X = tuple(rng.uniform(-1, 1, (n, own)).astype(spec.precision) for own in spec.columns)
        y = rng.integers(0, 3, n) if spec.classes else rng.uniform(-1, 1, (n, spec.outputs)).astype(spec.precision)
        found.append(Records(X, y, rng.integers(1, 4, n).astype(spec.precision), 17 * key + seed))
    return found


def updates(work: Trainer, weights: dict, some: list[Records], most: int | str = "auto") -> np.ndarray:
    found = np.zeros((len(some), sum(value.size for value in weights.values())))
    for part in work.train(weights, some, 3, most):
        found[part.places] = part.steps
    return found


def by_a_loop(spec: ModuleSpec, weights: dict, one: Records) -> np.ndarray:
    """One client by torch's own optimizer, batch by batch, nothing padded, masked or mapped."""
    module = build(spec)
    with torch.no_grad():
        for name, value in module.named_parameters():
            value.copy_(torch.tensor(weights[name]))
    step = torch.optim.SGD(module.parameters(), lr=spec.lr)
    for epoch in range(spec.epochs):
        order = orders([one.key], [len(one)], 3, epoch, len(one))[0]
        for at in range(0, len(one), spec.batch):
            rows = order[at : at + spec.batch]
            out = module(*(torch.tensor(x[rows]) for x in one.X))
            y, w = torch.tensor(one.y[rows]), torch.tensor(one.weights[rows])
            each = (
                torch.nn.functional.cross_entropy(out, y, reduction="none")
                if spec.classes
                else ((out - y) ** 2).mean(1)
            )
            loss = (each * w).sum() / w.sum()
            for name, value in module.named_parameters():
                loss = loss + spec.proximal / 2 * ((value - torch.tensor(weights[name])) ** 2).sum()
            step.zero_grad()
            loss.backward()
            step.step()
    after = dict(module.named_parameters())
    return np.concatenate([(after[n].detach().numpy() - weights[n]).reshape(-1) for n in sorted(weights)])


@pytest.mark.parametrize("name", KINDS)
def test_a_call_gives_what_a_loop_of_torch_gives(name: str) -> None:
    spec = replace(KINDS[name], precision="float64")
    weights, some = initial_weights(spec), records(spec, [9, 4, 1, 6])
    found = updates(Trainer(spec), weights, some) / STEPS
    assert np.allclose(found, [by_a_loop(spec, weights, one) for one in some], rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_the_bits_of_a_client_are_its_own(name: str) -> None:
    spec = KINDS[name]
    work, weights = trainer(spec), initial_weights(spec)
    some = records(spec, [9, 4, 1, 6, 8, 8, 3, 12, 5, 5, 2, 7] * (1 if name in ("cnn", "tcn") else 8))
    whole = updates(work, weights, some)
    for most in (1, 2, 5, 64):
        assert updates(work, weights, some, most).tobytes() == whole.tobytes()
    alone = np.concatenate([updates(work, weights, [one]) for one in some[:12]])
    assert alone.tobytes() == whole[:12].tobytes()
    assert updates(work, weights, some[::-1])[::-1].tobytes() == whole.tobytes()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 11), min_size=1, max_size=12), st.integers(0, 99), st.integers(1, 12))
def test_whoever_trains_beside_it(sizes: list[int], seed: int, most: int) -> None:
    some = records(MLP, sizes, seed)
    weights = initial_weights(MLP)
    together = updates(trainer(MLP), weights, some, most)
    assert together.tobytes() == np.concatenate([updates(trainer(MLP), weights, [one]) for one in some]).tobytes()


def test_what_cannot_be_mapped_trains_one_by_one_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    spec = replace(MLP, module="own.py:module", code=UNBATCHED)
    work = Trainer(spec)
    some, weights = records(spec, [5, 6]), initial_weights(spec)
    with caplog.at_level(logging.WARNING):
        found = updates(work, weights, some)
    assert "clients train one at a time: it cannot be vectorised" in caplog.text
    double = replace(spec, precision="float64")
    wanted = [
        by_a_loop(double, {k: v.astype(float) for k, v in weights.items()}, one) for one in records(double, [5, 6])
    ]
    assert np.allclose(found / STEPS, wanted, atol=1e-5)


def test_out_of_memory_is_half_as_many_clients(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work, weights, some = Trainer(MLP), initial_weights(MLP), records(MLP, [4] * 8)
    whole, call = updates(work, weights, some), work._train_call

    def small(start: dict, clients: list, number: int) -> object:
        if len(clients) > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return call(start, clients, number)

    monkeypatch.setattr(work, "_train_call", small)
    with caplog.at_level(logging.WARNING):
        assert updates(work, weights, some).tobytes() == whole.tobytes()
    assert "set model.clients_per_call" in caplog.text


def test_predictions_and_losses_are_those_of_the_module() -> None:
    spec = replace(MLP, precision="float64")
    weights, [one] = initial_weights(spec), records(spec, [11])
    out = trainer(spec).predict(weights, one.X)
    wanted = build(spec)(*(torch.tensor(x) for x in one.X)).detach()
    assert np.allclose(out, wanted.numpy())
    losses = torch.nn.functional.cross_entropy(wanted, torch.tensor(one.y), reduction="none") * torch.tensor(
        one.weights
    )
    assert trainer(spec).losses([weights], [one])[0] == pytest.approx([float(losses.sum())])
    assert trainer(spec).predict(weights, [x[:0] for x in one.X]).shape == (0, 3)
