"""`cost`: of a plan, of its cut network, and of single units; the same count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d
from toys import Net, Toy, ab, conv, random_plan

import prunelab as pl
from prunelab.cost.pricing import terms_of
from prunelab.cost.savings import savings


def tied(net: Any, x: Tensor) -> Tensor:
    return F.conv_transpose2d(net.c(x).relu(), net.c.weight, stride=2, padding=1, output_padding=1)


def deformed(net: Any, x: Tensor) -> Tensor:
    return net.d(x, net.offset(x))


def each_channel(net: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return net.k(x.reshape(n * c, 1, h, w)).view(n, c, h, w)


def deform(groups: int) -> Callable[[], nn.Module]:
    return lambda: DeformConv2d(8, 12, 3, padding=1, groups=groups)


TOYS = {
    "a deformable convolution": ab(deformed, 12, d=deform(1), offset=lambda: conv(8, 18)),
    "a grouped deformable convolution": ab(deformed, 12, d=deform(2), offset=lambda: conv(8, 18)),
    "a convolution and its transpose": ab(tied, c=lambda: conv(8, 12, stride=2)),
    "a weight and a part of it": ab(
        lambda net, x: torch.cat([net.c(x), F.conv2d(x, net.c.weight[:4], padding=1)], 1),
        12,
        c=lambda: conv(8, 8),
    ),
    "a shared convolution": ab(lambda net, x: net.c(net.c(x)[..., 1:]), c=lambda: conv(8, 8)),
    "one kernel for each channel": ab(each_channel, k=lambda: conv(1, 1)),
    "tokens mixed": ab(lambda net, x: net.m(x.flatten(2)).view_as(x), m=lambda: nn.Linear(64, 64)),
    "a transposed convolution": ab(
        lambda net, x: net.t(x), 6, t=lambda: nn.ConvTranspose2d(8, 6, 2, 2)
    ),
    "a grouped convolution": ab(lambda net, x: net.d(x), 12, d=lambda: conv(8, 12, groups=4)),
}


@pytest.mark.parametrize("name", TOYS)
def test_a_plan_its_cut_network_and_its_units_have_one_count(name: str) -> None:
    model, x = Net(Toy(**TOYS[name], groups={})).eval(), torch.randn(2, 3, 8, 8)
    graph = pl.trace(model, x)
    large = torch.randn(1, 3, 8, 8)
    for seed in range(3):
        plan = random_plan(graph, seed)
        small = pl.cut(model, graph, plan)
        assert pl.cost(graph, plan) == pl.cost(small, x)
        assert pl.cost(graph, plan, large) == pl.cost(small, large)
        assert pl.cost(graph.after(plan), plan) == pl.cost(graph, plan)
        macs, memory = savings(graph, plan)
        for group in graph.groups:
            if group.prunable and len(plan.kept[group.name]) > 1:
                unit = plan.kept[group.name][0]
                left = pl.cost(graph, plan.drop({group.name: [unit]}))
                assert macs[group.first + unit] == pl.cost(graph, plan).macs - left.macs
                saved = pl.cost(graph, plan).activation_bytes - left.activation_bytes
                assert memory[group.first + unit] == saved
        for kind in ("macs", "activation_bytes"):
            total = sum(term.at([]) for term in terms_of(graph, plan, [], kind))
            assert total == getattr(pl.cost(graph, plan), kind)
