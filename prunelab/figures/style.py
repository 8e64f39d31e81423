"""Colours, type sizes and the panel, shared by all figures."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import plotly.graph_objects as go

Theme = Literal["light", "dark"]

# Okabe & Ito's palette keeps apart under the common colour blindnesses; hatching says "drop" too.
KEEP = "#0072B2"
DROP = "#D55E00"
TARGET = "#009E73"
GHOST = "#999999"
COUPLED = "#CC79A7"
FAINT = "rgba(128,128,128,0.28)"
GRID = "rgba(128,128,128,0.35)"
INVISIBLE = "rgba(0,0,0,0)"
INK: dict[Theme, str] = {"light": "#222222", "dark": "#e8e8e8"}
TEXT_PX = 12
TITLE_PX = 15
# The fields of a Cost, as figures and reports call them.
COSTS = {"macs": "MACs", "params": "parameters", "activation_bytes": "activations, bytes"}
HATCH = {"shape": "/", "size": 7, "solidity": 0.3, "fillmode": "overlay", "fgcolor": "white"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel in plotly's terms; `note` is shown in its middle where there is nothing to draw.

    The types and the number of `traces`, and the keys that each sets, do not depend on the data,
    so that a panel on the screen is updated in place.
    """

    title: str
    traces: tuple[go.Bar | go.Scatter, ...]
    xaxis: dict[str, Any]
    yaxis: dict[str, Any]
    note: str = ""


def axis(title: str, **more: Any) -> dict[str, Any]:
    """An axis with `title`, readable on light and dark paper."""
    return {
        "title": {"text": title, "font": {"size": TEXT_PX}, "standoff": 6},
        "tickfont": {"size": TEXT_PX},
        "gridcolor": GRID,
        "linecolor": GRID,
        "zeroline": False,
        "fixedrange": True,
        **more,
    }


def row_axis(title: str, count: int, ticks: Sequence[int], labels: Sequence[str]) -> dict[str, Any]:
    """The axis of `count` rows under each other, first on top, of which `ticks` are labelled."""
    return axis(
        title,
        range=[count - 0.4, -0.6],
        tickmode="array",
        tickvals=list(ticks),
        ticktext=list(labels),
        showgrid=False,
        automargin=True,
    )


def row_bars(values: Sequence[float], name: str, marker: dict[str, Any], **more: Any) -> go.Bar:
    """Horizontal bars, one for each row; without hover unless `more` sets it."""
    more = {"hoverinfo": "skip", **more}
    lines = list(range(len(values)))
    return go.Bar(y=lines, x=values, orientation="h", name=name, marker=marker, **more)


def level(value: float | None, label: str, ends: tuple[float, float], name: str) -> go.Scatter:
    """A dashed line at the height `value` from one end to the other; none without a value."""
    shown = value is not None
    return go.Scatter(
        x=list(ends) if shown else [],
        y=[value, value] if shown else [],
        mode="lines+text",
        text=[label, ""] if shown else [],
        textposition="top right",
        textfont={"size": TEXT_PX},
        line={"color": TARGET, "dash": "dash", "width": 2},
        name=name,
        hoverinfo="skip",
    )


def wrap(text: str, width: int = 38) -> str:
    """`text` in lines of at most `width` characters, separated by <br>."""
    return "<br>".join(textwrap.wrap(text, width))


def shorten(name: str, width: int = 18) -> str:
    """A layer's name truncated at its start to `width` characters.

    It begins with a whole part of the name where half of the width or more remains.
    """
    if len(name) <= width:
        return name
    _, _, whole = name[-width:].partition(".")
    return "…" + (whole if len(whole) >= width / 2 else name[1 - width :])


def row_height(rows: int) -> int:
    """The height in px of a figure with this many labelled rows; long pages scroll."""
    return max(300, 110 + 17 * rows)


def stride(count: int, room: int) -> int:
    """The step at which `count` items are labelled, so that at most `room` have a label."""
    return -(-count // room) if count else 1


def caption(text: str, size: int, **place: Any) -> dict[str, Any]:
    """Text without an arrow, as a plotly annotation."""
    return {"text": text, "font": {"size": size}, "showarrow": False, **place}


def figure(panel: Panel, theme: Theme = "light", height: int = 360) -> go.Figure:
    """`panel` alone, as a figure of its own."""
    return go.Figure(
        panel.traces,
        {
            **paper(theme),
            "height": height,
            "xaxis": panel.xaxis,
            "yaxis": {**panel.yaxis, "automargin": True},  # titles may have two lines
            "title": {"text": panel.title, "font": {"size": TITLE_PX}},
            "annotations": [
                caption(panel.note, TEXT_PX + 1, xref="paper", yref="paper", x=0.5, y=0.5)
            ],
        },
    )


def paper(theme: Theme) -> dict[str, Any]:
    """The layout that all figures share: transparent, no drag, bars on top of each other."""
    return {
        "template": "none",
        "paper_bgcolor": INVISIBLE,
        "plot_bgcolor": INVISIBLE,
        "font": {"size": TEXT_PX, "color": INK[theme], "family": "sans-serif"},
        "barmode": "overlay",
        "bargap": 0.15,
        "dragmode": False,
        "hovermode": "closest",
        "showlegend": False,
        "margin": {"l": 60, "r": 16, "t": 48, "b": 48},
    }
