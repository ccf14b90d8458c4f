"""Where each verdict turns: at its bar, to the number, without a federation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frmu.clients.tasks.audit import Plant
from frmu.data.tombstones import tombstones
from frmu.errors import FrmuError
from frmu.federation import Reply
from frmu.models.features import Head
from frmu.models.statistics import loss, statistics_of
from frmu.types import HEAD, Float, Statistics
from frmu.verification import membership, rehearsal, relearn
from frmu.verification.exact import ExactVerdict, rebuild, verify_exact
from frmu.verification.gap import ROUNDING, gap
from frmu.verification.models_under_test import ORIGINAL, RETRAINED, STATE, TUNED, Errors, ModelsUnderTest, fine_tune
from frmu.verification.verdict import Verdict

# -- L5 -------------------------------------------------------------------------------------------------------


def exact(
    digest: str = "a", left: int = 0, files: tuple[str, ...] = (), gap: float = 0.0, solver: str = "x"
) -> ExactVerdict:
    return ExactVerdict(digest, "a", left, 9, list(files), gap, (solver, "x"), {})


@pytest.mark.parametrize(
    ("verdict", "passed", "level"),
    [
        (exact(), True, "L5"),
        (exact("b"), False, "L1"),
        (exact(gap=1e-15), False, "L1"),
        (exact(gap=1e-9, solver="y"), True, "L5"),
        (exact(gap=1.1e-9, solver="y"), False, "L1"),
        (exact(left=1), False, "L0"),
        (exact(files=("x",)), False, "L0"),
        (exact("b", 1), False, "L0"),
    ],
)
def test_a_level_is_the_highest_that_holds(verdict: ExactVerdict, passed: bool, level: str) -> None:
    assert (verdict.passed, verdict.level) == (passed, level)


def test_the_evidence_says_what_was_compared_and_counted() -> None:
    assert exact("b", 2, ("x",)).evidence() == {
        "digest": "b", "digest_never_had": "a", "proof": "rebuilt", "tombstoned_records_left": 2, "records_scanned": 9,
        "files_that_are_no_shards": ["x"], "head": "the same bits", "numerics": "x",
    }  # fmt: skip


class Counted:
    """A federation whose clients scanned their shards."""

    def run(self, work: Any) -> list[Reply]:
        assert work.key == b"k"
        assert work.tombstones == {"home 1": frozenset({"aa"})}
        told = {"home 1": {"left": 1, "rows": 5, "digest": "one"}, "home 2": {"left": 2, "rows": 7, "digest": "two"}}
        nothing = {"left": 0, "rows": 0, "digest": ""}
        return [Reply(client, record, None, 0) for client, record in {**told, "home 3": nothing}.items()]


def made(W: Any, **named: Any) -> Any:
    return SimpleNamespace(W=W, parameters={HEAD: W}, **named)


def held(state: Any, fingerprint: str = "f", policy: str = "p") -> ExactVerdict:
    rebuilt = SimpleNamespace(state=made(np.ones((2, 1)), digest="a", policy=policy, numerics="x"))
    method = SimpleNamespace(init=lambda: "nothing", apply=lambda federation, state, network: rebuilt)
    config: Any = SimpleNamespace(fingerprint=lambda: fingerprint)
    afresh: Any = lambda config: nullcontext(Counted())  # noqa: E731
    return verify_exact(config, method, None, afresh, state, {"home 1": frozenset({"aa"})}, b"k", ["x"])  # type: ignore[arg-type]


def test_a_state_is_held_against_one_of_its_own_config_and_policy() -> None:
    state = made(np.array([[1.0], [0.5]]), config="f", policy="p", digest="b", numerics="y")
    verdict = held(state)
    assert (verdict.digest, verdict.rebuilt) == ("b", "a")
    assert (verdict.left, verdict.scanned, verdict.unexpected_files) == (3, 12, ["x"])
    assert verdict.numerics == ("y", "x")
    assert (verdict.gap, verdict.shards) == (0.5, {"home 1": "one", "home 2": "two"})
    with pytest.raises(FrmuError, match="another config"):
        held(state, fingerprint="g")
    with pytest.raises(FrmuError, match="another policy"):
        held(state, policy="q")


def test_what_is_rebuilt_begins_from_nothing_with_the_policy_in_force() -> None:
    asked: list[Any] = []
    method = SimpleNamespace(
        init=lambda: "nothing",
        apply=lambda federation, state, network: asked.append((state, network)) or SimpleNamespace(state="rebuilt"),
    )
    found: Any = rebuild("config", method, "policy", lambda config: nullcontext(config))  # type: ignore[arg-type]
    assert (found, asked) == ("rebuilt", [("nothing", "policy")])


# -- L2 -------------------------------------------------------------------------------------------------------


def errors(gap: float, error: float = 1.0, n: int = 4) -> Errors:
    return Errors(n, error, gap)


def suspects_with(state: float, original: float) -> Any:
    by = {ORIGINAL: errors(original), STATE: errors(state), RETRAINED: errors(0.0)}
    found = {"forget": by, "test": {head: errors(0.0) for head in by}, "later": {head: errors(0.0, n=0) for head in by}}
    return SimpleNamespace(errors=lambda: found, heads=dict.fromkeys(by))


@pytest.mark.parametrize(
    ("state", "original", "passed", "telling"),
    [
        (ROUNDING, 1.0, True, True),
        (2 * ROUNDING, 1.0, False, True),
        (0.0, ROUNDING, True, False),
        (0.0, 2 * ROUNDING, True, True),
    ],
)
def test_a_gap_is_closed_up_to_rounding(state: float, original: float, passed: bool, telling: bool) -> None:
    verdict = gap(suspects_with(state, original), lambda seed: {}, [])
    assert (verdict.passed, verdict.telling, verdict.level) == (passed, telling, "L2")
    assert verdict.numbers["output gap on forget: this state"] == state
    assert not any("later" in name for name in verdict.numbers)  # nobody is in that set
    assert verdict.notes == {"records": {"forget": 4, "test": 4, "later": 0}}


def test_the_spread_of_retraining_is_that_of_a_sample() -> None:
    def retrain(seed: int) -> dict[str, dict[str, Errors]]:
        return {name: {RETRAINED: errors(0.0, error=float(seed))} for name in ("forget", "test", "later")}

    name = "error on test: spread of retraining"
    found = gap(suspects_with(0.0, 1.0), retrain, [1, 3])
    assert found.numbers[name] == pytest.approx(np.sqrt(2.0))
    assert found.seeds == (1, 3)
    assert "error on later: spread of retraining" not in found.numbers
    assert gap(suspects_with(0.0, 1.0), retrain, [1]).numbers[name] == 0.0
    assert name not in gap(suspects_with(0.0, 1.0), retrain, []).numbers


# -- L3 -------------------------------------------------------------------------------------------------------


def replies(*records: dict[str, Any]) -> list[Reply]:
    return [Reply(f"home {number}", record, None, 0) for number, record in enumerate(records)]


def test_pairs_of_all_clients_are_counted_together() -> None:
    found = membership.auc(
        replies({"pairs": 10, "won": {"a": 5.0, "b": 1.0}}, {"pairs": 30, "won": {"a": 25.0, "b": 9}})
    )
    assert found == {"a": 0.75, "b": 0.25}
    assert membership.auc(replies({"pairs": 0, "won": {"a": 0.0}})) == {"a": 0.5}
    assert membership.auc(replies({"pairs": 1, "won": {"a": 1.0}})) == {"a": 1.0}


def test_a_state_is_of_use_up_to_a_hundredth_of_the_error() -> None:
    assert membership.useful(0.01, 1.0)
    assert membership.useful(-5.0, 1.0)
    assert membership.useful(0.02, 2.0)
    assert not membership.useful(0.0101, 1.0)
    assert not membership.useful(0.011, 0.5)
    assert membership.useful(0.0, 0.0)


@dataclass
class Attacked:
    """Suspects of whom the attack, and the test records, are told."""

    won: Mapping[str, float]
    worse: float
    key = b"k"
    outputs = ("y",)
    tombstones: Any = None
    seeds: Any = None

    def __post_init__(self) -> None:
        self.heads = dict.fromkeys(self.won, Head(np.zeros((2, 1))))
        self.federation: Any = self

    def run(self, work: Any) -> list[Reply]:
        self.seeds = work.seeds
        return replies({"pairs": 100, "won": dict(self.won)})

    def errors(self) -> dict[str, dict[str, Errors]]:
        return {"test": {STATE: errors(0.0, 1.0 + self.worse), RETRAINED: errors(0.0, 1.0)}}


@pytest.mark.parametrize(
    ("original", "state", "worse", "passed", "telling"),
    [
        (80.0, 50.0, 0.0, True, True),
        (80.0, 52.9, 0.0, True, True),
        (80.0, 53.1, 0.0, False, True),
        (80.0, 46.9, 0.0, False, True),  # further than never had is a mark as well
        (80.0, 50.0, 0.02, False, True),
        (53.1, 50.0, 0.0, True, True),
        (52.9, 50.0, 0.0, True, False),
        (20.0, 50.0, 0.0, True, False),
    ],
)
def test_an_attack_tells_no_more_of_this_state_than_of_one_that_never_had(
    original: float, state: float, worse: float, passed: bool, telling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "shadow_heads", lambda suspects, seeds, ridge: np.zeros((len(seeds), 2, 1)))
    suspects = Attacked({ORIGINAL: original, STATE: state, RETRAINED: 50.0}, worse)
    verdict = membership.membership(suspects, 3, 2, 0.1)  # type: ignore[arg-type]
    assert (verdict.passed, verdict.telling, verdict.level) == (passed, telling, "L3")
    assert suspects.seeds == (2000, 2001, 2002)
    assert verdict.seeds == (2,)
    assert verdict.notes == {"shadow_models": 3}
    assert verdict.numbers["membership AUC: this state"] == state / 100
    assert verdict.numbers["test error: this state"] == 1.0 + worse


def test_shadows_are_fitted_a_few_at_a_time_and_all_of_them() -> None:
    asked: list[tuple[int, ...]] = []

    class Serving:
        def run(self, work: Any) -> list[Reply]:
            asked.append(work.seeds)
            return []

        def serve(self, task: Any, told: Any) -> Float:
            assert (task.d, task.ridge) == (3, 0.5)
            return np.full((len(asked[-1]), 3, 1), float(asked[-1][0]))

    suspects = SimpleNamespace(federation=Serving(), outputs=("y",), heads={STATE: Head(np.zeros((3, 1)))},
                               tombstones={}, key=b"k")  # fmt: skip
    found = membership.shadow_heads(suspects, range(100, 119), 0.5)  # type: ignore[arg-type]
    assert asked == [tuple(range(100, 108)), tuple(range(108, 116)), tuple(range(116, 119))]
    assert found[:, 0, 0].tolist() == [100.0] * 8 + [108.0] * 8 + [116.0] * 3


def test_planted_records_are_shared_out_to_the_last() -> None:
    assert rehearsal.share_out({"a": 1, "b": 1, "c": 5}, 7) == {"c": 3, "a": 2, "b": 2}
    assert rehearsal.share_out({"b": 2, "a": 2}, 1) == {"a": 1, "b": 0}
    assert rehearsal.share_out({"a": 9}, 4) == {"a": 4}
    assert rehearsal.share_out({}, 4) == {}


# -- L3, rehearsed --------------------------------------------------------------------------------------------


STAGED = (SimpleNamespace(name="a", records=30), SimpleNamespace(name="b", records=10))
STAGED_NAMES = ("a", "b")


class Stage:
    """A rehearsal whose planting is told, not done: which copies are started, what runs there, and what it says."""

    def __init__(self, says: list[Reply], held_back: Mapping[str, Sequence[str]]) -> None:
        self.says, self.held_back = says, held_back
        self.plants: list[Any] = []
        self.started: list[tuple[str, Sequence[str]]] = []
        self.ran: list[Any] = []
        self.closed = 0
        self.name, self.live = "audit-1", self
        self.state = SimpleNamespace(clients=STAGED, outputs=("y",))
        self.clients = STAGED_NAMES

    def run(self, work: Any, on: Sequence[str] | None = None) -> list[Reply]:
        assert on in (None, STAGED_NAMES)  # one that was erased whole may still have its process
        self.ran.append(work)
        if isinstance(work, Plant):
            return [Reply(name, {"held_back": ids}, None, 0) for name, ids in self.held_back.items()]
        return self.says

    def start(self, name: str, clients: Sequence[str]) -> Stage:
        self.started.append((name, clients))
        return self

    def close(self) -> None:
        self.closed += 1


HEADS = dict.fromkeys((ORIGINAL, STATE, RETRAINED, TUNED), np.zeros((2, 1)))


def planted(stage: Stage, monkeypatch: pytest.MonkeyPatch, ids: Mapping[str, Sequence[str]]) -> None:
    monkeypatch.setattr(rehearsal, "_plant_and_erase", lambda on, work: on.plants.append(work) or (HEADS, ids))


@pytest.mark.parametrize(
    ("original", "state", "passed", "telling"),
    [(80, 50, True, True), (80, 52.9, True, True), (80, 53.1, False, True), (80, 46.9, False, True),
     (53.1, 50, True, True), (52.9, 50, True, False), (20, 50, True, False)],
)  # fmt: skip
def test_canaries_are_told_from_a_line_up_of_all_that_were_drawn(
    original: float, state: float, passed: bool, telling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line-up is planted on its own, with those that were fitted and those held back, and is taken away again."""
    won = {ORIGINAL: original, STATE: state, RETRAINED: 50.0, TUNED: 50.0}
    stage = Stage(replies({"pairs": 100, "won": won}), {"b": ["y"], "a": ["x", "z"]})
    planted(stage, monkeypatch, {"a": ["p", "q"], "b": ["r"]})
    verdict = rehearsal.canary(stage, 5, 7)  # type: ignore[arg-type]
    assert (verdict.passed, verdict.telling, verdict.level, verdict.seeds) == (passed, telling, "L3", (7,))
    assert verdict.notes == {"canaries": 3}
    assert verdict.numbers["canary AUC: this state"] == state / 100
    [fitted], [lineup, recall] = stage.plants, stage.ran
    assert (fitted.kind, fitted.counts, fitted.seed, fitted.copy) == ("canary", {"a": 3, "b": 2}, 7, "audit-1-canary")
    assert (lineup.kind, lineup.counts, lineup.seed, lineup.copy) == ("canary", {"a": 3, "b": 2}, 7, "audit-1-lineup")
    assert not fitted.every
    assert lineup.every
    assert stage.started == [("audit-1-lineup", ["a", "b"])]
    assert (recall.heads, recall.outputs) == (HEADS, ("y",))
    assert {"a": ["x", "z"], "b": ["y"]} in [getattr(recall, field) for field in recall.__slots__]
    assert stage.closed == 1


