"""Allocation: costs, brute force on small networks, and legal widths."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import batches

import prunelab as pl
from prunelab.cost.allocate import AllocationProblem, _hull, _legal
from prunelab.evidence import Curve, damage_curve

patient = settings(deadline=None, max_examples=30)  # the machine may be busy
KINDS = ["macs", "params", "activation_bytes"]


@pytest.fixture(scope="module")
def tiny(trained: nn.Module) -> tuple[pl.ChannelGraph, pl.Evidence]:
    images = [x for x, _ in batches(128, 1)]
    graph = pl.trace(trained, images[0][:1])
    return graph, pl.measure(trained, graph, images)


def problem_of(
    tiny: tuple[pl.ChannelGraph, pl.Evidence], kind: str = "macs", *, round_to: int = 1
) -> AllocationProblem:
    graph, evidence = tiny
    curves = [damage_curve(evidence[name]) for name in evidence.groups]
    return AllocationProblem(graph, pl.WidthPlan.full(graph), curves, kind, 1, round_to)


def brute(problem: AllocationProblem, limit: float) -> float:
    """The smallest sum of damages of any widths within `limit`."""
    widths = product(*(range(len(legal)) for legal in problem.removed))
    return min(problem.damage(w) for w in widths if problem.cost(w) <= limit)


# ---------------------------------------------------------------- the account


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["resnet20", "mobilenet", "vgg8"])
def test_the_account_is_the_cost_of_the_plan(name: str, kind: str) -> None:
    model = pl.zoo.load(name, pretrained=False)
    graph = pl.trace(model, torch.zeros(1, 1, 28, 28))
    rng = np.random.default_rng(0)
    curves = [
        Curve(g.name, tuple(rng.permutation(g.width).tolist()), (0.0,) * g.width)
        for g in graph.groups
        if g.prunable
    ]
    problem = AllocationProblem(graph, pl.WidthPlan.full(graph), curves, kind, 1, 1)
    for _ in range(5):
        choice = [int(rng.integers(len(legal))) for legal in problem.removed]
        want = getattr(pl.cost(graph, problem.plan(choice)), kind)
        assert problem.cost(choice) == pytest.approx(want, rel=1e-9)
        index = int(rng.integers(len(curves)))
        costs = problem.costs(index, choice)
        other = [*choice[:index], 0, *choice[index + 1 :]]
        difference = problem.cost(choice) - problem.cost(other)
        assert costs[choice[index]] - costs[0] == pytest.approx(difference, rel=1e-9)


def test_the_hull_is_convex_below_and_touches() -> None:
    rng = np.random.default_rng(2)
    places, values = np.arange(12), np.cumsum(rng.uniform(size=12))
    hull = _hull(places, values)
    assert (hull <= values + 1e-12).all()
    assert (np.diff(hull, 2) >= -1e-12).all()
    assert (hull[0], hull[-1]) == (values[0], pytest.approx(values[-1]))


def test_legal_widths_are_multiples_and_none_below_the_least() -> None:
    assert _legal(12, 3, 4).tolist() == [0, 4, 8]
    assert _legal(10, 1, 4).tolist() == [0, 2, 6]
    assert _legal(6, 8, 1).tolist() == [0]
    assert _legal(4, 1, 1).tolist() == [0, 1, 2, 3]


# ---------------------------------------------------------------- against brute force


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["marginal", "convex"])
def test_the_gap_to_brute_force_is_small(
    tiny: tuple[pl.ChannelGraph, pl.Evidence], kind: str, way: str
) -> None:
    """All 8 x 12 x 16 widths of a network whose costs interact, at six budgets."""
    problem = problem_of(tiny, kind)
    whole = problem.cost([0, 0, 0])
    gaps = []
    for share in (0.9, 0.75, 0.6, 0.45, 0.3, 0.15):
        found = problem.polished(getattr(problem, way)(share * whole), share * whole)
        assert problem.cost(found) <= share * whole
        gaps.append(problem.damage(found) / brute(problem, share * whole) - 1)
    assert min(gaps) >= -1e-9
    assert max(gaps) < 0.02


@pytest.fixture(scope="module")
def chain() -> pl.ChannelGraph:
    model = nn.Sequential(
        nn.Conv2d(1, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1)
    )
    return pl.trace(model, torch.zeros(1, 1, 2, 2))


@patient
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.85, 0.7, 0.5]))
def test_separable_convex_problems_are_solved_to_the_last_unit(
    chain: pl.ChannelGraph, seed: int, share: float
) -> None:
    """Where every unit costs the same, marginal steps are optimal, as in apportionment."""
    rng = np.random.default_rng(seed)
    curves = [
        Curve(name, tuple(range(n)), tuple(np.cumsum(np.sort(rng.uniform(size=n))).tolist()))
        for name, n in (("0", 5), ("2", 4))
    ]
    problem = AllocationProblem(chain, pl.WidthPlan.full(chain), curves, "activation_bytes", 1, 1)
    limit = share * problem.cost([0, 0])
    for way in (problem.marginal, problem.convex):
        found = problem.polished(way(limit), limit)
        assert problem.damage(found) == pytest.approx(brute(problem, limit))


# ---------------------------------------------------------------- the public function


@pytest.mark.parametrize("way", ["marginal", "convex", "uniform"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_plan_is_within_its_budget_and_uses_it(
    tiny: tuple[pl.ChannelGraph, pl.Evidence], way: Any, kind: Any
) -> None:
    graph, evidence = tiny
    whole = getattr(pl.cost(graph, pl.WidthPlan.full(graph)), kind)
    before = None
    for share in (1.0, 0.8, 0.5, 0.3):
        plan = pl.allocate(graph, evidence, share, of=kind, by=way)
        assert getattr(pl.cost(graph, plan), kind) <= share * whole
        damage = sum(evidence[n].damage(units) for n, units in plan.dropped.items())
        assert before is None or damage >= before
        before = damage
    assert pl.allocate(graph, evidence, 0.5 * whole, of=kind, by=way) == pl.allocate(
        graph, evidence, 0.5, of=kind, by=way
    )


def test_allocating_does_less_damage_than_the_same_share_everywhere(
    tiny: tuple[pl.ChannelGraph, pl.Evidence],
) -> None:
    graph, evidence = tiny

    def damage(way: Any) -> float:
        plan = pl.allocate(graph, evidence, 0.5, by=way)
        return sum(evidence[name].damage(units) for name, units in plan.dropped.items())

    assert damage("marginal") < damage("uniform")
    assert damage("convex") < damage("uniform")


def test_the_units_that_go_are_the_first_of_the_greedy_order(
    tiny: tuple[pl.ChannelGraph, pl.Evidence],
) -> None:
    graph, evidence = tiny
    plan = pl.allocate(graph, evidence, 0.5)
    for name, gone in plan.dropped.items():
        assert gone == damage_curve(evidence[name]).first(len(gone))


def test_given_shares_are_scaled_and_the_other_groups_stay(
    tiny: tuple[pl.ChannelGraph, pl.Evidence],
) -> None:
    graph, evidence = tiny
    plan = pl.allocate(graph, evidence, 0.6, by={"conv1": 0.2, "conv3": 0.1})
    assert plan.widths["stem"] == 8
    gone = 1 - plan.widths["conv1"] / 12, 1 - plan.widths["conv3"] / 16
    assert gone[0] == pytest.approx(2 * gone[1], abs=1 / 12)
    with pytest.raises(pl.UnknownName, match="conv9"):
        pl.allocate(graph, evidence, 0.6, by={"conv9": 0.2})


@pytest.mark.parametrize("way", ["marginal", "convex", "uniform"])
def test_widths_are_rounded_and_never_below_the_least(
    tiny: tuple[pl.ChannelGraph, pl.Evidence], way: Any
) -> None:
    graph, evidence = tiny
    plan = pl.allocate(graph, evidence, 0.4, by=way, min_width=4, round_to=4)
    for name in evidence.groups:
        assert plan.widths[name] == graph[name].width or plan.widths[name] % 4 == 0
        assert plan.widths[name] >= 4


def test_only_the_named_groups_shrink_and_the_start_is_kept(
    trained: nn.Module, tiny: tuple[pl.ChannelGraph, pl.Evidence]
) -> None:
    graph, _ = tiny
    start = pl.WidthPlan.full(graph).drop({"conv1": [0, 7], "stem": [1]})
    small = pl.cut(trained, graph, start)
    after = graph.after(start)
    evidence = pl.measure(small, after, [x for x, _ in batches(64, 1)])
    plan = pl.allocate(graph, evidence, 0.5, plan=start, groups=["conv1"])
    assert set(plan.dropped["conv1"]) > {0, 7}
    assert plan.dropped["stem"] == (1,)
    assert "conv3" not in plan.dropped
    assert pl.cost(graph, plan).macs <= 0.5 * pl.cost(graph, pl.WidthPlan.full(graph)).macs


def test_a_function_of_the_plan_is_a_budget_too(
    tiny: tuple[pl.ChannelGraph, pl.Evidence],
) -> None:
    graph, evidence = tiny
    asked = []

    def seconds(plan: pl.WidthPlan) -> float:
        asked.append(plan)
        return pl.cost(graph, plan).macs * 1e-9 + 1e-5

    full = seconds(pl.WidthPlan.full(graph))
    plan = pl.allocate(graph, evidence, 0.6 * full, of=seconds)
    assert 0.55 * full < seconds(plan) <= 0.6 * full
    assert len(asked) < 16
    assert pl.allocate(graph, evidence, 2 * full, of=seconds) == pl.WidthPlan.full(graph)
    with pytest.raises(pl.BudgetUnreachable):
        pl.allocate(graph, evidence, 1e-6, of=seconds)


def test_a_budget_out_of_reach_comes_with_the_narrowest_plan(
    tiny: tuple[pl.ChannelGraph, pl.Evidence],
) -> None:
    graph, evidence = tiny
    with pytest.raises(pl.BudgetUnreachable) as caught:
        pl.allocate(graph, evidence, 0.001, min_width=2)
    assert [caught.value.plan.widths[name] for name in evidence.groups] == [2, 2, 2]
    with pytest.raises(pl.BudgetUnreachable):
        pl.allocate(graph, evidence, 0.3, by={"conv3": 0.5})


@pytest.mark.parametrize(
    "wrong",
    [
        {"budget": 0},
        {"budget": True},
        {"budget": float("nan")},
        {"of": "flops"},
        {"by": "magic"},
        {"min_width": 0},
        {"round_to": 0},
    ],
)
def test_what_makes_no_sense_is_refused(
    tiny: tuple[pl.ChannelGraph, pl.Evidence], wrong: dict[str, Any]
) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.allocate(*tiny, **wrong)
