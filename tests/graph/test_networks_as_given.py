"""Networks as users write them: outputs in any container, several heads, random numbers."""

from __future__ import annotations

import functools
import random
from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize, prune
from toys import assert_exact

import prunelab as pl
from prunelab.cost.counting import layer_costs
from prunelab.graph.surgery.effective_weights import effective_weights
from prunelab.graph.train_mode import mode_dependent

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
    assert "as a number" in pl.trace(Stored().eval(), X)["a"].why


# ---------------------------------------------------------------- heads and branches


class Heads(nn.Module):
    """One of two heads runs; a branch is skipped; two layers are left over."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 10, 3)
        self.heads = nn.ModuleDict({"cars": nn.Linear(10, 4), "birds": nn.Linear(10, 7)})
        self.early = nn.Sequential(nn.Conv2d(8, 6, 1), nn.Flatten(), nn.Linear(6 * 6 * 6, 4))
        self.left_over = nn.Linear(12, 3)

    def forward(self, x: Tensor, task: str = "cars", early: bool = False) -> Tensor:
        x = F.relu(self.a(x))
        if early:
            return self.early(x)
        x = F.relu(self.c(F.relu(self.b(x))))
        return self.heads[task](x.mean((2, 3)))


def test_what_an_untaken_head_or_branch_may_read_stays() -> None:
    graph = pl.trace(Heads(), X)
    assert graph.unseen == ("heads.birds", "early.0", "early.2", "left_over")
    assert [group.name for group in graph.groups if group.prunable] == ["b"]
    assert graph["c"].why == "heads.birds may read it, in a call that was not traced"
    assert graph["a"].why == "early may read it, in a call that was not traced"
    assert "never ran" in repr(graph) and "never ran" in str(graph)


@pytest.mark.parametrize("affine", [True, False])
def test_an_untaken_normalisation_keeps_what_it_may_read(affine: bool) -> None:
    class Domains(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 2, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(12, affine=affine) for _ in range(2))

        def forward(self, x: Tensor, domain: int = 0) -> Tensor:
            return self.c(F.relu(self.norms[domain](self.b(F.relu(self.a(x))))))

    graph = pl.trace(Domains(), X)
    assert graph.unseen == ("norms.1",)
    assert [group.name for group in graph.groups if group.prunable] == ["a"]
    graph = pl.trace(Domains(), [(X,), (X, 1)])
    assert [group.name for group in graph.groups if group.prunable] == ["a", "b"]


def test_several_calls_are_traced_together() -> None:
    calls = [(X,), {"x": X, "task": "birds"}, (X, "cars", True)]
    model = Heads()
    graph = pl.trace(model, calls)
    assert graph.unseen == ("left_over",)
    assert {group.name for group in graph.groups if group.prunable} == {"a", "b", "c", "early.0"}
    assert graph["c"].consumers == ("heads.cars", "heads.birds")
    plan = pl.WidthPlan.full(graph).drop({"a": [0, 3], "c": [1, 2, 3], "early.0": [5]})
    small = pl.cut(model, graph, plan)
    assert [small(X, "birds").shape, small(X, early=True).shape] == [(2, 7), (2, 4)]
    first = pl.cost(model, X)
    assert pl.cost(graph, pl.WidthPlan.full(graph)).macs == first.macs


def test_a_list_of_tensors_is_the_arguments_of_one_call() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.c(self.a(x) + self.b(y))

    assert pl.trace(Sum(), [X, X])["a"].producers == ("a", "b")


class Joined(nn.Module):
    """An untaken layer reads channels of two layers, a flattened map, or a parameter's."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)
        self.kind = kind
        self.other: Any = nn.Linear({"joined": 20, "flat": 12 * 4 * 4}.get(kind, 1), 2)
        if kind == "scale":
            self.other = nn.Parameter(torch.ones(12))

    def forward(self, x: Tensor, take: bool = False) -> Tensor:
        a = F.relu(self.a(x))
        b = F.relu(self.b(a))
        if take and self.kind == "joined":
            return self.other(torch.cat([a.mean((2, 3)), b.mean((2, 3))], 1))
        if take and self.kind == "flat":
            return self.other(b.flatten(1))
        if take:
            b = b * self.other[:, None, None]
        return self.head(b.mean((2, 3)))


