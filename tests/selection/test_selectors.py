"""What is proposed for slices, and what the guard lets through."""

from __future__ import annotations

import numpy as np
import pytest

from frmu.models.statistics import loss, statistics_of
from frmu.selection import observation, selectors
from frmu.selection.network import Network, read_policy, shapes, shipped
from frmu.selection.observation import FEATURES, Observation, change, fit, observe, slopes
from frmu.selection.problem import SelectionProblem, problem_of, refit, validation_loss
from frmu.selection.search import Budget, RefitCounter, ascend, greedy, leave_one_out
from frmu.selection.selectors import decide, decide_all, follow, guided
from frmu.types import Statistics


def make(seed: int = 0, bad: tuple[int, ...] = (), slices: int = 8) -> SelectionProblem:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=5)

    def block(n: int, shuffled: bool = False) -> Statistics:
        X = rng.normal(size=(n, 5))
        X[:, -1] = 1.0
        y = X @ w + 0.2 * rng.normal(size=n)
        return statistics_of(X, (rng.permutation(y) if shuffled else y)[:, None])

    parts = {f"s{s}": block(40, s in bad) for s in range(slices)}
    return problem_of(
        parts, np.linspace(1, 0, slices), Statistics.zero(5, 1), [block(15) for _ in range(4)], block(60), 1e-3
    )


@pytest.fixture(scope="module")
def network() -> Network:
    return read_policy(shipped())


@pytest.mark.parametrize("selector", ["policy", "rules"])
@pytest.mark.parametrize("seed", range(5))
def test_shuffled_slices_are_found(selector: str, seed: int, network: Network) -> None:
    task = make(seed, bad=(1, 4))
    decision = decide(task, network, selector, 0.01, 3, 64)
    assert set(np.flatnonzero(decision.influence < 1.0)) >= {1, 4}
    assert loss(refit(task, decision.influence), task.later) < loss(refit(task, np.ones(8)), task.later)


@pytest.mark.parametrize("seed", range(5))
def test_nothing_is_applied_that_is_worse_on_validation(seed: int, network: Network) -> None:
    task = make(seed)
    decision = decide(task, network, "policy", 0.01, 3, 64)
    keep = validation_loss(task, np.ones(8))
    assert decision.losses[decision.chosen_by] <= keep + 1e-9
    assert decision.chosen_by in ("policy", "keep")


def test_keep_keeps(network: Network) -> None:
    assert decide(make(bad=(1,)), network, "keep", 0.01, 3, 64).influence.min() == 1.0


def test_without_validation_everything_is_kept(network: Network) -> None:
    task = make(bad=(1,))
    blind = problem_of({k: task.slice(s) for s, k in enumerate(task.keys)}, task.age, task.rest,
                    [], task.later, 1e-3)  # fmt: skip
    assert decide(blind, network, "policy", 0.01, 3, 64).chosen_by == "keep"


def observed(task: SelectionProblem, influence: np.ndarray, step: float = 0.0) -> Observation:
    return observe(task, fit(task, influence), step, validation_loss(task, task.keep))


def test_an_observation_has_a_bounded_row_a_slice() -> None:
    seen = observed(make(bad=(2,)), np.array([1.0, 0.3, 0.0, 1, 1, 1, 1, 1]), 0.5)
    assert seen.rows.shape == (8, len(FEATURES))
    assert seen.relation.shape == (8, 8)
    assert np.isfinite(seen.rows).all()
    assert np.abs(seen.rows).max() <= 3.0
    assert np.abs(seen.relation).max() <= 1.0 + 1e-9


def test_one_slice_can_be_looked_at(network: Network) -> None:
    task = make(slices=1)
    assert np.isfinite(observed(task, np.ones(1)).rows).all()
    assert decide(task, network, "policy", 0.01, 3, 64).influence.tolist() == [1.0]


def test_a_slice_of_one_record_is_seen_by_its_loss_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[float]] = []
    losses = observation._losses
    monkeypatch.setattr(observation, "_losses", lambda *of: told.append(of[-1].tolist()) or losses(*of))
    task = make(slices=2)
    one = statistics_of(np.ones((1, 5)), np.ones((1, 1)))
    few = problem_of({"a": one, "b": task.slice(0)}, task.age, task.rest, task.parts, task.later, 1e-3)
    observed(few, np.ones(2))
    assert told == [[1.0, 40.0]]


@pytest.mark.parametrize("start", [np.ones(8), np.array([1.0, 0.7, 0.6, 1, 0.6, 1, 0.9, 1])])
def test_a_counterfactual_to_second_order_is_close_to_the_refit(start: np.ndarray) -> None:
    """The gain in a row is what leaving the slice out does to the validation loss, in percent."""
    task = make(bad=(2,))
    gain = observed(task, start).rows[:, FEATURES.index("gain")]
    now = validation_loss(task, start)
    for s in range(8):
        without = start.copy()
        without[s] = 0.0
        exact = validation_loss(task, without) / now - 1.0
        assert np.sinh(gain[s]) / 100 == pytest.approx(exact, abs=0.35 * abs(exact) + 5e-3)


