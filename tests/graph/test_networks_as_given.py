"""Networks as users write them: outputs in any container, several heads, random numbers."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Wrapped(nn.Module):
    """Returns its logits [N, 4] and features [N, 12] in a container that `wrap` makes."""

    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.head, self.wrap = nn.Linear(12, 4), wrap

    def forward(self, x: Tensor) -> Any:
        features = F.relu(self.b(F.relu(self.a(x)))).mean((2, 3))
        return self.wrap(self.head(features), features)


@dataclass
class Answer:
    logits: Tensor
    features: Tensor


class Box(dict[str, Tensor]):
    pass


CONTAINERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "dataclass": Answer,
    "dict subclass": lambda a, b: Box(logits=a, features=b),
    "user dict": lambda a, b: UserDict(logits=a, features=b),
    "object": lambda a, b: SimpleNamespace(logits=a, features=[b]),
    "set": lambda a, b: {a, b},
    "closure": lambda a, b: lambda: (a, b),
    "arrays": lambda a, b: (a.numpy(), b.tolist()),
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_a_network_returns_stays_whatever_holds_it(container: str) -> None:
    graph = pl.trace(Wrapped(CONTAINERS[container]).eval(), X)
    assert [group.name for group in graph.groups if group.prunable] == ["a"]


def test_what_a_network_returns_stays_where_forward_takes_a_part_of_it() -> None:
    model = Wrapped(Answer).eval()
    graph = pl.trace(model, X, forward=lambda model, x: model(x).logits)
    assert graph["b"].why == "it is an output of the network"


class Stored(nn.Module):
    """Its own code gives a wrong output, in an object, once it is cut: it counts channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        features = F.relu(self.a(x)).mean((2, 3))
        return SimpleNamespace(logits=self.head(features) * features.shape[1])


def test_outputs_in_an_object_are_compared_by_the_probe() -> None:
    assert "hard-codes" in pl.trace(Stored().eval(), X)["a"].why
