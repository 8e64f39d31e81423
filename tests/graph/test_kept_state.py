"""`trace` leaves everything as it was, whatever a network writes, keeps, draws or takes apart."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves
from toys import assert_exact

import prunelab as pl
from prunelab.graph.kept_state import kept_state


class Net(nn.Module):
    """Two convolutions and a head; subclasses do something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Linear(8, 4)
        self.made()

    def made(self) -> None:
        pass

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.between(self.a(x)).relu()).mean((2, 3)))


class Codebook(Net):
    def made(self) -> None:
        self.code = nn.Embedding(20, 8)

    def between(self, x: Tensor) -> Tensor:
        flat = x.movedim(1, -1).reshape(-1, 8)
        index = torch.cdist(flat, self.code.weight).argmin(1)
        if self.training:
            with torch.no_grad():
                hot = F.one_hot(index, 20).type(flat.dtype)
                self.code.weight.data.mul_(0.99).add_(hot.t() @ flat, alpha=0.01)
        return x + self.code(index).view(*x.movedim(1, -1).shape).movedim(-1, 1)


class Momentum(Net):
    def made(self) -> None:
        self.key = nn.Conv2d(3, 8, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Any:
        if self.training:
            for mine, slow in zip(self.a.parameters(), self.key.parameters(), strict=True):
                slow.data = slow.data * 0.9 + mine.data * 0.1
            return super().forward(x), self.key(x)
        return super().forward(x)


class MaskedWeight(Net):
    def made(self) -> None:
        self.register_buffer("mask", torch.ones(3, 3).triu())

    def forward(self, x: Tensor) -> Tensor:
        self.a.weight.data *= self.mask
        return super().forward(x)


class Merged(Net):
    """A low-rank update that is added to the weight in evaluation, as LoRA does it."""

    def made(self) -> None:
        self.down, self.up = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(8, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merged:
        if mode == self.merged:
            sign = -1 if self.merged else 1
            self.b.weight.data += sign * (self.up @ self.down).detach()[..., None, None]
            self.merged = not self.merged
        return super().train(mode)


class Decaying(Net):
    """Writes into a weight in evaluation, each time."""

    def between(self, x: Tensor) -> Tensor:
        self.b.weight.data.mul_(0.5)
        return x


class Lazy(Net):
    table: Tensor | None = None

    def between(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.full_like(x[:1, :, :1, :1], 2.0)
        return x * self.table


class LazyDict(Net):
    def made(self) -> None:
        self.tables: dict[Any, Tensor] = {}

    def between(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        if size not in self.tables:
            self.tables[size] = torch.ones(1, x.shape[1], *size)
        return x + self.tables[size].to(x)


class LazyBuffer(Net):
    def between(self, x: Tensor) -> Tensor:
        if not hasattr(self, "table"):
            self.register_buffer("table", torch.full_like(x[:1, :, :1, :1], 2.0), persistent=False)
        return x * self.table


class LazyWidth(Net):
    width = 0

    def between(self, x: Tensor) -> Tensor:
        self.width = self.width or x.shape[1]
        return x.view(x.shape[0], self.width, *x.shape[2:])


class Remembering(Net):
    """Keeps its features and counts its calls, and never reads them."""

    def made(self) -> None:
        self.calls, self.history = 0, []

    def between(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.history.append(x.shape[-1])
        self.features = x
        return x


class Averaging(Net):
    def made(self) -> None:
        self.register_buffer("average", torch.zeros(8))

    def between(self, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.mean((0, 2, 3))
        return x


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.sub_(0.1).div_(0.9))


class Popping(Net):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch.pop("image"))


class Drawing(Net):
    def between(self, x: Tensor) -> Tensor:
        return x * (1 + random.random() + np.random.rand() + torch.rand(()))  # noqa: NPY002


FREE = {  # the groups that can be pruned
    Codebook: {"b"}, Momentum: {"b"}, MaskedWeight: {"a", "b"}, Merged: set(),
    Decaying: {"a", "b"}, Lazy: {"b"}, LazyDict: {"b"}, LazyBuffer: {"b"}, LazyWidth: {"b"},
    Remembering: {"a", "b"}, Averaging: {"a", "b"}, InPlace: {"a", "b"}, Popping: {"a", "b"},
    Drawing: {"a", "b"},
}  # fmt: skip


def snapshot(model: nn.Module, inputs: Any) -> Any:
    numpy = np.random.get_state()  # noqa: NPY002
    return copy.deepcopy(
        (
            {name: x.tolist() for name, x in model.state_dict().items()},
            [module.training for module in model.modules()],
            [x.tolist() for x in tree_leaves(inputs)],
            (random.getstate(), numpy[1].tolist(), numpy[2:], torch.get_rng_state().tolist()),
        )
    )


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("mode", [True, False], ids=["training", "evaluation"])
def test_tracing_leaves_a_network_its_inputs_and_random_states_alone(
    kind: type[Net], mode: bool
) -> None:
    torch.manual_seed(0)
    model, image = kind().train(mode), torch.randn(2, 3, 6, 6)
    model.head.eval()
    inputs = ({"image": image},) if kind is Popping else (image,)
    before, kept = snapshot(model, inputs), kept_state(model)
    graph = pl.trace(model, inputs)
    assert snapshot(model, inputs) == before
    assert kept_state(model) == kept
    assert {group.name for group in graph.groups if group.prunable} == FREE[kind]


@pytest.mark.parametrize("kind", [Codebook, Momentum, MaskedWeight, Remembering, Averaging])
def test_a_network_that_writes_is_cut_exactly(kind: type[Net]) -> None:
    model, x = kind(), torch.randn(2, 3, 6, 6)
    assert_exact(model, pl.trace(model, x), x)


@pytest.mark.parametrize("kind", [Lazy, LazyDict, LazyBuffer, LazyWidth])
def test_what_a_network_keeps_is_not_cut_before_its_first_run_or_later(kind: type[Net]) -> None:
    model, x = kind().eval(), torch.randn(2, 3, 6, 6)
    graph = pl.trace(model, x)
    assert graph["a"].why.startswith("the network keeps ")
    assert_exact(copy.deepcopy(model), graph, x)
    model(x)
    assert_exact(copy.deepcopy(model), graph, x)
    assert_exact(model, pl.trace(model, x), x)
