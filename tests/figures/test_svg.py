"""Panels as SVG: well formed, correctly placed, in the page's colour, and small."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree

import plotly.graph_objects as go
import pytest

from prunelab.figures.style import DROP, HATCH, INVISIBLE, KEEP, Panel, axis
from prunelab.figures.svg import svg

SVG = "{http://www.w3.org/2000/svg}"


def panel(*traces: Any, x: Any = None, y: Any = None, **more: Any) -> Panel:
    plain = {"range": [0, 10]}
    return Panel(
        "Title", traces, axis("across", **(x or plain)), axis("up", **(y or plain)), **more
    )


def drawn(made: Panel) -> ElementTree.Element:
    return ElementTree.fromstring(svg(made, 480, 300))


def texts(root: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in root.iter(f"{SVG}text")]


def boxes(root: ElementTree.Element, colour: str) -> list[tuple[float, ...]]:
    """x, y, width and height of every bar of this colour."""
    outlines = [p.get("d", "") for p in root.iter(f"{SVG}path") if p.get("fill") == colour]
    found = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)", " ".join(outlines))
    return [tuple(map(float, box)) for box in found]


def bar(**more: Any) -> Callable[..., go.Bar]:
    return lambda **own: go.Bar(marker={"color": KEEP}, width=1, **{**more, **own})


def test_bars_are_as_high_as_their_values() -> None:
    root = drawn(panel(bar()(x=[1, 2, 3], y=[2, 4, 8])))
    heights = [box[3] for box in boxes(root, KEEP)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert heights[2] == pytest.approx(4 * heights[0], abs=0.2)
    floors = {round(y + h) for _, y, _, h in boxes(root, KEEP)}
    assert len(floors) == 1, "they stand on one line"


def test_lying_bars_begin_at_their_base_and_the_first_stands_on_top() -> None:
    lying = bar(orientation="h")(x=[2, 3], y=[0, 1], base=[5, 0])
    root = drawn(panel(lying, y={"range": [1.6, -0.6]}))
    first, second = boxes(root, KEEP)
    assert first[1] < second[1]
    assert first[0] - second[0] == pytest.approx(5 / 3 * second[2], abs=0.3)


def test_a_logarithmic_axis_gives_every_decade_the_same_room() -> None:
    marks = go.Scatter(x=[1, 1, 1], y=[0.01, 0.1, 1], mode="markers", marker={"color": KEEP})
    root = drawn(panel(marks, y={"type": "log", "range": [-2, 0]}))
    ys = [float(y) for y in re.findall(r"M[\d.]+ ([\d.]+)a", ElementTree.tostring(root).decode())]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    assert {"0.01", "0.1", "1"} <= set(texts(root))


def test_what_is_dropped_is_hatched() -> None:
    root = drawn(panel(go.Bar(x=[1], y=[2], marker={"color": DROP, "pattern": HATCH})))
    assert [p.get("fill") for p in root.iter(f"{SVG}path")][-2:] == [DROP, "url(#prunelab-hatch)"]


def test_a_line_is_broken_where_a_value_is_missing_or_no_number() -> None:
    for gap in (None, float("nan")):
        line = go.Scatter(
            x=[1, 2, 3, 4, 5], y=[1, 2, gap, 4, 5], mode="lines", line={"color": KEEP}
        )
        root = drawn(panel(line))
        points = [p.get("points", "") for p in root.iter(f"{SVG}polyline")]
        assert [len(one.split()) for one in points] == [2, 2]


def test_hover_becomes_a_tooltip_and_nothing_is_read_as_markup() -> None:
    marks = go.Scatter(
        x=[1], y=[1], mode="markers+text", text=["<b>?</b> & <x>"], hovertext=["a<br>b & <c>"]
    )
    root = drawn(panel(marks, note="nothing<br>here"))
    tips = [element.text for element in root.iter(f"{SVG}title")]
    assert tips == ["Title", "a, b & <c>"]
    assert {"? & <x>", "nothing", "here", "across", "up"} <= set(texts(root))


def test_a_thousand_bars_are_one_path() -> None:
    many = list(range(1000))
    hover = go.Bar(x=many, y=[9] * 1000, marker={"color": INVISIBLE}, hovertext=["x"] * 1000)
    made = panel(bar()(x=many, y=[5] * 1000), hover, x={"range": [-1, 1000]})
    assert len(boxes(drawn(made), KEEP)) == 1000
    assert len(list(drawn(made).iter(f"{SVG}path"))) == 3
    assert len(svg(made)) < 40_000


def test_text_takes_the_colour_of_the_page_and_is_large_enough() -> None:
    root = drawn(panel(bar()(x=[1], y=[1])))
    assert root.get("fill") == "currentColor"
    assert all(element.get("fill") is None for element in root.iter(f"{SVG}text"))
    sizes = [root.get("font-size"), *(e.get("font-size") for e in root.iter(f"{SVG}text"))]
    assert min(int(size) for size in sizes if size) >= 12


def test_labels_keep_their_distance() -> None:
    names = [f"layer{i}" for i in range(200)]
    ticks = {"tickmode": "array", "tickvals": list(range(200)), "ticktext": names}
    root = drawn(panel(y={"range": [199.5, -0.5], **ticks}))
    ys = [float(e.get("y", 0)) for e in root.iter(f"{SVG}text") if (e.text or "").startswith("lay")]
    assert len(ys) > 5
    assert min(b - a for a, b in pairwise(ys)) >= 12
