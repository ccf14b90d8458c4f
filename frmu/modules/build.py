"""A module as it is built: drawn from its seed alone, and refused where it could not be trained exactly.

Exact means that the update of a client depends on its records, the weights it was given and the seed, to the last bit.
So a module may not draw random numbers, keep running means, or have weights that come out otherwise when it is built
again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from frmu.errors import ConfigError
from frmu.modules.networks import NETWORKS
from frmu.modules.spec import ModuleSpec

__all__ = ["DTYPES", "build", "initial_weights", "numerics", "on_one_thread"]

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class on_one_thread:  # noqa: N801 - a context, named as `one_thread` is
    """Let torch compute on one thread and by kernels that give the same bits again."""

    def __enter__(self) -> None:
        self._before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        torch.set_num_threads(1)
        torch.use_deterministic_algorithms(True)

    def __exit__(self, *error: object) -> None:
        torch.set_num_threads(self._before[0])
        torch.use_deterministic_algorithms(self._before[1])


@lru_cache(maxsize=8)
def build(spec: ModuleSpec) -> nn.Module:
    """Build a module and look at it; raises `ConfigError` where it cannot be trained exactly."""
    module = _drawn(spec)
    again = _drawn(spec)
    named = dict(module.named_parameters())
    if not named:
        raise _refused(spec, "has no parameters: there is nothing to train")
    for layer, one in module.named_modules():
        if isinstance(one, nn.modules.batchnorm._BatchNorm):
            raise _refused(spec, f'has batch norm ("{layer}"), whose running means mix what must be told apart; use '
                           "torch.nn.GroupNorm")  # fmt: skip
    if any(not torch.equal(p, q) for p, q in zip(named.values(), again.parameters(), strict=True)):
        raise _refused(spec, "has other weights each time it is built: draw them with torch, from its global generator")
    _try(spec, module)
    return module


def initial_weights(spec: ModuleSpec) -> dict[str, NDArray[Any]]:
    """The weights that the seed gives, by name."""
    return {name: value.detach().cpu().numpy().copy() for name, value in sorted(build(spec).named_parameters())}


def numerics() -> str:
    """Return what the last bits of weights depend on: torch, and the vectors that the processor has."""
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"


def _drawn(spec: ModuleSpec) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(spec.seed)
        made = _maker(spec)(spec)
        if not isinstance(made, nn.Module):
            raise _refused(spec, f"gives a {type(made).__name__}, and must give a torch.nn.Module")
        return made.to(DTYPES[spec.precision]).train()


def _maker(spec: ModuleSpec) -> Callable[[ModuleSpec], Any]:
    if spec.module in NETWORKS:
        if spec.shape and spec.module in ("cnn", "resnet8", "tcn") and spec.imaged < 0:
            raise ConfigError(
                f"model.shape = {list(spec.shape)} must hold the scaled columns of one modality, which have "
                f"{', '.join(map(str, spec.columns))}; mend it, or data.modalities"
            )
        return NETWORKS[spec.module]
    name = spec.module.rpartition(":")[2]
    room: dict[str, Any] = {"__name__": "frmu_module"}
    try:
        exec(compile(spec.code, spec.module.rpartition(":")[0], "exec"), room)  # noqa: S102 - allow_code says so
    except Exception as error:  # noqa: BLE001 - it is the user's code
        raise _refused(spec, f"cannot be run: {error!r}") from None
    if not callable(room.get(name)):
        raise _refused(spec, f'defines no function "{name}"')

    def own(spec: ModuleSpec) -> Any:
        try:
            return room[name](spec.columns, spec.outputs)
        except Exception as error:  # noqa: BLE001 - it is the user's code
            raise _refused(
                spec, f"raises {error!r} for columns {list(spec.columns)} and {spec.outputs} outputs"
            ) from None

    return own


def _try(spec: ModuleSpec, module: nn.Module) -> None:
    """Call it once, as in training; raises `ConfigError` where it draws, keeps, or gives what it must not."""
    rng = np.random.Generator(np.random.PCG64(spec.seed))
    given = [torch.as_tensor(rng.uniform(-1, 1, (2, own)), dtype=DTYPES[spec.precision]) for own in spec.columns]
    kept = [value.clone() for value in module.buffers()]
    with torch.random.fork_rng(devices=[]):
        before = torch.get_rng_state()
        try:
            out = module(*given)
        except Exception as error:  # noqa: BLE001 - it may be the user's code
            raise _refused(spec, f"raises {str(error).splitlines()[0]} when it is called") from None
        drew = not torch.equal(before, torch.get_rng_state())
    if drew:
        raise _refused(spec, "draws random numbers when it is called (dropout?), so no update could be made again; "
                       "leave them out")  # fmt: skip
    if any(not torch.equal(a, b) for a, b in zip(kept, module.buffers(), strict=True)):
        raise _refused(spec, "keeps something from one call to the next in a buffer; leave it out")
    if not isinstance(out, Tensor) or tuple(out.shape) != (2, spec.outputs):
        found = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise _refused(spec, f"gives {found} for two records, and must give [2, {spec.outputs}]: a number a target, or "
                       "a score a class")  # fmt: skip


def _refused(spec: ModuleSpec, why: str) -> ConfigError:
    return ConfigError(f'model.module = "{spec.module}" {why}')
