"""Who is asked, who is late, who is let go: one set of laws for every runtime, on hosts that follow a script.

The script stands in for the network alone: what is decided is the dispatcher's own. That Ray's calls behave like these
is tested with real actors in tests/runtime/test_ray.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from frmu.config import Rules
from frmu.errors import ClientsUnavailableError, DataError
from frmu.federation import Answer, Reply, Traffic
from frmu.runtime.dispatch import ActorHandle, Answered, Dispatcher, Lost


@dataclass(frozen=True)
class Ask:
    """A task of no content; a lasting one stays with the host."""

    lasting: bool = False

    def prepare(self, clients: Sequence[Any]) -> None: ...

    def perform(self, client: Any) -> Answer:
        return Answer(client, {})


@dataclass(eq=False)
class Node:
    """A host on the script's network: what each of its calls does, one after another, then it answers."""

    script: list[str] = field(default_factory=list)  # "dies", "hangs", "starts again", "answers", "errs", "ends"
    deadly: frozenset[str] = frozenset()  # clients whose records kill the process
    life: int = 1
    heard: list[tuple[str, ...]] = field(default_factory=list)
    restarts: int = 0


class Network:
    """A transport with a clock of its own: a call takes a tenth of a second, one that hangs takes for ever."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.gone: dict[str, Callable[[float], bool]] = {}

    def now(self) -> float:
        return self.clock

    def share(self, work: Any) -> Any:
        return work

    def hello(self, handle: ActorHandle) -> Any:
        return self._call(handle, (), None)

    def answer(self, handle: ActorHandle, shared: Any, names: Sequence[str], incarnation: str | None) -> Any:
        return self._call(handle, tuple(names), incarnation)

    def _call(self, handle: ActorHandle, names: tuple[str, ...], incarnation: str | None) -> Any:
        node: Node = handle.actor
        node.heard.append(names)
        does = node.script.pop(0) if node.script else "answers"
        return (self.clock + (1e9 if does == "hangs" else 0.1), does, node, names, incarnation, len(node.heard))

    def wait(self, calls: Sequence[Any], timeout: float) -> Sequence[Any]:
        first = min(calls, default=None, key=lambda call: call[0])
        if first is None or first[0] > self.clock + timeout:
            self.clock += timeout
            return []
        self.clock = max(self.clock, first[0])
        return [first]

    def take(self, call: Any) -> Answered | Lost:
        _, does, node, names, incarnation, _ = call
        if does == "errs":
            raise DataError('client "a": a column is missing')
        if does == "dies" or node.deadly & set(names):
            node.life += 1
            return Lost("its host died")
        if does == "ends":
            return Lost("its host died (for good)", final=True)
        if does == "starts again":
            node.life += 1
        if not names or incarnation not in (None, str(node.life)):  # a hello, or another incarnation was asked
            return Answered(str(node.life))
        return Answered(str(node.life), tuple(Reply(name, {}, None, 1) for name in names))

    def restart(self, handle: ActorHandle) -> None:
        handle.actor.restarts += 1

    def absent(self, label: str | None) -> str:
        return "its node is not there" if label in self.gone and self.gone[label](self.clock) else ""


def dispatcher(network: Network, rules: Rules, *hosts: tuple[str, Node]) -> Dispatcher:
    made = Dispatcher(network, rules, patience=5.0)
    made.handles += [ActorHandle(tuple(names), node) for names, node in hosts]
    return made


def ask(made: Dispatcher, work: Any = Ask(), away: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Who answered, in order of arrival, and who did not and why."""
    got: list[str] = []
    try:
        got.extend(reply.client for reply in made.run(work, None, away, Traffic()))
    except ClientsUnavailableError as error:
        return got, error.reasons
    return got, {}


