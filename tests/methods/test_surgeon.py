"""Surgeon: predicted losses against explicit least squares, the search against brute force."""

from __future__ import annotations

import tracemalloc
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from toys import Tiny

import prunelab as pl
from prunelab.evidence import output_fisher
from prunelab.ledger.events import Approved
from prunelab.methods.refit import RefitProblem


def raw(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, RefitProblem]:
    """Patches of five units [rows, 15], outputs [rows, 4], a metric [4, 4], and the problem."""
    rng = np.random.default_rng(seed)
    p = rng.normal(size=(80, 15)) @ rng.normal(size=(15, 15)) + rng.normal(size=(80, 15))
    kernel, root = rng.normal(size=(4, 15)), rng.normal(size=(4, 4))
    entries = {unit: np.arange(3 * unit, 3 * unit + 3) for unit in range(5)}
    metric = root @ root.T
    inverse = np.linalg.inv(p.T @ p)
    return (
        p,
        p @ kernel.T,
        metric,
        RefitProblem(inverse, kernel, entries, np.arange(4), 1.0, metric),
    )


def missed(p: np.ndarray, y: np.ndarray, metric: np.ndarray, gone: tuple[int, ...]) -> float:
    """What least squares without the units `gone` leaves of y, by the metric."""
    rest = [3 * unit + k for unit in range(5) if unit not in gone for k in range(3)]
    error = y - p[:, rest] @ np.linalg.lstsq(p[:, rest], y, rcond=None)[0]
    return float(np.sum((error @ metric) * error))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_price_is_what_least_squares_leaves_weighed_by_the_metric(seed: int) -> None:
    p, y, metric, problem = raw(seed)
    singles = [missed(p, y, metric, (unit,)) for unit in range(5)]
    np.testing.assert_allclose(problem.costs(range(5)), singles, rtol=1e-6)
    problem.remove(2)
    pairs = [missed(p, y, metric, (2, unit)) - singles[2] for unit in (0, 1, 3, 4)]
    np.testing.assert_allclose(problem.costs([0, 1, 3, 4]), pairs, rtol=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_outputs_that_are_gone_cost_nothing(seed: int) -> None:
    p, y, metric, problem = raw(seed)
    problem.remove_outputs(1)
    keep = [0, 2, 3]
    want = [missed(p, y[:, keep], metric[np.ix_(keep, keep)], (unit,)) for unit in range(5)]
    np.testing.assert_allclose(problem.costs(range(5)), want, rtol=1e-6)


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_the_greedy_choice_is_within_a_factor_of_the_best_pair(seed: int) -> None:
    """Optimal for one unit; for more a heuristic, seen here never to cost 4 times the best."""
    p, y, metric, problem = raw(seed)
    first = int(np.argmin(problem.costs(range(5))))
    problem.remove(first)
    rest = [unit for unit in range(5) if unit != first]
    second = rest[int(np.argmin(problem.costs(rest)))]
    best = min(missed(p, y, metric, pair) for pair in combinations(range(5), 2))
    assert best * (1 - 1e-9) <= missed(p, y, metric, (first, second)) <= 4 * best


def importances(session: pl.Session) -> dict[str, dict[int, float]]:
    seen = session.state.proposed.seen
    return {
        item.group: dict(zip(item.units, item.values, strict=True))
        for item in seen
        if isinstance(item, pl.Importance)
    }


def test_what_nobody_reads_goes_first_and_duplicates_before_others(
    trained: nn.Module, data: pl.Data
) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    with torch.no_grad():
        model.conv1.weight[5] = model.conv1.weight[2]
        for tensor in (*model.bn1.parameters(), model.bn1.running_mean, model.bn1.running_var):
            tensor[5] = tensor[2]
        model.conv2.weight[:, 8] = 0
    session = pl.Session(model, data, method=pl.Surgeon(step=0.08, groups="internal"))
    move = session.propose()
    prices = importances(session)["conv1"]
    assert 8 in move.drop["conv1"]
    assert {2, 5} & set(move.drop["conv1"])
    assert prices[8] == pytest.approx(0, abs=1e-9)


def test_the_first_to_go_is_the_cheapest_of_any_layer_for_what_it_saves(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method=pl.Surgeon(step=1e-6))
    (name, (unit,)) = next(iter(session.propose().drop.items()))
    full = pl.WidthPlan.full(session._evaluator.graph)
    whole = pl.cost(session._evaluator.graph, full).macs
    rates = {
        (group, number): price
        / (whole - pl.cost(session._evaluator.graph, full.drop({group: [number]})).macs)
        for group, values in importances(session).items()
        for number, price in values.items()
        if (group, number) == (name, unit) or group not in _touched(session, name)
    }
    assert min(rates, key=lambda at: rates[at]) == (name, unit)


def _touched(session: pl.Session, name: str) -> set[str]:
    """The groups whose prices change when a unit of `name` goes."""
    graph = session._evaluator.graph
    readers = set(graph[name].consumers) | set(graph[name].producers)
    return {group.name for group in graph if readers & set(group.consumers)}


def test_a_run_meets_its_target_step_by_step(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method=pl.Surgeon(step=0.2, images=96))
    session.run(target_macs=0.5)
    whole = session.state.base.cost.macs
    costs = [whole, *(e.cost.macs for e in session.ledger if isinstance(e, Approved))]
    assert len(costs) == 4
    for before, cost, goal in zip(costs, costs[1:], (0.8, 0.6, 0.5), strict=False):
        assert cost <= goal * whole < before  # no step is left out, none is taken twice


def test_widths_are_legal_and_residual_streams_may_be_left_alone(
    trained: nn.Module, data: pl.Data
) -> None:
    graph = pl.trace(trained, torch.zeros(1, *data.input_shape), round_to=4)
    session = pl.Session(trained, data, method=pl.Surgeon(step=0.3, images=96), graph=graph)
    session.run(target_macs=0.6)
    assert all(width % 4 == 0 for width in session.plan.widths.values())
    session = pl.Session(trained, data, method=pl.Surgeon(step=0.3, groups="internal", images=96))
    move = session.propose()
    assert not any(session._evaluator.graph[name].residual for name in move.drop)


def test_the_same_seed_gives_the_same_move(trained: nn.Module, data: pl.Data) -> None:
    moves = [
        pl.Session(trained, data, method=pl.Surgeon(images=64), seed=3).propose() for _ in range(2)
    ]
    assert moves[0] == moves[1]


def test_a_move_asked_for_again_is_the_same_and_runs_the_network_no_more(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method=pl.Surgeon(images=64))
    first = session.propose()
    session.reject()
    told: list[str] = []
    session.listen(lambda item: told.append(getattr(item, "what", "")))
    again = session.propose()
    assert again.drop == first.drop
    assert "0 units out" in told
    assert not any(what.startswith("measuring") for what in told)


def test_any_loss_will_do_and_nonsense_is_told(trained: nn.Module, data: pl.Data) -> None:
    def squares(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        aim = nn.functional.one_hot(batch[1], 4).float()
        return (model(batch[0]) - aim).square().mean()

    session = pl.Session(trained, data, method=pl.Surgeon(images=64), loss=squares)
    assert session.propose().drop
    for wrong in ({"step": 0}, {"step": 1.5}, {"groups": "some"}, {"images": 0}, {"per": "s"}):
        with pytest.raises(pl.InvalidValue):
            pl.Surgeon(**wrong)


def test_a_person_sees_how_far_it_is_and_can_stop_it_between_two_units(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, method=pl.Surgeon(step=0.5, images=64))
    told: list[str] = []

    def listener(item: object) -> None:
        if isinstance(item, pl.Progress):
            told.append(item.what)
            assert 0 <= item.done <= item.total and item.total > 0
            if item.what == "3 units out":
                session.stop()

    session.listen(listener)
    with pytest.raises(pl.Stopped):
        session.propose()
    assert session.state.proposed is None
    assert "solving the least squares of conv2" in told
    assert told[-4:] == ["0 units out", "1 unit out", "2 units out", "3 units out"]


def test_a_root_of_the_curvature_makes_the_same_choice(
    trained: nn.Module, data: pl.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = pl.Surgeon(step=1.0, images=64)
    whole = pl.Session(trained, data, method, repair=None).propose(0.6)
    monkeypatch.setattr(output_fisher, "WIDE", 3)
    monkeypatch.setattr(output_fisher, "RANK", 10**5)
    same = pl.Session(trained, data, method, repair=None).propose(0.6)
    assert whole is not None
    assert same is not None
    assert same.drop == whole.drop


def test_memory_grows_with_the_classes_and_not_with_their_square() -> None:
    classes = 20_000  # a matrix of their squares takes 3.2 GB
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, classes),
    ).eval()  # fmt: skip
    some = [(torch.randn(8, 3, 8, 8), torch.arange(8))] * 2
    session = pl.Session(net, pl.Data(some, some), pl.Surgeon(images=16), repair=None)
    tracemalloc.start()
    try:
        assert session.propose(0.8) is not None
        assert tracemalloc.get_traced_memory()[1] < 1e9
    finally:
        tracemalloc.stop()
