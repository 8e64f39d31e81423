"""Redundancy: planted combinations are found, weights and shares are those of plain regression."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl


class Planted(nn.Module):
    """Channel 7 is 0.6 of channel 3 and -0.3 of channel 1, channel 5 is constant; then a layer."""

    def __init__(self, kernel: int = 3, rectify: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rectify = rectify
        self.one = nn.Conv2d(2, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 4, kernel)
        with torch.no_grad():
            self.one.weight[7] = 0.6 * self.one.weight[3] - 0.3 * self.one.weight[1]
            self.one.bias[7] = 2.0
            self.one.weight[5] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.read(x))

    def read(self, x: Tensor) -> Tensor:
        return F.relu(self.one(x)) if self.rectify else self.one(x)


def found_in(net: Planted, x: Tensor, terms: int) -> tuple[pl.Redundancy, ...]:
    graph = pl.trace(net, x[:1])
    evidence = pl.measure(net, graph, [x], kinds=("patches",))
    return pl.redundancy(evidence, "one", terms=terms)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_planted_combination_is_found_with_its_weights(kernel: int) -> None:
    net, x = Planted(kernel).eval(), torch.randn(16, 2, 6, 6)
    units = found_in(net, x, terms=2)
    assert [one.unit for one in units] == list(range(8))
    planted = units[7]
    assert dict(zip(planted.others, planted.weights, strict=True)) == pytest.approx(
        {3: 0.6, 1: -0.3}, abs=1e-4
    )
    assert planted.explained == pytest.approx(1, abs=1e-5)
    assert str(planted) == "channel 7 = 0.6 x 3 - 0.3 x 1, 100% of its variance"


def test_a_constant_channel_says_so() -> None:
    constant = found_in(Planted().eval(), torch.randn(16, 2, 6, 6), terms=2)[5]
    assert (constant.others, constant.explained) == ((), 1.0)
    assert str(constant) == "channel 5 is constant"


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_weights_and_shares_are_those_of_regression_on_the_activations(terms: int) -> None:
    net, x = Planted(kernel=1, rectify=True).eval(), torch.randn(16, 2, 6, 6)
    with torch.no_grad():
        rows = net.read(x).movedim(1, -1).flatten(0, 2).double().numpy()
    for one in found_in(net, x, terms):
        if not one.others:
            continue
        others = np.concatenate([rows[:, one.others], np.ones((len(rows), 1))], axis=1)
        solved, *_ = np.linalg.lstsq(others, rows[:, one.unit], rcond=None)
        assert solved[:-1] == pytest.approx(one.weights, abs=1e-3)
        left = rows[:, one.unit] - others @ solved
        assert one.explained == pytest.approx(1 - left.var() / rows[:, one.unit].var(), abs=1e-4)


def test_one_term_is_the_channel_that_correlates_most() -> None:
    net, x = Planted(kernel=1, rectify=True).eval(), torch.randn(16, 2, 6, 6)
    with torch.no_grad():
        rows = net.read(x).movedim(1, -1).flatten(0, 2).double().numpy()
    live = [unit for unit in range(8) if rows[:, unit].std() > 1e-9]
    correlation = np.corrcoef(rows[:, live].T)
    best = {}
    for a, b in combinations(range(len(live)), 2):
        for i, j in ((a, b), (b, a)):
            best[live[i]] = max(best.get(live[i], 0), correlation[i, j] ** 2)
    for one in found_in(net, x, terms=1):
        if one.unit in best:
            assert one.explained == pytest.approx(best[one.unit], abs=1e-5)


def test_units_of_several_inputs_of_a_linear_layer_are_compared_place_by_place() -> None:
    class Flat(Planted):
        def __init__(self) -> None:
            super().__init__()
            self.two = nn.Linear(8 * 36, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.read(x).flatten(1))

    planted = found_in(Flat().eval(), torch.randn(400, 2, 6, 6), terms=2)[7]
    assert dict(zip(planted.others, planted.weights, strict=True)) == pytest.approx(
        {3: 0.6, 1: -0.3}, abs=1e-3
    )


def test_after_a_cut_units_keep_their_original_numbers() -> None:
    net, x = Planted().eval(), torch.randn(16, 2, 6, 6)
    graph = pl.trace(net, x[:1])
    plan = pl.WidthPlan.full(graph).drop({"one": [0, 2]})
    small, after = pl.cut(net, graph, plan), graph.after(plan)
    evidence = pl.measure(small, after, [x], kinds=("patches",))
    units = pl.redundancy(evidence, "one")
    assert [one.unit for one in units] == [1, 3, 4, 5, 6, 7]
    assert set(units[-1].others) == {1, 3}
