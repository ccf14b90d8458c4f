"""The bench of attention: cases are what they say, and its bars can fail. The published figures under `long`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from frmu.bench import attention as bench
from frmu.bench.attention import COSINE, MEAN, ORACLE, OURS, Part, Sites, bench_attention, measure, split_images
from frmu.errors import ConfigError


def sites(seed: int, clients: int = 10) -> Sites:
    """A regression of one relation at all clients."""
    rng = np.random.default_rng(seed)
    w = rng.normal(size=6)

    def part(n: int) -> Part:
        X = rng.normal(size=(n, 6))
        X[:, -1] = 1.0
        return Part.of(X, X @ w + 0.3 * rng.normal(size=n))

    test = part(500)
    fits, validations = [part(200) for _ in range(clients)], [part(80) for _ in range(clients)]
    return Sites(fits, validations, test.phi, test.y, ["y"], 1e-3)


@pytest.mark.parametrize(("fault", "share"), [("shuffled", 0.3), ("gain", 0.4)])
def test_attention_leaves_out_who_is_bad(fault: str, share: float) -> None:
    run = measure(sites(0), fault, share, 0)
    assert len(run["bad"]) == round(10 * share)
    assert run["left_out"] == run["bad"]
    assert run["scores"][OURS] == pytest.approx(run["scores"][ORACLE])
    assert run["scores"][OURS] < run["scores"][MEAN]


def test_a_clean_case_is_the_mean_everywhere_it_should_be() -> None:
    run = measure(sites(1), "clean", 0.0, 0)
    assert run["bad"] == run["left_out"] == []
    assert run["scores"][OURS] == run["scores"][MEAN] == run["scores"][ORACLE]


def test_the_same_seed_gives_the_same_figures() -> None:
    one, other = (measure(sites(2), "gain", 0.4, 3) for _ in range(2))
    assert one["scores"] == other["scores"]
    assert measure(sites(2), "gain", 0.4, 4)["bad"] != one["bad"]


def test_a_fault_is_in_the_validation_part_too_and_nowhere_else() -> None:
    here, bad = sites(3), np.arange(10) < 2
    fits, validations = bench._sums(here, "gain", bad, np.random.default_rng(0))
    for parts, sums in ((here.fits, fits), (here.validations, validations)):
        changed = [not np.allclose(part.phi.T @ part.y[:, None], s.b) for part, s in zip(parts, sums, strict=True)]
        assert changed == bad.tolist()


def test_labels_are_shifted_by_one_and_around() -> None:
    y = np.array(["a", "b", "c"])
    assert bench._faulty(y, "shifted", ["a", "b", "c"], np.random.default_rng(0)).tolist() == ["b", "c", "a"]


@pytest.mark.parametrize("two", [False, True])
def test_every_record_is_held_once(two: bool) -> None:
    labels = np.repeat([str(n) for n in range(10)], 20)
    rows = split_images(labels, 10, two, np.random.default_rng(0))
    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    assert not two or {len(set(labels[mine])) for mine in rows} == {2}
    with pytest.raises(ConfigError, match="as many clients as classes"):
        split_images(labels, 9, True, np.random.default_rng(0))


def case(ours: float, oracle: float, mean: float, krum: float, bad: list[int]) -> dict[str, object]:
    scores = {MEAN: mean, "Krum (heads, 1)": krum, "Krum (heads, 2)": krum - 5.0, COSINE: 1.0}
    run = {"higher_is_better": True, "clients": 10, "bad": bad, "scores": {**scores, OURS: ours, ORACLE: oracle}}
    return bench._case([run, run])


def test_bars_can_fail_and_a_tie_is_not_better() -> None:
    assert case(90.0, 90.4, 80.0, 85.0, [1])["passed"]
    assert not case(90.0, 90.6, 80.0, 85.0, [1])["passed"]
    assert not case(90.0, 90.0, 80.0, 90.0, [1])["passed"]
    assert not case(90.0, 90.0, 90.1, 85.0, [1])["passed"]
    assert case(90.0, 90.1, 90.1, 95.0, [])["passed"]
    assert not case(90.0, 90.3, 90.3, 85.0, [])["passed"]


def test_of_a_rival_the_better_variant_stands_and_an_oracle_below_the_mean_is_told() -> None:
    found = case(90.0, 80.0, 85.0, 70.0, [1])
    assert found["oracle_below_mean"] is True
    assert found["rows"]["Krum"]["variant"] == "Krum (heads, 1)"  # type: ignore[index]
    assert found["rows"]["Krum"]["ahead_mean"] == 20.0  # type: ignore[index]


def test_an_unknown_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no set moon"):
        bench_attention(["moon"], tmp_path, 1)


@pytest.mark.long
def test_clean_clients_cost_nothing_and_many_bad_ones_are_found() -> None:
    result = bench_attention(["mnist, even"], Path.home() / ".cache" / "frmu", 2)
    for name, found in result["cases"].items():
        assert found["rows"][ORACLE]["ahead_mean"] >= -0.5, name
