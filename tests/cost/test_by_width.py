"""The polynomial of widths gives the cost of every plan."""

from __future__ import annotations

import random

import pytest
import torch
import torchvision
from torch import nn
from toys import Couplings, Tiny

import prunelab as pl
from prunelab.cost import by_width
from prunelab.cost.by_width import cost_by_width


def _model(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "tiny":
        return Tiny().eval(), torch.randn(1, 1, 12, 12)
    if name == "couplings":
        return Couplings().eval(), torch.randn(1, 2, 8, 8)
    return getattr(torchvision.models, name)(weights=None).eval(), torch.randn(1, 3, 64, 64)


@pytest.mark.parametrize(
    "name",
    ["tiny", "couplings", "resnet18", "vgg11_bn", "mobilenet_v2", "shufflenet_v2_x0_5",
     "regnet_y_400mf", "squeezenet1_1", "resnext50_32x4d"],
)  # fmt: skip
def test_the_polynomial_gives_the_cost_of_random_plans(name: str) -> None:
    model, x = _model(name)
    graph = pl.trace(model, x)
    draw = random.Random(0)

    def some(plan: pl.WidthPlan) -> dict[str, tuple[int, ...]]:
        found = {}
        for group in graph.after(plan).groups:
            steps = (len(group.units) - group.narrowest) // group.step
            if group.prunable and steps > 0:
                found[group.name] = tuple(
                    draw.sample(group.units, group.step * draw.randint(0, steps))
                    if group.step == 1
                    else group.units[: group.step * draw.randint(0, steps)]
                )
        return found

    start = pl.WidthPlan.full(graph).drop(some(pl.WidthPlan.full(graph)))
    for plan in (pl.WidthPlan.full(graph), start):
        found = cost_by_width(graph, plan)
        assert found is not None
        for _ in range(5):
            drop = some(plan)
            is_ = pl.cost(graph, plan.drop(drop))
            macs, params = found.at({group: len(units) for group, units in drop.items()})
            assert macs == pytest.approx(is_.macs, rel=1e-9)
            assert params == pytest.approx(is_.params, rel=1e-9)


def test_too_many_pairs_are_not_worked_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(by_width, "MOST", 0)
    model, x = _model("tiny")
    graph = pl.trace(model, x)
    assert cost_by_width(graph, pl.WidthPlan.full(graph)) is None
