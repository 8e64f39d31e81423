"""The widths panel: channels of each group in the original network, now, and after the proposal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import plotly.graph_objects as go

from prunelab.figures.row_grouping import ROOM as MOST
from prunelab.figures.row_grouping import modules
from prunelab.figures.style import (
    COUPLED,
    DROP,
    FAINT,
    HATCH,
    INVISIBLE,
    KEEP,
    TEXT_PX,
    Panel,
    Theme,
    axis,
    figure,
    row_axis,
    row_bars,
    row_height,
    shorten,
    stride,
)
from prunelab.ledger.state import State
from prunelab.values.given import as_annotated

ROOM = 18  # labels that fit above each other in a panel of 240 px
DIAMOND = "◆"


@dataclass(frozen=True, slots=True)
class WidthRow:
    """One group: channels in the original, now, after the proposal; `layers` that share them.

    Or a module: the means of its `groups`.
    """

    name: str
    original: float
    now: float
    proposed: float
    layers: tuple[str, ...]
    groups: tuple[str, ...] = ()

    @property
    def coupled(self) -> bool:
        """Whether several layers share its channels."""
        return len(self.layers) > 1


@dataclass(frozen=True, slots=True)
class WidthsInfo:
    """The contents of the panel: a row per group in network order; `selected` is shown in bold.

    At most `room` rows carry a label.
    """

    rows: tuple[WidthRow, ...]
    selected: str | None = None
    room: int = ROOM


@as_annotated
def widths_info(
    state: State,
    layers: Mapping[str, Sequence[str]] | None = None,
    selected: str | None = None,
) -> WidthsInfo:
    """The width of each group in the original network, now, and after the pending move.

    Parameters
    ----------
    state
        The state to draw.
    layers
        The groups to show, name to producing layers; None: every group, with one layer.
    selected
        The name of the group that is shown in bold.
    """
    full = state.full_widths
    if layers is None:
        layers = {name: (name,) for name in full}
    now, proposed = state.widths(), state.proposed_widths()
    return WidthsInfo(
        rows=tuple(
            WidthRow(name, full[name], now[name], proposed[name], tuple(producers))
            for name, producers in layers.items()
            if name in full  # the ranks of layers that are factorised later are not
        ),
        selected=selected,
    )


def draw_widths(info: WidthsInfo) -> Panel:
    """Horizontal bars, first layer on top; the transparent rows, last, take hover and clicks."""
    rows = info.rows
    count = len(rows)
    every = stride(count, info.room)
    labelled = [i for i, row in enumerate(rows) if i % every == 0 or row.name == info.selected]
    if every > 1:  # the selected row's label would sit on its neighbour's
        chosen = {i for i in labelled if rows[i].name == info.selected}
        labelled = [i for i in labelled if i in chosen or all(abs(i - j) >= every for j in chosen)]
    widest = max((row.original for row in rows), default=1)
    reach = 1.5 * widest  # room for what is said beside the bars
    coupled = [i for i in range(count) if rows[i].coupled]
    return Panel(
        title="Widths" + (f" ({DIAMOND} coupled layers)" if coupled else ""),
        traces=(
            row_bars([row.original for row in rows], "original", {"color": FAINT}),
            row_bars([row.proposed for row in rows], "kept", {"color": KEEP}),
            row_bars(
                [row.now - row.proposed for row in rows],
                "proposed to drop",
                {"color": DROP, "pattern": HATCH},
                base=[row.proposed for row in rows],
            ),
            go.Scatter(
                y=coupled,
                x=[rows[i].original for i in coupled],
                mode="markers+text",
                marker={"symbol": "diamond", "size": 11 if count <= ROOM else 7, "color": COUPLED},
                text=[f"{len(rows[i].layers)} layers" if count <= ROOM else "" for i in coupled],
                textposition="middle right",
                textfont={"size": TEXT_PX},
                cliponaxis=False,
                name="coupled",
                hoverinfo="skip",
            ),
            row_bars(
                [reach] * count,
                "group",
                {"color": INVISIBLE},
                width=1,
                customdata=[(*row.groups, row.name)[0] for row in rows],
                hovertext=[_hover(row) for row in rows],
                hoverinfo="text",
                hoverlabel={"bgcolor": FAINT},
            ),
        ),
        xaxis=axis(
            "channels" + " (mean over the module)" * any(row.groups for row in rows),
            range=[0, reach],
            nticks=5,
        ),
        yaxis=row_axis(
            "channel group", count, labelled, [_label(rows[i], info.selected) for i in labelled]
        ),
    )


def _label(row: WidthRow, selected: str | None) -> str:
    text = shorten(row.name) + " "
    return f"<b>{text}</b>" if row.name == selected else text


def _hover(row: WidthRow) -> str:
    text = f"{row.name}: {row.now:.4g} of {row.original:.4g} channels"
    if row.proposed != row.now:
        text += f", proposed {row.proposed:.4g}"
    if row.groups:
        text += f"<br>the mean of {len(row.groups)} groups; click to see them"
    if row.coupled:
        text += "<br>shared by " + "<br>".join(row.layers)
    return text


@as_annotated
def widths(
    state: State,
    layers: Mapping[str, Sequence[str]] | None = None,
    *,
    by: Literal["group", "module"] = "group",
    theme: Theme = "light",
) -> go.Figure:
    """The channels of every group: in the original network, now, and after the pending move.

    Parameters
    ----------
    state
        The state to draw.
    layers
        The groups to show, name to producing layers; None: every group, with one layer.
    by
        "group" draws a row for each group, "module" the means over the groups of each module,
        which keeps the figure of a long network short.
    theme
        "light" or "dark".
    """
    info = widths_info(state, layers)
    if by == "module":
        info = gathered(info)
    info = replace(info, room=len(info.rows))
    return figure(draw_widths(info), theme, height=row_height(len(info.rows)))


def gathered(info: WidthsInfo, most: int = MOST) -> WidthsInfo:
    """`info` in about `most` rows at most; more groups are replaced by the means of their modules.

    The modules that contain the selected group are expanded.
    """
    names = modules([row.name for row in info.rows], most, info.selected)
    inside: dict[str, list[WidthRow]] = {}
    for row in info.rows:
        inside.setdefault(names[row.name], []).append(row)
    rows = [group[0] if len(group) == 1 else _mean(name, group) for name, group in inside.items()]
    return replace(info, rows=tuple(rows))


def _mean(module: str, rows: Sequence[WidthRow]) -> WidthRow:
    original, now, proposed = (
        sum(getattr(row, kind) for row in rows) / len(rows)
        for kind in ("original", "now", "proposed")
    )
    return WidthRow(module, original, now, proposed, (module,), tuple(row.name for row in rows))
