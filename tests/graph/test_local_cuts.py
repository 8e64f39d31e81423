"""Groups whose width is hard-coded are found in their own modules, without a run for each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from toys import assert_exact

import prunelab as pl
from prunelab.graph.probe import HARD_CODED

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Two convolutions; with `fixed`, the code between them reshapes to a number of channels."""

    def __init__(self, fixed: bool) -> None:
        super().__init__()
        self.fixed = fixed
        self.a, self.b = nn.Conv2d(12, 24, 3, padding=1), nn.Conv2d(24, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x).relu()
        if self.fixed:
            y = y.reshape(len(y), 24, -1).reshape(y.shape)
        return x + self.b(y)


class Net(nn.Module):
    runs = 0

    def __init__(self, *fixed: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.blocks = nn.Sequential(*map(Block, fixed))

    def forward(self, x: Tensor) -> Tensor:
        Net.runs += 1
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


def frozen(graph: pl.ChannelGraph) -> dict[str, str]:
    return {group.name: group.why for group in graph.groups if group.name != "head" and group.why}


def test_every_block_with_a_fixed_width_is_frozen_and_no_other() -> None:
    torch.manual_seed(0)
    net = Net(True, False, True, False, True).eval()
    graph = pl.trace(net, X)
    assert frozen(graph) == {f"blocks.{at}.a": HARD_CODED for at in (0, 2, 4)}
    assert_exact(net, graph, X)


@pytest.mark.parametrize("count", [3, 12])
def test_the_runs_of_the_network_do_not_grow_with_the_blocks(count: int) -> None:
    torch.manual_seed(0)
    Net.runs = 0
    graph = pl.trace(Net(*[True] * count).eval(), X)
    assert len(frozen(graph)) == count
    assert Net.runs <= 9


class Twice(Net):
    """The blocks run twice, on images of two sizes."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(
            (self.blocks(x) + self.blocks(x[..., ::2, ::2]).mean((2, 3), True)).mean((2, 3))
        )


def test_a_block_that_runs_twice_is_judged_as_it_would_be_alone() -> None:
    torch.manual_seed(0)
    net = Twice(True, False).eval()
    graph = pl.trace(net, X)
    assert frozen(graph) == {"blocks.0.a": HARD_CODED}
    assert_exact(net, graph, X)
