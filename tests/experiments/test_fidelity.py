"""Fidelity: statistics against their definitions, regret against known losses."""

from __future__ import annotations

from itertools import combinations
from math import isnan, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import batches

import prunelab as pl

finite = st.floats(-100, 100).map(lambda value: round(value, 3))
lists = st.lists(st.tuples(finite, finite), min_size=3, max_size=12)


def tau_b(a: list[float], b: list[float]) -> float:
    """Kendall's tau-b by its definition."""
    pairs = list(combinations(range(len(a)), 2))
    agree = sum(np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i, j in pairs)
    loose = [sum(x[i] != x[j] for i, j in pairs) for x in (a, b)]
    return float(agree / sqrt(loose[0] * loose[1])) if all(loose) else nan


def rho(a: list[float], b: list[float]) -> float:
    """Spearman's rho by its definition: the correlation of average ranks."""
    ranks = []
    for side in (a, b):
        ranks.append([sum(y < x for y in side) + (side.count(x) + 1) / 2 for x in side])
    x, y = (np.array(rank) - np.mean(rank) for rank in ranks)
    spread = sqrt(float((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / spread if spread else nan


@settings(deadline=None, max_examples=30)
@given(lists)
def test_rank_correlations_are_those_of_the_definitions(pairs: list[tuple[float, float]]) -> None:
    a, b = [list(side) for side in zip(*pairs, strict=True)]
    found = pl.fidelity({"conv": a}, {"conv": b})["conv"]
    assert found.spearman == pytest.approx(rho(a, b), abs=1e-9, nan_ok=True)
    assert found.kendall == pytest.approx(tau_b(a, b), abs=1e-9, nan_ok=True)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-50, 50), min_size=2, max_size=20, unique=True))
def test_a_monotone_function_agrees_fully_and_its_negative_not_at_all(values: list[int]) -> None:
    scores = np.array(values, dtype=float)
    up = pl.fidelity({"conv": scores**3}, {"conv": scores})["conv"]
    down = pl.fidelity({"conv": -scores}, {"conv": scores})["conv"]
    assert (up.spearman, up.kendall) == (pytest.approx(1), pytest.approx(1))
    assert (down.spearman, down.kendall) == (pytest.approx(-1), pytest.approx(-1))
    assert all(bottom.overlap == 1 for bottom in up.bottoms)
    assert up.bottom(0.5).lift == pytest.approx(len(values) / up.bottom(0.5).k)


@settings(deadline=None, max_examples=30)
@given(lists, st.randoms(use_true_random=False))
def test_the_order_of_the_units_does_not_matter(pairs: list[tuple[float, float]], random) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)
    found = [
        pl.fidelity({"g": [a for a, _ in some]}, {"g": [b for _, b in some]})["g"]
        for some in (pairs, shuffled)
    ]
    assert found[0].spearman == pytest.approx(found[1].spearman, nan_ok=True)
    assert found[0].kendall == pytest.approx(found[1].kendall, nan_ok=True)


def test_a_constant_side_is_no_number() -> None:
    found = pl.fidelity({"a": [1, 1, 1], "b": [1, 2, 3]}, {"a": [1, 2, 3], "b": [1, 3, 2]})
    assert isnan(found["a"].spearman)
    assert isnan(found["a"].kendall)
    assert found.spearman == found["b"].spearman == pytest.approx(0.5)
    assert isnan(pl.fidelity({"a": [1]}, {"a": [2]}).spearman)


def test_the_lowest_units_are_compared_with_chance() -> None:
    scores, oracle = list(range(20)), [*range(10, 20), *range(10)]
    found = pl.fidelity({"g": scores}, {"g": oracle})["g"]
    assert [bottom.k for bottom in found.bottoms] == [1, 2, 5, 10]
    assert [bottom.overlap for bottom in found.bottoms] == [0, 0, 0, 0]
    found = pl.fidelity({"g": scores}, {"g": [0, 1, 2, *range(19, 2, -1)]})["g"]
    assert found.bottom(0.25).overlap == pytest.approx(0.6)
    assert found.bottom(0.25).lift == pytest.approx(0.6 * 20 / 5)
    with pytest.raises(pl.InvalidValue, match="share"):
        found.bottom(0.9)


def test_regret_is_the_loss_that_the_oracle_would_have_spared() -> None:
    weight = {"a": [0.1, 0.2, 0.4, 0.8], "b": [0.05, 0.0, 1.6, 3.2]}
    asked: list[int] = []

    def losses(drops: list[dict[str, tuple[int, ...]]]) -> list[float]:
        asked.append(len(drops))
        return [1 + sum(weight[g][u] for g, units in drop.items() for u in units) for drop in drops]

    scores = {"a": [3, 1, 2, 4], "b": [2, 3, 1, 4]}
    found = pl.fidelity(scores, weight, losses=losses)
    assert len(asked) == 1
    one = found["a"].bottom(0)
    assert (one.k, one.regret, one.ratio) == (1, pytest.approx(0.1), pytest.approx(2))
    half = found["a"].bottom(0.5)
    assert (half.regret, half.ratio) == (pytest.approx(0.3), pytest.approx(2))
    free = found["b"].bottom(0)  # the oracle's own damage is zero: no ratio
    assert free.regret == pytest.approx(1.6)
    assert isnan(free.ratio)
    assert found.everywhere.units == 8
    assert all(isnan(bottom.regret) for bottom in pl.fidelity(scores, weight)["a"].bottoms)


def test_oracles_are_compared_with_proposals_and_their_own_halves(
    trained: nn.Module, data: pl.Data
) -> None:
    few = batches(128, 4)
    session = pl.Session(trained, data, method=pl.Taylor(images=64))
    session.propose()
    graph = session.graph
    halves = [pl.measure(trained, graph, some, kinds=("ablation",)) for some in (few[:2], few[2:])]
    whole = halves[0] + halves[1]
    names = [group.name for group in graph if group.prunable]
    tables = [[ev.ablation(name) for name in names] for ev in (whole, *halves)]
    found = pl.fidelity(
        session.state.proposed.seen,
        tables[0],
        halves=(tables[1], tables[2]),
        losses=lambda drops: pl.ablate(trained, graph, few, drops),
    )
    assert [group.name for group in found.groups] == names
    assert -1 <= found.spearman <= 1
    one = rho([*tables[1][1].signed], [*tables[2][1].signed])
    assert found[names[1]].ceiling == pytest.approx(one)
    assert all(not isnan(bottom.regret) for bottom in found.everywhere.bottoms)
    text = repr(found)
    assert text.splitlines()[0].split()[:4] == ["units", "rho", "tau", "ceiling"]
    assert "one ranking" in text
    assert all(name in text for name in names)
    same = pl.fidelity(tables[0], tables[0])
    assert same.spearman == pytest.approx(1)
    assert all(bottom.overlap == 1 for bottom in same.everywhere.bottoms)


def test_what_cannot_be_compared_is_told() -> None:
    with pytest.raises(pl.InvalidValue, match="nothing to compare"):
        pl.fidelity({"a": [1, 2]}, {"b": [1, 2]})
    with pytest.raises(pl.InvalidValue, match="same network"):
        pl.fidelity({"a": [1, 2]}, {"a": [1, 2, 3]})
    with pytest.raises(pl.UnknownName, match="compared group"):
        pl.fidelity({"a": [1, 2]}, {"a": [1, 2]})["b"]
