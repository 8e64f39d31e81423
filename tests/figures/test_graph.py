"""The coupling figure: rows, arcs, colours and shapes for a graph."""

from __future__ import annotations

import sys
import warnings

import plotly.graph_objects as go
import pytest
import torch

import prunelab as pl
from prunelab.figures.graph import (
    COLOURS,
    MARKS,
    ROW_PX,
    SHAPES,
    TALL_PX,
    draw_coupling,
)
from prunelab.figures.graph_info import CouplingInfo, coupling_info
from prunelab.figures.style import GHOST


@pytest.fixture(scope="module")
def graph() -> pl.ChannelGraph:
    return pl.trace(pl.zoo.load("resnet20", pretrained=False), torch.randn(1, 1, 28, 28))


@pytest.fixture(scope="module")
def info(graph: pl.ChannelGraph) -> CouplingInfo:
    return coupling_info(graph)


def torchvision_graph(name: str) -> pl.ChannelGraph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torchvision import models
    return pl.trace(getattr(models, name)(weights=None).eval(), torch.randn(1, 3, 64, 64))


def bars(figure: go.Figure) -> dict[str, go.Bar]:
    return {trace.name: trace for trace in figure.data if trace.type == "bar"}


def test_every_layer_is_a_row_in_the_order_it_runs(
    graph: pl.ChannelGraph, info: CouplingInfo
) -> None:
    assert [row.name for row in info.rows] == [layer.name for layer in graph.layers]
    widths = {row.name: row.now for row in info.rows}
    assert (widths["conv1"], widths["layer3.2.conv2"], widths["fc"]) == (16, 64, 10)


def test_an_arc_joins_what_met_and_says_where(info: CouplingInfo) -> None:
    names = [row.name for row in info.rows]
    arcs = {(names[arc.a], names[arc.b]): arc for arc in info.arcs}
    assert len(arcs) == 9
    assert all(arc.a < arc.b for arc in info.arcs)
    assert arcs["conv1", "layer1.0.conv2"].kinds == ("add",)
    assert arcs["conv1", "layer1.0.conv2"].text == (
        "the add in layer1.0 combines conv1 and layer1.0.conv2"
    )


def test_a_group_has_one_colour_and_one_shape_and_its_neighbours_have_others(
    info: CouplingInfo,
) -> None:
    figure = draw_coupling(info)
    nodes = next(t for t in figure.data if t.type == "scatter" and t.name == "layer")
    looks: dict[int, set[tuple[str, str]]] = {}
    for row, colour, shape in zip(info.rows, nodes.marker.color, nodes.marker.symbol, strict=True):
        if row.turn is not None:
            looks.setdefault(row.turn, set()).add((colour, shape))
    assert looks == {turn: {(COLOURS[turn], SHAPES[turn])} for turn in range(3)}
    assert bars(figure)["now"].marker.color[0] == COLOURS[0]


def test_frozen_layers_are_grey_and_hatched_and_say_why_on_hover(info: CouplingInfo) -> None:
    drawn = bars(draw_coupling(info))
    hatched = [index for index, shape in enumerate(drawn["now"].marker.pattern.shape) if shape]
    assert [info.rows[index].name for index in hatched] == ["fc"]
    assert drawn["now"].marker.color[-1] == GHOST
    assert "frozen: it is an output of the network" in drawn["layer"].hovertext[-1]
    assert "read by layer1.0.conv2" in drawn["layer"].hovertext[1]


def test_after_a_cut_the_former_width_stays_as_a_shadow(graph: pl.ChannelGraph) -> None:
    plan = pl.WidthPlan.full(graph).drop({"conv1": range(6)})
    drawn = bars(graph.after(plan).show())
    assert (drawn["now"].x[0], drawn["original"].x[0]) == (10, 16)
    assert drawn["original"].text[0] == " 10 of 16 · 4 layers"
    assert drawn["original"].text[1] == " 16"


def test_a_part_is_shown_alone_and_an_unknown_one_is_told_what_there_is(
    graph: pl.ChannelGraph,
) -> None:
    part = coupling_info(graph, "layer2")
    assert {row.stage for row in part.rows} == {"layer2"}
    assert len(part.arcs) == 3
    assert "in layer2" in draw_coupling(part).layout.title.text
    with pytest.raises(pl.UnknownName, match="Did you mean 'layer2'"):
        graph.show("layer22")


def test_a_long_network_is_named_by_stages_and_stays_low() -> None:
    graph = torchvision_graph("densenet121")
    figure = graph.show()
    assert "features.denseblock3 " in figure.layout.yaxis.ticktext
    assert len(figure.layout.yaxis.ticktext) == 9
    assert figure.layout.height < TALL_PX + 150
    assert bars(figure)["original"].text is None
    assert "No two layers" in figure.layout.title.text
    assert graph.show("features.denseblock1").layout.height > 12 * ROW_PX[1]


def test_every_kind_of_coupling_is_in_the_legend_with_its_mark() -> None:
    figure = torchvision_graph("efficientnet_b0").show()
    for kind in ("depth-wise", "multiplication", "add"):
        assert f"<b>{MARKS[kind]}</b> {kind}" in figure.layout.title.text
    marks = next(trace for trace in figure.data if trace.name == "coupling")
    assert set(marks.text) == {MARKS["depth-wise"], MARKS["multiplication"], "+"}
    assert all(-1 <= x < 0 for x in marks.x)


def test_without_plotly_it_says_what_to_install(
    graph: pl.ChannelGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("prunelab.figures")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(pl.MissingPackage, match=r"plotly.*prunelab\[lab\]"):
        graph.show()
