"""Shared by all tests: one thread, fixed seeds, and a network that trains in seconds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import prunelab as pl


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


@pytest.fixture(autouse=True)
def _still() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    """Tiny, trained on stripes for a few seconds."""
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Tiny()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        for _ in range(6):
            for x, y in batches(512, seed=1):
                optimiser.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimiser.step()
    return model.eval()


@pytest.fixture(scope="session")
def data() -> pl.Data:
    """Stripes: 256 training, 128 validation, 128 test images."""
    return pl.Data(train=batches(256, 1), val=batches(128, 2), test=batches(128, 3))


@pytest.fixture
def session(trained: nn.Module, data: pl.Data) -> pl.Session:
    """A session on the trained network, AOFP with a generous theta."""
    return pl.Session(trained, data, method=pl.AOFP(theta=0.05, images=128))
