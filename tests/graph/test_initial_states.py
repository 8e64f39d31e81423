"""Initial states in a network's code: zeros with a fixed width, or the width of a layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl


class Gated(nn.Module):
    """A convolutional GRU over three frames; `start(network, x)` gives its first state."""

    def __init__(self, start: Callable[..., Tensor]) -> None:
        super().__init__()
        self.start, self.width = start, 16
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.gate = nn.Conv2d(32, 16, 3, padding=1)
        self.new = nn.Conv2d(32, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        state = None
        for frame in frames.unbind(1):
            x = F.relu(self.stem(frame))
            state = self.start(self, x) if state is None else state
            z = torch.sigmoid(self.gate(torch.cat([state, x], 1)))
            state = (1 - z) * state + z * torch.tanh(self.new(torch.cat([z * state, x], 1)))
        return self.out(state)


class Added(nn.Module):
    """An Elman network, whose state has a layer of its own that reads it."""

    def __init__(self, start: Callable[..., Tensor]) -> None:
        super().__init__()
        self.start, self.width = start, 16
        self.stem, self.again = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.out = nn.Conv2d(16, 2, 1)

    def forward(self, frames: Tensor) -> Tensor:
        state = None
        for frame in frames.unbind(1):
            x = self.stem(frame)
            state = self.start(self, x) if state is None else state
            state = torch.tanh(x + self.again(state))
        return self.out(state)


def by_number(net: nn.Module, x: Tensor) -> Tensor:
    return torch.zeros(x.shape[0], net.width, *x.shape[2:], dtype=x.dtype)


STARTS: dict[str, Callable[..., Tensor]] = {
    "zeros as wide as a layer": lambda net, x: torch.zeros(
        x.shape[0], net.out.in_channels, *x.shape[2:], dtype=x.dtype
    ),
    "new_zeros of a shape": lambda net, x: x.new_zeros(x.shape),
    "new_zeros as wide as a layer": lambda net, x: x.new_zeros(
        x.shape[0], net.out.in_channels, *x.shape[2:]
    ),
    "zeros_like": lambda net, x: torch.zeros_like(x),
}


def agrees(model: nn.Module, graph: pl.ChannelGraph, x: Tensor) -> None:
    """Masked and cut give the same at a random plan."""
    rng = np.random.default_rng(3)
    drop = {
        group.name: rng.choice(group.width, int(group.width * rng.uniform(0.3, 0.7)), False)
        for group in graph.groups
        if group.prunable
    }
    plan = pl.WidthPlan.full(graph).drop(drop)
    small, same = pl.cut(model, graph, plan), pl.masked(model, graph, plan)
    torch.testing.assert_close(small(x), same(x))


@pytest.mark.parametrize("kind", [Gated, Added])
@pytest.mark.parametrize("start", STARTS)
def test_a_state_whose_width_follows_the_network_is_pruned(
    kind: type[nn.Module], start: str
) -> None:
    torch.manual_seed(0)
    model, x = kind(STARTS[start]).double(), torch.randn(2, 3, 3, 6, 6, dtype=torch.double)
    graph = pl.trace(model, x)
    assert [group.name for group in graph.groups if not group.prunable] == ["out"]
    agrees(model, graph, x)


@pytest.mark.parametrize(("kind", "layer"), [(Gated, "gate"), (Added, "stem")])
def test_a_state_whose_width_is_a_number_is_frozen(kind: type[nn.Module], layer: str) -> None:
    torch.manual_seed(0)
    model, x = kind(by_number).double(), torch.randn(2, 3, 3, 6, 6, dtype=torch.double)
    graph = pl.trace(model, x)
    assert graph[layer].why == "the network's code hard-codes its width"
    assert graph["stem"].prunable == (kind is Gated)
    agrees(model, graph, x)


def test_layers_that_meet_through_a_state_are_explained() -> None:
    model = Gated(STARTS["zeros as wide as a layer"])
    graph = pl.trace(model, torch.randn(1, 2, 3, 6, 6))
    assert graph["gate"].producers == ("gate", "new")
    (step,) = graph.explain("gate", "new").steps
    assert (step.a, step.b) == ("gate", "new")


class Written(nn.Module):
    """Zeros that rows are written into before a layer reads them, as pooled regions are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        rows = torch.zeros((3, *x.shape[1:]), dtype=x.dtype)
        rows[torch.tensor([2, 0])] = x
        return self.out(rows)


def test_zeros_that_were_written_into_hold_what_was_written() -> None:
    torch.manual_seed(0)
    model, x = Written().double(), torch.randn(2, 3, 6, 6, dtype=torch.double)
    graph = pl.trace(model, x)
    assert graph["stem"].prunable
    agrees(model, graph, x)
