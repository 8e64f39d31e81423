"""What is no network, or no longer one that can be cut, is refused with what to give instead."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import prunelab as pl

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()


def quietly(make: Callable[[], Any]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make()


GIVEN: dict[str, tuple[Callable[[], Any], str]] = {
    "script": (lambda: torch.jit.script(net()), "TorchScript .*nn.Module that it was made from"),
    "trace": (lambda: torch.jit.trace(net(), X), "TorchScript .*nn.Module that it was made from"),
    "freeze": (lambda: torch.jit.freeze(torch.jit.script(net())), "TorchScript"),
    "export": (lambda: torch.export.export(net(), (X,)).module(), "exported by torch.export"),
    "program": (lambda: torch.export.export(net(), (X,)), "exported by torch.export"),
    "quantised": (
        lambda: torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}),
        "3 is quantised .*nn.Module that it was made from",
    ),
    "path": (lambda: "model.pt", "the network itself, an nn.Module.*load_state_dict"),
    "file": (lambda: Path("model.pt"), "model.pt; it must be the network itself"),
    "weights": (
        lambda: net().state_dict(),
        "a OrderedDict; it must be the network itself.*Build it",
    ),
    "function": (lambda: net().forward, "a method; it must be the network itself"),
    "lazy": (
        lambda: nn.Sequential(nn.LazyConv2d(8, 3)),
        "0.weight has no values: .*run the network once",
    ),
    "meta": (lambda: net().to("meta"), "0.weight has no values"),
}


@pytest.mark.parametrize("given", GIVEN)
def test_what_cannot_be_pruned_is_refused_with_what_to_give(given: str) -> None:
    make, told = GIVEN[given]
    model, batches = quietly(make), [(X, torch.tensor([0, 1]))]
    with pytest.raises(pl.BadModel, match=told):
        pl.trace(model, X)
    with pytest.raises(pl.BadModel, match=told):
        pl.Session(model, pl.Data(batches, batches))


@pytest.mark.parametrize("wrap", [torch.fx.symbolic_trace, torch.compile, nn.DataParallel])
def test_wrapped_networks_are_traced(wrap: Callable[[nn.Module], nn.Module]) -> None:
    graph = pl.trace(wrap(net()), X)
    assert sum(group.prunable for group in graph.groups) == 1
