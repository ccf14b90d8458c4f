"""The modules that ship. Each is called with the columns of every modality, (n, columns), and gives (n, outputs).

mlp      layers of relu over all columns side by side cnn      two convolutions of 3 x 3 with relu and maxima of 2 x 2,
then a layer (LeCun et al., Proc. IEEE 1998) resnet8  three residual blocks with group norm, for small pictures (He et
al., CVPR 2016; Wu and He, ECCV 2018) tcn      dilated causal convolutions with residuals, for series (Bai et al., arXiv
1803.01271) fusion   a layer a modality, and attention between them, by which one that is missing is passed over
(Vaswani et al., 2017)

None has batch norm, whose running means would mix the clients, or draws random numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn

from frmu.modules.spec import ModuleSpec

__all__ = ["NETWORKS"]


class _Mlp(nn.Module):
    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__()
        sizes = [sum(spec.columns), *spec.widths]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], spec.outputs)

    def forward(self, *modalities: Tensor) -> Tensor:
        x = torch.cat(modalities, dim=1) if len(modalities) > 1 else modalities[0]
        for layer in self.hidden:
            x = torch.relu(layer(x))
        out: Tensor = self.out(x)
        return out


class _Shaped(nn.Module):
    """Something over one modality in its shape, and a layer over what it gives beside the other columns."""

    def __init__(self, spec: ModuleSpec, body: nn.Module, features: int) -> None:
        super().__init__()
        self.shape, self.at = tuple(spec.shape or ()), spec.imaged
        self.size = math.prod(self.shape)
        self.body = body
        self.out = nn.Linear(features + sum(spec.columns) - self.size, spec.outputs)

    def forward(self, *modalities: Tensor) -> Tensor:
        own = modalities[self.at]
        rest = [own[:, self.size :], *(x for at, x in enumerate(modalities) if at != self.at)]
        seen = self.body(own[:, : self.size].reshape(-1, *self.shape)).flatten(1)
        out: Tensor = self.out(torch.cat([seen, *rest], dim=1))
        return out


def _cnn(spec: ModuleSpec) -> nn.Module:
    channels, height, width = spec.shape or (1, 1, 1)
    a, b = (*spec.widths, 8, 16)[:2] if len(spec.widths) >= 2 else (8, 16)
    body = nn.Sequential(
        nn.Conv2d(channels, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    )  # fmt: skip
    return _Shaped(spec, body, b * (height // 4) * (width // 4))


class _Residual(nn.Module):
    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(8, b), b) for _ in range(2))
        self.short = nn.Conv2d(a, b, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.norms[0](self.first(x)))
        return torch.relu(self.norms[1](self.second(inner)) + self.short(x))


def _resnet8(spec: ModuleSpec) -> nn.Module:
    channels = (spec.shape or (1, 1, 1))[0]
    body = nn.Sequential(
        nn.Conv2d(channels, 16, 3, padding=1, bias=False), nn.GroupNorm(8, 16), nn.ReLU(),
        _Residual(16, 16, 1), _Residual(16, 32, 2), _Residual(32, 64, 2), nn.AdaptiveAvgPool2d(1),
    )  # fmt: skip
    return _Shaped(spec, body, 64)


class _Causal(nn.Module):
    def __init__(self, a: int, b: int, dilation: int) -> None:
        super().__init__()
        self.past = 2 * dilation
        self.conv = nn.Conv1d(a, b, 3, dilation=dilation)
        self.short = nn.Conv1d(a, b, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(nn.functional.pad(x, (self.past, 0)))) + self.short(x)


class _Last(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1]


def _tcn(spec: ModuleSpec) -> nn.Module:
    sizes = [(spec.shape or (1, 1))[0], *spec.widths]
    blocks = [_Causal(a, b, 2**at) for at, (a, b) in enumerate(pairwise(sizes))]
    return _Shaped(spec, nn.Sequential(*blocks, _Last()), sizes[-1])


class _Fusion(nn.Module):
    """A token a modality; a query that is learned attends to those that are there."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__()
        width = spec.widths[-1]
        self.optional = len(spec.columns) > 1  # then the last column of a modality is whether it is there
        self.tokens = nn.ModuleList(nn.Linear(own, width) for own in spec.columns)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.out = nn.Linear(width, spec.outputs)

    def forward(self, *modalities: Tensor) -> Tensor:
        tokens = torch.stack([torch.relu(layer(x)) for layer, x in zip(self.tokens, modalities, strict=True)], dim=1)
        weight = (self.key(tokens) * self.query).sum(-1) / math.sqrt(self.query.shape[0])
        if self.optional:
            there = torch.stack([x[:, -1] for x in modalities], dim=1)
            weight = weight - 1e4 * (1.0 - there)
        seen = (torch.softmax(weight, dim=1)[:, :, None] * self.value(tokens)).sum(1)
        out: Tensor = self.out(torch.relu(seen))
        return out


NETWORKS: Mapping[str, Callable[[ModuleSpec], nn.Module]] = {
    "mlp": _Mlp, "cnn": _cnn, "resnet8": _resnet8, "tcn": _tcn, "fusion": _Fusion,
}  # fmt: skip