@pytest.mark.parametrize("kind, stays", [("joined", "ab"), ("flat", "b"), ("scale", "b")])
def test_what_an_untaken_part_reads_is_found_by_its_width(kind: str, stays: str) -> None:
    model = Joined(kind).eval()
    graph = pl.trace(model, X)
    assert {group.name for group in graph.groups if not group.prunable} == {*stays, "head"}
    drop = {g.name: range(g.width // 2) for g in graph.groups if g.prunable}
    pl.cut(model, graph, pl.WidthPlan.full(graph).drop(drop))(X, take=True)


# ---------------------------------------------------------------- weights made from several tensors


def masked_by_hooks() -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    ).eval()  # fmt: skip
    for at in (0, 3):
        prune.l1_unstructured(net[at], "weight", 0.3)
    prune.l1_unstructured(net[3], "bias", 0.3)
    return net


def test_a_mask_is_not_the_weight() -> None:
    net = masked_by_hooks()
    graph = pl.trace(net, X)
    assert [layer.weight for layer in graph.layers] == [
        "0.weight_orig",
        "3.weight_orig",
        "7.weight",
    ]
    assert graph.unseen == ()
    costs = layer_costs(graph, pl.WidthPlan.full(graph))
    assert {name: cost.params for name, cost in costs.items()} == {"0": 240, "3": 876, "7": 52}
    plan = pl.WidthPlan.full(graph).drop({"0": [0, 5], "3": [1, 2, 3]})
    small, same = pl.cut(net, graph, plan), pl.masked(net, graph, plan)
    torch.testing.assert_close(small(X), same(X))
    assert small[3].weight_mask.shape == small[3].weight_orig.shape == (9, 6, 3, 3)


def test_methods_rank_the_weight_in_use() -> None:
    torch.manual_seed(0)
    net = masked_by_hooks()
    net[3].weight_mask[4] = 0.0
    graph = pl.trace(net, X)
    weights = effective_weights(net, graph.layers)
    net(X)
    for name, at in (("0", 0), ("3", 3), ("7", 7)):
        assert torch.equal(weights[name], net[at].weight)
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)]
    session = pl.Session(net, pl.Data(batches, batches), pl.Magnitude(pruning_ratio=0.1))
    move = session.propose()
    assert move is not None
    assert 4 in move.drop["3"]


@pytest.mark.parametrize("method", ["surgeon", "elimination", "oracle", "aofp", "max_response"])
def test_masked_layers_are_measured(method: str) -> None:
    torch.manual_seed(0)
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(4)]
    session = pl.Session(masked_by_hooks(), pl.Data(batches, batches), method=method)
    assert session.propose(0.7)
    session.approve()
    session.tune(steps=1)
    assert not session.model[0].weight[session.model[0].weight_mask == 0].any()


class Summed(nn.Module):
    """A kernel that is the sum of two parameters, and one scaled by a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)
        self.one = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.two = nn.Parameter(torch.randn(6, 8, 3, 3))
        self.register_buffer("gain", torch.rand(8, 6, 1, 1))
        self.three = nn.Parameter(torch.randn(8, 6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(F.relu(self.a(x)), self.one + self.two)
        return self.b(F.conv2d(F.relu(x), self.gain * self.three).mean((2, 3)))


def test_a_weight_made_from_several_tensors_is_cut_in_all_of_them() -> None:
    net = Summed()
    graph = pl.trace(net, X)
    assert [layer.weight for layer in graph.layers] == ["a.weight", "one", "three", "b.weight"]
    assert_exact(net, graph, X)


def kernel(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / 3)


class Computed(nn.Module):
    """A convolution of 8 channels to 6, whose weight is computed from parameters."""

    def __init__(self, weight: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Conv2d(3, 8, 3), nn.Linear(6, 4), nn.BatchNorm2d(6)
        self.one, self.two, self.small = kernel(6, 8, 3, 3), kernel(6, 8, 3, 3), kernel(6, 8, 1, 1)
        self.weight = [weight]

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight[0](self)
        return self.b(F.conv2d(self.a(x).relu(), weight, padding=1)[:, :6].relu().mean((2, 3)))


def fused(net: Any) -> Tensor:
    return net.one * (net.n.weight / (net.n.running_var + net.n.eps).sqrt())[:, None, None, None]


COMPUTED: dict[str, tuple[Callable[[Any], Tensor], str]] = {
    "a sum": (lambda net: net.one - 0.5 * net.two, ""),
    "a padded kernel": (lambda net: F.pad(net.small, (1, 1, 1, 1)), ""),
    "branches merged": (lambda net: fused(net) + F.pad(net.small, (1, 1, 1, 1)), ""),
    "a symmetric kernel": (lambda net: (net.one + net.one.flip(-1)) / 2, ""),
    "a central difference": (lambda net: net.one.sum((2, 3), keepdim=True), ""),
    "a mean of several": (lambda net: torch.stack([net.one, net.two]).mean(0), ""),
    "kernels side by side": (lambda net: torch.cat([net.small, net.two[:, :, :1, :1]], 3), ""),
    "rounded to a grid": (lambda net: (net.one / 0.01).round() * 0.01, ""),
    "a border of ones": (
        lambda net: F.pad(net.small, (1, 1, 1, 1), value=1.0),
        "all of its inputs",
    ),
    "a sum with a number": (lambda net: net.one + 1.0, "all of its inputs"),
    "without its mean": (lambda net: net.one - net.one.mean((1, 2, 3), keepdim=True), "its inputs"),
    "by its largest entry": (
        lambda net: net.one / net.one.abs().amax((1, 2, 3), keepdim=True),
        "depend on each other",
    ),
    "kernels one under the other": (lambda net: torch.cat([net.one, net.two]), "cannot be cut"),
    "without a rule": (lambda net: net.one + net.one.cumsum(1), "all of its inputs"),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_a_computed_weight_is_cut_in_the_parameters_it_comes_from(name: str) -> None:
    weight, why = COMPUTED[name]
    net = Computed(weight).eval()
    graph = pl.trace(net, X)
    assert why in graph["a"].why and graph["a"].prunable == (not why)
    assert_exact(net, graph, X)


def test_methods_zero_every_parameter_of_a_sum() -> None:
    net = Computed(COMPUTED["a sum"][0]).eval()
    graph = pl.trace(net, X)
    same = pl.masked(net, graph, pl.WidthPlan.full(graph).drop({"a": [2]}))
    assert not same.one[:, 2].any() and not same.two[:, 2].any()


# ---------------------------------------------------------------- random numbers


class Noisy(nn.Module):
    """Draws numbers in evaluation mode too, in a way of its own."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 4)
        self.draw = draw

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.draw(F.relu(self.a(x))))).mean((2, 3)))


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": lambda x: F.dropout(x, 0.2, training=True),
    "dropout of channels": lambda x: F.dropout2d(x, 0.2, training=True),
    "normal": lambda x: x + torch.randn_like(x),
    "normal of a size": lambda x: x + torch.randn(x.shape),
    "uniform": lambda x: x * torch.empty_like(x).uniform_(0.5, 1.5),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 0.7)),
    "distribution": lambda x: torch.distributions.Normal(x, x.exp()).rsample(),
    "python": lambda x: x * random.random() + random.gauss(0, 1),
    "numpy": lambda x: x * float(np.random.rand()),  # noqa: NPY002
}


