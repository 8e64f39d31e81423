"""Widening: more channels, the same outputs, and a network that can be trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from toys import Couplings, Tiny

import prunelab as pl


class Parts(nn.Module):
    """A channel shuffle, parts that are multiplied, group norms with and without parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 8, 3, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.gate = nn.Conv2d(8, 12, 1)
        self.bare = nn.GroupNorm(2, 6, affine=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.fc = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
        a, b = self.gate(x).chunk(2, 1)
        x = F.relu(self.up(self.bare(a * torch.sigmoid(b))))
        return self.fc(F.adaptive_avg_pool2d(x, 2).flatten(1))


NETS = {
    "tiny": (Tiny, (1, 12, 12)),
    "couplings": (Couplings, (2, 8, 8)),
    "parts": (Parts, (2, 8, 8)),
    "vgg8": (lambda: pl.zoo.build("vgg8"), (1, 12, 12)),
    "resnet20": (lambda: pl.zoo.build("resnet20"), (1, 12, 12)),
    "mobilenet": (lambda: pl.zoo.build("mobilenet"), (1, 12, 12)),
}


def lively(name: str) -> tuple[nn.Module, Tensor]:
    """A network with BatchNorm statistics of its own, in float64, and images for it."""
    make, shape = NETS[name]
    model, x = make(), torch.randn(4, *shape)
    with torch.no_grad():
        model(x)
    return model.double().eval(), x.double()


@pytest.mark.parametrize("factor", [1.0, 1.3, 1.5, 2.7])
@pytest.mark.parametrize("name", NETS)
def test_a_wider_network_gives_the_same_outputs(name: str, factor: float) -> None:
    model, x = lively(name)
    graph = pl.trace(model, x)
    wide = pl.widened(model, graph, factor, noise=0, seed=1)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), model(x), rtol=1e-10, atol=1e-10)
    after = pl.trace(wide, x)
    for group in graph.groups:
        goal = int(np.ceil(group.width * factor - 1e-9)) if group.prunable else group.width
        assert after[group.name].width == goal
        assert after[group.name].prunable == group.prunable
    wide.train()
    assert torch.isfinite(wide(x)).all()


def test_copies_of_a_filter_share_what_reads_it() -> None:
    model, x = lively("vgg8")
    wide = pl.widened(model, pl.trace(model, x), 2.0, groups=["conv1"], noise=0)
    old, new = model.conv2.weight, wide.conv2.weight
    torch.testing.assert_close(new, old.repeat_interleave(2, dim=1) / 2)
    torch.testing.assert_close(wide.conv1.weight, model.conv1.weight.repeat_interleave(2, dim=0))
    torch.testing.assert_close(wide.bn1.running_var, model.bn1.running_var.repeat_interleave(2))
    assert wide.conv3.weight.shape == model.conv3.weight.shape
    assert (wide.conv1.out_channels, wide.conv2.in_channels) == (64, 64)


def test_noise_tells_copies_apart_and_changes_little(trained: nn.Module) -> None:
    graph = pl.trace(trained, torch.zeros(1, 1, 12, 12))
    before = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    wide = pl.widened(trained, graph, 2.0, groups=["conv3"], noise=0.01, seed=3)
    pairs = wide.conv3.weight.unflatten(0, (-1, 2))
    assert (pairs[:, 0] != pairs[:, 1]).any(-1).any(-1).any(-1).all()
    difference = (pairs.mean(1) - trained.conv3.weight).norm() / trained.conv3.weight.norm()
    assert 0.001 < difference < 0.02
    same = pl.widened(trained, graph, 2.0, groups=["conv3"], noise=0.01, seed=3)
    torch.testing.assert_close(same.state_dict(), wide.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(dict(trained.state_dict()), before, rtol=0, atol=0)


def test_a_pruned_network_can_be_widened_again(trained: nn.Module) -> None:
    x = torch.randn(4, 1, 12, 12, dtype=torch.float64)
    graph = pl.trace(trained, torch.zeros(1, 1, 12, 12))
    plan = pl.WidthPlan.full(graph).drop({"conv1": [0, 5], "conv3": range(8)})
    small = pl.cut(trained, graph, plan).double()
    wide = pl.widened(small, graph.after(plan), 1.5, noise=0)
    assert (wide.conv1.out_channels, wide.conv3.out_channels) == (15, 12)
    with torch.no_grad():
        torch.testing.assert_close(wide(x), small(x), rtol=1e-10, atol=1e-10)


def test_what_cannot_be_widened_is_told_or_left(trained: nn.Module) -> None:
    graph = pl.trace(trained, torch.zeros(1, 1, 12, 12))
    for factor, noise, says in (
        (0.5, 0.1, "factor"),
        (float("nan"), 0.1, "widen is a number, not nan"),
        (1.5, -1.0, "factor"),
    ):
        with pytest.raises(pl.InvalidValue, match=says):
            pl.widened(trained, graph, factor, noise=noise)
    with pytest.raises(pl.IllegalPlan, match="output"):
        pl.widened(trained, graph, groups=["fc"])
    with pytest.raises(pl.UnknownName):
        pl.widened(trained, graph, groups=["conv9"])
    normed = Tiny()
    torch.nn.utils.parametrizations.weight_norm(normed.conv2)
    found = pl.trace(normed, torch.zeros(1, 1, 12, 12))
    wide = pl.widened(normed, found, 2.0)
    assert wide.conv1.out_channels == 12
    assert wide.conv3.out_channels == 32
