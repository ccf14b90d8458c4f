"""Local training: the updates of many clients in one call, and each to the last bit as if it had been alone.

Clients that share a process train together: the gradient of one client is mapped over all of them (torch.func: vmap of
grad of functional_call), over batches of one size, in which rows that are not there are masked. Whether the bits of a
client then depend on who trains beside it is not a law of torch, so a module is asked first, on records drawn at
random; where they do, as with convolutions, clients train one after the other, and that is said. The price is small: a
processor gains nothing from convolutions that are batched over clients.

The order of records is a hash of client, round, epoch and place: it depends on nobody else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import functional_call, grad, vmap

from frmu.modules.build import DTYPES, build, on_one_thread
from frmu.modules.order import orders
from frmu.modules.spec import STEPS, ModuleSpec

__all__ = ["Records", "Trainer", "Updates", "trainer"]

_log = logging.getLogger(__name__)
BYTES = 1 << 28  # of records and weights that are in one call
MOST = 512  # clients a call
Params = dict[str, Tensor]
_CONVOLUTIONS = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)


@dataclass(frozen=True, slots=True)
class Records:
    """Some records of a client: columns of each modality, (n, columns), targets, and how often each counts, (n,).

    Targets are (n, outputs) of a regression, in [-1, 1] of their ranges, and (n,) places of classes otherwise. `key` is
    a number of the client's own.
    """

    X: tuple[NDArray[Any], ...] = field(repr=False)
    y: NDArray[Any] = field(repr=False)
    weights: NDArray[Any] = field(repr=False)
    key: int = 0

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Updates:
    """The updates of some clients, by their places in the list that was given.

    `steps` (clients, weights) are by how much each weight changed, in whole steps of 1 / `STEPS`, float64, the weights
    one after the other in the order of their names; NaN or infinite where training went astray. `losses` (clients,) are
    the mean losses of their batches as they trained.
    """

    places: list[int]
    steps: NDArray[np.float64] = field(repr=False)
    losses: NDArray[np.float64] = field(repr=False)


@lru_cache(maxsize=8)
def trainer(spec: ModuleSpec) -> Trainer:
    """The trainer of a module, built once in a process; raises `ConfigError` as `frmu.modules.build.build`."""
    return Trainer(spec)


class Trainer:
    """A module at work; all calls are on one thread."""

    def __init__(self, spec: ModuleSpec) -> None:
        self.spec = spec
        self.device = torch.device(_device(spec.device))
        self.module = build(spec).to(self.device)
        self.names = sorted(name for name, _ in self.module.named_parameters())
        self._gradient = grad(self._loss, has_aux=True)

    @cached_property
    def together(self) -> str:
        """Return why clients are not trained in one call; empty where they are."""
        if self.device.type == "cpu" and any(isinstance(one, _CONVOLUTIONS) for one in self.module.modules()):
            return "a processor gains nothing from convolutions that are batched over clients"
        with on_one_thread():
            try:
                return (
                    ""
                    if self._steady()
                    else ("the last bits of an update depend on how many clients train in one call")
                )
            except RuntimeError as error:
                return f"it cannot be vectorised ({str(error).splitlines()[0]})"

    # -- training ---------------------------------------------------------------------------------------------

    def train(
        self, weights: Mapping[str, NDArray[Any]], clients: Sequence[Records], number: int, most: int | str = "auto"
    ) -> Iterator[Updates]:
        """Train each client from the weights over its records, in round `number`; at most so many in one call."""
        if self.together:
            _said(f"clients train one at a time: {self.together}")
        start = self._tensors(weights)
        for some in self._calls([len(one) for one in clients], most):
            with on_one_thread():
                yield from self._train_some(start, some, clients, number)

    def _calls(self, sizes: Sequence[int], most: int | str) -> list[list[int]]:
        """The clients that train in one call: those with about as many records, as many as memory holds."""
        order = sorted(range(len(sizes)), key=lambda at: sizes[at])
        if self.together:
            return [[at] for at in order]
        limit = MOST if isinstance(most, str) else most
        row = (sum(self.spec.columns) + self.spec.outputs) * 8
        model = sum(value.numel() for value in self.module.parameters()) * 8 * 4
        calls: list[list[int]] = []
        for at in order:
            each = sizes[at] * row + model  # the greatest so far
            if not calls or len(calls[-1]) >= limit or (len(calls[-1]) + 1) * each > BYTES:
                calls.append([])
            calls[-1].append(at)
        return calls

    def _train_some(self, start: Params, some: list[int], clients: Sequence[Records], number: int) -> Iterator[Updates]:
        try:
            found = [Updates(some, *self._train_call(start, [clients[at] for at in some], number))]
        except (RuntimeError, MemoryError) as error:
            if len(some) < 2 or "memory" not in str(error).lower():
                raise
            _said(f"out of memory with {len(some)} clients in one call: half as many; set model.clients_per_call")
            half = len(some) // 2
            parts = (self._train_some(start, part, clients, number) for part in (some[:half], some[half:]))
            found = [one for part in parts for one in part]
        yield from found

    def _train_call(
        self, start: Params, clients: Sequence[Records], number: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        spec, real = self.spec, len(clients)
        if real == 1 and not self.together:
            clients = [clients[0], clients[0]]  # a call of one takes other kernels
        X, y, w = self._stacked(clients)
        n = torch.tensor([len(one) for one in clients], device=self.device)
        params = {name: value.expand(len(clients), *value.shape).clone() for name, value in start.items()}
        lost = torch.zeros(len(clients), dtype=torch.float64)
        steps = -(-max(len(one) for one in clients) // spec.batch)
        for epoch in range(spec.epochs):
            order = torch.as_tensor(_orders(clients, number, epoch, steps * spec.batch), device=self.device)
            for step in range(steps):
                rows = order[:, step * spec.batch : (step + 1) * spec.batch]
                there = torch.arange(step * spec.batch, (step + 1) * spec.batch, device=self.device) < n[:, None]
                lost += self._step(params, start, X, y, w, rows, there)
        moved = [(params[name] - start[name]).reshape(len(clients), -1) for name in self.names]
        whole = torch.cat(moved, dim=1).to("cpu", torch.float64).mul_(STEPS).round_()
        mean = lost / (n.to("cpu", torch.float64) * spec.epochs).clamp(min=1.0)
        return whole[:real].numpy(), mean[:real].numpy()

    def _step(
        self, params: Params, start: Params, X: list[Tensor], y: Tensor, w: Tensor, rows: Tensor, there: Tensor
    ) -> Tensor:
        """One step of every client that has rows left, in place; the sum of the losses of its rows, (clients,)."""
        at = torch.arange(len(rows), device=self.device)[:, None]
        mask = torch.where(there, w[at, rows], 0.0)
        batch = ([x[at, rows] for x in X], y[at, rows], mask)
        if self.together:
            slope, total = self._gradient({k: v[0] for k, v in params.items()}, *(_first(part) for part in batch))
            slopes, totals = {k: v[None] for k, v in slope.items()}, total[None]
        else:
            slopes, totals = vmap(self._gradient, in_dims=(0, 0, 0, 0), randomness="error")(params, *batch)
        active = there[:, 0]
        everybody = bool(active.all())
        for name, value in params.items():
            move = slopes[name]
            if self.spec.proximal:
                move = move + self.spec.proximal * (value - start[name])
            move = move * self.spec.lr
            if not everybody:  # who has no rows left stays where it is
                move = torch.where(active.reshape(-1, *[1] * (value.dim() - 1)), move, 0.0)
            value.sub_(move)
        return totals.detach().to("cpu", torch.float64)

    def _loss(self, params: Params, X: list[Tensor], y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of the rows that are there, and its sum."""
        each = self._losses(params, X, y)
        whole = torch.where(mask > 0, each * mask, 0.0).sum()
        return whole / mask.sum().clamp(min=1.0), whole

    def _losses(self, params: Params, X: list[Tensor], y: Tensor) -> Tensor:
        """The loss of each row, (rows,): squared errors, or the cross entropy of its class."""
        out = functional_call(self.module, params, tuple(X))
        if self.spec.classes:
            return -torch.log_softmax(out, dim=1).gather(1, y[:, None])[:, 0]
        return ((out - y) ** 2).mean(dim=1)

    # -- losses and predictions -------------------------------------------------------------------------------

    def losses(self, weights: Sequence[Mapping[str, NDArray[Any]]], clients: Sequence[Records]) -> NDArray[np.float64]:
        """The sum of the losses of each client's records under each of some weights, (clients, weights).

        Calls are of one size, and of one client's rows.
        """
        found = np.zeros((len(clients), len(weights)))
        with on_one_thread(), torch.no_grad():
            models = [self._tensors(one) for one in weights]
            for at, records in enumerate(clients):
                for X, y, w in self._chunks(records):
                    for place, params in enumerate(models):
                        each = self._losses(params, X, y).to(torch.float64)
                        found[at, place] += float(torch.where(w > 0, each * w, 0.0).sum())
        return found

    def predict(self, weights: Mapping[str, NDArray[Any]], X: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
        """Return what the module gives for records, (n, outputs)."""
        rows = len(X[0])
        records = Records(tuple(X), np.zeros((rows, self.spec.outputs)), np.ones(rows))
        with on_one_thread(), torch.no_grad():
            params = self._tensors(weights)
            parts = [functional_call(self.module, params, tuple(x)).to(torch.float64).cpu().numpy()
                     for x, _, _ in self._chunks(records, labels=False)]  # fmt: skip
        return np.concatenate(parts)[:rows] if parts else np.zeros((0, self.spec.outputs))

    def _chunks(self, records: Records, labels: bool = True) -> list[tuple[list[Tensor], Tensor, Tensor]]:
        """Rows in calls of one size, the last filled up with rows that do not count."""
        size, found = max(2, self.spec.batch, 512 if len(records) > 512 else 0), []
        for at in range(0, len(records), size):
            n = min(size, len(records) - at)
            fill = [(0, size - n), (0, 0)]
            X = [self._float(np.pad(x[at : at + n], fill)) for x in records.X]
            y = np.pad(records.y[at : at + n], fill[: records.y.ndim])
            w = self._float(np.pad(records.weights[at : at + n], fill[:1]))
            found.append((X, self._target(y) if labels else w, w))
        return found

    # -- tensors ----------------------------------------------------------------------------------------------

    def _stacked(self, clients: Sequence[Records]) -> tuple[list[Tensor], Tensor, Tensor]:
        """The records of clients side by side, (clients, rows, ...), filled up with zeros; a row at least."""
        most = max(1, *(len(one) for one in clients))

        def stack(parts: Sequence[NDArray[Any]], dtype: Any) -> NDArray[Any]:
            whole = np.zeros((len(parts), most, *parts[0].shape[1:]), dtype=dtype)
            for at, part in enumerate(parts):
                whole[at, : len(part)] = part
            return whole

        kind = np.dtype(self.spec.precision)
        X = [self._float(stack([one.X[m] for one in clients], kind)) for m in range(len(self.spec.columns))]
        y = self._target(stack([one.y for one in clients], np.int64 if self.spec.classes else kind))
        return X, y, self._float(stack([one.weights for one in clients], kind))

    def _tensors(self, weights: Mapping[str, NDArray[Any]]) -> Params:
        return {name: torch.tensor(weights[name], dtype=DTYPES[self.spec.precision], device=self.device)
                for name in self.names}  # fmt: skip

    def _float(self, values: NDArray[Any]) -> Tensor:
        return torch.as_tensor(values, dtype=DTYPES[self.spec.precision], device=self.device)

    def _target(self, y: NDArray[Any]) -> Tensor:
        return torch.as_tensor(y, dtype=torch.int64, device=self.device) if self.spec.classes else self._float(y)

    def _steady(self) -> bool:
        """Tell if clients drawn at random get the same bits alone, with one other, with a few, and with many."""
        self.__dict__["together"] = ""  # as if it were so, while it is tried
        try:
            spec, rng = self.spec, np.random.Generator(np.random.PCG64(0))
            sizes = [spec.batch, spec.batch + 1, max(1, spec.batch - 1), 1, 2 * spec.batch, *([spec.batch] * 12)]
            some = [self._drawn(rng, size, key) for key, size in enumerate(sizes)]
            start = self._tensors(
                {name: value.detach().cpu().numpy() for name, value in self.module.named_parameters()}
            )
            whole, _ = self._train_call(start, some, 0)
            tries = [[0], [3], [1, 0], [4, 3, 2], [16, 2, 4, 1, 0], list(range(16, 7, -1))]
            return all(
                self._train_call(start, [some[at] for at in order], 0)[0].tobytes() == whole[order].tobytes()
                for order in tries
            )
        finally:
            del self.__dict__["together"]

    def _drawn(self, rng: np.random.Generator, rows: int, key: int) -> Records:
        spec = self.spec
        X = tuple(rng.uniform(-1.0, 1.0, (rows, own)) for own in spec.columns)
        y = rng.integers(0, spec.outputs, rows) if spec.classes else rng.uniform(-1.0, 1.0, (rows, spec.outputs))
        return Records(X, y, np.ones(rows), key)


def _first(part: Any) -> Any:
    return [one[0] for one in part] if isinstance(part, list) else part[0]


@lru_cache(maxsize=64)
def _said(what: str) -> None:
    """Say it once in a process."""
    _log.warning("%s", what)


def _device(named: str) -> str:
    if named != "auto":
        return named
    return "cuda" if torch.cuda.is_available() else "cpu"


def _orders(clients: Sequence[Records], number: int, epoch: int, rows: int) -> NDArray[np.int64]:
    return orders([one.key for one in clients], [len(one) for one in clients], number, epoch, rows)
