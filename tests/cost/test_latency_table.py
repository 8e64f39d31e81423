"""Latency tables: interpolation, storage, and what is decided by them. No wall time is asserted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import prunelab as pl
from prunelab.cost import kernel_times, latency_table
from prunelab.cost.kernel_times import Kernel, Store
from prunelab.cost.latency_table import LatencyTable, SecondsSaved, WidthTimes
from prunelab.cost.savings import Savings

X = torch.zeros(1, 1, 12, 12)


def table_by_macs(model: nn.Module, graph: pl.ChannelGraph, steep: str = "") -> LatencyTable:
    """A table whose seconds are the products of widths; ten times as many for one layer."""
    layers = {}
    for layer in graph.layers:
        into, out = np.array([0.0, len(layer.in_units)]), np.array([0.0, len(layer.out_units)])
        factor = layer.applied * np.prod(layer.kernel) * (10 if layer.name == steep else 1)
        layers[layer.name] = (WidthTimes(into, out, factor * into[:, None] * out),)
    return LatencyTable(graph, "torch", layers, 0.0, dict.fromkeys(layers, 0.0))


def test_widths_between_those_timed_are_interpolated_in_both_directions() -> None:
    times = WidthTimes(np.array([8, 16]), np.array([8, 32]), np.array([[1.0, 3.0], [2.0, 6.0]]))
    assert times.at(8, 32) == 3
    assert times.at(12, 20) == pytest.approx((1 + 3 + 2 + 6) / 4)
    assert times.at(4, 32) == 3  # nothing is faster than the narrowest width timed
    np.testing.assert_allclose(times.at(np.array([8, 16]), np.array([8, 8])), [1, 2])
    alone = WidthTimes(np.array([16]), np.array([8, 16]), np.array([[1.0, 2.0]]))
    assert alone.at(3, 12) == 1.5


def test_every_kernel_is_timed_once_and_found_again_in_the_store(
    trained: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[tuple[Any, ...]] = []

    def seconds(kernel: Kernel, into: int, out: int, backend: str) -> float:
        timed.append((kernel, into, out))
        return 1e-6 * into * out

    monkeypatch.setattr(latency_table, "seconds", seconds)
    graph = pl.trace(trained, X)
    table = pl.latency_table(trained, graph, X, store=Store(tmp_path))
    assert len(set(timed)) == len(timed) > len(graph.layers)
    (file,) = tmp_path.iterdir()
    assert len(json.loads(file.read_text())) == len(timed)
    count = len(timed)
    again = pl.latency_table(trained, graph, X, store=Store(tmp_path))
    assert len(timed) == count
    plan = pl.WidthPlan.full(graph)
    assert set(again.by_layer(plan)) == set(table.by_layer(plan)) == {*table.layers, ""}
    file.write_text("{ damaged")
    assert Store(tmp_path).known == {}
    with pytest.raises(pl.InvalidValue, match="backend"):
        pl.latency_table(trained, graph, X, backend="tensorrt")  # type: ignore[arg-type]


def test_a_grouped_convolution_is_timed_with_as_many_channels_a_group(tmp_path: Path) -> None:
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3, groups=16), nn.Conv2d(16, 32, 1), nn.ReLU(),
        nn.Conv2d(32, 64, 3, groups=8), nn.Conv2d(64, 4, 1),
    ).eval()  # fmt: skip
    graph = pl.trace(net, X)
    table = pl.latency_table(net, graph, X, store=Store(tmp_path))
    assert table.layers["1"][0].outs.tolist() == [1, 8, 16]
    assert table.layers["4"][0].outs.tolist() == [8, 64]  # 1 and 8 groups
    assert table(pl.WidthPlan.full(graph)) > 0


def test_a_kernel_alone_runs_in_onnx_runtime_too() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    kernel = Kernel(1, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1))
    x, weight = torch.randn(1, 4, 8, 8), torch.randn(6, 4, 3, 3)
    run = kernel_times._onnx_run(kernel_times._one_node(kernel, x, weight, 1), [x])
    (found,) = run()
    want = nn.functional.conv2d(x, weight, None, 1, 1)
    torch.testing.assert_close(torch.from_numpy(found), want, rtol=1e-4, atol=1e-4)
    flat = kernel_times._one_node(Kernel(2, ()), torch.ones(2, 4), torch.ones(3, 4), 1)
    (found,) = kernel_times._onnx_run(flat, [torch.ones(2, 4)])()
    assert found.tolist() == [[4.0] * 3] * 2


def test_seconds_saved_are_the_differences_of_the_table(trained: nn.Module) -> None:
    graph = pl.trace(trained, X)
    table = table_by_macs(trained, graph)
    plan = pl.WidthPlan.full(graph).drop({"conv1": [0, 1]})
    saved = SecondsSaved(table, pl.WidthPlan.full(graph))
    for unit in (0, 1):
        saved.drop(graph["conv1"].first + unit)
    np.testing.assert_allclose(saved.each, SecondsSaved(table, plan).each)
    for group in graph.groups:
        if group.prunable:
            unit = plan.kept[group.name][0]
            want = table(plan) - table(plan.drop({group.name: [unit]}))
            assert saved.each[group.first + unit] == pytest.approx(want)
    macs = Savings(graph, plan, "macs").each
    np.testing.assert_allclose(saved.each[macs > 0], macs[macs > 0])


def test_a_surgeon_priced_in_seconds_takes_more_of_the_layer_that_is_slow(
    trained: nn.Module, data: pl.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = []
    for steep in ("", "conv2"):
        session = pl.Session(
            trained, data, pl.Surgeon(step=0.3, images=64, per="latency"), repair=None
        )
        table = table_by_macs(trained, session._evaluator.graph, steep)
        monkeypatch.setattr(session._evaluator, "_table", table)
        gone.append(len(session.propose().drop.get("conv1", ())))
    assert gone[1] > gone[0]


def test_a_run_stops_once_the_share_of_the_seconds_is_met(
    trained: nn.Module, data: pl.Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pl.Session(trained, data, pl.Magnitude(pruning_ratio=0.1), repair=None)
    table = table_by_macs(trained, session._evaluator.graph, "conv3")
    monkeypatch.setattr(session._evaluator, "_table", table)
    session.run(target_latency=0.6, min_accuracy=None)
    whole = table(pl.WidthPlan.full(table.graph))
    assert table(session.plan) <= 0.6 * whole
    for wrong in (0, 1.5, "fast"):
        with pytest.raises(pl.InvalidValue, match="target_latency"):
            session.run(target_latency=wrong)


def test_an_allocation_meets_a_share_of_the_seconds_with_widths_in_blocks(
    trained: nn.Module, data: pl.Data
) -> None:
    graph = pl.trace(trained, X)
    table = table_by_macs(trained, graph, "conv2")
    evidence = pl.measure(trained, graph, [x for x, _ in data.train])
    plan = pl.allocate(graph, evidence, 0.7, of=table)
    whole = table(pl.WidthPlan.full(graph))
    assert table(plan) <= 0.7 * whole
    assert all(w == graph[n].width or w % 8 == 0 for n, w in plan.widths.items())
    assert table.realised(plan) == pytest.approx(
        (1 - table(plan) / whole)
        / (1 - pl.cost(graph, plan).macs / pl.cost(graph, pl.WidthPlan.full(graph)).macs)
    )