@pytest.mark.parametrize("draw", DRAWS)
def test_random_numbers_hard_code_no_width(draw: str) -> None:
    graph = pl.trace(Noisy(DRAWS[draw]).eval(), X)
    assert {group.name for group in graph.groups if group.prunable} == {"a", "b"}


def test_a_width_behind_random_numbers_is_still_found() -> None:
    def draw(x: Tensor) -> Tensor:
        return F.dropout(x, 0.2, training=True) * x.shape[1]

    assert "as a number" in pl.trace(Noisy(draw).eval(), X)["a"].why


def test_a_network_with_random_numbers_is_pruned_and_exported(tmp_path: Path) -> None:
    batches = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4) for _ in range(2)]
    session = pl.Session(Noisy(DRAWS["dropout"]), pl.Data(batches, batches))
    assert session.propose(0.7)
    session.approve()
    assert session.export(tmp_path / "net.safetensors").exists()


def again(function: Any) -> Any:
    return functools.wraps(function)(lambda *args, **kwargs: function(*args, **kwargs))


class Decorated(Heads):
    """The code that reads its mode, or takes another head, is behind a decorator."""

    @again
    def forward(self, x: Tensor, task: str = "cars", early: bool = False) -> Any:
        if self.training and len(x) > 100:
            task = "birds"
        return super().forward(x, task, early)


def test_code_behind_a_decorator_is_read() -> None:
    model = Decorated()
    assert mode_dependent(model) == ("",)
    assert [g.name for g in pl.trace(model, X).groups if g.prunable] == ["b"]
    model = Heads()
    model.forward = lambda x: model.b(model.a(x)) if model.training else model.a(x)  # type: ignore
    assert mode_dependent(model) == ("",)


class LowRank(nn.Module):
    """A low-rank update of a kernel [12, 8, 3, 3], as a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 8)), nn.Parameter(torch.randn(12, 2))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.b @ self.a)[:, :, None, None]


def test_a_weight_made_in_a_way_without_a_rule_stays_and_says_so() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Conv2d(12, 6, 3), nn.Flatten())
    net.append(nn.Linear(24, 4))
    parametrize.register_parametrization(net[1], "weight", LowRank())
    graph = pl.trace(net, X)
    assert graph["1"].why.endswith("is computed with others in a way without a rule")
    assert [group.name for group in graph.groups if group.prunable] == ["2"]
