"""The walk finds what `named_modules`, `named_parameters` and `named_buffers` find."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from prunelab.graph.modules.walk import tensors_by_name, walk


def shared() -> nn.Module:
    inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    net = nn.ModuleDict({"a": nn.Sequential(inner, nn.ReLU()), "b": inner, "c": nn.Linear(4, 4)})
    net["d"] = nn.Linear(4, 4)
    net["d"].weight = net["c"].weight
    net["e"] = parametrizations.weight_norm(nn.Linear(4, 4))
    net.register_module("none", None)
    net.register_buffer("mask", torch.ones(3), persistent=False)
    return net


def around_itself() -> nn.Module:
    net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU()))
    net[1].add_module("above", net)
    return net


@pytest.mark.parametrize("made", [shared, around_itself])
def test_a_walk_finds_what_torch_finds_in_the_same_order(made: object) -> None:
    net = made()  # type: ignore[operator]
    assert walk(net) == [*net.named_modules()]
    due = [*net.named_parameters(), *net.named_buffers()]
    assert [(n, id(x)) for n, x in tensors_by_name(net).items()] == [(n, id(x)) for n, x in due]