@pytest.mark.parametrize(
    ("original", "state", "passed", "telling"),
    [(60, 20, True, True), (60, 22, True, True), (60, 23, False, True), (60, 17, False, True), (30, 20, True, False),
     (31, 20, True, True), (0, 20, True, False)],
)  # fmt: skip
def test_a_trigger_leads_no_more_records_astray_than_where_it_was_never_planted(
    original: int, state: int, passed: bool, telling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    led = {ORIGINAL: original, STATE: state, RETRAINED: 20, TUNED: 20}
    halves = replies({"n": 150, "led": led}, {"n": 50, "led": dict.fromkeys(led, 0)})
    stage = Stage(halves, {})
    planted(stage, monkeypatch, {"a": ["p", "q"], "b": ["r"]})
    trap = rehearsal.Trap({"humidity": 100.0}, 20.0)
    verdict = rehearsal.backdoor(stage, trap, {"a": 2, "b": 1}, 7)  # type: ignore[arg-type]
    assert (verdict.passed, verdict.telling, verdict.level, verdict.seeds) == (passed, telling, "L3", (7,))
    assert verdict.notes == {"planted": 3, "trigger": {"humidity": 100.0}, "target": 20.0}
    assert verdict.numbers["attack success: this state"] == state / 200
    [work] = stage.plants
    assert (work.kind, work.counts, work.copy) == ("backdoor", {"a": 2, "b": 1}, "audit-1-backdoor")


@pytest.mark.parametrize(("n", "success"), [(0, 0.0), (1, 1.0)])
def test_a_trigger_that_was_tried_on_few_is_told_as_a_share(
    n: int, success: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = Stage(replies({"n": n, "led": dict.fromkeys(HEADS, n)}), {})
    planted(stage, monkeypatch, {})
    verdict = rehearsal.backdoor(stage, rehearsal.Trap({}, 1.0), {}, 0)  # type: ignore[arg-type]
    assert verdict.numbers["attack success: original"] == success


def test_a_trigger_that_led_one_in_twenty_astray_does_not_tell_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(replies({"n": 20, "led": dict.fromkeys(HEADS, 0) | {ORIGINAL: 1}}), {})
    planted(stage, monkeypatch, {})
    verdict = rehearsal.backdoor(stage, rehearsal.Trap({}, 1.0), {}, 0)  # type: ignore[arg-type]
    assert verdict.numbers["attack success: original"] == 0.05
    assert not verdict.telling


class Rehearsed(Stage):
    """A stage of which the copy is a federation that only writes down what it is asked."""

    def run(self, work: Any, on: Sequence[str] | None = None) -> list[Reply]:
        self.ran.append((work, on))
        if isinstance(work, Plant):
            return [Reply("b", {"planted": ["x"]}, None, 0), Reply("a", {"planted": []}, None, 0)]
        return [Reply("b", {"rows": 4}, None, 0)]

    def serve(self, task: Any, told: Sequence[Reply]) -> Statistics:
        return line(2.0)


def test_what_was_planted_is_erased_as_a_drain_would_and_the_copy_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method is handed what it kept before the purge; the original goes on being tuned on what is retained alone."""
    stage: Any = Rehearsed([], {})
    asked: list[Any] = []

    def state(slope: float) -> Any:
        return SimpleNamespace(W=head(slope), outputs=("y",), learned={}, clients=STAGED)

    def apply(federation: Any, before: Any, network: Any) -> Any:
        asked.append(("apply", before, network))
        return SimpleNamespace(state=state(1.0))

    def prepare(federation: Any, before: Any, forget: Any) -> str:
        asked.append(("prepare", before.W[0, 0], sorted(forget), len(stage.ran)))
        return "kept"

    def erase(federation: Any, before: Any, network: Any, touched: Any, kept: Any) -> Any:
        asked.append(("erase", before.W[0, 0], network, touched, kept))
        return SimpleNamespace(state=state(0.5))

    stage.method = SimpleNamespace(init=lambda: "nothing", apply=apply, prepare=prepare, erase=erase)
    stage.network, stage.key, stage.state = (
        "policy",
        b"k",
        SimpleNamespace(W=head(0.0), outputs=("y",), learned={}, clients=STAGED),
    )
    work = Plant("canary", {"a": 0, "b": 1}, 0, "audit-1-canary")
    heads, ids = rehearsal._plant_and_erase(stage, work)
    assert ids == {"a": [], "b": ["x"]}
    assert stage.started == [("audit-1-canary", ["a", "b"])]
    assert [told[0] for told in asked] == ["apply", "prepare", "erase"]
    assert asked[0] == ("apply", "nothing", "policy")
    assert asked[1] == ("prepare", 1.0, ["b"], 2)  # what was planted and tuned on; nothing is purged yet
    assert asked[2] == ("erase", 1.0, "policy", ("b",), "kept")
    (plant, _), (part, _), (purge, on) = stage.ran
    assert (plant, part.part, on) == (work, "retain", ("b",))
    assert purge.tombstones == {"b": frozenset(tombstones(b"k", "b", ["x"]))}
    assert [float(heads[name].W[0, 0]) for name in (ORIGINAL, STATE, RETRAINED)] == [1.0, 0.5, 0.0]
    assert np.array_equal(heads[TUNED].W, fine_tune(head(1.0), line(2.0)))
    assert stage.closed == 1


# -- L4 -------------------------------------------------------------------------------------------------------


def line(slope: float, n: int = 50, seed: int = 0, size: float = 1.0) -> Statistics:
    x = np.random.default_rng(seed).normal(size=(n, 2)) * [3.0 * size, size]
    return statistics_of(x, (x @ [slope, 1.0])[:, None])


def head(slope: float, other: float = 1.0) -> Float:
    return np.array([[slope], [other]])


def test_steps_are_counted_until_the_goal_is_reached() -> None:
    forget = line(2.0)
    rate = 0.1 / float(np.linalg.eigvalsh(forget.G)[-1])
    W, losses = head(0.0), []
    for _ in range(6):
        losses.append(loss(W, forget))
        W = W - rate * (forget.G @ W - forget.b)
    for step, goal in enumerate(losses):
        assert relearn.steps_to(goal, head(0.0), forget, rate) == step
    assert relearn.steps_to(-1.0, head(0.0), forget, rate) == relearn.MOST


def relearned(state: Float, size: float = 1.0) -> Verdict:
    forget = line(2.0, size=size)
    asked = []
    heads = {ORIGINAL: Head(head(2.0)), STATE: Head(state), RETRAINED: Head(head(0.0, 0.0)), TUNED: Head(head(1.0))}
    suspects = SimpleNamespace(heads=heads, part=lambda part, seen_by: asked.append(part) or forget)
    verdict = relearn.relearn(suspects)  # type: ignore[arg-type]
    assert asked == ["forget"]
    return verdict


def test_a_state_that_never_had_takes_as_long_as_one_retrained() -> None:
    verdict = relearned(head(0.0, 0.0))
    steps = {name.split(": ")[1]: n for name, n in verdict.numbers.items() if name.startswith("steps")}
    assert verdict.passed
    assert verdict.telling
    assert steps[ORIGINAL] == 0
    assert steps[STATE] == steps[RETRAINED] >= relearn.ENOUGH
    assert 0 < steps[TUNED] < steps[RETRAINED]
    assert verdict.notes == {"records": 50}
    assert verdict.numbers["loss on the erased: original"] == pytest.approx(0.0, abs=1e-9)
    assert set(steps) == {ORIGINAL, STATE, RETRAINED, TUNED}


@pytest.mark.parametrize("state", [head(1.9), head(2.0), head(-9.0, -9.0)])
def test_one_that_is_sooner_there_or_later_fails(state: Float) -> None:
    verdict = relearned(state)
    assert not verdict.passed
    assert verdict.telling


@pytest.mark.parametrize("size", [1.0, 0.01])
def test_the_goal_is_nine_tenths_of_the_way_at_a_rate_that_is_slow_enough_to_count(size: float) -> None:
    verdict = relearned(head(0.0, 0.0), size)
    forget = line(2.0, size=size)
    goal = (
        0.1 * verdict.numbers["loss on the erased: retrained"] + 0.9 * verdict.numbers["loss on the erased: original"]
    )
    fastest = 1.0 / float(np.linalg.eigvalsh(forget.G)[-1])
    counts = [relearn.steps_to(goal, head(0.0, 0.0), forget, fastest * rate) for rate in relearn.RATES]
    expected = next(count for count in counts if count >= relearn.ENOUGH)
    assert verdict.numbers["steps to relearn: retrained"] == expected


@pytest.mark.parametrize(
    ("original", "state", "retrained", "passed", "telling"),
    [
        (0, 100, 100, True, True),
        (0, 105, 100, True, True),
        (0, 106, 100, False, True),
        (0, 95, 100, True, True),
        (0, 94, 100, False, True),
        (95, 100, 100, True, False),
        (94, 100, 100, True, True),
        (0, 21, 20, True, True),  # at least one step
        (0, 22, 20, False, True),
    ],
)
def test_five_in_a_hundred_steps_more_or_fewer_are_none(
    original: int, state: int, retrained: int, passed: bool, telling: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = {ORIGINAL: head(2.0), STATE: head(0.1), RETRAINED: head(0.2), TUNED: head(0.3)}
    steps = {id(heads[ORIGINAL]): original, id(heads[STATE]): state, id(heads[RETRAINED]): retrained}
    monkeypatch.setattr(relearn, "steps_to", lambda goal, W, s, rate: steps.get(id(W), 7))
    suspects = SimpleNamespace(heads={n: Head(W) for n, W in heads.items()}, part=lambda part, seen_by: line(2.0))
    verdict = relearn.relearn(suspects)  # type: ignore[arg-type]
    assert (verdict.passed, verdict.telling, verdict.level) == (passed, telling, "L4")
    assert verdict.numbers["steps to relearn: fine-tuned"] == 7


# -- what they are made of ------------------------------------------------------------------------------------


def test_an_error_is_the_root_of_the_mean_square_or_the_share_of_wrong_classes() -> None:
    assert Errors.of({"n": 4, "square": 16.0, "gap": 1.0, "scale": 4.0}) == Errors(4, 2.0, 0.5)
    assert Errors.of({"n": 4, "correct": 1.0, "gap": 0.0, "scale": 4.0}) == Errors(4, 0.75, 0.0)
    assert Errors.of({"n": 1, "square": 1.0, "gap": 0.0, "scale": 0.0}) == Errors(1, 1.0, 0.0)
    assert Errors.of({"n": 0, "square": 0.0, "gap": 0.0, "scale": 0.0}) == Errors(0, 0.0, 0.0)


def test_errors_of_all_clients_are_added_up_before_they_are_told() -> None:
    def counts(n: int, square: float) -> dict[str, float]:
        return {"n": n, "square": square, "gap": 1.0, "scale": 2.0}

    asked = []

    class Telling:
        def run(self, work: Any) -> list[Reply]:
            asked.append((tuple(work.heads), work.reference))
            return replies(
                {"test": {"a": counts(1, 4.0)}}, {"test": {"a": counts(3, 12.0)}, "forget": {"a": counts(1, 9.0)}}
            )

    one = np.zeros((2, 1))
    suspects = ModelsUnderTest({"a": Head(one), RETRAINED: Head(one)}, ("y",), Telling(), {}, b"k")  # type: ignore[arg-type]
    assert suspects.errors() == {
        "test": {"a": Errors(4, 2.0, float(np.sqrt(0.5)))}, "forget": {"a": Errors(1, 3.0, float(np.sqrt(0.5)))},
    }  # fmt: skip
    suspects.errors({"b": Head(one)})
    assert asked == [(("a", RETRAINED), RETRAINED), (("b",), "b")]


def test_fine_tuning_takes_ten_stable_steps_unless_told_otherwise() -> None:
    retain = line(2.0)
    start = head(0.0, 0.0)
    tuned = fine_tune(start, retain)
    assert np.array_equal(tuned, fine_tune(start, retain, 10))
    assert not np.array_equal(tuned, fine_tune(start, retain, 11))
    assert np.array_equal(fine_tune(start, retain, 0), start)
    assert loss(tuned, retain) < loss(start, retain)


def test_a_verdict_is_told_in_plain_json() -> None:
    verdict = Verdict("L4", "a check", True, False, "a bar", {"x": np.float64(1 / 3)}, (1, 2), {"records": 5})
    assert verdict.to_json() == {
        "level": "L4", "check": "a check", "passed": True, "telling": False, "bar": "a bar", "seeds": [1, 2],
        "numbers": {"x": 0.333333333333}, "records": 5,
    }  # fmt: skip
