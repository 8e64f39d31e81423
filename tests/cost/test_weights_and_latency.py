"""Parameters with and without biases and normalisation; latency of a step of training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toys import Tiny

import prunelab as pl
from prunelab.cost.counting import layer_costs

X = torch.zeros(1, 1, 12, 12)
WEIGHTS = 8 * 9 + 12 * 8 * 9 + 8 * 12 * 9 + 16 * 8 * 9 + 4 * 16  # of Tiny, by hand
OTHERS = 2 * (8 + 12 + 8) + 16 + 4  # BatchNorm's scales and shifts, two biases


def test_weights_are_counted_without_biases_and_normalisation() -> None:
    model = Tiny()
    graph = pl.trace(model, X)
    full = pl.WidthPlan.full(graph)
    for cost in (pl.cost(model, X), pl.cost(graph, full), pl.cost(graph, full, X)):
        assert (cost.weights, cost.params) == (WEIGHTS, WEIGHTS + OTHERS)
    assert sum(cost.weights for cost in layer_costs(graph, full).values()) == WEIGHTS
    plan = full.drop({"conv1": [0, 3], "conv3": range(5)})
    assert pl.cost(graph, plan).weights == pl.cost(pl.cut(model, graph, plan), X).weights


def test_vgg16s_weights_are_those_of_the_papers_tables() -> None:
    models = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        model = models.vgg16(weights=None)
    cost = pl.cost(model, torch.zeros(1, 3, 224, 224, device="meta"))
    assert cost.params == 138_357_544  # torchvision's count
    assert cost.params - cost.weights == 13_416  # biases: 4,224 and 2 * 4,096 and 1,000


def test_latency_times_a_backward_pass_and_leaves_no_gradients() -> None:
    model = Tiny().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = pl.latency(model, X, runs=2, backward=True)
    assert (found.runs, found.median > 0) == (2, True)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_backward_pass_needs_a_parameter_that_trains() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(pl.InvalidValue, match="requires"):
        pl.latency(model, torch.zeros(1, 2), runs=1, backward=True)
