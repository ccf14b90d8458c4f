"""An RLlib algorithm over the environment that the client actors feed, held as one resource.

Env runners are in the learner's process on a laptop and actors on a cluster; they mostly wait for the clients, which
do the refits, so a runner asks for half a core. What becomes of one that is lost, `frmu.policy.runners` says; how RLlib
is set, and why, `frmu.policy.rllib`.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from frmu.config import Policy
from frmu.errors import ClientsUnavailableError, PolicyError
from frmu.policy.env import TaskSource
from frmu.policy.rllib import RATES, SHARE, Rate, config_of, copies_of
from frmu.policy.runners import Order, cause_of
from frmu.runtime.deadline import within
from frmu.selection.scores import update

__all__ = ["Trainer", "quiet", "runners_for", "scalars_of"]

LAPTOP = 4  # up to so many CPUs there are no env runners of their own
AGAIN = 1.0  # seconds between two tries to sample when all env runners were lost; Ray starts them again meanwhile
TOO_OFTEN = 3  # iterations in a row with no number from a client
RESUME = "What was learned so far is kept: `frmu policy train --resume` goes on with it"

# What a learner tells of an iteration: what it is called here, and at RLlib.
LEARNED = {
    "td_error": "td_error", "policy_loss": "policy_loss", "value_loss": "vf_loss", "value_error": "value_error",
    "slope_norm": "slope_norm", "entropy": "entropy",
}  # fmt: skip

T = TypeVar("T")
_log = logging.getLogger(__name__)
Weights = Mapping[str, NDArray[np.float32]]


def runners_for(setting: int | str, free: Sequence[float], clients: int, parts: int) -> int:
    """Return how many env runners: as set, else from the CPUs that are `free` on the nodes of the cluster.

    "auto" is none on a laptop; on a cluster half the CPUs but one, so that the clients that they step have the rest,
    and no more than there are clients to keep busy or `parts` of a batch to sample. Raises `PolicyError` for
    more than the cluster can place: Ray would wait for ever.

    >>> [runners_for("auto", [cpus], clients=24, parts=20) for cpus in (2, 4, 8, 16, 64)]
    [0, 0, 3, 7, 20]
    >>> runners_for(8, [0.9, 1.9, 1.9], clients=24, parts=20)
    Traceback (most recent call last):
    frmu.errors.PolicyError: policy.env_runners must be at most 7 here, got 8: each takes half a CPU of one node, and \