def test_a_slope_is_the_derivative_of_the_log_loss() -> None:
    task, at = make(bad=(2,)), np.array([1.0, 0.3, 0.2, 1, 0.6, 1, 0.1, 1])
    slope = slopes(task, fit(task, at), task.later)
    for s in range(8):
        step = np.zeros(8)
        step[s] = 1e-5
        up, down = (np.log(loss(refit(task, at + sign * step), task.later)) for sign in (1, -1))
        assert slope[s] == pytest.approx((up - down) / 2e-5, rel=0.02, abs=1e-4)


def test_a_change_of_one_influence_is_a_refit() -> None:
    task = make(bad=(2,))
    there = change(fit(task, task.keep), 2, 0.25)
    assert np.allclose(there.W, refit(task, there.influence), atol=1e-10)
    assert there.influence[2] == 0.25


def test_the_policy_follows_the_order_of_slices_by_nearness_alone(network: Network) -> None:
    """Turned round, slices are as near to each other as before: the answers turn with them."""
    seen = observed(make(bad=(2,)), np.ones(8))
    turned = Observation(seen.rows[::-1], seen.relation[::-1, ::-1], seen.fit)
    assert np.allclose(network(seen, seen)[0][::-1], network(turned, turned)[0])


def test_steps_refine_and_each_costs_one_refit(network: Network) -> None:
    task = make(bad=(1, 4))
    account = RefitCounter(task, Budget(10))
    kept = account.fit(task.keep)
    met = follow(network, account, observed(task, task.keep), kept, 3)
    assert len(met) == 4
    assert account.refits == 4
    assert all(((one.fit.influence >= 0) & (one.fit.influence <= 1)).all() for one in met)


@pytest.mark.parametrize("budget", [1, 4, 30, 100, 200])
def test_nobody_spends_more_than_the_budget(budget: int, network: Network) -> None:
    task = make(bad=(1, 4))
    for select in (
        lambda account, kept: ascend(account, kept, 500),
        lambda account, kept: greedy(account, kept, 16),
        lambda account, kept: leave_one_out(account, kept),
        lambda account, kept: guided(network, account, observe(task, kept, 0.0, kept.loss), 3),
    ):
        account = RefitCounter(task, Budget(budget))
        select(account, account.fit(task.keep))
        assert account.refits <= budget
    assert decide(task, network, "policy", 0.01, 3, max(8, budget)).refits <= max(8, budget)


def test_a_budget_in_seconds_ends_a_search() -> None:
    ticks = iter(range(100))
    account = RefitCounter(make(), Budget(seconds=5.0), clock=lambda: float(next(ticks)))
    ascend(account, account.fit(np.ones(8)), 1000)
    assert account.refits <= 6


def test_search_lowers_the_validation_loss() -> None:
    task = make(bad=(1, 4))
    for search in (lambda account, kept: ascend(account, kept, 20), lambda account, kept: greedy(account, kept, 4)):
        account = RefitCounter(task, Budget())
        kept = account.fit(task.keep)
        assert search(account, kept).loss < kept.loss


def test_the_shipped_policy_has_seen_no_client_of_ours(network: Network) -> None:
    assert network.lineage["clients"] == []
    assert {name: weight.shape for name, weight in network.weights.items()} == shapes()


@pytest.mark.parametrize(("loss", "chosen"), [(0.995, "keep"), (0.9901, "keep"), (0.99, "policy"), (0.5, "policy")])
def test_a_proposal_must_beat_keeping_everything_by_the_margin(loss: float, chosen: str) -> None:
    assert selectors._guard({"keep": 1.0, "policy": loss}, 0.01) == chosen


def test_without_a_policy_the_best_rule_is_proposed() -> None:
    assert selectors._guard({"keep": 1.0, "a": 0.9, "b": 0.8}, 0.01) == "b"
    assert selectors._guard({"keep": 1.0, "a": 0.8, "policy": 0.9}, 0.01) == "policy"


def test_a_proposal_is_measured_against_keeping_everything_whatever_its_loss_is() -> None:
    assert selectors._guard({"keep": 2.0, "policy": 1.9}, 0.1) == "keep"
    assert selectors._guard({"keep": 2.0, "policy": 1.7}, 0.1) == "policy"
    assert selectors._guard({"keep": 0.5, "policy": 0.49}, 0.1) == "keep"


# -- what the rules say, to the number ------------------------------------------------------------------------


def seen(name: str, *values: float) -> np.ndarray:
    rows = np.zeros((len(values), len(FEATURES)))
    rows[:, FEATURES.index(name)] = values
    return rows


