"""The board: all four panels in one figure, whose traces can be updated in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import plotly.graph_objects as go

from prunelab.figures.importance import ImportanceInfo, Seen, draw_importance, importance_info
from prunelab.figures.ladder import LadderInfo, draw_ladder, ladder_info
from prunelab.figures.lasso_path import PathInfo, draw_path, path_info
from prunelab.figures.style import (
    COUPLED,
    DROP,
    GHOST,
    KEEP,
    TARGET,
    TEXT_PX,
    TITLE_PX,
    Panel,
    Theme,
    caption,
    paper,
)
from prunelab.figures.trajectory import Latencies, TrajectoryInfo, draw_trajectory, trajectory_info
from prunelab.figures.widths import DIAMOND, WidthsInfo, draw_widths, gathered, widths_info
from prunelab.ledger.state import State
from prunelab.values.given import as_annotated

Arrange = Literal["grid", "stack"]

NAMES = ("importance", "search", "widths", "trajectory")

# (left, right), (bottom, top) of each panel, as shares of the figure. The widths stand on the left:
# the names of the groups then take margin, which plotly sizes in pixels. The search is the lower
# part, which a screen shows when it is asked to.
DOMAINS: dict[Arrange, dict[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    "grid": {
        "widths": ((0, 0.21), (0.53, 1)),
        "importance": ((0.315, 0.73), (0.53, 1)),
        "trajectory": ((0.81, 1), (0.53, 1)),
        "search": ((0, 1), (0, 0.38)),
    },
    "stack": {
        "importance": ((0, 1), (0.81, 1)),
        "widths": ((0, 1), (0.54, 0.73)),
        "trajectory": ((0, 1), (0.27, 0.46)),
        "search": ((0, 1), (0, 0.19)),
    },
}
HEIGHTS: dict[Arrange, int] = {"grid": 600, "stack": 1100}
PALE = 0.4  # opacity of stale evidence

SIGNS = {
    "kept": ("■", KEEP),
    "proposed to drop": ("▨", DROP),
    "dropped before": ("■", GHOST),
    "theta": ("┅", TARGET),
    "undone": ("●", GHOST),
    "where the proposal leads": ("<b>?</b>", "inherit"),
    "coupled layers": (DIAMOND, COUPLED),
}


def legend(names: Iterable[str]) -> str:
    """What these signs mean, as HTML below the board."""
    return " &emsp; ".join(
        '<span style="white-space:nowrap">'
        f'<span style="color:{SIGNS[name][1]}">{SIGNS[name][0]}</span> {name}</span>'
        for name in names
    )


LEGEND = legend(SIGNS)


@dataclass(frozen=True, slots=True)
class BoardInfo:
    """The contents of the four panels; equal infos draw equal figures."""

    importance: ImportanceInfo
    ladder: LadderInfo
    path: PathInfo
    widths: WidthsInfo
    trajectory: TrajectoryInfo
    stale: str = ""  # when the evidence was measured, if the network has changed since


@as_annotated
def board_info(
    state: State,
    group: str,
    *,
    layers: Mapping[str, Sequence[str]] | None = None,
    seen: Seen | None = None,
    latencies: Latencies | None = None,
) -> BoardInfo:
    """The contents of the board.

    Parameters
    ----------
    state
        The state to draw.
    group
        The name of the selected group.
    layers
        The groups to show, name to producing layers; None: every group, with one layer.
    seen
        Evidence of a running search; None: that of the latest proposal.
    latencies
        Measured latencies by event number, as `Session.latencies` holds them.
    """
    return BoardInfo(
        importance=importance_info(state, group, seen),
        ladder=ladder_info(state, group, seen),
        path=path_info(state, group, seen),
        widths=widths_info(state, layers, group),
        trajectory=trajectory_info(state, latencies),
        stale=measured(state) if seen is None else "",
    )


def measured(state: State) -> str:
    """When the latest proposal's evidence was measured, if the network has changed since."""
    latest = state.proposed
    if latest is None or latest.move is None:
        return ""
    mark = latest.move.fingerprint
    if mark == state.now.event.fingerprint:
        return ""
    of = next((point.seq for point in state.points if point.event.fingerprint == mark), None)
    if of is None:
        return ""
    moves = state.moves_at(of)
    return f"measured after move {moves}" if moves else "measured before the first move"


