"""A module trained by rounds: clients train, the server averages, and what is erased is trained away exactly.

    W_0 from the seed
    for t = 0 .. rounds - 1:
        the clients of round t train from W_t over their records
        the server adds up, weighed by records and attention, and steps to W_(t+1)
        stop where the validation loss has come to rest (Algorithm 1, line 19)

Every draw is a hash (`frmu.methods.participation`), every sum is of whole numbers (`frmu.server.rounds`), and a
client's update depends on its records and W_t alone (`frmu.modules.training`): so a state follows from the records that
remain, the config and the seeds, to the last bit, wherever it is computed on processors of one kind. Its digest is over
the weights themselves.

Three methods unlearn. `replay` goes back to the last checkpoint in which nobody who lost records had taken part, and
trains on from there; `retrain` begins from nothing; both give the state that never had the records. `finetune` trains a
few rounds on from where it is, guarantees nothing, and closes no request. (Federated averaging: McMahan et al., AISTATS
2017; beginning again at a checkpoint: Bourtoule et al., "Machine unlearning", S&P 2021, there within a shard.)
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from frmu.aggregation.attention import attend, electorate
from frmu.clients.tasks.importing import DescribeShard
from frmu.clients.tasks.rounds import JudgeWeights, TrainLocally
from frmu.config import Config
from frmu.errors import FederationError, RoundLostError
from frmu.federation import Federation, Reply, in_order
from frmu.methods.analytic import outputs_of, with_residuals
from frmu.methods.method import Method, Round, nothing_kept
from frmu.methods.participation import Schedule
from frmu.models.grid import WEIGHTS, on_grid
from frmu.models.weights import Weights, spec_of, weights_in
from frmu.selection.network import Network
from frmu.server.rounds import DrawWeights, LeaveOut, Moments, SayNumerics, StepWeights
from frmu.storage.rounds import Checkpoint, Checkpoints
from frmu.types import ClientState, State

__all__ = ["FINETUNING", "rounds", "schedule_of"]

_log = logging.getLogger(__name__)
FINETUNING = 2  # rounds on from where a state is
_TINY = 1e-12


def rounds(config: Config, kept: Checkpoints | None = None) -> Method:
    """Build the method for a config; with checkpoints `kept` it goes on from the last that is still of the records."""
    fingerprint, unlearns = config.fingerprint(), config.model.unlearns

    def init() -> State:
        return State(fingerprint, "", (), (), {})

    def apply(federation: Federation, state: State, network: Network | None) -> Round:
        return _Training(config, federation, kept).run()

    def erase(
        federation: Federation, state: State, network: Network | None, clients: tuple[str, ...], nothing: None
    ) -> Round:
        if kept is not None and unlearns != "replay":
            kept.clear()
        start = state if unlearns == "finetune" else None
        return _Training(config, federation, kept).run(start)

    return Method(unlearns, "none" if unlearns == "finetune" else "exact", init, apply, nothing_kept, erase)


@dataclass(frozen=True, slots=True)
class _Progress:
    """The state of a training after some rounds; `attention` is what each client's last update counted, and its
    score."""

    done: int
    weights: Weights
    moments: Moments | None = None
    history: tuple[Mapping[str, float], ...] = ()
    attention: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def checkpoint(self) -> Checkpoint:
        arrays = {f"weights.{name}": value for name, value in self.weights.parameters.items()}
        if self.moments is not None:
            arrays |= {"first": self.moments.first, "second": self.moments.second}
        attention = {name: [a.hex(), score.hex()] for name, (a, score) in self.attention.items()}
        told = {"outputs": list(self.weights.outputs), "history": list(self.history), "attention": attention}
        return Checkpoint(self.done, arrays, told)

    @staticmethod
    def of(one: Checkpoint) -> _Progress:
        prefix = "weights."
        named = {name.removeprefix(prefix): value for name, value in one.arrays.items() if name.startswith(prefix)}
        moments = Moments(one.arrays["first"], one.arrays["second"]) if "first" in one.arrays else None
        attention = {name: (float.fromhex(a), float.fromhex(s)) for name, (a, s) in one.told["attention"].items()}
        weights = Weights(named, tuple(one.told["outputs"]))
        return _Progress(one.rounds, weights, moments, tuple(one.told["history"]), attention)


def schedule_of(config: Config, described: Iterable[Reply]) -> Schedule:
    """The rounds over the records as they stand, from answers to `DescribeShard`."""
    held = {reply.client: reply.record for reply in described if reply.record["rows"]}
    outputs = outputs_of(config, {label for one in held.values() for label in one["classes"]})
    digests = {name: one["digest"] for name, one in held.items() if one["splits"]["fit"]}
    return Schedule(config, digests, "\n".join(outputs))


class _Training:
    """One training over a federation as it stands."""

    def __init__(self, config: Config, federation: Federation, kept: Checkpoints | None) -> None:
        self.config, self.model, self.federation, self.kept = config, config.model, federation, kept
        held = in_order(federation.run(DescribeShard()))
        self.held = {reply.client: reply.record for reply in held if reply.record["rows"]}
        self.outputs = outputs_of(config, {label for one in self.held.values() for label in one["classes"]})
        self.schedule = schedule_of(config, held)

    def run(self, start: State | None = None) -> Round:
        """Train, from `start` a few rounds on, or from the last checkpoint that holds, or from nothing."""
        began, most = self._begin(start)
        now = began
        while now.done < most:
            after = self._again(now, most)
            if after is None:
                _log.info("the validation loss rests: training ends after %s of %s rounds", now.done, most)
                break
            now = after
            if (
                start is None
                and self.kept is not None
                and (now.done % self.model.checkpoint_every == 0 or now.done == most)
            ):
                self.kept.keep(self.schedule.key(now.done), now.checkpoint())
        return self._round(now, began.done)

    def _begin(self, start: State | None) -> tuple[_Progress, int]:
        if start is not None:
            return _Progress(0, weights_in(start)), FINETUNING
        found = None
        if self.kept is not None:
            removed, freed = self.kept.purge(self.schedule.key)
            if removed:
                _log.info("%s checkpoints of rounds removed, %s bytes: their records are not those of today", removed,
                          f"{freed:,}")  # fmt: skip
            found = self.kept.latest(self.model.rounds)
        if found is not None:
            _log.info("the training goes on after round %s of %s", found.rounds, self.model.rounds)
            return _Progress.of(found), self.model.rounds
        spec = spec_of(self.config, self.outputs)
        return _Progress(0, self.federation.serve(DrawWeights(spec, self.outputs))), self.model.rounds

    # -- one round --------------------------------------------------------------------------------------------

    def _again(self, now: _Progress, most: int) -> _Progress | None:
        """One round, from its beginning again where a host was lost before the server had its update."""
        for _ in range(self.config.rules.attempts - 1):
            try:
                return self._one(now)
            except RoundLostError as lost:
                _log.info("Round %s begins again: %s", now.done, lost)
        return self._one(now)

    def _one(self, now: _Progress) -> _Progress | None:
        """The progress after the next round; None where the validation loss has come to rest."""
        began, together = time.perf_counter(), not self.config.attention.by_client
        names = self.schedule.participants(now.done)
        work = TrainLocally(now.weights, now.done, together)
        replies = in_order(self.federation.run(work, on=names))
        figures = _figures(replies)
        if self._rests(now, figures):
            return None
        sound = self._sound(now.done, replies)
        carriers = [reply for reply in sound if reply.payload is not None]
        counts = None if together else {reply.client: reply.record["n"] for reply in sound}
        scores, steps = self._attention(now.weights, sound, counts)
        adam = (self.model.server_lr, now.moments) if self.model.optimizer == "fedadam" else None
        stepping = StepWeights(now.weights, counts, steps, adam)
        weights, moments = self.federation.serve(stepping, carriers)
        seconds = time.perf_counter() - began
        figures |= {"seconds": seconds, "records_a_second": figures["records"] * self.model.epochs / seconds}
        attention = dict(now.attention) | {name: (steps[name] / WEIGHTS, scores[name]) for name in steps}
        return _Progress(now.done + 1, weights, moments, (*now.history, figures), attention)

    def _rests(self, now: _Progress, figures: Mapping[str, float]) -> bool:
        """Tell if the validation loss changed by less than the tolerance since the round before."""
        last = now.history[-1]["validation_loss"] if now.history else math.nan
        loss = figures["validation_loss"]
        return self.model.tolerance > 0.0 and abs(loss - last) < self.model.tolerance * abs(last)

    def _sound(self, number: int, replies: list[Reply]) -> list[Reply]:
        """The replies whose update did not go astray; raises `FederationError` where too few are left by the rules."""
        astray = {reply.client: reply.record["astray"] for reply in replies if reply.record["astray"]}
        if astray:
            told = "; ".join(f"client {name}: {why}" for name, why in sorted(astray.items()))
            sound = len(replies) - len(astray)
            if sound < max(1.0, self.config.rules.quorum * len(replies)):
                raise FederationError(
                    f"round {number}: {len(astray)} of {len(replies)} updates went astray ({told}), and rules.quorum "
                    f"asks for {self.config.rules.quorum:g} of them; lower model.lr, now {self.model.lr:g}"
                )
            _log.warning("Round %s goes on without updates that went astray (%s)", number, told)
        return [reply for reply in replies if not reply.record["astray"]]

    def _attention(
        self, weights: Weights, sound: list[Reply], counts: Mapping[str, int] | None
    ) -> tuple[dict[str, float], dict[str, int]]:
        """Scores of clients, and what their updates count in whole steps: by what the others lose without each."""
        names = [reply.client for reply in sound]
        judges = [reply.client for reply in sound if reply.record["judges"]]
        even = dict.fromkeys(names, 0.0), dict.fromkeys(names, WEIGHTS)
        if counts is None or len(names) < 2 or not judges:
            return even
        models = self.federation.serve(LeaveOut(weights, counts), sound)
        voters = [judges[at] for at in electorate(judges)]
        found = in_order(self.federation.run(JudgeWeights(weights, models), on=voters))
        lost = np.array([reply.record["losses"] for reply in found])
        scores = np.median(lost[:, 1:] / (lost[:, :1] + _TINY) - 1.0, axis=0)
        scores = np.where(np.isfinite(scores), scores, 0.0)
        rule = self.config.attention
        steps = np.rint(on_grid(attend(scores, rule.cut, rule.temperature)) * WEIGHTS).astype(int)
        return dict(zip(names, scores.tolist(), strict=True)), dict(zip(names, steps.tolist(), strict=True))

    # -- the outcome ------------------------------------------------------------------------------------------

    def _round(self, now: _Progress, began: int) -> Round:
        clients, records = [], {}
        for name, one in self.held.items():
            attention, _ = now.attention.get(name, (1.0, 0.0))
            influence = dict.fromkeys(one["slices"], 1.0)
            clients.append(ClientState(name, one["rows"], attention, influence))
            records[name] = {
                "rows": one["rows"], "influence": influence, "chosen_by": "keep", "losses": {}, "slices": {},
                "refits": 0, "modalities": {},
            }  # fmt: skip
        numerics = self.federation.serve(SayNumerics())
        parameters = dict(now.weights.parameters)
        state = State(self.config.fingerprint(), "", self.outputs, tuple(clients), parameters, numerics=numerics)
        scores = {name: now.attention.get(name, (1.0, 0.0))[1] for name in self.held}
        turns = self.schedule.turns(now.done)
        fitted = tuple(name for name, bits in turns.items() if bits >> began)
        took_part = {name: f"{bits:x}" for name, bits in turns.items()}
        judging = {name: one["splits"]["validation"] for name, one in self.held.items()}
        whole = with_residuals(self.config, self.federation, state, judging)
        return Round(whole, None, scores, records, fitted, 0, now.history, took_part, began)


def _figures(replies: list[Reply]) -> dict[str, float]:
    """The figures that are told of a round: over the records of all who took part."""
    records = [reply.record for reply in replies]
    judges = sum(one["judges"] for one in records)
    sound = [one for one in records if not one["astray"]]
    n = sum(one["n"] for one in sound)
    return {
        "validation_loss": sum(one["judged"] for one in records) / judges if judges else math.nan,
        "training_loss": sum(one["loss"] * one["n"] for one in sound) / n if n else math.nan,
        "update_norm": sum(one["norm"] for one in sound) / len(sound) if sound else math.nan,
        "participants": len(records),
        "records": n,
        "astray": len(records) - len(sound),
    }
