"""A comparison of two plans: their widths on one axis, and a table of the differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import plotly.graph_objects as go

from prunelab.figures.row_grouping import modules
from prunelab.figures.style import (
    COSTS,
    DROP,
    FAINT,
    INK,
    INVISIBLE,
    KEEP,
    TEXT_PX,
    TITLE_PX,
    Panel,
    Theme,
    axis,
    caption,
    paper,
    row_axis,
    row_height,
    shorten,
)
from prunelab.ledger.state import State
from prunelab.values import Cost, FrozenMap, WidthPlan, as_text, si
from prunelab.values.given import as_annotated
from prunelab.values.paired_comparison import PairedComparison


@dataclass(frozen=True, slots=True)
class Side:
    """One side of the comparison: its name, widths, cost and metrics."""

    name: str
    widths: FrozenMap[int]
    cost: Cost | None = None
    metrics: FrozenMap[float] = field(default_factory=FrozenMap)


@dataclass(frozen=True, slots=True)
class CompareInfo:
    """The contents of the figure: (group, units of a, units of b), and the rows of the table.

    A row of the table is (name, value of a, value of b, difference).
    """

    names: tuple[str, str]
    rows: tuple[tuple[str, int, int], ...]
    table: tuple[tuple[str, str, str, str], ...]


@as_annotated
def point_side(state: State, seq: int) -> Side:
    """The network at the point created by event `seq`, as a side of a comparison."""
    point = state.point(seq)
    kept = point.kept
    widths = state.began.widths if kept is None else {name: len(kept[name]) for name in kept}
    name = "original" if point.parent is None else f"event {seq}"
    return Side(name, FrozenMap(widths), point.cost, point.metrics)


@as_annotated
def plan_side(name: str, plan: WidthPlan, cost: Cost | None = None) -> Side:
    """A plan, such as one read from a file, as a side of a comparison.

    Parameters
    ----------
    name
        The name of the plan in the figure.
    plan
        The plan.
    cost
        Its cost, `pl.cost(graph, plan)`; None leaves it out.
    """
    return Side(name, FrozenMap(plan.widths), cost)


@as_annotated
def compare_info(a: Side, b: Side, found: PairedComparison | None = None) -> CompareInfo:
    """The widths and numbers in which `b` differs from `a`; many groups are shown by module.

    Parameters
    ----------
    a, b
        The two sides.
    found
        The paired comparison of the network of `b` with that of `a`, if there is one.
    """
    rows: dict[str, tuple[int, int]] = {}
    for name, row in modules([name for name in a.widths if name in b.widths]).items():
        here, there = rows.get(row, (0, 0))
        rows[row] = (here + a.widths[name], there + b.widths[name])
    table = [
        (
            "channels",
            f"{sum(a.widths.values()):,}",
            f"{sum(b.widths.values()):,}",
            f"{sum(b.widths.values()) - sum(a.widths.values()):+,}",
        )
    ]
    if a.cost is not None and b.cost is not None:
        for key, words in COSTS.items():
            here, there = getattr(a.cost, key), getattr(b.cost, key)
            table.append((words, si(here), si(there), f"{there / max(1, here) - 1:+.1%}"))
    table += _measured(a.metrics, b.metrics)
    if found is not None:
        table += _tried(found)
    return CompareInfo(
        (a.name, b.name),
        tuple((name, here, there) for name, (here, there) in rows.items()),
        tuple(table),
    )


def _measured(a: Mapping[str, float], b: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    rows = []
    for name in a:
        if name in b:
            change = b[name] - a[name]
            points = f"{100 * change:+.1f} points" if "accuracy" in name else f"{change:+.3g}"
            rows.append(
                (
                    f"validation {name}",
                    as_text(name, a[name]),
                    as_text(name, b[name]),
                    points,
                )
            )
    return rows


def _tried(found: PairedComparison) -> list[tuple[str, str, str, str]]:
    percent = "accuracy" in found.metric
    scale, digits, unit = (100, ".1f", " points") if percent else (1, ".3g", "")
    change = f"{scale * found.difference:+{digits}} ± {scale * found.margin:{digits}}{unit}"
    rows = [
        (
            f"{found.metric}, {found.images:,} images",
            as_text(found.metric, found.before),
            as_text(found.metric, found.after),
            change + (", within noise" if found.within_noise else ""),
        )
    ]
    if found.answers is not None:
        rows.append(
            ("only right here, there", str(len(found.lost)), str(len(found.gained)), "images")
        )
    return rows


def draw_compare(info: CompareInfo) -> Panel:
    """A line per group from its width in a (circle) to its width in b (diamond)."""
    lines = list(range(len(info.rows)))
    most = max((max(here, there) for _, here, there in info.rows), default=1)
    joined_x: list[int | None] = []
    joined_y: list[int | None] = []
    for line, (_, here, there) in zip(lines, info.rows, strict=True):
        joined_x += [here, there, None]
        joined_y += [line, line, None]
    marks = [
        go.Scatter(
            x=[row[side] for row in info.rows],
            y=lines,
            mode="markers",
            marker={"symbol": symbol, "size": 9, "color": colour},
            name=info.names[side - 1],
            hovertext=[f"{name}: {here} → {there}" for name, here, there in info.rows],
            hoverinfo="text",
        )
        for side, symbol, colour in ((1, "circle", KEEP), (2, "diamond", DROP))
    ]
    line = go.Scatter(
        x=joined_x, y=joined_y, mode="lines", line={"color": FAINT, "width": 5},
        name="difference", hoverinfo="skip",
    )  # fmt: skip
    a, b = (shorten(name, 26) for name in info.names)
    return Panel(
        title=f"Widths: ● {a}, ◆ {b}",
        traces=(line, *marks),
        xaxis=axis("channels", range=[0, 1.06 * most], nticks=6),
        yaxis=row_axis(
            "channel group", len(lines), lines, [f"{shorten(name)} " for name, _, _ in info.rows]
        ),
        note="" if lines else "no channel group is in both",
    )


@as_annotated
def compare(
    a: Side, b: Side, found: PairedComparison | None = None, *, theme: Theme = "light"
) -> go.Figure:
    """Two points of a session, or two plans: widths overlaid, and a table of the differences.

    Parameters
    ----------
    a, b
        The two sides, by `point_side(state, seq)` or `plan_side(name, plan)`.
    found
        The result of `Session.compare` for them, if there is one.
    theme
        "light" or "dark".
    """
    info = compare_info(a, b, found)
    panel = draw_compare(info)
    table = go.Table(
        domain={"x": [0.58, 1], "y": [0, 1]},
        columnwidth=[5, 3, 3, 4],
        header=_cells(["", *(shorten(name, 20) for name in info.names), "difference"], theme),
        cells=_cells([list(column) for column in zip(*info.table, strict=True)], theme),
    )
    return go.Figure(
        [*panel.traces, table],
        {
            **paper(theme),
            "height": max(row_height(len(info.rows)), 90 + 38 * len(info.table)),
            "xaxis": {**panel.xaxis, "domain": [0, 0.52]},
            "yaxis": panel.yaxis,
            "title": {"text": panel.title, "font": {"size": TITLE_PX}},
            "annotations": [
                caption(panel.note, TEXT_PX + 1, xref="paper", yref="paper", x=0.25, y=0.5)
            ],
        },
    )


def _cells(values: list[object], theme: Theme) -> dict[str, object]:
    return {
        "values": values,
        "align": "left",
        "fill": {"color": INVISIBLE},
        "line": {"color": FAINT},
        "font": {"size": TEXT_PX, "color": INK[theme]},
        "height": 24,
    }
