"""Statistics over channels: frozen, or marked as inexact where that is asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm
from toys import Net, Toy, ab, conv

import prunelab as pl


def last(norm: Any, x: Tensor) -> Tensor:
    return norm(x.movedim(1, -1)).movedim(-1, 1)


def written_out(net: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    square = (x - mean).pow(2).mean(1, keepdim=True)
    return net.gain[:, None, None] * (x - mean) / (square + 1e-6).sqrt()


def response(net: Any, x: Tensor) -> Tensor:
    strength = x.norm(p=2, dim=(2, 3), keepdim=True)
    return x + net.gain[:, None, None] * x * strength / (strength.mean(1, keepdim=True) + 1e-6)


def by_mean_and_maximum(net: Any, x: Tensor) -> Tensor:
    both = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
    return x * net.at(both).sigmoid()


def by_a_maximum_with_places(net: Any, x: Tensor) -> Tensor:
    both = torch.cat([torch.mean(x, 1, keepdim=True), torch.max(x, 1, keepdim=True)[0]], 1)
    return x * net.at(both).sigmoid()


def by_the_place_of_a_maximum(net: Any, x: Tensor) -> Tensor:
    return x * torch.max(x, 1, keepdim=True)[1]


def neighbours(net: Any, x: Tensor) -> Tensor:
    return x * net.k(x.mean((2, 3))[:, None]).sigmoid().transpose(1, 2)[..., None]


def standardised(net: Any, x: Tensor) -> Tensor:
    weight = net.c.weight
    mean, std = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, (weight - mean) / (std + 1e-5), padding=1)


def standardised_as_a_batch(net: Any, x: Tensor) -> Tensor:
    flat = net.c.weight.reshape(1, net.c.weight.shape[0], -1)
    weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).view_as(net.c.weight)
    return F.conv2d(x, weight, net.c.bias, padding=1)


def gain() -> nn.Parameter:
    return nn.Parameter(torch.rand(8))


STATISTICS = {  # exact where every channel that goes leaves its twin
    "layer norm": ab(lambda net, x: last(net.n, x), n=lambda: nn.LayerNorm(8)),
    "rms norm": ab(lambda net, x: last(net.n, x), n=lambda: nn.RMSNorm(8)),
    "group norm of one": ab(lambda net, x: net.n(x), n=lambda: nn.GroupNorm(1, 8)),
    "group norm without parameters": ab(
        lambda net, x: net.n(x), n=lambda: nn.GroupNorm(1, 8, affine=False)
    ),
    "layer norm written out": ab(written_out, gain=gain),
    "global response normalisation": ab(response, gain=gain),
    "attention by mean and maximum": ab(
        by_mean_and_maximum, at=lambda: nn.Conv2d(2, 1, 3, padding=1)
    ),
    "attention by a maximum with places": ab(
        by_a_maximum_with_places, at=lambda: nn.Conv2d(2, 1, 3, padding=1)
    ),
}
NEIGHBOURS = {
    "local response normalisation": ab(lambda net, x: F.local_response_norm(x, 3)),
    "a convolution over channels": ab(
        neighbours, k=lambda: nn.Conv1d(1, 1, 3, padding=1, bias=False)
    ),
    "a spectral norm": ab(
        lambda net, x: net.s(x), s=lambda: parametrizations.spectral_norm(conv(8, 8))
    ),
    "a spectral norm by a hook": ab(lambda net, x: net.s(x), s=lambda: spectral_norm(conv(8, 8))),
    "a weight standardised as a batch": ab(standardised_as_a_batch, c=lambda: conv(8, 8)),
    "a standardised weight": ab(standardised, c=lambda: conv(8, 8, bias=False)),
}


def traced(parts: dict[str, Any], inexact: bool) -> tuple[Net, Tensor, pl.ChannelGraph]:
    model, x = Net(Toy(**parts, groups={})).double(), torch.randn(2, 3, 8, 8).double()
    with torch.no_grad():  # channels 4 to 7 are twins of the first four
        for parameter in (*model.a.parameters(), getattr(model, "gain", torch.zeros(8))):
            parameter[4:] = parameter[:4]
    return model, x, pl.trace(model, x, inexact=inexact)


@pytest.mark.parametrize("name", STATISTICS | NEIGHBOURS)
def test_statistics_over_channels_freeze_them_unless_asked(name: str) -> None:
    model, x, graph = traced((STATISTICS | NEIGHBOURS)[name], inexact=False)
    assert not graph["a"].prunable
    _, _, graph = traced((STATISTICS | NEIGHBOURS)[name], inexact=True)
    assert graph["a"].prunable
    assert graph["a"].inexact
    assert graph["a"].width == 8
    small = pl.cut(model, graph, pl.WidthPlan.full(graph).drop({"a": [0, 3, 6]}))
    out = small.train()(x)
    assert out.shape == model(x).shape
    out.sum().backward()
    assert torch.isfinite(small.a.weight.grad).all()


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_of_the_channels_that_are_left(name: str) -> None:
    model, x, graph = traced(STATISTICS[name], inexact=True)
    plan = pl.WidthPlan.full(graph).drop({"a": [0, 1, 6, 7]})
    with torch.no_grad():
        got, want = pl.cut(model, graph, plan)(x), pl.masked(model, graph, plan)(x)
    assert float((got - want).norm()) <= 1e-10 * float(want.norm())


def test_the_place_of_a_maximum_over_channels_freezes_them() -> None:
    _, _, graph = traced(ab(by_the_place_of_a_maximum), inexact=True)
    assert graph["a"].why == "which of its channels is largest is used"


def test_the_vectors_of_a_spectral_norm_are_cut_with_the_weight() -> None:
    model, _, graph = traced(NEIGHBOURS["a spectral norm"], inexact=True)
    plan = pl.WidthPlan.full(graph).drop({"a": [0, 3], "s": [7]})
    small = pl.cut(model.eval(), graph, plan)  # training iterates them
    norm = small.s.parametrizations.weight[0]
    assert norm._u.shape == (7,)
    assert norm._v.shape == (6 * 9,)
    whole = model.s.parametrizations.weight[0]._v.view(8, 9)
    assert torch.equal(norm._v.view(6, 9), whole[[1, 2, 4, 5, 6, 7]])
