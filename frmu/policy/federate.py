"""Federated training of the policy: each site trains a copy, the server averages them by attention.

FRAMU's lines 16 to 18: W <- sum_k a_k n_k w_k / sum_k a_k n_k on the central actor, then site k goes on from
beta W + (1 - beta) w_k. A site's copy learns from the steps of that site alone, so the weights, and Adam's moments, are
all that the sites share. The moments are averaged as the weights are: with so few steps a round, an Adam that began
anew every time would follow the signs of noise, and so a site has to remember nothing.

One RLlib algorithm trains the copies one after the other: its weights are set to the site's and its env runners step
at that site. A module a site in one MultiRLModule would need a multi-agent environment, which was
measured at ten times the time of a vectorised one, and an algorithm a site costs seconds and 300 MiB each; both would
learn the same. (FedAvg: McMahan et al., AISTATS 2017.)
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from frmu.aggregation.average import Average
from frmu.clients.tasks.importing import DescribeShard
from frmu.errors import ClientsUnavailableError
from frmu.policy.env import EnvContext
from frmu.policy.trainer import Trainer

__all__ = ["Sites", "batch_of"]

_log = logging.getLogger(__name__)
Weights = Mapping[str, NDArray[np.float32]]
_MOMENTS = "moments/"


def batch_of(samples: int, sites: int, copies: int) -> int:
    """Env steps a site and round, so that a round of all sites takes about what an iteration of one policy takes.

    They are whole steps of the `copies` of the environment.

    >>> batch_of(960, 10, 48), batch_of(512, 100, 48), batch_of(960, 10, 32)
    (96, 48, 96)
    """
    return max(1, round(samples / sites / copies)) * copies


class Sites:
    """The sites of some contexts and, with beta < 1, the copies that they keep."""

    def __init__(self, contexts: Sequence[EnvContext], beta: float) -> None:
        # Two contexts may have clients of one name, so a site has a number before its name.
        names = [name for context in contexts for name in context.clients]
        shares = [share for context in contexts for share in context.shares]
        self.names = [f"{number:06d} {name}" for number, name in enumerate(names)]
        self._shares = dict(zip(self.names, shares, strict=True))
        self._server = contexts[0].federation
        self._contexts = tuple(contexts)
        self._beta = beta
        self._copies: dict[str, dict[str, NDArray[np.float32]]] = {}

    def iterate(self, trainer: Trainer, scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
        """One round: every site trains from the shared policy, the server averages; the means of their scalars.

        One that does not answer, before its turn or in it, is left out. Raises `ClientsUnavailableError` where all are.
        """
        shared, moments = trainer.weights(), trainer.moments()
        found, trained = [], {}
        away = self._away()
        for number, site in enumerate(self.names):
            if site in away:
                continue
            trainer.load(self._start(shared, site), moments)
            trainer.at(number)
            try:
                found.append(trainer.iterate(scores))
            except ClientsUnavailableError as gone:
                away[site] = "; ".join(gone.reasons.values())
                _tell([site])
                continue
            self._copies[site] = trainer.weights()
            trained[site] = self._copies[site] | {f"{_MOMENTS}{name}": m for name, m in trainer.moments().items()}
        if not trained:
            raise ClientsUnavailableError.of({_name(site): reason for site, reason in away.items()})
        mean = self._server.serve(Average(trained, {site: self._shares[site] for site in trained}))
        moments = {name.removeprefix(_MOMENTS): mean.pop(name) for name in sorted(mean) if name.startswith(_MOMENTS)}
        trainer.load(mean, moments)
        means = {key: float(np.nanmean([metrics[key] for metrics in found])) for key in found[0]}
        dropped = sum(metrics["dropped"] for metrics in found)
        return means | {key: found[-1][key] for key in ("env_steps", "env_runners")} | {"dropped": dropped}

    def _away(self) -> dict[str, str]:
        """Return the sites that do not answer now, and why: a round goes on without them."""
        gone: dict[str, str] = {}
        number = 0
        for context in self._contexts:
            reasons: dict[str, str] = {}
            try:
                list(context.federation.run(DescribeShard(), on=context.clients))
            except ClientsUnavailableError as error:
                reasons = error.reasons
            gone |= {self.names[number + at]: reasons[c] for at, c in enumerate(context.clients) if c in reasons}
            number += len(context.clients)
        _tell(gone)
        return gone

    def _start(self, shared: Weights, site: str) -> Weights:
        own = self._copies.get(site)
        if own is None or self._beta == 1.0:
            return shared
        return {name: self._beta * weight + (1.0 - self._beta) * own[name] for name, weight in shared.items()}


def _name(site: str) -> str:
    return site.split(" ", 1)[1]


def _tell(gone: Iterable[str]) -> None:
    if names := sorted(_name(site) for site in gone):
        _log.warning("This round goes on without %s", ", ".join(names))
