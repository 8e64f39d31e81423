"""Copies of networks run themselves, whatever function was put into the original."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prunelab as pl
from prunelab.graph.trace import copy_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.b, self.h = nn.Conv2d(8, 12, 3), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.b(self.n(self.a(x)).relu()).relu().mean((2, 3)))


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return run


class Timer:
    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def decorated(net: Net) -> None:
    net.forward = timed(timed(net.forward))  # type: ignore[method-assign]


def one_layer(net: Net) -> None:
    net.n.forward = timed(net.n.forward)  # type: ignore[method-assign]


def closure(net: Net) -> None:
    net.forward = lambda x: Net.forward(net, x)  # type: ignore[method-assign]


def default(net: Net) -> None:
    net.forward = lambda x, *, first=net: Net.forward(first, x)  # type: ignore[method-assign]


def partial(net: Net) -> None:
    net.forward = functools.partial(Net.forward, net)  # type: ignore[method-assign]


def method(net: Net) -> None:
    net.forward = MethodType(lambda self, x: Net.forward(net, x), net)  # type: ignore[method-assign]


def layers_in_a_list(net: Net) -> None:
    layers = [net.a, net.n, net.b]
    net.forward = lambda x: net.h(  # type: ignore[method-assign]
        functools.reduce(lambda value, layer: layer(value), layers, x).mean((2, 3))
    )


def instance(net: Net) -> None:
    timer = Timer(net.b.forward)
    net.b.forward = lambda x: timer(x)  # type: ignore[method-assign]


def hook(net: Net) -> None:
    net.a.register_forward_hook(lambda module, args, out: net.n(out))


PUT = [decorated, one_layer, closure, default, partial, method, layers_in_a_list, instance, hook]


@pytest.mark.parametrize("put", PUT)
def test_a_copy_runs_on_tensors_of_its_own(put: Callable[[Net], None]) -> None:
    net = Net().eval()
    put(net)
    want, copy = net(X), copy_of(net)
    assert torch.equal(copy(X), want)
    with torch.no_grad():
        for tensor in copy.parameters():
            tensor.zero_()
    assert not copy(X).any()
    assert torch.equal(net(X), want)


@pytest.mark.parametrize("put", PUT)
def test_a_network_with_functions_in_it_is_traced_and_cut(put: Callable[[Net], None]) -> None:
    net = Net()  # in training mode
    put(net)
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    graph = pl.trace(net, X)
    assert [group.name for group in graph.groups if group.prunable] == ["a", "b"]
    small = pl.cut(net, graph, pl.WidthPlan.full(graph).drop({"a": [0, 1], "b": [3]}))
    small(X).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_what_a_function_holds_besides_the_network_stays_the_users() -> None:
    net, seen = Net().eval(), []
    net.a.register_forward_hook(lambda module, args, out: seen.append(len(out) if net.h else 0))
    copy_of(net)(X)
    assert len(seen) == 1


KEPT = Net().eval()


def by_a_global(net: Net) -> None:
    net.forward = lambda x: Net.forward(KEPT, x)  # type: ignore[method-assign]


def by_a_cache(net: Net) -> None:
    net.forward = functools.lru_cache(net.forward)  # type: ignore[method-assign]


class Globally(Net):
    def forward(self, x: Tensor) -> Tensor:
        return Net.forward(GLOBALLY, x)


GLOBALLY = Globally().eval()


@pytest.mark.parametrize("net, put", [(KEPT, by_a_global), (Net(), by_a_cache), (GLOBALLY, None)])
def test_a_copy_that_would_run_the_original_is_refused(net: Net, put: Any) -> None:
    if put is not None:
        put(net)
    batches = [(X, torch.tensor([0, 1]))]
    for attempt in (
        lambda: pl.trace(net, X),
        lambda: pl.Session(net, pl.Data(batches, batches)),
        lambda: pl.Session(net, pl.Data(batches, batches), graph=pl.trace(Net(), X)),
    ):
        with pytest.raises(pl.BadModel, match="runs the original: it uses"):
            attempt()


def test_a_forward_that_runs_another_network_than_it_is_given_is_refused() -> None:
    net, batches = Net(), [(X, torch.tensor([0, 1]))]
    with pytest.raises(pl.BadModel, match="runs the original: it uses"):
        pl.trace(net, X, forward=lambda model, x: net(x))
    with pytest.raises(pl.BadModel, match="forward= the network that it is given"):
        pl.Session(net, pl.Data(batches, batches), forward=lambda model, batch: net(batch[0]))


class Shares(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Shares:
        return self


def test_a_network_that_shares_its_tensors_with_copies_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), Shares(288, 4))
    for attempt in (lambda: pl.trace(net, X), lambda: copy_of(net)):
        with pytest.raises(pl.BadModel, match="would share 2 with it"):
            attempt()


class Held(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1)
        self.inner = lambda x: self.b(self.a(x).relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


def test_a_network_that_the_user_copied_is_cut_by_its_own_weights() -> None:
    model, x = Held().eval(), torch.randn(2, 3, 6, 6)
    graph = pl.trace(model, x)
    plan = pl.WidthPlan.full(graph).drop({"a": [1, 5]})
    other = copy.deepcopy(model).double()  # its lambda still runs `model`
    x = x.double()
    with torch.no_grad():
        got, want = pl.cut(other, graph, plan)(x), pl.masked(other, graph, plan)(x)
    assert float((got - want).norm()) <= 1e-10 * float(want.norm())


class Odd(Net):
    """Containers, ties and state as a network may hold them."""

    def __init__(self) -> None:
        super().__init__()
        self.shared: list[int] = []
        self.again = self.shared
        self.by_name = {"conv": self.a, "none": None, (1, 2): [self.b, {3}]}
        self.sizes, self.nested = (1, 2), ((1, [2]), {"x": torch.ones(2)})
        self.tied = self.a.weight
        self.loaded = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.loaded += 1


class Own(nn.Module):
    """Says itself how it is copied."""

    def __init__(self, copies: int = 0) -> None:
        super().__init__()
        self.copies = copies

    def __deepcopy__(self, memo: dict[int, Any]) -> Own:
        return Own(self.copies + 1)


def test_a_copy_is_that_of_deepcopy_whatever_the_modules_hold() -> None:
    net = Odd()
    net.own = Own()
    for made in (copy_of(net), copy.deepcopy(net)):
        assert made.shared is made.again and made.shared is not net.shared
        assert made.by_name["conv"] is made.a and made.by_name["none"] is None
        assert made.by_name[1, 2][0] is made.b and made.by_name[1, 2][1] == {3}
        assert made.nested[0] == (1, [2]) and made.nested[0][1] is not net.nested[0][1]
        assert made.nested[1]["x"] is not net.nested[1]["x"] and made.sizes == (1, 2)
        assert made.tied is made.a.weight and made.tied is not net.tied
        assert made.loaded == 1 and made.own.copies == 1
        assert made.h._forward_hooks is not net.h._forward_hooks
        assert torch.equal(made(X), net(X))
