"""Policies averaged at the server."""

from __future__ import annotations

import numpy as np
from conftest import homes, put
from hypothesis import given
from hypothesis import strategies as st

from frmu.aggregation.average import Average
from frmu.runtime.local import LocalFederation

SHARES = st.lists(st.floats(0, 1e6), min_size=1, max_size=6)


@given(shares=SHARES, seed=st.integers(0, 99))
def test_a_mean_lies_between_and_knows_no_order(shares: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    policies = {f"site {n}": {"w": rng.normal(size=(2, 3)).astype(np.float32)} for n in range(len(shares))}
    by = dict(zip(policies, shares, strict=True))
    mean = Average(policies, by).perform(None, {})["w"]
    stack = np.stack([policy["w"] for policy in policies.values()])
    assert mean.dtype == np.float32
    assert (mean >= stack.min(axis=0) - 1e-6).all()
    assert (mean <= stack.max(axis=0) + 1e-6).all()
    backwards = Average(dict(reversed(policies.items())), dict(reversed(by.items()))).perform(None, {})["w"]
    assert np.array_equal(mean, backwards)


def test_the_server_of_a_federation_does_it(tmp_path) -> None:  # type: ignore[no-untyped-def]
    federation = LocalFederation(put(tmp_path / "homes", homes(1)), ["home 0"], tmp_path)
    policies = {"a": {"w": np.float32([0, 2])}, "b": {"w": np.float32([1, 4])}, "silent": {"w": np.float32([9, 9])}}
    assert federation.serve(Average(policies, {"a": 1.0, "b": 1.0, "silent": 0.0}))["w"].tolist() == [0.5, 3.0]
