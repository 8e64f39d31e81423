"""The frontier figure: the metric of the networks that a method leaves, against their MACs."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from prunelab.figures.style import KEEP, TEXT_PX, Panel, Theme, axis, figure, level
from prunelab.values.given import as_annotated
from prunelab.values.sensitivity import Frontier


@dataclass(frozen=True, slots=True)
class FrontierDot:
    """One network: `macs` and `params` in percent of the original, its `value`, its time in ms."""

    seq: int
    macs: float
    params: float
    value: float
    milliseconds: float


@dataclass(frozen=True, slots=True)
class FrontierInfo:
    """The contents of the figure; accuracies are in percent, `why` says why it ended early."""

    method: str
    metric: str
    percent: bool
    dots: tuple[FrontierDot, ...]
    why: str


@as_annotated
def frontier_info(found: Frontier) -> FrontierInfo:
    """The networks of `found` by their MACs and first validation metric."""
    metric = next(iter(found.points[0].metrics))
    percent = "accuracy" in metric
    return FrontierInfo(
        method=found.method,
        metric=metric,
        percent=percent,
        dots=tuple(
            FrontierDot(
                seq=point.seq,
                macs=100 * point.cost.macs / found.base.macs,
                params=100 * point.cost.params / found.base.params,
                value=point.metrics[metric] * (100 if percent else 1),
                milliseconds=1e3 * point.seconds,
            )
            for point in found.points
        ),
        why=found.why,
    )


def draw_frontier(info: FrontierInfo) -> Panel:
    """From the network at the start on the left to fewer MACs on the right."""
    sign = "%" * info.percent
    macs = [dot.macs for dot in info.dots]
    wide = max(0.06 * (max(macs) - min(macs)), 1.0)
    ends = (max(macs) + wide, min(macs) - wide)
    start = info.dots[0]
    return Panel(
        title=f"Frontier of {info.method}",
        traces=(
            level(start.value, "", ends, "start"),
            go.Scatter(
                x=macs,
                y=[dot.value for dot in info.dots],
                mode="lines+markers+text",
                line={"color": KEEP, "width": 2},
                marker={"color": KEEP, "size": 9},
                text=[f"{dot.value:.3g}" for dot in info.dots],
                textposition="bottom center",
                textfont={"size": TEXT_PX},
                cliponaxis=False,
                name=info.method,
                customdata=[dot.seq for dot in info.dots],
                hovertext=[
                    f"{dot.macs:.1f}% of the MACs, {dot.params:.1f}% of the parameters: "
                    f"{info.metric} {dot.value:.4g}{sign}, {dot.milliseconds:.3g} ms<br>"
                    f"session.go({dot.seq})"
                    for dot in info.dots
                ],
                hoverinfo="text",
            ),
        ),
        xaxis=axis("MACs, % of the original", range=list(ends), nticks=10),
        yaxis=axis(f"validation {info.metric}" + ", %" * info.percent, nticks=7),
    )


@as_annotated
def frontier(found: Frontier, *, theme: Theme = "light") -> go.Figure:
    """The metric of a frontier's networks against their MACs.

    Parameters
    ----------
    found
        What `Session.frontier` returned.
    theme
        "light" or "dark".
    """
    return figure(draw_frontier(frontier_info(found)), theme, height=420)
