"""Env runners: the order that one is given, and those that are actors on a cluster; no wait for one is without end.

A runner is RLlib's own. What it is asked carries all that it needs: the weights to act by, the client to step (one, or
all), and how many steps. So one that was started again has nothing to catch up on, and none samples by weights that
another has learned from since: RLlib's `sync_weights` passes over weights that no update has numbered, and over a
runner whose last message it has not fetched yet.

RLlib's group of runners waits for the first of them without end, where it dies fails with an IndexError, and asks one
that hangs again in every batch. Here, by rule: all have a while to start, the training begins with those that did, and
the others join later; one that is lost is started again, on whatever node has room, and the others sample its share
meanwhile; one that gives no sign of life is ended and replaced. A runner that waits for its clients does give one, from
a thread of its own, and is waited for: who does not answer among clients is decided elsewhere (`rules.deadline`).
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ray.rllib.core import COMPONENT_RL_MODULE
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED

from frmu.errors import ClientsUnavailableError, FrmuError, PolicyError

__all__ = ["Order", "Runners", "Sampled", "cause_of", "sampled"]

_log = logging.getLogger(__name__)
_progress = logging.getLogger("frmu.progress")
BEAT = 0.2  # seconds between two looks at who has started
GRACE = 60.0  # seconds that the others have at least, once one has started
SAY = 30.0  # seconds between two lines about who has not
ALIVE = "alive"  # the concurrency group in which a runner answers while it samples
KNOB = "Lower policy.env_runners, set it to 0, or raise rules.deadline; see `ray status`"


@dataclass(frozen=True, slots=True)
class Order:
    """An order to a runner: `weights` to act by (a module's state, or a ref of it), and where.

    `site` is a client by its number over all contexts, None for all. An order of another `turn` than the last begins
    with clean episodes.
    """

    weights: Any
    site: int | None = None
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Sampled:
    """The answer to an order: episodes, RLlib's metrics, and the clients that did not answer when they were last asked.

    Where no client answered, or one answered with an error of ours, there is an `error` and nothing else; `failure` is
    the traceback of any other.
    """

    episodes: tuple[Any, ...] = ()
    metrics: Any = None
    away: tuple[str, ...] = ()
    error: FrmuError | None = None
    failure: str = ""

    @property
    def steps(self) -> int:
        """Return how many steps of the environment it has."""
        return 0 if self.metrics is None else int(self.metrics.get(NUM_ENV_STEPS_SAMPLED, 0))


def sampled(runner: Any, order: Order, steps: int) -> Sampled:
    """Let a runner sample about so many steps: whole steps of its copies of the environment."""
    import ray

    env = runner.env.unwrapped
    weights = ray.get(order.weights) if isinstance(order.weights, ray.ObjectRef) else order.weights
    runner.set_state({COMPONENT_RL_MODULE: weights})  # without a number it is taken in any case
    fresh = env.turn != order.turn
    if fresh:
        env.only(order.site, order.turn)
    try:
        episodes = runner.sample(num_timesteps=math.ceil(steps / runner.num_envs) * runner.num_envs, force_reset=fresh)
    except Exception as error:
        env.turn = -1  # it stopped amid a step: the next begins anew
        if (ours := cause_of(error)) is not None:
            return Sampled(away=env.away, error=ours)
        raise
    return Sampled(tuple(episodes), runner.get_metrics(), env.away)


def cause_of(error: BaseException | None) -> FrmuError | None:
    """Return the error of ours that led to another, if one did: RLlib raises its own from those of an environment.

    >>> try:
    ...     raise RuntimeError from PolicyError("why")
    ... except RuntimeError as error:
    ...     cause_of(error)
    PolicyError('why')
    """
    while error is not None and not isinstance(error, FrmuError):
        error = error.__cause__
    return error


def _told(runner: Any, order: Order, steps: int) -> Sampled:
    """`sampled` of a runner elsewhere: an error that is raised there would only end its process."""
    try:
        return sampled(runner, order, steps)
    except Exception:  # noqa: BLE001 - raised where it is received
        return Sampled(failure=traceback.format_exc())


@dataclass(slots=True)
class _Runner:
    """One env runner: its actor, and the sign of life that is waited for while it is not there."""

    number: int
    actor: Any
    there: bool = False
    coming: Any = None
    broken: str = ""  # why it cannot start: it is not tried again


class Runners:
    """So many env runners of a config as actors, spread over the nodes.

    `patience` is how many seconds they have to start; once one did, the others have as long again, or a minute.
    `silence` is after how many one that gives no sign of life is taken for lost. `PolicyError` where none starts.
    """

    def __init__(self, config: Any, number: int, patience: float, silence: float) -> None:
        import ray

        self._class = config.env_runner_cls or SingleAgentEnvRunner
        self._envs, self._silence = config.num_envs_per_env_runner, silence
        self._options = {
            "num_cpus": config.num_cpus_per_env_runner,
            "max_restarts": -1,
            "concurrency_groups": {ALIVE: 1},
            "scheduling_strategy": "SPREAD",  # a node that is lost takes few with it
        }
        self._config = ray.put(config)  # held here: a runner that is started again reads it again
        self._number = number
        self._runners = [_Runner(one, self._actor(one)) for one in range(1, number + 1)]
        try:
            self._start(patience)
        except BaseException:
            self.stop()
            raise

    @property
    def there(self) -> int:
        """Return how many answered when they were last asked."""
        return sum(runner.there for runner in self._runners)

    def sample(self, order: Order, steps: int, longest: float) -> list[Sampled]:
        """Return about so many steps of those who are there, in their order; nothing where nobody is.

        What one that is lost meanwhile owes, the others sample. No wait is longer than `longest` seconds. An error of
        ours that a client raised is raised; `ClientsUnavailableError` where no runner found a client that answers.
        """
        import ray

        ref = ray.put(order.weights)
        order = Order(ref, order.site, order.turn)
        found: list[Sampled] = []
        while (missing := steps - sum(said.steps for said in found)) > 0:
            self._take_back()
            asked = [runner for runner in self._runners if runner.there]
            share = math.ceil(missing / max(1, len(asked)) / self._envs) * self._envs
            said = _sound(self._ask(asked, longest, _told, order, share))
            if not said:
                break
            found += said
        return found

    def stop(self) -> None:
        """End them, whatever they do: there is nothing in them to be kept."""
        for runner in self._runners:
            self._end(runner)
        self._runners = []

    # -- what becomes of them -------------------------------------------------------------------------------------

    def _actor(self, number: int) -> Any:
        import ray

        actor = ray.remote(**self._options)(self._class)
        return actor.remote(config=self._config, worker_index=number, num_workers=self._number)

    def _start(self, patience: float) -> None:
        """Wait until all are there, as long as they may take; say who is not, and go on."""
        began = told = time.monotonic()
        end = began + patience
        while coming := [runner for runner in self._runners if not runner.there and not runner.broken]:
            now = time.monotonic()
            if self.there and end == began + patience:
                end = min(end, now + max(GRACE, now - began))
            if now > end:
                break
            if now - told > SAY:
                told = now
                _progress.info(
                    "Waiting for %d of %d env runners since %.0f s; at most %.0f s more", len(coming), self._number,
                    now - began, end - now,
                )  # fmt: skip
            self._take_back(BEAT)
        if not self.there:
            why = next((runner.broken for runner in self._runners if runner.broken), f"no answer in {patience:g} s")
            raise PolicyError(f"none of {self._number} env runners started: {why}. {KNOB}")
        if coming:
            _log.warning(
                "%d of %d env runners did not start in %.0f s; the training begins with the others, and they join when "
                "they can. %s", len(coming), self._number, end - began, KNOB,
            )  # fmt: skip

    def _take_back(self, wait: float = 0.0) -> None:
        """Ask those who are not there for a sign of life, and take in those who gave one."""
        import ray

        coming = [runner for runner in self._runners if not runner.there and not runner.broken]
        for runner in coming:
            if runner.coming is None:
                runner.coming = runner.actor.ping.options(concurrency_group=ALIVE).remote()
        if not coming:
            return
        done, _ = ray.wait([runner.coming for runner in coming], num_returns=len(coming), timeout=wait)
        for runner in coming:
            if runner.coming in done:
                call, runner.coming = runner.coming, None
                self._taken(runner, call)

    def _taken(self, runner: _Runner, call: Any) -> Any:
        """Take what a call came to, and whether the runner is there; None where it was lost."""
        import ray

        try:
            said = ray.get(call, timeout=self._silence)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._lose(runner, error)
            return None
        runner.there = True
        return said

    def _ask(self, asked: Sequence[_Runner], longest: float, function: Callable[..., Any], *words: Any) -> list[Any]:
        """Call a function with each, and return what those say that answer, in their order."""
        import ray

        calls = {runner.actor.apply.remote(function, *words): runner for runner in asked}
        said: dict[int, Any] = {}
        end = time.monotonic() + longest
        while calls:
            done, _ = ray.wait(list(calls), num_returns=1, timeout=self._silence / 2)
            for call in done:
                runner = calls.pop(call)
                if (answer := self._taken(runner, call)) is not None:
                    said[runner.number] = answer
            late = time.monotonic() > end
            if not done or late:
                silent = [runner for runner in calls.values() if late] or self._silent(list(calls.values()))
                for runner in silent:
                    self._replace(runner, "no answer" if late else f"no sign of life in {self._silence:g} s")
                calls = {call: runner for call, runner in calls.items() if runner not in silent}
        return [said[number] for number in sorted(said)]

    def _silent(self, runners: Sequence[_Runner]) -> list[_Runner]:
        """Return those who give no sign of life: who waits for its clients does give one."""
        import ray

        signs = {runner.actor.ping.options(concurrency_group=ALIVE).remote(): runner for runner in runners}
        done, _ = ray.wait(list(signs), num_returns=len(signs), timeout=self._silence / 2)
        return [runner for sign, runner in signs.items() if sign not in done]  # an error is one: its call tells

    def _lose(self, runner: _Runner, error: Any) -> None:
        import ray

        if getattr(error, "actor_init_failed", False):
            runner.broken, runner.there = _last_line(error), False
            _log.warning("Env runner %d cannot start: %s", runner.number, runner.broken)
        elif runner.there:
            runner.there = False
            _log.warning("Env runner %d was lost; Ray starts it again, and the others go on", runner.number)
        elif isinstance(error, ray.exceptions.ActorDiedError | ray.exceptions.ActorUnschedulableError):
            runner.actor = self._actor(runner.number)  # Ray has given it up

    def _replace(self, runner: _Runner, why: str) -> None:
        _log.warning("Env runner %d: %s; another is started in its place, and the others go on", runner.number, why)
        self._end(runner)
        runner.actor, runner.there, runner.coming = self._actor(runner.number), False, None

    @staticmethod
    def _end(runner: _Runner) -> None:
        import ray

        with suppress(Exception):  # a cluster that is gone has ended it
            ray.kill(runner.actor)


def _sound(said: Sequence[Sampled]) -> list[Sampled]:
    """Return what has episodes; raises what no runner can go on after."""
    for one in said:
        if one.failure:
            raise RuntimeError(f"an env runner failed:\n{one.failure}")
        if one.error is not None and not isinstance(one.error, ClientsUnavailableError):
            raise one.error
    sound = [one for one in said if one.error is None]
    if said and not sound:
        reasons: dict[str, str] = {}
        for one in said:
            if isinstance(one.error, ClientsUnavailableError):
                reasons |= one.error.reasons
        raise ClientsUnavailableError.of(reasons)
    return sound


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