@pytest.mark.parametrize(("rule", "times"), [("residual 1.5", 1.5), ("residual 3", 3.0)])
def test_a_slice_that_fits_so_many_times_worse_is_forgotten(rule: str, times: float) -> None:
    at = float(np.log(times))
    assert selectors.rules(seen("residual", at - 1e-9, at, at + 1e-9, 5.0, -5.0))[rule].tolist() == [1, 1, 0, 0, 1]


def test_a_slice_without_which_the_loss_is_half_a_percent_lower_is_forgotten() -> None:
    at = float(-np.arcsinh(0.5))
    found = selectors.rules(seen("gain", at + 1e-9, at, at - 1e-9, 5.0, -5.0))["leave-one-out"]
    assert found.tolist() == [1, 1, 0, 1, 0]


def test_what_is_nearly_all_or_nothing_is_all_or_nothing() -> None:
    near = np.array([0.95, 0.95 - 1e-9, 0.05 + 1e-9, 0.05, 0.02, 0.0])
    assert selectors._settled(near, by_itself=False).tolist() == [1.0, 61 / 64, 0.0, 0.0, 0.0, 0.0]
    steps = selectors._settled(near, by_itself=True) * 64
    assert steps.tolist() == [64, 61, 3, 3, 1, 1]


# -- what a policy is shown, and how it is led ----------------------------------------------------------------


