"""One run of the network takes one input, or as few as the network runs on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl


class Squeezes(nn.Module):
    """A network that takes no batch of one image, and with `least` no smaller batch."""

    def __init__(self, least: int = 2) -> None:
        super().__init__()
        self.least = least
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1)
        self.h = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) < self.least:
            raise ValueError("too few images")
        x = F.relu(self.b(F.relu(self.a(x))))
        return F.log_softmax(self.h(F.adaptive_avg_pool2d(x, 1).squeeze()), dim=1)


@pytest.mark.parametrize("least", [1, 2])
def test_a_network_that_takes_no_single_image_is_pruned(least: int, tmp_path: Path) -> None:
    some = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)] * 2
    net = Squeezes(least).eval()
    work = pl.Session(net, pl.Data(some, some), "magnitude")
    with torch.no_grad():
        net(work.example)
    assert len(work.example) == 2
    assert work.state.base.cost.macs == pl.cost(net, some[0][0]).macs
    work.propose(0.5)
    work.approve()
    work.measure()
    assert work.latency().inputs == len(work.example)
    assert work.export(tmp_path / "small.safetensors").is_file()


def test_a_network_that_runs_on_nothing_says_why() -> None:
    some = [(torch.randn(8, 3, 8, 8), torch.arange(8) % 4)] * 2
    with pytest.raises(pl.TraceError, match="too few images"):
        pl.Session(Squeezes(9).eval(), pl.Data(some, some))
