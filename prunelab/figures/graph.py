"""The coupling figure: every layer as a row, its width as a bar, couplings as arcs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from prunelab.figures.graph_info import CouplingInfo, LayerRow, coupling_info, spans
from prunelab.figures.style import (
    FAINT,
    GHOST,
    HATCH,
    INVISIBLE,
    TEXT_PX,
    TITLE_PX,
    Theme,
    axis,
    paper,
    row_bars,
    shorten,
)
from prunelab.values import listed, many
from prunelab.values.given import as_annotated

if TYPE_CHECKING:
    from prunelab.graph.channels.channel_graph import ChannelGraph

# Groups take turns: neighbours differ in colour and in shape (Okabe & Ito's palette).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
PALE = {"#E69F00", "#CC79A7", "#56B4E9", GHOST}  # white text would not be read on these
SHAPES = ("circle", "square", "diamond", "triangle-up", "pentagon")
ALONE = "#8a99a8"
MARKS = {
    "add": "+",
    "subtraction": "\N{MINUS SIGN}",
    "multiplication": "\N{MULTIPLICATION SIGN}",
    "depth-wise": "↓",
    "grouped": "≡",
    "shared": "=",
    "equal parts": "÷",
}
OTHER = "∘"

ROW_PX = (7, 21)  # a row is never lower, nor higher
ROOM = 1.3  # the axis goes on beyond the widest bar, for its text,
ROOM_OF_A_CUT = 1.5  # which is longer where it says "10 of 16"
TALL_PX = 1150  # rows get lower so that a figure stays within this, where it can
NAMED_PX = 13  # lower rows are named by stage


@as_annotated
def coupling(graph: ChannelGraph, part: str = "", *, theme: Theme = "light") -> go.Figure:
    """The layers of `graph` in execution order, and the couplings between them.

    Parameters
    ----------
    graph
        The channel graph.
    part
        The name of the module to which the figure is limited; "": the whole network.
    theme
        "light" or "dark".

    Raises
    ------
    UnknownName
        When no layer is in `part`.
    """
    return draw_coupling(coupling_info(graph, part), theme)


def draw_coupling(info: CouplingInfo, theme: Theme = "light") -> go.Figure:
    """Arcs on the left, a node per layer, bars on the right; stages are bands."""
    rows, count = info.rows, len(info.rows)
    low, high = ROW_PX
    row_px = max(low, min(high, TALL_PX // count))
    cut = any(row.now < row.original for row in rows)
    end = max(row.original for row in rows) * (ROOM_OF_A_CUT if cut else ROOM)
    lines = _legend(info)
    legend = "".join(f'<br><span style="font-size:{TEXT_PX}px">{line}</span>' for line in lines)
    top, bottom = 52 + 18 * len(lines), 46
    return go.Figure(
        [*_arcs(info, row_px), *_bars(info, row_px, end), _nodes(info, row_px)],
        {
            **paper(theme),
            "height": top + bottom + row_px * count + 8,
            "margin": {"l": 20, "r": 16, "t": top, "b": bottom},
            "bargap": 0.25,
            "xaxis": {
                "domain": [0, 0.17],
                "range": [-1.08, 0.06],
                "visible": False,
                "fixedrange": True,
            },
            "xaxis2": axis(
                "output channels",
                domain=[0.175, 1],
                anchor="y",
                range=[0, end],
                nticks=6,
                showgrid=False,
            ),
            "yaxis": axis("", range=[count - 0.4, -0.6], showgrid=False, **_names(info, row_px)),
            "shapes": _bands(rows),
            "title": {
                "text": f"<b>{_title(info)}</b>{legend}",
                "font": {"size": TITLE_PX},
                **{"x": 0, "xref": "container", "xanchor": "left"},
                **{"y": 1, "yref": "container", "yanchor": "top"},
                "pad": {"l": 16, "t": 20},
            },
        },
    )


def _title(info: CouplingInfo) -> str:
    where = f" in {info.part}" if info.part else ""
    if not info.arcs:
        return f"No two layers{where} lose the same channels"
    return f"Layers{where} that an arc joins lose the same channels"


def _legend(info: CouplingInfo) -> list[str]:
    kinds = list(dict.fromkeys(kind for arc in info.arcs for kind in arc.kinds))
    marks = [f"<b>{MARKS.get(kind, OTHER)}</b> {kind}" for kind in kinds]
    lines = ["coupled by " + " · ".join(marks)] if marks else []
    keys = ["same colour and shape: one group"] if marks else []
    keys.append("grey: alone")
    if any(row.why for row in info.rows):
        keys.append("hatched: frozen")
    lines.append(" · ".join(keys))
    if info.unseen:
        lines.append(f"never ran: {listed(info.unseen, 2)}")
    return lines


def _colour(row: LayerRow) -> str:
    if row.why:
        return GHOST
    return ALONE if row.turn is None else COLOURS[row.turn % len(COLOURS)]


def _arcs(info: CouplingInfo, row_px: int) -> list[go.Scatter]:
    """One trace of half ellipses for each colour, and the marks at their outermost points."""
    longest = max([8, *(arc.b - arc.a for arc in info.arcs)])
    lines: dict[str, tuple[list[float | None], list[float | None]]] = {
        colour: ([], []) for colour in (*COLOURS, GHOST)
    }
    marks: dict[str, list[Any]] = {"x": [], "y": [], "text": [], "hovertext": []}
    filled = []
    for arc in info.arcs:
        reach, middle = ((arc.b - arc.a) / longest) ** 0.6, (arc.a + arc.b) / 2
        colour = GHOST if info.rows[arc.a].why else COLOURS[arc.turn % len(COLOURS)]
        xs, ys = lines[colour]
        for step in range(25):
            angle = math.pi * step / 24
            xs.append(-reach * math.sin(angle))
            ys.append(middle - (arc.b - arc.a) / 2 * math.cos(angle))
        xs.append(None)
        ys.append(None)
        marks["x"].append(-reach)
        marks["y"].append(middle)
        marks["text"].append("".join(MARKS.get(kind, OTHER) for kind in arc.kinds))
        marks["hovertext"].append(arc.text)
        filled.append(colour)
    named = row_px >= NAMED_PX
    drawn = [
        go.Scatter(
            x=xs,
            y=ys,
            mode="lines",
            line={"color": colour, "width": 2 if named else 1.5},
            hoverinfo="skip",
        )
        for colour, (xs, ys) in lines.items()
    ]
    drawn.append(
        go.Scatter(
            **marks,
            mode="markers+text" if named else "markers",
            marker={"size": 14 if named else 6, "color": filled, "opacity": 1},
            textfont={
                "size": TEXT_PX,
                "weight": "bold",
                "color": ["#222222" if colour in PALE else "white" for colour in filled],
            },
            name="coupling",
            hoverinfo="text",
            cliponaxis=False,
        )
    )
    return drawn


def _bars(info: CouplingInfo, row_px: int, end: float) -> list[go.Bar]:
    rows = info.rows
    return [
        row_bars(
            [row.original for row in rows],
            "original",
            {"color": FAINT},
            xaxis="x2",
            text=[_size(row) for row in rows] if row_px >= NAMED_PX else None,
            textposition="outside",
            constraintext="none",
            textfont={"size": TEXT_PX},
            cliponaxis=False,
        ),
        row_bars(
            [row.now for row in rows],
            "now",
            {
                "color": [_colour(row) for row in rows],
                "pattern": {**HATCH, "shape": ["/" if row.why else "" for row in rows]},
            },
            xaxis="x2",
        ),
        row_bars(
            [end] * len(rows),
            "layer",
            {"color": INVISIBLE},
            xaxis="x2",
            width=1,
            customdata=[row.name for row in rows],
            hovertext=[row.hover for row in rows],
            hoverinfo="text",
        ),
    ]


def _size(row: LayerRow) -> str:
    size = str(row.now) if row.now == row.original else f"{row.now} of {row.original}"
    if row.turn is not None and row.first:
        size += f" · {many(row.members, 'layer')}"
    return f" {size}"


def _nodes(info: CouplingInfo, row_px: int) -> go.Scatter:
    size = 10 if row_px >= NAMED_PX else 6
    rows = info.rows
    return go.Scatter(
        x=[0] * len(rows),
        y=list(range(len(rows))),
        mode="markers",
        marker={
            "size": [size if row.turn is not None else size / 2 for row in rows],
            "color": [_colour(row) for row in rows],
            "opacity": 1,
            "symbol": [
                "circle" if row.turn is None else SHAPES[row.turn % len(SHAPES)] for row in rows
            ],
        },
        name="layer",
        hoverinfo="skip",
        cliponaxis=False,
    )


def _names(info: CouplingInfo, row_px: int) -> dict[str, Any]:
    """Every layer by name, or, where rows are low, every stage at its middle."""
    if row_px >= NAMED_PX:
        places = [float(index) for index in range(len(info.rows))]
        texts = [shorten(row.name, 28) for row in info.rows]
    else:
        runs = spans(info.rows)
        places = [(first + last) / 2 for _, first, last in runs]
        texts = [shorten(stage, 24) for stage, *_ in runs]
    ticks = [f"{text} " for text in texts]
    return {"tickmode": "array", "tickvals": places, "ticktext": ticks, "automargin": True}


def _bands(rows: tuple[LayerRow, ...]) -> list[dict[str, Any]]:
    """Every other stage on a faint band."""
    return [
        {
            "type": "rect",
            "layer": "below",
            "line": {"width": 0},
            "fillcolor": "rgba(128,128,128,0.10)",
            **{"xref": "paper", "x0": 0, "x1": 1, "yref": "y", "y0": first - 0.5, "y1": last + 0.5},
        }
        for number, (_, first, last) in enumerate(spans(rows))
        if number % 2 == 0
    ]
