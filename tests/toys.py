"""A network that trains in seconds and images for it; networks in a function; exactness."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

import prunelab as pl
from prunelab.evidence.measure import measuring
from prunelab.loops.batch import finish
from prunelab.methods.thinet_samples import scalar_samples


class Tiny(nn.Module):
    """A residual network small enough for hundreds of cuts: input [N, 1, 12, 12]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(8)
        self.conv1 = nn.Conv2d(8, 12, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(12)
        self.conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.fc = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.conv3(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def stripes(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [count, 1, 12, 12] of stripes in four directions, and which one [count]."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 4, (count,), generator=generator)
    grid = torch.arange(12.0)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    waves = torch.stack([x, y, x + y, x - y])
    phase = torch.rand(count, 1, 1, generator=generator) * 6
    images = torch.sin(1.2 * waves[labels] + phase)
    images = images + 0.5 * torch.randn(count, 12, 12, generator=generator)
    return images[:, None], labels


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    images, labels = stripes(count, seed)
    return list(zip(images.split(32), labels.split(32), strict=True))


class Couplings(nn.Module):
    """Every way in which channels are coupled, mostly in functional calls: input [N, 2, 8, 8].

    A depthwise and a grouped convolution, a residual add, a concat, a head shared by two levels
    that adds up, a linear layer behind a flatten. `see(name, x)` is handed every layer's input.
    """

    def __init__(self) -> None:
        super().__init__()

        def weight(*shape: int) -> nn.Parameter:
            return nn.Parameter(0.4 * torch.randn(shape))

        self.stem, self.norm = weight(6, 2, 3, 3), nn.BatchNorm2d(6)
        self.deep, self.norm2 = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.BatchNorm2d(6)
        self.point = weight(6, 6, 1, 1)
        self.wide = weight(8, 6, 1, 1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)
        self.side = weight(4, 8, 1, 1)
        self.lateral = weight(5, 10, 3, 3)
        self.head = weight(3, 5, 3, 3)
        self.fc = nn.Linear(3 * 16, 4)
        self.see = lambda name, x: x

    def conv(self, name: str, x: Tensor, padding: int = 0) -> Tensor:
        layer, x = getattr(self, name), self.see(name, x)
        return layer(x) if isinstance(layer, nn.Module) else F.conv2d(x, layer, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv("stem", x, 1)))
        y = F.relu(self.norm2(self.conv("deep", x)))
        x = x + self.conv("point", y)
        y = F.relu(self.conv("wide", x))
        y = F.relu(self.conv("grouped", y))
        y = torch.tanh(self.conv("side", y))
        fine = F.silu(self.conv("lateral", torch.cat([x, y], 1), 1))
        coarse = F.avg_pool2d(fine, 2)
        fine = F.avg_pool2d(F.relu(self.conv("head", fine, 1)), 2)
        coarse = F.relu(self.conv("head", coarse, 1))
        return F.linear(self.see("fc", (fine + coarse).flatten(1)), self.fc.weight, self.fc.bias)


def random_plan(graph: pl.ChannelGraph, seed: int) -> pl.WidthPlan:
    rng = np.random.default_rng(seed)
    drop = {
        group.name: rng.choice(group.width, int(rng.integers(1, group.width)), replace=False)
        for group in graph.groups
        if group.prunable
    }
    return pl.WidthPlan.full(graph).drop(drop)


def assert_exact(model: nn.Module, graph: pl.ChannelGraph, *inputs: Any, seeds: int = 4) -> None:
    model = model.double().eval()
    inputs = tuple(x.double() if torch.is_tensor(x) else x for x in inputs)
    for seed in range(seeds):
        plan = random_plan(graph, seed)
        small, same = pl.cut(model, graph, plan), pl.masked(model, graph, plan)
        with torch.no_grad():
            got, want = tree_leaves(small(*inputs)), tree_leaves(same(*inputs))
        for a, b in zip(got, want, strict=True):
            assert a.shape == b.shape
            assert float((a - b).norm()) <= 1e-10 * float(b.norm())
        assert list(small.state_dict()) == list(model.state_dict())
        small.train()
        for out in tree_leaves(small(*inputs)):
            assert torch.isfinite(out).all()


@dataclass(frozen=True)
class Toy:
    """A network in a function: modules by name, and a forward pass that uses them.

    `groups` maps a layer to its units, or to a text that stands in the reason why it is frozen.
    """

    parts: Callable[[], dict[str, Any]]
    forward: Callable[[Any, Tensor], Any]
    groups: dict[str, int | str]
    shape: tuple[int, ...] = (2, 3, 8, 8)


class Net(nn.Module):
    def __init__(self, toy: Toy) -> None:
        super().__init__()
        self.toy = toy
        for name, part in toy.parts().items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        if self.training:  # so that it is traced in training mode as well
            return self.toy.forward(self, x)
        return self.toy.forward(self, x)


def conv(into: int, out: int, k: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(into, out, k, padding=options.pop("padding", k // 2), **options)


def ab(middle: Callable[[Any, Tensor], Tensor], into: int = 8, **parts: Any) -> dict[str, Any]:
    """The parts and the forward pass of: convolution a, something, convolution b."""
    return {
        "parts": lambda: (
            {"a": conv(3, 8), "b": conv(into, 5)} | {name: make() for name, make in parts.items()}
        ),
        "forward": lambda net, x: net.b(middle(net, net.a(x))),
    }


def measured(
    model: nn.Module, graph: pl.ChannelGraph, batches: Any, *, scalars: int | None = None,
    seed: int = 0, **more: Any,
) -> pl.Evidence:  # fmt: skip
    """`measure`, or with `scalars` ThiNet's published estimate from so many of each image."""
    if scalars is None:
        return pl.measure(model, graph, batches, seed=seed, **more)
    return finish(measuring(model, graph, batches, create=scalar_samples(scalars, seed), **more))
