"""The budget of memory: what it takes, and that it is asked before anything is allocated."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.evidence.measure import evidence_bytes, measured_layers
from prunelab.values.machine import Memory, memory


def test_a_budget_is_a_share_of_the_machine_or_bytes() -> None:
    whole = memory()
    assert whole is not None
    assert Memory.of(None).bytes == int(0.5 * whole)
    assert Memory.of(0.25).bytes == int(0.25 * whole)
    assert Memory.of(3e9).bytes == 3_000_000_000
    for wrong in (0, -1, True, "2 GB"):
        with pytest.raises(pl.InvalidValue, match="memory is a share"):
            Memory.of(wrong)


def test_what_needs_more_is_refused_before_a_batch_is_read(
    trained: nn.Module, data: pl.Data
) -> None:
    for method in (pl.Surgeon(images=64), pl.Elimination(images=64), pl.AOFP(images=64)):
        session = pl.Session(trained, data, method, memory=1000)
        events = len(session.ledger)
        with pytest.raises(pl.OverBudget, match=r"Give memory=\d+ or more, or") as error:
            session.propose()
        assert len(session.ledger) == events
        enough = int(str(error.value).split("memory=")[-1].split()[0])
        assert enough < 10_000_000
    assert pl.Session(trained, data, pl.Surgeon(images=64), memory=10_000_000).propose()


def test_the_memory_asked_for_is_at_least_what_the_evidence_holds(trained: nn.Module) -> None:
    x = torch.randn(64, 1, 12, 12)
    graph, kinds = pl.trace(trained, x[:1]), ("contribution", "patches", "curvature")
    found = pl.measure(trained, graph, [(x, torch.zeros(64).long())], kinds=kinds)
    held = sum(gram.nbytes for gram in found.grams.values())
    held += sum(one.moment.nbytes for one in found.moments.values())
    held += sum(one.nbytes for one in found.curvature.values())
    asked = evidence_bytes(measured_layers(graph, None), kinds, 64)
    assert held <= asked <= 4 * held


@pytest.mark.slow
def test_the_peak_does_not_grow_with_the_images() -> None:
    code = """
        import resource, sys, torch, prunelab as pl
        torch.set_num_threads(1)
        net = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3),
            torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(64, 10),
        ).eval()
        class Fresh:
            def __iter__(self):
                for seed in range(int(sys.argv[1])):
                    g = torch.Generator().manual_seed(seed)
                    yield torch.randn(16, 3, 48, 48, generator=g), torch.arange(16) % 10
        some = [next(iter(Fresh()))]
        images = 16 * int(sys.argv[1])
        session = pl.Session(net, pl.Data(Fresh(), some), pl.Surgeon(images=images), repair=None)
        assert session.propose() is not None
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    """
    peaks = [
        int(
            subprocess.run(
                [sys.executable, "-c", textwrap.dedent(code), str(count)],
                capture_output=True, text=True, check=True,
            ).stdout
        )
        for count in (4, 32)
    ]  # fmt: skip
    assert peaks[1] < 1.1 * peaks[0]