4.7 CPUs are free on 3 nodes. Lower it, or set "auto"
    """
    cpus, places = sum(free), sum(int(cpu / SHARE) for cpu in free)
    if setting == "auto":
        if cpus <= LAPTOP:
            return 0
        return max(1, min(int((cpus - 1) // 2), clients, parts, places))
    number = int(setting)
    if number > places:
        raise PolicyError(
            f"policy.env_runners must be at most {places} here, got {number}: each takes half a CPU of one node, and "
            f'{cpus:.3g} CPUs are free on {len(free)} node{"s" * (len(free) != 1)}. Lower it, or set "auto"'
        )
    return number


class Trainer:
    """One RLlib algorithm over some contexts; a context manager.

    No wait is longer than `deadline` seconds a dispatch to the clients: a `FederationError` ends it, or a `PolicyError`
    where no env runner starts.
    """

    def __init__(
        self, policy: Policy, contexts: Sequence[TaskSource], max_slices: int, runners: int, samples: int, seed: int,
        deadline: float = 300.0, rate: Rate | None = None,
    ) -> None:  # fmt: skip
        self._deadline = deadline
        # Steps of the vector environment, of which each is a dispatch or two.
        self._longest = deadline * (2 + samples / (copies_of(policy, runners) * max(1, runners)))
        constant = RATES[policy.algorithm][1]
        rate = rate or Rate(constant, constant, 1)
        config = config_of(policy, contexts, max_slices, runners, samples, seed, rate, deadline)
        self._algorithm = config.build_algo()
        self._away: tuple[str, ...] = ()
        self._names = [name for context in contexts for name in context.clients]
        self._faults: Counter[int] = Counter()  # by client: iterations in a row
        self._site: int | None = None
        self._so_far = 0.0  # steps sampled since the algorithm was built

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, *_: object) -> None:
        self._algorithm.stop()

    @staticmethod
    def _wait(what: str, call: Callable[[], T], seconds: float) -> T:
        return within(
            seconds, what, call, f"Bring its node back, set policy.env_runners, or raise rules.deadline. {RESUME}"
        )

    def iterate(self, scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
        """Sample and learn once; the scalars of it. `scores` are updated in place with what the TD errors say.

        Where a client gave a reward or a slope that is no number, its episodes are left out and counted (`dropped`);
        three iterations in a row of it end the training with a `PolicyError`.

        Where every env runner was lost RLlib samples nothing, learns nothing, and says again what it said before: that
        is no iteration, and it is gone through once more. Raises `PolicyError` where none comes back.
        """
        began = time.perf_counter()
        deadline, told = time.monotonic() + self._deadline, False
        while (sampled := _sampled(result := self._train())) <= self._so_far:
            if not told:
                _log.warning(
                    "No env runner answers; asking again for %g s. %s", self._deadline,
                    "Those who are away are told by `ray status`",
                )  # fmt: skip
                told = True
            if time.monotonic() > deadline:
                raise PolicyError(
                    f"all env runners were lost and none came back in {self._deadline:g} s; see `ray status`. Bring "
                    f"its node back, or set policy.env_runners = 0. {RESUME}"
                )
            time.sleep(AGAIN)
        rate = (sampled - self._so_far) / (time.perf_counter() - began)
        self._so_far = sampled
        self._tell_away()
        runners = self._algorithm.runners
        own = {"env_runners": float(runners.there if runners is not None else 0), "steps_per_second": rate}
        own |= {"dropped": self._tell_faults()}
        return scalars_of(result, scores) | own

    def evaluate(self) -> dict[str, float]:
        """Act on tasks of held-out seeds, the same each time, as production acts; the mean gain where they ended.

        Nothing where no client answers now: that ends no training.
        """
        try:
            found = self._wait("an evaluation of RLlib", self._algorithm.evaluate, self._longest)
        except Exception as error:
            if not isinstance(gone := cause_of(error), ClientsUnavailableError):
                raise
            _log.warning("The policy was not evaluated: %s", gone)
            return {}
        return {"evaluation_gain": float(found["env_runners"].get("gain", float("nan")))}

    def _tell_faults(self) -> float:
        """Say whose episodes were left out, and return how many; raises `PolicyError` where it goes on."""
        faults, self._algorithm.faults = self._algorithm.faults, Counter()
        for number in range(len(self._names)) if self._site is None else [self._site]:
            self._faults[number] = self._faults[number] + 1 if faults[number] else 0
        for number, dropped in sorted(faults.items()):
            name = self._names[number]
            _log.warning("%d episodes of %s were left out: a reward or a slope was no finite number", dropped, name)
            if self._faults[number] >= TOO_OFTEN:
                raise PolicyError(
                    f"{name} gave rewards or slopes that are no finite numbers in {TOO_OFTEN} iterations in a row; "
                    f"look at its later records with `frmu verify`, or leave it out. {RESUME}"
                )
        return float(sum(faults.values()))

    def _train(self) -> dict[str, Any]:
        found: dict[str, Any] = self._wait("an iteration of RLlib", self._algorithm.train, self._longest)
        return found

    def _tell_away(self) -> None:
        """Say which clients the env runners do without, when that changed."""
        away = self._algorithm.away
        if away != self._away:
            back = sorted(set(self._away) - set(away))
            _log.warning(
                "The training goes on %s", f"without {', '.join(away)}, which did not answer" if away else
                f"with {', '.join(back)} again",
            )  # fmt: skip
        self._away = away

    def at(self, site: int | None) -> None:
        """Sample at one client alone, by its number over all contexts, from clean episodes on; None: at all."""
        self._site = site
        self._algorithm.order = Order(None, site, self._algorithm.order.turn + 1)

    def weights(self) -> dict[str, NDArray[np.float32]]:
        """The weights, by the names they have in a policy file."""
        state = self._algorithm.learner_group.get_weights()["default_policy"]
        return {name.removeprefix("network."): np.array(weight, dtype=np.float32) for name, weight in state.items()}

    def load(self, weights: Weights, moments: Weights | None = None) -> None:
        """Take weights over, and Adam's moments, or none: Adam begins anew. The next batch is sampled by them."""
        group = self._algorithm.learner_group
        group.set_weights({"default_policy": {f"network.{name}": np.array(w) for name, w in weights.items()}})
        group.foreach_learner(partial(_set_moments, moments or {}))

    def moments(self) -> dict[str, NDArray[np.float32]]:
        """Adam's moments and step counts, as `<kind>/<weight>`."""
        return next(iter(self._algorithm.learner_group.foreach_learner(_moments))).get()


def _sampled(result: Mapping[str, Any]) -> float:
    """Steps that were sampled in all iterations up to a result."""
    return float(result.get("env_runners", {}).get("num_env_steps_sampled_lifetime", 0))


def scalars_of(result: Mapping[str, Any], scores: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """The scalars of one iteration's result; updates the scores in place with what the TD errors say."""
    learner = result.get("learners", {}).get("default_policy", {})
    # RLlib hands a series of one item over as that item, so the rows are told by their width.
    width = 2 + max(len(raw) for raw in scores)
    for said in np.reshape(learner.get("score_updates", ()), (-1, width)):
        raw = scores[int(said[0])]
        raw[:] = update(raw, np.asarray(said[2 : 2 + len(raw)]))
    gain = float(result["env_runners"].get("gain", float("nan")))
    told = {name: float(learner[key]) for name, key in LEARNED.items() if key in learner}
    return {"gain": gain, "env_steps": _sampled(result), "td_error": float("nan"), **told}


def _adam(learner: Any) -> tuple[Any, list[str]]:
    """The optimizer, and the names of the weights in its order."""
    (_, optimizer), *_ = learner.get_optimizers_for_module("default_policy")
    module = learner.module["default_policy"]
    return optimizer, [name.removeprefix("network.") for name, _ in module.named_parameters()]


def _moments(learner: Any, *_: Any) -> dict[str, NDArray[np.float32]]:
    optimizer, names = _adam(learner)
    state = optimizer.state_dict()["state"]
    return {
        f"{kind}/{names[number]}": np.array(value, dtype=np.float32)
        for number, kinds in state.items()
        for kind, value in kinds.items()
    }


def _set_moments(moments: Weights, learner: Any, *_: Any) -> None:
    import torch

    optimizer, names = _adam(learner)
    state: dict[int, dict[str, Any]] = {}
    for key, moment in moments.items():
        kind, name = key.split("/", 1)
        state.setdefault(names.index(name), {})[kind] = torch.tensor(moment)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})


@contextmanager
def quiet() -> Iterator[None]:
    """RLlib's deprecation warnings and banners are not for the user of frmu."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("ray", "ray.rllib", "ray.rllib.utils.actor_manager", "ray.tune"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what it says of actors, we say in a sentence
        yield
