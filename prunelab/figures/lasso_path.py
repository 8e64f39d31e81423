"""The path panel: Channel Pruning's LASSO in one group, how many channels each penalty keeps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunelab.figures.style import (
    DROP,
    KEEP,
    Panel,
    Theme,
    axis,
    figure,
    level,
    shorten,
)
from prunelab.ledger.state import State
from prunelab.values import PathPoint
from prunelab.values.given import as_annotated

LEAST = 1e-6  # the smallest penalty that a logarithmic axis shows


@dataclass(frozen=True, slots=True)
class PathInfo:
    """The contents of the panel: `penalties`, largest first, what is kept and what is unexplained.

    `penalties` are shares of the one that keeps nothing; `wanted` is the number of channels that
    the search should keep, `found` the index of the first penalty that keeps this number.
    """

    group: str
    penalties: tuple[float, ...] = ()
    kept: tuple[int, ...] = ()
    unexplained: tuple[float, ...] = ()
    wanted: int | None = None
    found: int | None = None


@as_annotated
def path_info(state: State, group: str, seen: Iterable[Any] | None = None) -> PathInfo:
    """The points of Channel Pruning's LASSO path of `group`.

    Parameters
    ----------
    state
        The state to draw.
    group
        The name of a channel group.
    seen
        Evidence of a search; None: that of the latest proposal.
    """
    if seen is None:
        seen = state.proposed.seen if state.proposed else ()
    points = [item for item in seen if isinstance(item, PathPoint) and item.group == group]
    points = [point for point in points if point.penalty >= LEAST]
    if not points:
        return PathInfo(group)
    points.sort(key=lambda point: -point.penalty)
    wanted = points[-1].wanted
    return PathInfo(
        group=group,
        penalties=tuple(point.penalty for point in points),
        kept=tuple(point.kept for point in points),
        unexplained=tuple(point.unexplained for point in points),
        wanted=wanted,
        found=next((i for i, point in enumerate(points) if point.kept >= wanted), None),
    )


def draw_path(info: PathInfo) -> Panel:
    """A staircase from the largest penalty on the left to the smallest on the right."""
    decades = [math.log10(penalty) for penalty in info.penalties] or [-3.0, 0.0]
    pad = max(0.05 * (max(decades) - min(decades)), 0.1)
    left, right = max(decades) + pad, min(decades) - pad
    star = [] if info.found is None else [info.found]
    top = max([*info.kept, info.wanted or 1])
    return Panel(
        title=f"LASSO path in {shorten(info.group, 24)}",
        traces=(
            level(info.wanted, f"keep {info.wanted}", (10**left, 10**right), "wanted"),
            go.Scatter(
                x=list(info.penalties),
                y=list(info.kept),
                mode="lines+markers",
                line={"color": KEEP, "width": 2, "shape": "hv"},
                marker={"color": KEEP, "size": 5},
                name="kept",
                hovertext=[
                    f"penalty {penalty:.3g} keeps {kept}, leaves {missed:.1%} unexplained"
                    for penalty, kept, missed in zip(
                        info.penalties, info.kept, info.unexplained, strict=True
                    )
                ],
                hoverinfo="text",
            ),
            go.Scatter(
                x=[info.penalties[i] for i in star],
                y=[info.kept[i] for i in star],
                mode="markers",
                marker={"color": DROP, "size": 12, "symbol": "star"},
                name="chosen",
                hoverinfo="skip",
            ),
        ),
        xaxis=axis(
            "penalty, share of the one that keeps nothing",
            type="log",
            range=[left, right],
            tickformat="~g",
            exponentformat="none",
            nticks=6,
        ),
        yaxis=axis("channels kept", range=[-0.03 * top, 1.12 * top], nticks=6),
        note="" if info.penalties else "no LASSO path to show<br>(Channel Pruning makes one)",
    )


@as_annotated
def path(state: State, group: str, *, theme: Theme = "light") -> go.Figure:
    """Channel Pruning's LASSO path of `group` in the latest proposal.

    Parameters
    ----------
    state
        The state to draw.
    group
        The name of a channel group.
    theme
        "light" or "dark".
    """
    return figure(draw_path(path_info(state, state.group(group))), theme)
