"""Shared by all tests: one thread, fixed seeds, and a trained toy network."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl


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
