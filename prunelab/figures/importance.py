"""The importance panel: the scores of one group, sorted, and the units to be dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from prunelab.figures.ladder import latest_search
from prunelab.figures.style import (
    DROP,
    FAINT,
    GHOST,
    HATCH,
    INVISIBLE,
    KEEP,
    Panel,
    Theme,
    axis,
    figure,
    level,
    shorten,
    stride,
    wrap,
)
from prunelab.ledger.state import State
from prunelab.values import Importance, PathPoint, Rung, Units
from prunelab.values.given import as_annotated

Seen = Sequence[Importance | Rung | PathPoint]
Fate = Literal["keep", "drop", "gone"]

RUNG_MEANING = "mean damage in its last halving, share of the signal"
SLIVER = 0.03  # of the axis: a bar of nothing must still show whether it is hatched


@dataclass(frozen=True, slots=True)
class ImportanceInfo:
    """The contents of the panel: `units`, `values` and `fates` aligned, smallest value first.

    `threshold` is on the same scale as `values` (None: the method has none). `log` says that
    the values need a logarithmic axis.
    """

    group: str
    units: Units = ()
    values: tuple[float, ...] = ()
    fates: tuple[Fate, ...] = ()
    meaning: str = ""
    threshold: float | None = None
    log: bool = False


@as_annotated
def importance_info(state: State, group: str, seen: Seen | None = None) -> ImportanceInfo:
    """The scores of the units of `group`, from an Importance or from AOFP's latest search.

    In a search each unit has its mean damage in the last Rung that held it; the units that stayed
    in the search longest come first.

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
    scores = [item for item in seen if isinstance(item, Importance) and item.group == group]
    rungs = latest_search(seen, group)
    threshold = rungs[0].theta if rungs else None
    if scores:
        units, values, meaning = scores[-1].units, scores[-1].values, scores[-1].meaning
        threshold = None  # theta speaks of rungs, on another scale
    elif rungs:
        damages = {u: d for rung in rungs for u, d in zip(rung.search, rung.damages, strict=True)}
        units, values, meaning = tuple(damages), tuple(damages.values()), RUNG_MEANING
    else:
        return ImportanceInfo(group)
    dropped = set(state.pending.drop.get(group, ())) if state.pending else set()
    kept = state.now.kept
    alive = set(units) if kept is None else set(kept.get(group, units))
    order = sorted(range(len(units)), key=lambda i: (values[i], units[i]))
    ranked = tuple(values[i] for i in order)
    return ImportanceInfo(
        group=group,
        units=tuple(units[i] for i in order),
        values=ranked,
        fates=tuple(
            "drop" if units[i] in dropped else "keep" if units[i] in alive else "gone"
            for i in order
        ),
        meaning=meaning,
        threshold=threshold,
        log=_spans_decades(ranked),
    )


def _spans_decades(ranked: Sequence[float]) -> bool:
    positive = [value for value in ranked if value > 0]
    return ranked[0] >= 0 and len(positive) > 1 and positive[-1] / positive[0] > 30


def draw_importance(info: ImportanceInfo) -> Panel:
    """Bars over a column each; the transparent columns, last, take hover and clicks."""
    count = len(info.units)
    low, high = _span(info)
    least = low + SLIVER * (high - low)
    heights = [max(_scaled(value, info.log, low), least) for value in info.values]

    def bars(fate: Fate, label: str, marker: dict[str, object]) -> go.Bar:
        chosen = [i for i, f in enumerate(info.fates) if f == fate]
        return go.Bar(
            x=chosen,
            y=[_unscaled(heights[i], info.log) for i in chosen],
            width=0.85,
            marker=marker,
            name=label,
            hoverinfo="skip",
        )

    threshold = info.threshold
    label = "" if threshold is None else f"theta {threshold:g}"
    every = stride(count, 16)
    return Panel(
        title=f"Importance in {shorten(info.group, 22)}",
        traces=(
            bars("keep", "keep", {"color": KEEP}),
            bars("drop", "drop", {"color": DROP, "pattern": HATCH}),
            bars("gone", "gone", {"color": GHOST}),
            level(threshold, label, (-0.5, count - 0.5), "threshold"),
            go.Bar(
                x=list(range(count)),
                y=[_unscaled(high, info.log)] * count,
                marker={"color": INVISIBLE},
                width=1,
                name="channel",
                customdata=list(info.units),
                hovertext=[
                    f"channel {unit}: {value:.3g}, {fate}"
                    for unit, value, fate in zip(info.units, info.values, info.fates, strict=True)
                ],
                hoverinfo="text",
                hoverlabel={"bgcolor": FAINT},
            ),
        ),
        xaxis=axis(
            "channel (original number), least important first",
            tickmode="array",
            tickvals=list(range(0, count, every)),
            ticktext=[str(unit) for unit in info.units[::every]],
            tickangle=0,
            showgrid=False,
            range=[-0.6, max(count, 1) - 0.4],
        ),
        yaxis=axis(
            wrap(info.meaning) or "importance",
            type="log" if info.log else "linear",
            range=[low, high],
            nticks=6,
            tickformat="~g",
            exponentformat="none",
        ),
        note="" if count else "no scores of this group yet",
    )


def _span(info: ImportanceInfo) -> tuple[float, float]:
    """The axis from low to high, in decades where it is logarithmic."""
    shown = [*info.values, *([] if info.threshold is None else [info.threshold])]
    if info.log:
        decades = [math.log10(value) for value in shown if value > 0]
        low, high = min(decades), max(decades)
        return low - 0.08 * (high - low) - 0.05, high + 0.08 * (high - low)
    low, high = min([0.0, *shown]), max([0.0, *shown])
    return low, high + 0.08 * (high - low) if high > low else low + 1.0


def _scaled(value: float, log: bool, low: float) -> float:
    if not log:
        return value
    return math.log10(value) if value > 0 else low


def _unscaled(height: float, log: bool) -> float:
    return float(10**height) if log else height


@as_annotated
def importance(state: State, group: str, *, theme: Theme = "light") -> go.Figure:
    """The scores of `group` in the latest proposal, and the units that it drops.

    Parameters
    ----------
    state
        The state to draw.
    group
        The name of a channel group.
    theme
        "light" or "dark".
    """
    return figure(draw_importance(importance_info(state, state.group(group))), theme)