def signs(info: BoardInfo, whole: bool) -> list[str]:
    """The signs that the board shows: in its upper part, or in the `whole`."""
    rows, path = info.widths.rows, info.trajectory
    shown = {
        "kept": True,
        "proposed to drop": any(row.proposed != row.now for row in rows),
        "dropped before": any(row.now != row.original for row in rows),
        "theta": info.importance.threshold is not None or (whole and info.ladder.theta is not None),
        "undone": bool(path.undone),
        "where the proposal leads": path.pending is not None,
        "coupled layers": any(row.coupled for row in rows),
    }
    return [name for name in SIGNS if shown[name]]


def faded(panel: Panel, when: str) -> Panel:
    """A pale copy of `panel` with `when`, the time of its evidence, in the title; "": unchanged.

    Pale, not grey: kept and dropped channels must stay distinguishable.
    """
    for trace in panel.traces:
        trace.opacity = PALE if when else 1
    return replace(panel, title=panel.title + f"<br>{when}" * bool(when))


def draw_search(ladder: LadderInfo, path: PathInfo) -> Panel:
    """The panel of the method's search: the LASSO path if there is one, or the binary search."""
    drawn = draw_ladder(ladder), draw_path(path)
    shown = drawn[bool(path.penalties)]
    for panel in drawn:
        for trace in panel.traces:
            trace.visible = panel is shown
    return replace(shown, traces=drawn[0].traces + drawn[1].traces)


def panels(info: BoardInfo) -> dict[str, Panel]:
    """The four panels, in the order of `NAMES`."""
    return {
        "importance": faded(draw_importance(info.importance), info.stale),
        "search": faded(draw_search(info.ladder, info.path), info.stale),
        "widths": replace(draw_widths(gathered(info.widths)), title="Widths"),  # see the legend
        "trajectory": draw_trajectory(info.trajectory),
    }


def traces(drawn: Mapping[str, Panel]) -> list[go.Bar | go.Scatter]:
    """All traces in a fixed order, each on the axes of its panel."""
    placed = []
    for number, name in enumerate(NAMES, start=1):
        suffix = "" if number == 1 else str(number)
        for trace in drawn[name].traces:
            trace.update(xaxis=f"x{suffix}", yaxis=f"y{suffix}")
            placed.append(trace)
    return placed


def layout(drawn: Mapping[str, Panel], arrange: Arrange) -> dict[str, Any]:
    """Axes, titles and notes: the parts of the layout that depend on the state."""
    made: dict[str, Any] = {"annotations": []}
    for number, name in enumerate(NAMES, start=1):
        panel, (across, up) = drawn[name], DOMAINS[arrange][name]
        suffix = "" if number == 1 else str(number)
        made[f"xaxis{suffix}"] = {**panel.xaxis, "domain": across, "anchor": f"y{suffix}"}
        made[f"yaxis{suffix}"] = {**panel.yaxis, "domain": up, "anchor": f"x{suffix}"}
        place = {"xref": "paper", "yref": "paper"}
        title, _, when = panel.title.partition("<br>")
        corner = {"x": across[0], "y": up[1], "xanchor": "left", "align": "left", **place}
        made["annotations"] += [
            caption(f"<b>{title}</b>", TITLE_PX, yanchor="bottom", yshift=5, **corner),
            caption(when, TEXT_PX, yanchor="top", xshift=2, **corner),
            caption(
                panel.note,
                TEXT_PX + 1,
                x=sum(across) / 2,
                y=sum(up) / 2,
                xanchor="center",
                **place,
            ),
        ]
    return made


def frame(
    drawn: Mapping[str, Panel], arrange: Arrange = "grid", theme: Theme = "light"
) -> dict[str, Any]:
    """The whole layout of the figure."""
    return {
        **paper(theme),
        **layout(drawn, arrange),
        "height": HEIGHTS[arrange],
        "margin": {"l": 60, "r": 12, "t": 30, "b": 42},
    }


@as_annotated
def board(info: BoardInfo, *, arrange: Arrange = "grid", theme: Theme = "light") -> go.Figure:
    """The four panels in one figure.

    Parameters
    ----------
    info
        The contents, by `board_info`.
    arrange
        "grid" puts widths, importance and trajectory beside each other, and the search below;
        "stack" puts all under each other.
    theme
        "light" or "dark".
    """
    drawn = panels(info)
    return go.Figure(traces(drawn), frame(drawn, arrange, theme))
