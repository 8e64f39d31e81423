"""Backward elimination against least squares on raw samples."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl
from prunelab.evidence.patch_moments import patches
from prunelab.graph.labels.layer_calls import Conv
from prunelab.methods.elimination import eliminate
from prunelab.methods.refit import RefitProblem, refit_problem


def raw(
    seed: int, channels: int = 5, entries: int = 3
) -> tuple[np.ndarray, np.ndarray, RefitProblem]:
    """Patches [rows, n], outputs [rows, out], and the same as a problem without a ridge."""
    rng = np.random.default_rng(seed)
    n = channels * entries
    p = rng.normal(size=(80, n)) @ rng.normal(size=(n, n)) / 3 + rng.normal(size=(80, n))
    kernel = rng.normal(size=(4, n))
    blocks = {i: np.arange(i * entries, (i + 1) * entries) for i in range(channels)}
    y = p @ kernel.T
    inverse = np.linalg.inv(p.T @ p)
    return p, y, RefitProblem(inverse, kernel.copy(), blocks, np.arange(4), float(np.sum(y**2)))


def error(p: np.ndarray, y: np.ndarray, blocks: dict[int, np.ndarray], gone: list[int]) -> float:
    """What least squares on the other channels leaves of y."""
    rest = np.concatenate([block for i, block in blocks.items() if i not in gone])
    return float(np.sum((y - p[:, rest] @ np.linalg.lstsq(p[:, rest], y, rcond=None)[0]) ** 2))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_every_step_takes_the_channel_whose_loss_least_squares_mends_best(seed: int) -> None:
    p, y, problem = raw(seed)
    blocks = dict(problem.entries)
    order, errors = eliminate([problem], range(5), 3)
    for step in range(3):
        gone = order[:step]
        options = {i: error(p, y, blocks, [*gone, i]) for i in range(5) if i not in gone}
        assert errors[order[step]] == pytest.approx(options[order[step]], rel=1e-6)
        assert options[order[step]] == pytest.approx(min(options.values()), rel=1e-6)
    rest = order[3:]
    for index in rest:
        assert errors[index] == pytest.approx(error(p, y, blocks, [*order[:3], index]), rel=1e-6)
    best = min(error(p, y, blocks, list(s)) for s in combinations(range(5), 3))
    assert errors[order[2]] >= best * (1 - 1e-9)


def test_the_kernel_left_is_the_least_squares_kernel() -> None:
    p, y, problem = raw(1)
    blocks = dict(problem.entries)
    order, _ = eliminate([problem], range(5), 2)
    rest = np.concatenate([blocks[i] for i in sorted(order[2:])])
    want = np.linalg.lstsq(p[:, rest], y, rcond=None)[0].T
    np.testing.assert_allclose(problem.kernel[:, rest], want, rtol=1e-7)
    gone = np.concatenate([blocks[i] for i in order[:2]])
    np.testing.assert_allclose(problem.kernel[:, gone], 0, atol=1e-10)


def test_a_duplicate_and_a_channel_without_weight_go_first(
    trained: nn.Module, data: pl.Data
) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    with torch.no_grad():
        model.conv1.weight[5] = model.conv1.weight[2]
        for tensor in (*model.bn1.parameters(), model.bn1.running_mean, model.bn1.running_var):
            tensor[5] = tensor[2]
        model.conv2.weight[:, 8] = 0
        loud = model.bn1.weight.abs() + 0.5  # everybody else is worth keeping
        model.bn1.weight.copy_(loud)
        model.bn1.weight[5] = model.bn1.weight[2]
    method = pl.Elimination(pruning_ratio={"conv1": 2 / 12})
    (drop,) = pl.Session(model, data, method=method).propose().drop.values()
    assert 8 in drop
    assert set(drop) - {8} <= {2, 5}


def test_the_problem_of_a_layer_is_that_of_its_patches(trained: nn.Module) -> None:
    model = Tiny()
    model.load_state_dict(trained.state_dict())
    model = model.double().eval()
    x = batches(32, 6)[0][0].double()
    graph = pl.trace(model, x)
    evidence = pl.measure(model, graph, [x], kinds=("contribution", "patches"))

    # judged by the very images that it is solved on, so the ridge is the least
    problem = refit_problem(model, graph.layer("conv2"), evidence, evidence)
    with torch.no_grad():
        hidden = F.relu(model.bn1(model.conv1(F.relu(model.bn0(model.stem(x))))))
    p = patches(hidden, (3, 3), Conv((1, 1), (1, 1), (1, 1), False, 1)).numpy()
    y = p @ model.conv2.weight.detach().reshape(8, -1).numpy().T
    p, y = np.vstack([p, p]), np.vstack([y, y])
    p, y = p - p.mean(0), y - y.mean(0)
    assert problem.energy == pytest.approx(float(np.sum(y**2)), rel=1e-8)
    unit = graph["conv1"].first + 4
    want = error(p, y, problem.entries, [unit])
    assert problem.costs([unit])[0] == pytest.approx(want, rel=1e-2)  # the repair's ridge is in it


def test_it_prunes_to_a_target_layer_by_layer(trained: nn.Module, data: pl.Data) -> None:
    session = pl.Session(trained, data, method="elimination")
    move = session.propose()
    assert {name: len(units) for name, units in move.drop.items()} == {"conv1": 6}
    scores = next(item for item in session.state.proposed.seen if isinstance(item, pl.Importance))
    gone = set(move.drop["conv1"])
    stay = set(range(12)) - gone
    assert max(scores.values[u] for u in gone) <= min(scores.values[u] for u in stay)
    session.reject()
    session.run(target_macs=0.5)
    assert session.state.now.cost.macs <= 0.5 * session.state.base.cost.macs
    with pytest.raises(pl.InvalidValue):
        pl.Elimination(images=0)
