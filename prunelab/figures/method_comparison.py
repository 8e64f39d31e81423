"""The methods figure: a comparison's metric against MACs, a line for each method."""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from prunelab.figures.style import GHOST, TEXT_PX, Panel, Theme, axis, figure, level
from prunelab.values.given import as_annotated

if TYPE_CHECKING:
    from prunelab.experiments.results import Comparison, ResultRow

# Okabe & Ito's palette; a symbol of its own tells each method apart without colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "pentagon", "star")


@dataclass(frozen=True, slots=True)
class Line:
    """One method: `macs` in percent of the original, `values` and their `spreads` (None: one seed).

    `control` marks the control, which the others should beat.
    """

    name: str
    macs: tuple[float, ...]
    values: tuple[float, ...]
    spreads: tuple[float | None, ...]
    control: bool


@dataclass(frozen=True, slots=True)
class MethodsInfo:
    """The contents of the figure; accuracies are in percent, `base` is that of the original."""

    title: str
    metric: str
    percent: bool
    base: float
    lines: tuple[Line, ...]


@as_annotated
def methods_info(comparison: Comparison) -> MethodsInfo:
    """The rows of `comparison` as lines; rows without the metric are left out."""
    metric = comparison.metric
    scale = 100.0 if "accuracy" in metric else 1.0
    lines: dict[tuple[str, str | None], list[ResultRow]] = {}
    for row in comparison.rows:
        if not isnan(row.mean(metric)):
            lines.setdefault((row.name, row.repair), []).append(row)
    repairs = {repair for _, repair in lines}

    def line(name: str, repair: str | None, rows: list[ResultRow]) -> Line:
        ordered = sorted(rows, key=lambda row: -row.macs)
        spreads = [scale * row.spread(metric) for row in ordered]
        return Line(
            name=name if len(repairs) < 2 else f"{name}, repair {repair or 'none'}",
            macs=tuple(100 * row.macs / comparison.base.cost.macs for row in ordered),
            values=tuple(scale * row.mean(metric) for row in ordered),
            spreads=tuple(None if isnan(spread) else spread for spread in spreads),
            control=name == comparison.control,
        )

    return MethodsInfo(
        title=f"{comparison.network}: {comparison.split} {metric} against MACs",
        metric=f"{comparison.split} {metric}" + (", %" if scale > 1 else ""),
        percent=scale > 1,
        base=scale * comparison.base.metrics[metric],
        lines=tuple(line(*key, rows) for key, rows in lines.items()),
    )


def draw_methods(info: MethodsInfo) -> Panel:
    """From the original's MACs on the left to fewer on the right; the control is dashed grey."""
    macs = [x for line in info.lines for x in line.macs] or [100.0]
    wide = max(0.06 * (100 - min(macs)), 1.0)
    ends = (100 + wide, min(macs) - wide)
    return Panel(
        title=info.title,
        traces=(
            level(info.base, f"original {info.base:.4g}{'%' * info.percent}", ends, "original"),
            *(_trace(line, index, info.percent) for index, line in enumerate(info.lines)),
        ),
        xaxis=axis("MACs, % of the original", range=list(ends), nticks=7),
        yaxis=axis(info.metric, nticks=7),
        note="" if info.lines else "no method came to a result",
    )


def _trace(line: Line, index: int, percent: bool) -> go.Scatter:
    colour = GHOST if line.control else COLOURS[index % len(COLOURS)]
    bars = [0.0 if spread is None else spread for spread in line.spreads]
    unit = "%" * percent
    return go.Scatter(
        x=list(line.macs),
        y=list(line.values),
        error_y={"type": "data", "array": bars, "visible": any(bars), "thickness": 1.5},
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": "dash" if line.control else "solid"},
        marker={"color": colour, "size": 9, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        name=line.name,
        hovertext=[
            f"{line.name}, {x:.1f}% of the MACs: {y:.4g}{unit}"
            + ("" if spread is None else f" ± {spread:.2g}")
            for x, y, spread in zip(line.macs, line.values, line.spreads, strict=True)
        ],
        hoverinfo="text",
    )


@as_annotated
def methods(comparison: Comparison, *, theme: Theme = "light") -> go.Figure:
    """A comparison's methods, each a line of its metric against the MACs left."""
    drawn = figure(draw_methods(methods_info(comparison)), theme, height=440)
    legend = {"orientation": "h", "y": -0.2, "yanchor": "top", "font": {"size": TEXT_PX}}
    return drawn.update_layout(showlegend=True, legend=legend, margin={"b": 110})
