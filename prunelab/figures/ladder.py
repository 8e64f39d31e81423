"""The ladder panel: AOFP's binary search in one group, rung by rung, against theta."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from prunelab.figures.style import (
    DROP,
    FAINT,
    KEEP,
    TARGET,
    TEXT_PX,
    Panel,
    Theme,
    axis,
    figure,
    level,
    shorten,
)
from prunelab.ledger.state import State
from prunelab.values import Rung, Verdict
from prunelab.values.given import as_annotated

COLOURS: dict[Verdict, str] = {"take": TARGET, "halve": KEEP, "fail": DROP}
SYMBOLS: dict[Verdict, str] = {"take": "star", "halve": "circle", "fail": "x"}


@dataclass(frozen=True, slots=True)
class LadderInfo:
    """The contents of the panel: a dot per halving of `group`, and the other groups' lines.

    `sizes` are channels under search, `taken` the candidates among them, `worst` the largest
    mean damage of a candidate (share of the signal); `others` holds (sizes, worst) per group.
    """

    group: str
    sizes: tuple[int, ...] = ()
    taken: tuple[int, ...] = ()
    worst: tuple[float, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    theta: float | None = None
    others: tuple[tuple[tuple[int, ...], tuple[float, ...]], ...] = ()


def searches(seen: Iterable[Any]) -> dict[str, list[Rung]]:
    """The rungs of each group's latest search, in order."""
    found: dict[str, list[Rung]] = {}
    for rung in seen:
        if not isinstance(rung, Rung):
            continue
        rungs = found.setdefault(rung.group, [])
        if rungs and rung.halving <= rungs[-1].halving:
            rungs.clear()  # the method searched this group again
        rungs.append(rung)
    return found


def latest_search(seen: Iterable[Any], group: str) -> list[Rung]:
    """The rungs of the latest search in `group`."""
    return searches(seen).get(group, [])


@as_annotated
def ladder_info(state: State, group: str, seen: Iterable[Any] | None = None) -> LadderInfo:
    """The steps of AOFP's binary search of `group`.

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
    found = searches(seen)
    own = found.pop(group, [])
    every = [*own, *(rung for rungs in found.values() for rung in rungs)]
    return LadderInfo(
        group=group,
        sizes=tuple(len(rung.search) for rung in own),
        taken=tuple(len(rung.candidates) for rung in own),
        worst=tuple(rung.worst for rung in own),
        verdicts=tuple(rung.verdict for rung in own),
        theta=every[0].theta if every else None,
        others=tuple(
            (tuple(len(rung.search) for rung in rungs), tuple(rung.worst for rung in rungs))
            for rungs in found.values()
        ),
    )


def verdict_label(verdict: Verdict, taken: int) -> str:
    """The label of a dot."""
    return {"take": f"drop {taken}", "halve": "halve", "fail": "give up"}[verdict]


def draw_ladder(info: LadderInfo) -> Panel:
    """Dots from the full search set on the left to the smallest on the right."""
    sizes = [*info.sizes, *(size for one, _ in info.others for size in one)]
    values = [*info.worst, *(worst for _, one in info.others for worst in one)]
    values += [info.theta] if info.theta else []
    floor = min((value for value in values if value > 0), default=1e-3)
    decades = [math.log10(max(value, floor)) for value in values] or [-3.0, 0.0]
    pad = max(0.12 * (max(decades) - min(decades)), 0.15)
    widest, narrowest = (max(sizes), min(sizes)) if sizes else (16, 2)
    left, right = math.log10(widest) + 0.12, math.log10(narrowest) - 0.22
    ticks = sorted(set(info.sizes or sizes), reverse=True)
    faint_x: list[int | None] = []
    faint_y: list[float | None] = []
    for xs, ys in info.others:
        faint_x += [*xs, None]
        faint_y += [*(max(y, floor) for y in ys), None]
    ends = 10**left, 10**right
    return Panel(
        title=f"Binary search in {shorten(info.group, 20)}",
        traces=(
            go.Scatter(
                x=faint_x,
                y=faint_y,
                mode="lines",
                line={"color": FAINT, "width": 2},
                name="other groups",
                hoverinfo="skip",
            ),
            level(info.theta or None, f"theta {info.theta:g}" if info.theta else "", ends, "theta"),
            go.Scatter(
                x=list(info.sizes),
                y=[max(value, floor) for value in info.worst],
                mode="lines+markers+text",
                text=[
                    verdict_label(verdict, taken)
                    for verdict, taken in zip(info.verdicts, info.taken, strict=True)
                ],
                # away from theta: what is taken lies below it
                textposition=[
                    "bottom right" if verdict == "take" else "top right"
                    for verdict in info.verdicts
                ],
                textfont={"size": TEXT_PX},
                line={"color": KEEP, "width": 2},
                marker={
                    "size": 11,
                    "color": [COLOURS[verdict] for verdict in info.verdicts],
                    "symbol": [SYMBOLS[verdict] for verdict in info.verdicts],
                },
                name="search",
                hovertext=[
                    f"{taken} of {size} masked: worst mean damage {worst:.3g}"
                    for size, taken, worst in zip(info.sizes, info.taken, info.worst, strict=True)
                ],
                hoverinfo="text",
            ),
        ),
        xaxis=axis(
            "channels under search (halved each time)",
            type="log",
            range=[left, right],
            tickmode="array",
            tickvals=ticks,
            ticktext=[str(size) for size in ticks],
            showgrid=True,
        ),
        yaxis=axis(
            "worst mean damage of a candidate,<br>share of the signal",
            type="log",
            range=[min(decades) - 1.4 * pad, max(decades) + 1.4 * pad],
            nticks=6,
            tickformat="~g",
            exponentformat="none",
        ),
        note="" if sizes else "no binary search to show<br>(AOFP searches by halving)",
    )


@as_annotated
def ladder(state: State, group: str, *, theme: Theme = "light") -> go.Figure:
    """AOFP's binary search of `group` in the latest proposal.

    Parameters
    ----------
    state
        The state to draw.
    group
        The name of a channel group.
    theme
        "light" or "dark".
    """
    return figure(draw_ladder(ladder_info(state, state.group(group))), theme)
