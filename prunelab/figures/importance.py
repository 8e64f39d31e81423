"""The importance panel: the scores of one group, sorted, and the units to be dropped."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import plotly.graph_objects as go

from prunelab.figures.choice_words import how_chosen, how_split
from prunelab.figures.halvings import ROOM, Band, draw_bands, halved, label_bands
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
from prunelab.figures.ticks import decades, round_numbers
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
    the values need a logarithmic axis. `bands` are the halvings of AOFP's search, which stand in
    their order; `how` says how the choice was made. `noun` is what a unit is called.
    """

    group: str
    units: Units = ()
    values: tuple[float, ...] = ()
    fates: tuple[Fate, ...] = ()
    meaning: str = ""
    threshold: float | None = None
    log: bool = False
    bands: tuple[Band, ...] = ()
    how: str = ""
    noun: str = "channel"


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
    live = seen is not None
    if seen is None:
        seen = state.proposed.seen if state.proposed else ()
    scores = [item for item in seen if isinstance(item, Importance) and item.group == group]
    rungs = [] if scores else latest_search(seen, group)  # theta speaks of rungs
    bands: tuple[Band, ...] = ()
    if scores:
        meaning = scores[-1].meaning
        order = sorted(zip(scores[-1].values, scores[-1].units, strict=True))
        units, values = tuple(unit for _, unit in order), tuple(value for value, _ in order)
    elif rungs:
        meaning = RUNG_MEANING
        units, values, bands = halved(rungs)
    else:
        return ImportanceInfo(group)
    dropped = set(state.pending.drop.get(group, ())) if state.pending else set()
    move = state.pending or (state.proposed.move if state.proposed else None)
    split = move is not None and group in move.adds
    kept = state.now.kept
    alive = set(units) if kept is None else set(kept.get(group, units))
    return ImportanceInfo(
        group=group,
        units=units,
        values=values,
        fates=tuple(
            "drop" if unit in dropped else "keep" if unit in alive else "gone" for unit in units
        ),
        meaning=meaning,
        threshold=rungs[0].theta if rungs else None,
        log=_spans_decades(values),
        bands=bands,
        how=(
            how_split(
                dict(zip(units, values, strict=True)),
                set(units) - set(move.drop.get(group, ())),
                meaning,
            )
            if move is not None and split
            else how_chosen(state, group, meaning, bands, live)
        ),
        noun="component" if split else "channel",
    )


def _spans_decades(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return min(values) >= 0 and len(positive) > 1 and max(positive) / min(positive) > 30


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

    digits = max(2, len(str(max(info.units, default=0))))
    every = stride(count, (24 if info.bands else 32) // digits)
    left = -0.6 - ROOM * count if info.bands else -0.6
    tops = [max(heights[band.first : band.last + 1]) for band in info.bands]
    return Panel(
        title=f"Importance in {shorten(info.group, 22)}",
        traces=(
            draw_bands(info.bands, _unscaled(high, info.log)),
            bars("keep", "keep", {"color": KEEP}),
            bars("drop", "drop", {"color": DROP, "pattern": HATCH}),
            bars("gone", "gone", {"color": GHOST}),
            level(info.threshold, "", (left, count - 0.5), "threshold"),
            label_bands(info.bands, [_unscaled(top, info.log) for top in tops], info.log),
            go.Bar(
                x=list(range(count)),
                y=[_unscaled(high, info.log)] * count,
                marker={"color": INVISIBLE},
                width=1,
                name=info.noun,
                customdata=list(info.units),
                hovertext=[
                    f"{info.noun} {unit}: {value:.3g}, {fate}{why}"
                    for unit, value, fate, why in zip(
                        info.units, info.values, info.fates, _reasons(info), strict=True
                    )
                ],
                hoverinfo="text",
                hoverlabel={"bgcolor": FAINT},
            ),
        ),
        xaxis=axis(
            f"{info.noun} (original number), least important first",
            tickmode="array",
            tickvals=list(range(0, count, every)),
            ticktext=[str(unit) for unit in info.units[::every]],
            tickangle=0,
            showgrid=False,
            range=[left, max(count, 1) - 0.4],
        ),
        yaxis=axis(
            wrap(info.meaning) or "importance",
            type="log" if info.log else "linear",
            range=[low, high],
            **_ticks(info, low, high),
            showgrid=count > 0,
        ),
        note="" if count else "no scores of this group yet",
    )


def _reasons(info: ImportanceInfo) -> list[str]:
    """What the tooltip of each channel says about its halving."""
    if not info.bands:
        return [""] * len(info.units)
    return [
        f"<br>{wrap(band.why, 60)}" for band in info.bands for _ in range(band.first, band.last + 1)
    ]


def _ticks(info: ImportanceInfo, low: float, high: float) -> dict[str, object]:
    """Ticks of the values; theta is one of them, in the place of those that are too near."""
    values = decades(low, high, 5) if info.log else round_numbers(low, high, 5)
    if not info.units:
        values = []
    theta, near = info.threshold, 0.07 * (high - low)
    if theta is not None and (theta > 0 or not info.log):
        at = _scaled(theta, info.log, low)
        values = [value for value in values if abs(_scaled(value, info.log, low) - at) > near]
    texts = [f"{value:.6g}" for value in values]
    if theta is not None:
        values, texts = [*values, theta], [*texts, f"<b>θ {theta:g}</b>"]
    return {"tickmode": "array", "tickvals": values, "ticktext": texts}


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
