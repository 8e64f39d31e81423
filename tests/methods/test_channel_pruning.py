"""Channel Pruning's invariants: the LASSO against its conditions, a dense solver, brute force."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from torch import nn
from toys import Tiny, batches

import prunelab as pl
from prunelab.evidence import aiming
from prunelab.evidence.measure import finish
from prunelab.figures.lasso_path import draw_path, path_info
from prunelab.methods.lasso import bisect, lars, ranked
from prunelab.methods.layerwise import keep_factors
from prunelab.values import PathPoint, revive, thaw

seeds = st.integers(0, 10_000)
patient = settings(deadline=None, max_examples=40)  # the machine may be busy


def problem(seed: int, n: int, rows: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Correlated contributions [n, rows] and an aim that is not just their sum."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, n)) @ rng.normal(size=(n, rows))
    return z, z.sum(0) + rng.normal(size=rows)


def kept(gram: np.ndarray, path: list[Any], count: int) -> list[int]:
    return sorted(ranked(gram, path, count)[len(gram) - count :])


def refit_error(z: np.ndarray, indices: list[int], y: np.ndarray) -> float:
    """What least squares on these channels leaves of y, as a share."""
    fit = np.linalg.lstsq(z[indices].T, y, rcond=None)[0] @ z[indices]
    return float(np.sum((y - fit) ** 2) / np.sum(y**2))


# ---------------------------------------------------------------- the path


@patient
@given(seeds, st.integers(2, 10))
def test_every_knot_of_the_path_meets_the_optimality_conditions(seed: int, n: int) -> None:
    z, y = problem(seed, n)
    gram, cross = z @ z.T, z @ y
    top = np.abs(cross).max()
    for solution in lars(gram, cross):
        slope = (cross - gram @ solution.coefficients) / top  # of the squared part, downhill
        active = solution.coefficients != 0
        assert np.abs(slope).max() <= solution.penalty + 1e-6
        signs = np.sign(solution.coefficients[active])
        np.testing.assert_allclose(slope[active], solution.penalty * signs, atol=1e-6)


@patient
@given(seeds, st.integers(2, 8))
def test_the_path_is_that_of_a_dense_lasso_on_raw_samples(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)  # not too collinear for coordinate descent
    z = rng.normal(size=(n, 80)) + 0.5 * rng.normal(size=80)
    y = z.sum(0) + rng.normal(size=80)
    path = lars(z @ z.T, z @ y)
    top = np.abs(z @ y).max()
    for solution in path[1:-1]:
        dense = Lasso(
            alpha=solution.penalty * top / len(y), fit_intercept=False, tol=1e-10, max_iter=100_000
        ).fit(z.T, y)
        np.testing.assert_allclose(solution.coefficients, dense.coef_, atol=2e-4)


def test_the_path_goes_from_nothing_to_everything() -> None:
    z, y = problem(1, 9)
    path = lars(z @ z.T, z @ y)
    assert path[0].kept == 0
    assert path[0].penalty == pytest.approx(1)
    assert path[-1].kept == 9
    assert path[-1].penalty == pytest.approx(0, abs=1e-9)
    want = np.linalg.lstsq(z.T, y, rcond=None)[0]
    np.testing.assert_allclose(path[-1].coefficients, want, rtol=1e-5, atol=1e-8)
    penalties = [solution.penalty for solution in path]
    assert penalties == sorted(penalties, reverse=True)


@pytest.mark.parametrize("solver", ["lars", "bisect"])
@patient
@given(seed=seeds, n=st.integers(2, 10), data=st.data())
def test_exactly_as_many_are_kept_as_wanted(solver: str, seed: int, n: int, data: Any) -> None:
    z, y = problem(seed, n)
    if data.draw(st.booleans()):
        z[0] = z[-1]  # a duplicate
    if data.draw(st.booleans()):
        z[n // 2] = 0  # a dead channel
    count = data.draw(st.integers(1, n))
    gram, cross = z @ z.T, z @ y
    path = lars(gram, cross) if solver == "lars" else bisect(gram, cross, count, seed)
    chosen = kept(gram, path, count)
    assert len(set(chosen)) == count
    if count < n and not np.any(z[n // 2]):
        assert n // 2 not in chosen


@patient
@given(seeds, st.integers(4, 20))
def test_bisection_ends_in_its_window_or_at_its_cap(seed: int, n: int) -> None:
    z, y = problem(seed, n)
    count = n // 2
    trials = bisect(z @ z.T, z @ y, count, seed)
    assert len(trials) <= 80
    inside = [trial for trial in trials if count <= trial.kept <= 1.1 * count]
    assert inside or len(trials) > 60
    again = bisect(z @ z.T, z @ y, count, seed)
    assert [t.penalty for t in again] == [t.penalty for t in trials]


def test_both_solvers_keep_the_same_channels_where_the_path_is_clear() -> None:
    rng = np.random.default_rng(3)
    z = np.linalg.qr(rng.normal(size=(60, 12)))[0].T * np.linspace(1, 3, 12)[:, None]
    y = z.sum(0)
    gram, cross = z @ z.T, z @ y
    for count in (3, 6, 9):
        want = list(range(12 - count, 12))
        assert kept(gram, lars(gram, cross), count) == want
        assert kept(gram, bisect(gram, cross, count, 0), count) == want


# ---------------------------------------------------------------- planted channels


def test_of_duplicates_one_goes_and_nothing_is_lost() -> None:
    z, _ = problem(5, 8)
    z[6] = z[2]
    y = z.sum(0)
    chosen = kept(z @ z.T, lars(z @ z.T, z @ y), 7)
    assert not {2, 6} <= set(chosen)
    assert refit_error(z, chosen, y) < 1e-12


def test_a_sum_of_others_costs_nothing() -> None:
    z, _ = problem(6, 6)
    z[5] = z[0] + z[1]
    y = z.sum(0)
    chosen = kept(z @ z.T, lars(z @ z.T, z @ y), 5)
    assert refit_error(z, chosen, y) < 1e-12


def test_a_planted_sparse_problem_is_solved_better_than_at_random() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(30, 400)) + 0.2 * rng.normal(size=400)
    support = rng.choice(30, 8, replace=False)
    y = z[support].sum(0) + 0.1 * rng.normal(size=400)
    chosen = kept(z @ z.T, lars(z @ z.T, z @ y), 8)
    assert chosen == sorted(support.tolist())
    at_random = [refit_error(z, rng.choice(30, 8, replace=False).tolist(), y) for _ in range(20)]
    assert refit_error(z, chosen, y) < min(at_random)
    assert refit_error(z, chosen, y) < refit_error(z, list(range(8)), y)  # the first k
    for count in (2, 4, 6):
        of_lasso = refit_error(z, kept(z @ z.T, lars(z @ z.T, z @ y), count), y)
        others = [rng.choice(30, count, replace=False).tolist() for _ in range(20)]
        assert of_lasso < min(refit_error(z, other, y) for other in [list(range(count)), *others])


def test_no_signal_keeps_the_wanted_number_all_the_same() -> None:
    nothing = np.zeros((5, 5))
    for path in (lars(nothing, np.zeros(5)), bisect(nothing, np.zeros(5), 2, 0)):
        assert len(kept(nothing, path, 2)) == 2


# ---------------------------------------------------------------- on networks


def test_with_an_intercept_evidence_is_centred_by_output(trained: nn.Module) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model = model.double().eval()
    xs = [x.double() for x, _ in batches(64, 5)]
    evidence = pl.measure(model, pl.trace(model, xs[0]), xs)
    for group, consumer in (("conv1", "conv2"), ("conv2", "conv3"), ("conv3", "fc")):
        layer = model.get_submodule(consumer)
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _, args, to=seen: to.append(args[0]))
        with torch.no_grad():
            for x in xs:
                model(x)
        handle.remove()
        parts = []
        for unit in range(layer.weight.shape[1]):
            alone = torch.cat(seen)
            alone = torch.where(
                torch.arange(alone.shape[1]).view(1, -1, *[1] * (alone.ndim - 2)) == unit, alone, 0
            )
            with torch.no_grad():
                y = layer(alone) - layer(0 * alone)
            y = y.movedim(1, 0).flatten(1)
            parts.append((y - y.mean(1, keepdim=True)).flatten())
        z = torch.stack(parts).numpy()
        found = evidence.centred[group].consumers[consumer].gram
        np.testing.assert_allclose(found, z @ z.T, rtol=1e-8, atol=1e-8 * np.abs(found).max())


def test_scaling_a_channel_and_its_weight_back_changes_nothing(
    trained: nn.Module, data: pl.Data
) -> None:
    scaled = Tiny()
    scaled.load_state_dict(trained.state_dict())
    with torch.no_grad():
        factor = torch.linspace(0.25, 4, 12)
        scaled.bn1.weight *= factor
        scaled.bn1.bias *= factor
        scaled.conv2.weight /= factor.view(1, -1, 1, 1)
    moves = [pl.Session(net, data, method="channel_pruning").propose() for net in (trained, scaled)]
    assert moves[0].drop == moves[1].drop


@pytest.mark.parametrize("solver", ["lars", "bisect"])
def test_each_move_is_one_layer_and_shows_its_path(
    trained: nn.Module, data: pl.Data, solver: str
) -> None:
    method = pl.ChannelPruning(pruning_ratio={"conv1": 0.25, "conv3": 0.5}, solver=solver)
    session = pl.Session(trained, data, method=method)
    first = session.propose()
    assert {name: len(units) for name, units in first.drop.items()} == {"conv1": 3}
    seen = session.state.proposed.seen
    points = [item for item in seen if isinstance(item, PathPoint)]
    assert {point.wanted for point in points} == {9}
    assert revive(thaw(points[0])) == points[0]
    scores = next(item for item in seen if isinstance(item, pl.Importance))
    worst = sorted(scores.units, key=lambda unit: scores.values[unit])
    assert scores.values[worst[0]] < scores.values[worst[-1]] <= 1
    session.approve()
    assert {n: len(u) for n, u in session.propose().drop.items()} == {"conv3": 8}
    session.approve()
    assert session.propose() is None


def test_the_figure_draws_the_path_and_where_it_was_cut(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method="channel_pruning")
    session.propose()
    info = path_info(session.state, "conv1")
    assert info.wanted == 6
    assert info.kept[0] <= 1
    assert info.penalties == tuple(sorted(info.penalties, reverse=True))
    assert info.kept[info.found] >= 6
    assert all(kept < 6 for kept in info.kept[: info.found])
    panel = draw_path(info)
    assert [len(trace.x) for trace in panel.traces] == [2, len(info.penalties), 1]
    empty = draw_path(path_info(session.state, "conv3"))
    assert [trace.type for trace in empty.traces] == [trace.type for trace in panel.traces]
    assert "no LASSO path" in empty.note


def test_the_paths_survive_a_resume(trained: nn.Module, data: pl.Data, tmp_path: Any) -> None:
    path = tmp_path / "run.prunelab"
    session = pl.Session(trained, data, method="channel_pruning", path=path)
    session.propose()
    again = pl.Session.open(path, model=Tiny(), data=data)
    assert again.state.proposed.seen == session.state.proposed.seen
    assert again.method == session.method


def test_towards_a_target_the_schedule_is_scaled(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method="channel_pruning")
    session.run(target_macs=0.5)
    assert session.state.now.cost.macs <= 0.5 * session.state.base.cost.macs
    assert session.evaluate("val")["accuracy"] > 0.8


def test_shallow_layers_give_most_deep_ones_less_the_last_nothing(data: pl.Data) -> None:
    graph = pl.trace(pl.zoo.load("vgg8", pretrained=False), torch.zeros(1, 1, 28, 28))

    keeps = keep_factors("shallow", graph, [g for g in graph.groups if g.prunable])
    assert keeps == {
        "conv1": 1.0, "conv2": 1.0, "conv3": 1.5, "conv4": 1.5,
        "conv5": np.inf, "conv6": np.inf, "conv7": np.inf,
    }  # fmt: skip


@dataclass(frozen=True)
class Aimed:
    """Channel Pruning that is handed the network last trained."""

    target: Any
    graph: Any
    images: Any
    name: ClassVar[str] = "aimed"

    def search(self, context: Any) -> Iterator[Any]:
        def aimed(layers: Any, _: int) -> Any:
            return aiming(
                context.model, context.graph, self.target, self.graph, self.images, layers
            )

        context.aimed = aimed
        return (yield from pl.ChannelPruning(pruning_ratio={"conv1": 0.5}).search(context))


def test_the_lasso_aims_at_the_network_last_trained(trained: nn.Module, data: pl.Data) -> None:
    """What is chosen on a damaged network reproduces the sound one better."""
    damaged = Tiny()
    damaged.load_state_dict(trained.state_dict())
    with torch.no_grad():
        damaged.conv2.weight += 0.15 * torch.randn(
            damaged.conv2.weight.shape, generator=torch.Generator().manual_seed(0)
        )
    images = batches(256, 1)
    graph = pl.trace(trained, images[0][0])
    asymmetric = pl.Session(damaged, data, method=Aimed(trained, graph, images)).propose()
    plain = pl.ChannelPruning(pruning_ratio={"conv1": 0.5})
    symmetric = pl.Session(damaged, data, method=plain).propose()
    found = finish(aiming(damaged, graph, trained, graph, images, ["conv2"]))["conv2"].centred

    def missed(drop: tuple[int, ...]) -> float:
        """What a refit by factors leaves of the sound network's output."""
        rest = [unit for unit in range(12) if unit not in drop]
        gram, cross = found.gram[np.ix_(rest, rest)], found.cross[rest]
        return 1 - float(cross @ np.linalg.solve(gram, cross)) / found.energy

    assert asymmetric.drop != symmetric.drop
    assert missed(asymmetric.drop["conv1"]) < missed(symmetric.drop["conv1"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"pruning_ratio": 1},
        {"pruning_ratio": {"conv1": 0.5}, "schedule": "shallow"},
        {"schedule": "conv"},
        {"solver": "greedy"},
        {"groups": "some"},
        {"images": 0},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(pl.InvalidValue):
        pl.ChannelPruning(**wrong)


def test_normalised_the_penalty_is_on_the_coefficients_of_unit_weights(
    trained: nn.Module, data: pl.Data
) -> None:
    session = pl.Session(trained, data, repair=None)
    x = torch.cat([x for x, _ in session._evaluator.splits.images(64)])
    with torch.no_grad():
        inside = torch.relu(trained.bn1(trained.conv1(torch.relu(trained.bn0(trained.stem(x))))))
        weight = trained.conv2.weight
        each = [
            torch.conv2d(inside[:, i : i + 1], weight[:, i : i + 1], padding=1)
            / weight[:, i].norm()
            for i in range(12)
        ]
        y = torch.conv2d(inside, weight, padding=1)
    rows = [z.double() - z.double().mean((0, 2, 3), keepdim=True) for z in (*each, y)]
    *z, y = (row.flatten().numpy() for row in rows)
    z = np.array(z)
    path = lars(z @ z.T, z @ y)
    points, drops = {}, {}
    for normalise in (True, False):
        session.method = pl.ChannelPruning({"conv1": 0.5}, images=64, normalise=normalise)
        drops[normalise] = session.propose().drop["conv1"]
        seen = session.state.proposed.seen
        points[normalise] = [s.penalty for s in seen if isinstance(s, PathPoint)]
        session.reject()
    np.testing.assert_allclose(points[True], [s.penalty for s in path], rtol=1e-3, atol=1e-6)
    assert drops[True] == tuple(sorted(set(range(12)) - set(kept(z @ z.T, path, 6))))
    assert points[True][1] != pytest.approx(points[False][1], rel=1e-3)


def test_alternating_is_lasso_and_least_squares_in_turn(trained: nn.Module, data: pl.Data) -> None:
    few = {"images": 64}
    turns = pl.ChannelPruning({"conv1": 0.5, "conv3": 0.25}, alternations=3, **few)
    session = pl.Session(trained, data, turns, repair_images=64)
    moves = []
    while (move := session.propose()) is not None:
        moves.append(dict(move.drop))
        session.approve()
    assert [{name: len(units) for name, units in drop.items()} for drop in moves] == [
        {"conv1": 2}, {"conv1": 2}, {"conv1": 2}, {"conv3": 2}, {"conv3": 1}, {"conv3": 1},
    ]  # fmt: skip
    by_hand = pl.Session(trained, data, repair_images=64)
    ratios = [{"conv1": n / 12} for n in (2, 4, 6)]
    ratios += [{"conv1": 0.5, "conv3": n / 16} for n in (2, 3, 4)]
    for ratio, drop in zip(ratios, moves, strict=True):
        by_hand.method = pl.ChannelPruning(ratio, **few)
        assert dict(by_hand.propose().drop) == drop
        by_hand.approve()
    for one, other in zip(
        session.model.state_dict().values(), by_hand.model.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(one, other)
