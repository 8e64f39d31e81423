"""Networks of torchvision: each is traced, cut exactly, and can then be trained."""

from __future__ import annotations

import warnings

import pytest
from scripts import load

import prunelab as pl
from prunelab.graph.trace import runner

coverage, networks = load("coverage"), load("networks")

# Name to the least share of the weights that can be reached.
SOME = {
    "squeezenet1_1": 0.99,
    "shufflenet_v2_x0_5": 0.99,
    "mobilenet_v3_small": 0.99,
    "mnasnet0_5": 0.99,
    "googlenet": 0.99,
    "densenet121": 0.99,
    "convnext_tiny": 0.9,
    "swin_t": 0.6,
    "quantized_mobilenet_v2": 0.99,
    "lraspp_mobilenet_v3_large": 0.99,
    "ssdlite320_mobilenet_v3_large": 0.99,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 0.99,
}


@pytest.mark.parametrize("name", SOME)
@pytest.mark.filterwarnings("ignore")
def test_a_network_of_torchvision_is_traced_and_cut(name: str) -> None:
    model, inputs, train_inputs = networks.build(name)
    coverage.randomise(model, runner(inputs))
    graph = pl.trace(model, inputs, train_inputs=train_inputs)
    assert graph.unseen == ()
    assert coverage.share(model, graph) >= SOME[name]
    found = coverage.exactness(model, graph, inputs, train_inputs, params=0)
    assert found["error"] < 1e-10
    assert found["train"] == "yes"


@pytest.mark.coverage
def test_every_network_of_torchvision_is_traced_and_cut() -> None:
    warnings.simplefilter("ignore")
    names = networks.names("torchvision")
    rows = [coverage.guarded(name, compare=False, limit=900) for name in names]
    wrong = [
        row
        for row in rows
        if "failed" in row
        or row["train"] != "yes"
        or row["error"] > (1e-10 if row["double"] else 1e-3)
    ]
    assert wrong == []
