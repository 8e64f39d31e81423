"""`stir`: parameters that hide what they multiply get values, others keep theirs."""

from __future__ import annotations

import torch
from torch import nn

from prunelab.graph.stirring import stir


def test_zeros_equal_and_tiny_values_change_and_trained_ones_stay() -> None:
    torch.manual_seed(0)
    model = nn.Module()
    model.zero, model.one = nn.Parameter(torch.zeros(8, 1, 1)), nn.Parameter(torch.ones(8))
    model.layer_scale = nn.Parameter(torch.full((8,), 1e-6))
    model.gate = nn.Parameter(torch.zeros(()))
    model.kernel = nn.Parameter(torch.zeros(6, 50, 3, 3))
    model.trained = nn.Parameter(torch.randn(8))
    before = model.trained.detach().clone()
    stir(model.requires_grad_(False))
    assert torch.equal(model.trained, before)
    assert float(model.zero.abs().min()) >= 0.1
    assert float(model.layer_scale.abs().min()) > 0.01
    assert 0.1 <= abs(float(model.gate)) <= 0.5
    assert float(model.one.min()) >= 0.75  # positive, as a root of it needs
    assert len(model.one.unique()) == 8
    assert float(model.kernel.flatten(1).norm(dim=1).max()) < 0.5  # outputs stay of their size


def test_stirring_draws_the_same_each_time() -> None:
    one, other = nn.LayerNorm(8), nn.LayerNorm(8)
    stir(one)
    stir(other)
    assert torch.equal(one.weight, other.weight)
