"""The laws that exact erasure rests on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from frmu.errors import FrmuError
from frmu.models.ridge import solve
from frmu.models.statistics import loss, one_thread, pack, statistics_of, unpack
from frmu.types import Statistics

rows = st.integers(1, 12).flatmap(
    lambda n: arrays(np.float64, (n, 5), elements=st.floats(-10, 10, allow_subnormal=False, width=32))
)


def of(block: np.ndarray) -> Statistics:
    return statistics_of(block[:, :4], block[:, 4:])


@given(rows, rows)
def test_statistics_add(a: np.ndarray, b: np.ndarray) -> None:
    both, one = of(np.concatenate([a, b])), of(a) + of(b)
    assert both.n == one.n
    assert np.allclose(both.G, one.G)
    assert np.allclose(both.b, one.b)
    assert np.isclose(both.c, one.c)


@given(st.lists(rows, min_size=1, max_size=5), st.data())
def test_a_sum_in_a_fixed_order_has_fixed_bits(blocks: list[np.ndarray], data: st.DataObject) -> None:
    """Arrival order may be anything; folded by key the bits are the same."""
    keyed = {f"s{number}": of(block) for number, block in enumerate(blocks)}
    arrived = dict(data.draw(st.permutations(list(keyed.items()))))
    one = Statistics.total((keyed[key] for key in sorted(keyed)), 4, 1)
    other = Statistics.total((arrived[key] for key in sorted(arrived)), 4, 1)
    assert one.G.tobytes() == other.G.tobytes()
    assert one.b.tobytes() == other.b.tobytes()


@given(rows)
def test_the_loss_of_a_head_follows_from_the_statistics(block: np.ndarray) -> None:
    W = np.linspace(-1, 1, 4).reshape(4, 1)
    direct = np.mean((block[:, :4] @ W - block[:, 4:]) ** 2)
    assert np.isclose(loss(W, of(block)), direct, atol=1e-6)


@given(rows)
def test_packing_loses_nothing(block: np.ndarray) -> None:
    G = of(block).G
    assert np.array_equal(unpack(pack(G), 4), G)


def test_the_solve_is_the_ridge_solution() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(50, 6)), rng.normal(size=(50, 2))
    s = statistics_of(X, Y)
    penalty = 0.1 * np.diag(s.G) + 1e-6
    penalty[-1] = 1e-6
    assert np.allclose(solve(s.G, s.b, 0.1), np.linalg.solve(s.G + np.diag(penalty), s.b), atol=1e-10)


def test_the_bits_do_not_depend_on_the_threads_around() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, 200))
    with one_thread():
        alone = statistics_of(X, X[:, :1])
    from threadpoolctl import threadpool_limits

    with threadpool_limits(2), one_thread():
        crowded = statistics_of(X, X[:, :1])
    assert alone.G.tobytes() == crowded.G.tobytes()


def test_no_record_gives_the_zero_head() -> None:
    assert not solve(np.zeros((3, 3)), np.zeros((3, 1)), 1e-3).any()


def test_sums_that_no_records_give_are_refused() -> None:
    with pytest.raises(FrmuError, match=r"model\.ridge"):
        solve(np.diag([1.0, -5.0]), np.ones((2, 1)), 1e-3)