def test_everybody_is_asked_once_and_those_away_are_not() -> None:
    node, other = Node(), Node()
    got, lost = ask(dispatcher(Network(), Rules(), ("ab", node), ("c", other)), away=["b"])
    assert (sorted(got), lost) == (["a", "c"], {})
    assert (node.heard, other.heard) == ([("a",)], [("c",)])


def test_a_host_that_died_is_called_and_asked_again() -> None:
    node = Node(["dies"])
    got, lost = ask(dispatcher(Network(), Rules(), ("ab", node)))
    assert (got, lost) == (["a", "b"], {})
    assert node.heard == [("a", "b"), (), ("a", "b")]


@pytest.mark.parametrize("attempts", [1, 3])
def test_who_dies_so_many_times_in_a_row_is_let_go_and_others_are_not(attempts: int) -> None:
    node = Node(deadly=frozenset("b"))
    got, lost = ask(dispatcher(Network(), Rules(attempts=attempts), ("abc", node), ("d", Node())))
    assert set(lost) <= set("abc")
    assert "b" in lost
    if attempts > 1:  # with one, nobody is asked a second time to see whose records did it
        assert (sorted(got), set(lost)) == (["a", "c", "d"], {"b"})
        assert "3 times in a row" in lost["b"]


def test_who_hangs_is_let_go_at_the_deadline_and_its_process_ended() -> None:
    network, node = Network(), Node(["answers", "hangs"])
    made = dispatcher(network, Rules(deadline=7.0), ("a", node), ("b", Node()))
    assert ask(made) == (["a", "b"], {})
    began = network.clock
    got, lost = ask(made)
    assert (got, lost) == (["b"], {"a": "no reply in 7 s"})
    assert network.clock - began == pytest.approx(7.0)
    assert node.restarts == 1


def test_who_never_started_is_told_from_who_hangs() -> None:
    _, lost = ask(dispatcher(Network(), Rules(deadline=2.0), ("a", Node(["hangs"]))))
    assert "did not start in 2 s" in lost["a"]


def test_a_new_incarnation_is_told_again_what_the_one_before_was_to_keep() -> None:
    node = Node()
    made = dispatcher(Network(), Rules(), ("ab", node))
    ask(made, Ask(lasting=True))
    node.heard.clear()
    node.script = ["starts again"]
    got, lost = ask(made)
    assert (got, lost) == (["a", "b"], {})
    assert node.heard == [("a", "b"), ("a", "b"), ("a", "b")]  # asked; told again; asked


def test_a_node_that_goes_is_waited_for_and_one_that_was_gone_is_not() -> None:
    network, node = Network(), Node(["dies", *["dies"] * 100])
    made = dispatcher(network, Rules(deadline=60.0), ("a", node))
    made.handles[0].label = "site"
    network.gone["site"] = lambda clock: clock > 0.05
    _, lost = ask(made)
    assert lost == {"a": "its node is not there"}
    assert 5.0 <= network.clock < 8.0
    began = network.clock
    assert ask(made) == ([], {"a": "its node is not there"})
    assert network.clock == began


def test_an_error_of_a_client_is_raised_as_it_was() -> None:
    with pytest.raises(DataError, match="a column is missing"):
        ask(dispatcher(Network(), Rules(), ("a", Node(["errs"]))))


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.sampled_from(["dies", "starts again", "answers", "hangs", "ends"]), max_size=6), min_size=1,
             max_size=4),
    st.integers(1, 4),
)  # fmt: skip
def test_whatever_happens_each_client_answers_once_or_is_named_by_the_deadline(
    scripts: list[list[str]], attempts: int
) -> None:
    network, names = Network(), "abcdefgh"
    hosts = [(names[2 * at : 2 * at + 2], Node(list(script))) for at, script in enumerate(scripts)]
    got, lost = ask(dispatcher(network, Rules(deadline=9.0, attempts=attempts), *hosts))
    assert sorted([*got, *lost]) == sorted("".join(part for part, _ in hosts))
    assert network.clock <= 9.0 + 1e-9
    assert all(lost.values())
