"""Train the slice policy on the clients of some federations: one shared policy, or one a site and their average.

A training that is killed goes on from its last `Progress`, which is handed out after every iteration.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frmu.clients.tasks.importing import DescribeShard
from frmu.config import Config, Policy
from frmu.errors import PolicyError
from frmu.federation import Federation, Reply, in_order
from frmu.methods.analytic import digests_of, outputs_of, sums_of
from frmu.policy.checkpoint import Progress
from frmu.policy.env import EnvContext, TaskSource
from frmu.selection.network import Network
from frmu.selection.scores import normalise

if TYPE_CHECKING:
    from frmu.policy.trainer import Trainer

_log = logging.getLogger("frmu.progress")

__all__ = ["MOST", "Learned", "context_of", "runners_of", "train_policy"]

EVERY = 5  # iterations between two evaluations; the last one is evaluated as well
MOST = 64  # slices of one client that take part in training; the newest, where there are more
TrainingSlices = dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class Learned:
    """Weights by name (float32), scores by client and slice (mean 1 a client), one entry an iteration."""

    weights: Mapping[str, NDArray[np.float32]]
    scores: dict[str, dict[str, float]]
    history: list[dict[str, float]]
    iterations: int
    env_steps: int
    env_runners: int
    seconds: float


def context_of(
    config: Config, federation: Federation, attention: Mapping[str, float] | None = None
) -> tuple[EnvContext, TrainingSlices]:
    """The clients of a federation that can train a policy, and their slices: with something to fit, to see, to be
    rewarded on. `attention` is a_k by client, 1 where it is not known. Raises `PolicyError` where none can."""
    described = [reply for reply in in_order(federation.run(DescribeShard())) if reply.record["rows"]]
    able = [
        reply
        for reply in described
        if reply.record["splits"]["validation"] and reply.record["splits"]["later"] and len(reply.record["slices"]) > 1
    ]
    if not able:
        raise PolicyError(
            f"no client has two slices to fit, validation records and later records ({_counts(described)}); move the "
            "dates in [split], or cut finer slices"
        )
    outputs = outputs_of(config, {label for reply in described for label in reply.record["classes"]})
    names = tuple(reply.client for reply in described)
    total = sums_of(config, config.fingerprint(), federation, names, outputs, digests_of(described)).total
    context = EnvContext(
        federation,
        tuple(reply.client for reply in able),
        outputs,
        total,
        tuple((attention or {}).get(reply.client, 1.0) * reply.record["splits"]["fit"] for reply in able),
        {reply.client: over for reply in able if (over := len(reply.record["slices"]) - MOST) > 0},
    )
    return context, {reply.client: sorted(reply.record["slices"])[-MOST:] for reply in able}


def _counts(described: Sequence[Reply]) -> str:
    """Return how many clients have what a training needs: where none has it all, something is missing at each."""
    has = {
        "two slices": [len(reply.record["slices"]) > 1 for reply in described],
        "validation records": [reply.record["splits"]["validation"] > 0 for reply in described],
        "later records": [reply.record["splits"]["later"] > 0 for reply in described],
    }
    told = ", ".join(f"{sum(of)} with {what}" for what, of in has.items())
    return f"of {len(described)} with records: {told}"


def train_policy(
    policy: Policy,
    contexts: Sequence[tuple[TaskSource, TrainingSlices]],
    parent: Network | None,
    iterations: int | None = None,
    on_iteration: Callable[[int, dict[str, float]], None] | None = None,
    progress: Progress | None = None,
    keep: Callable[[Progress], None] | None = None,
    deadline: float = 300.0,
    scratch: bool | None = None,
) -> Learned:
    """Train on the clients of some contexts, from `progress`, else from `parent`'s weights, else from scratch.

    `iterations` counts those that `progress` has behind it. `keep` is given the progress after every iteration.
    No wait is longer than `deadline` seconds a dispatch (`FederationError`). `scratch` says whether a training that is
    gone on with began from nothing, by which it learns faster; else it did where it has no `parent`.
    """
    training = _Training(policy, contexts, parent, progress, iterations or policy.iterations, deadline, scratch)
    return training.run(on_iteration or (lambda number, metrics: None), keep or (lambda progress: None))


def runners_of(policy: Policy, clients: int) -> int:
    """Return how many env runners step so many clients, from what is free in the cluster now.

    Raises `PolicyError` where more are asked for than there is room for.
    """
    import ray

    from frmu.policy.rllib import parts_of
    from frmu.policy.trainer import runners_for
    from frmu.runtime.nodes import free_cpus

    if not ray.is_initialized():
        return 0 if policy.env_runners == "auto" else int(policy.env_runners)
    return runners_for(policy.env_runners, free_cpus(), clients, parts_of(policy))


class _Training:
    """One training under way: what it has learned so far, and how to go on."""

    def __init__(
        self,
        policy: Policy,
        contexts: Sequence[tuple[TaskSource, TrainingSlices]],
        parent: Network | None,
        progress: Progress | None,
        iterations: int,
        deadline: float,
        scratch: bool | None,
    ) -> None:
        self.deadline = deadline
        self.policy, self.parent, self.iterations = policy, parent, iterations
        self.scratch = parent is None if scratch is None else scratch
        self.contexts = [context for context, _ in contexts]
        self.slices = [(name, keys) for _, slices in contexts for name, keys in slices.items()]
        self.progress = progress
        known = progress.scores if progress is not None else {}
        self.scores = [np.array([known.get(name, {}).get(key, 0.0) for key in keys]) for name, keys in self.slices]
        self.history = [dict(metrics) for metrics in progress.history] if progress is not None else []
        self._before = self.history[-1]["env_steps"] if self.history else 0.0
        self._began = time.perf_counter() - (progress.seconds if progress is not None else 0.0)

    def run(self, on_iteration: Callable[[int, dict[str, float]], None], keep: Callable[[Progress], None]) -> Learned:
        from frmu.policy.trainer import quiet

        runners = runners_of(self.policy, len(self.slices))
        with quiet(), self._trainer(runners) as trainer:
            self._start(trainer)
            iterate = self._iterate(trainer)
            for number in range(len(self.history), self.iterations):
                metrics = iterate()
                if (number + 1) % EVERY == 0 or number + 1 == self.iterations:
                    metrics |= trainer.evaluate()
                self.history.append(metrics | {"env_steps": metrics["env_steps"] + self._before})
                keep(self._progress(trainer))
                self._tell(number)
                on_iteration(number, self.history[-1])
            weights = trainer.weights()
        return Learned(
            weights, self._shown(), self.history, len(self.history), int(self.history[-1]["env_steps"]), runners,
            self._seconds(),
        )  # fmt: skip

    def _trainer(self, runners: int) -> Trainer:
        from frmu.policy.federate import batch_of
        from frmu.policy.rllib import copies_of, rate_of, steps_of
        from frmu.policy.trainer import Trainer

        policy, sites, done = self.policy, len(self.slices), len(self.history)
        max_slices = max(len(keys) for _, keys in self.slices)
        samples, parts = policy.samples, 1
        if policy.federated:
            samples, parts = batch_of(samples, sites, copies_of(policy, 0)), sites
        # What was drawn before the interruption is not drawn again.
        seed = (policy.seed + 1_000_003 * done) % 2**31
        rate = rate_of(policy, self.scratch, done, self.iterations, parts * steps_of(policy, samples))
        return Trainer(policy, self.contexts, max_slices, runners, samples, seed, self.deadline, rate)

    def _iterate(self, trainer: Trainer) -> Callable[[], dict[str, float]]:
        """Return what one iteration is: of one policy, or a round of the sites'."""
        from frmu.policy.federate import Sites

        if not self.policy.federated:
            return partial(trainer.iterate, self.scores)
        contexts = [context for context in self.contexts if isinstance(context, EnvContext)]
        return partial(Sites(contexts, self.policy.beta).iterate, trainer, self.scores)

    def _tell(self, number: int) -> None:
        """A line an iteration: the training of a large federation takes minutes."""
        last = self.history[-1]
        _log.info(
            "Policy: iteration %d of %d, %d steps, gain %.2f %%, %s, %.0f s",
            number + 1, self.iterations, last["env_steps"], 100 * last["gain"],
            f"{last['env_runners']:.0f} env runners" if last["env_runners"] else "in this process", self._seconds(),
        )  # fmt: skip

    def _start(self, trainer: Any) -> None:
        if self.progress is not None:
            trainer.load(self.progress.weights, self.progress.moments)
        elif self.parent is not None:
            trainer.load(self.parent.weights)

    def _progress(self, trainer: Any) -> Progress:
        scores = {
            name: dict(zip(keys, raw.tolist(), strict=True))
            for (name, keys), raw in zip(self.slices, self.scores, strict=True)
        }
        return Progress(
            len(self.history), trainer.weights(), trainer.moments(), scores, tuple(self.history), self._seconds()
        )

    def _seconds(self) -> float:
        return time.perf_counter() - self._began

    def _shown(self) -> dict[str, dict[str, float]]:
        pairs = zip(self.slices, self.scores, strict=True)
        return {name: dict(zip(keys, normalise(raw).tolist(), strict=True)) for (name, keys), raw in pairs}