class Shown:
    """In place of a network: it notes what it is shown, and values the fits in the order that it is told."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)
        self.steps: list[float] = []
        self.firsts: list[Observation] = []

    def __call__(self, first: Observation, now: Observation) -> tuple[np.ndarray, float, np.ndarray]:
        self.firsts.append(first)
        self.steps.append(float(now.rows[0, FEATURES.index("step")]))
        value = self.values.pop(0) if self.values else 0.0
        return np.linspace(-1.0, 1.0, len(now.rows)), value, np.full(len(now.rows), float(len(self.steps)))


def looked(task: SelectionProblem, budget: int) -> tuple[RefitCounter, Observation]:
    account = RefitCounter(task, Budget(budget))
    kept = account.fit(task.keep)
    return account, observe(task, kept, 0.0, kept.loss)


def test_a_policy_is_shown_the_share_of_its_steps_that_is_taken() -> None:
    account, first = looked(make(bad=(1,)), 10)
    shown = Shown()
    met = follow(shown, account, first, first.fit, 3)  # type: ignore[arg-type]
    assert shown.steps == [0.0, 0.25, 0.5, 0.75]
    assert all(each is first for each in shown.firsts)
    assert met[0].fit is first.fit


def test_of_a_client_by_itself_the_greatest_influence_is_one() -> None:
    account, first = looked(make(bad=(1,)), 10)
    met = follow(Shown(), account, first, first.fit, 1)  # type: ignore[arg-type]
    assert met[1].fit.influence.max() == 1.0
    alone = account.task
    rest = statistics_of(np.ones((9, 5)), np.ones((9, 1)))
    among = problem_of({k: alone.slice(s) for s, k in enumerate(alone.keys)}, alone.age, rest, alone.parts,
                       alone.later, 1e-3)  # fmt: skip
    account, first = looked(among, 10)
    met = follow(Shown(), account, first, first.fit, 1)  # type: ignore[arg-type]
    assert met[1].fit.influence.max() == 47 / 64  # 1 / (1 + e^-1), on the grid


@pytest.fixture
def ascents(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, int, float]]:
    """The starts, lengths and rates of the ascents that are made from here on."""
    made: list[tuple[object, int, float]] = []

    def noted(account: RefitCounter, start: object, steps: int, rate: float) -> object:
        made.append((start, steps, rate))
        return ascend(account, start, steps, rate)  # type: ignore[arg-type]

    monkeypatch.setattr(selectors, "ascend", noted)
    return made


def test_the_first_ascent_is_twice_as_bold_and_each_starts_from_what_was_valued_most(ascents: list) -> None:
    account, first = looked(make(bad=(1, 4)), 4 + 2 * 23)
    shown = Shown(0, 0, 0, 0, 1, 7, 2, 3)  # of the first refinement the second fit is valued most
    guided(shown, account, first, 3)  # type: ignore[arg-type]
    assert [(steps, rate) for _, steps, rate in ascents] == [(20, 2.4 / 20), (20, 1.2 / 20)]
    assert ascents[0][0] is first.fit
    assert ascents[1][0] is not first.fit


@pytest.mark.parametrize(("budget", "number"), [(26, 0), (27, 1), (48, 1), (49, 2)])
def test_an_ascent_is_begun_if_its_refinement_can_be_paid_too(ascents: list, budget: int, number: int) -> None:
    """Four refits are spent before; an ascent takes 19, and 23 are set aside for it and for what follows."""
    account, first = looked(make(bad=(1, 4)), budget)
    guided(Shown(), account, first, 3)  # type: ignore[arg-type]
    assert len(ascents) == number


@pytest.mark.parametrize("at", [0, 2, 5, 9])
def test_of_everything_met_what_is_valued_most_is_proposed(at: int) -> None:
    account, first = looked(make(bad=(1, 4)), 4 + 2 * 23)
    values = [float(-number) for number in range(12)]
    values[at] = 5.0
    found = guided(Shown(*values), account, first, 3)  # type: ignore[arg-type]
    assert found.value == 5.0
    assert (found.fit is first.fit) == (at == 0)
    assert found.pool.tolist() == [1.0] * 8  # its attention when it first looked


# -- what a decision says -------------------------------------------------------------------------------------


def test_keeping_everything_costs_nothing_and_says_so() -> None:
    decision = decide(make(bad=(1,)), None, "keep", 0.01, 3, 64)
    assert (decision.chosen_by, decision.losses, decision.refits) == ("keep", {}, 0)
    assert decision.rows.shape == (8, len(FEATURES))
    assert not decision.rows.any()
    assert decision.pool.tolist() == [1 / 8] * 8


def test_rules_alone_attend_to_every_slice_alike_and_ask_no_policy(network: Network) -> None:
    decision = decide(make(bad=(1, 4)), network, "rules", 0.01, 3, 64)
    assert set(decision.losses) == {"keep", "residual 1.5", "residual 3", "leave-one-out"}
    assert decision.pool.tolist() == [1 / 8] * 8
    assert set(decide(make(), None, "policy", 0.01, 3, 64).losses) == set(decision.losses)


@pytest.mark.parametrize("selector", ["policy", "rules"])
def test_a_decision_tells_what_it_cost(selector: str, network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    from frmu.selection import search

    made = []
    monkeypatch.setattr(search, "fit", lambda task, influence: made.append(1) or fit(task, influence))
    decision = decide(make(bad=(1, 4)), network, selector, 0.01, 3, 64)
    assert decision.refits == len(made) > 0
    assert (decision.rows[:, FEATURES.index("step")] == 0.0).all()


@pytest.mark.parametrize(("budget", "left"), [(64, 59), (6, 1), (5, 0), (2, 0)])
def test_five_refits_are_kept_from_the_policy(budget: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """For keeping everything, for what it proposes once that is settled, and for three rules."""
    afforded = []

    def spend(network: object, account: RefitCounter, first: Observation, steps: int) -> selectors.Guided:
        afforded.append(next(n for n in range(100) if not account.affords(n + 1)))
        return selectors.Guided(first.fit, 0.0, np.zeros(8))

    monkeypatch.setattr(selectors, "guided", spend)
    decide(make(), Shown(), "policy", 0.01, 3, budget)  # type: ignore[arg-type]
    assert afforded == [left]


def test_what_is_fitted_already_is_not_fitted_again() -> None:
    account, first = looked(make(), 10)
    tried = selectors._Proposals(account.task, 1, first.fit)
    tried.add("same", np.ones(8))
    other = np.ones(8)
    other[0] = 0.5
    tried.add("other", other)
    tried.add("again", other)
    ((proposals, refits),) = tried.each()
    assert refits == 2
    assert proposals["same"][1] == first.fit.loss
    assert proposals["again"][1] == proposals["other"][1] == pytest.approx(validation_loss(account.task, other))


@pytest.mark.parametrize("selector", ["policy", "rules", "keep"])
@pytest.mark.parametrize("budget", [6, 16, 64])
def test_many_tasks_at_once_are_decided_as_one_by_one(selector: str, budget: int, network: Network) -> None:
    """To the last bit, whatever else is in the stack: tasks of other shapes, alone or not, without validation."""
    rest = statistics_of(np.ones((9, 5)), np.ones((9, 1)))
    tasks = [make(seed, bad=(1, 4) if seed % 2 else (), slices=8 if seed % 3 else 5) for seed in range(9)]
    tasks += [
        problem_of({k: t.slice(s) for s, k in enumerate(t.keys)}, t.age, rest, t.parts[:parts], t.later, 1e-3)
        for t in tasks[:4]
        for parts in (4, 2, 0)
    ]
    together = decide_all(tasks, network, selector, 0.01, 3, budget)
    for task, found in zip(tasks, together, strict=True):
        one = decide(task, network, selector, 0.01, 3, budget)
        assert (one.chosen_by, one.losses, one.refits) == (found.chosen_by, found.losses, found.refits)
        for name in ("influence", "rows", "pool"):
            assert np.array_equal(getattr(one, name), getattr(found, name)), name
    assert {task.by_itself for task in tasks} == {True, False}
