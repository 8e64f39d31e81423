"""Shared by all tests: one thread, fixed seeds, a trained toy network, the quick marker."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from toys import Tiny, batches

import prunelab as pl

# Modules of little work: 39 s of CPU together, measured.
QUICK = {
    "cli/test_without_torch.py",
    "cost/test_allocate.py",
    "evidence/test_contribution.py",
    "figures/test_graph.py",
    "figures/test_panels.py",
    "figures/test_svg.py",
    "graph/labels/test_label_mode.py",
    "graph/surgery/test_editing.py",
    "graph/surgery/test_widening.py",
    "ledger/test_predictions.py",
    "ledger/test_rows.py",
    "methods/test_thinet.py",
    "notebook/test_colours.py",
    "notebook/test_parameters.py",
    "repair/test_least_squares.py",
}


def _quick(path: Path) -> bool:
    return path.relative_to(Path(__file__).parent).as_posix() in QUICK


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even import the other modules where only quick ones are asked for."""
    alone = config.option.markexpr == "quick" and collection_path.suffix == ".py"
    return True if alone and not _quick(collection_path) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of quick modules."""
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and _quick(item.path):
            item.add_marker(pytest.mark.quick)


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
