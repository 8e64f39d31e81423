"""The sensitivity figure: what the network loses as more of each group is removed."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from prunelab.figures.style import TEXT_PX, TITLE_PX, Theme, axis, paper, shorten
from prunelab.values.given import as_annotated
from prunelab.values.sensitivity import Sensitivity

LABELLED = 5  # lines with their name at their end: the most sensitive
APART = 0.06  # of the highest rise: how far apart two names must be to be readable
DEPTHS = "Viridis"
DARKEST, LIGHTEST = 0.0, 0.85  # of that scale: its yellow end is too faint on white paper


@dataclass(frozen=True, slots=True)
class SensitivityLine:
    """One group: `shares` removed in percent, the signal lost in percent, the rise of the loss."""

    name: str
    shares: tuple[float, ...]
    damages: tuple[float, ...]
    rises: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class SensitivityInfo:
    """The contents of the figure, groups in execution order; `loss` is that of the whole network.

    `labelled` are the groups whose loss rises most at their largest share, without those whose
    names would lie on another's.
    """

    lines: tuple[SensitivityLine, ...]
    loss: float
    images: int
    labelled: tuple[str, ...]


@as_annotated
def sensitivity_info(found: Sensitivity) -> SensitivityInfo:
    """The groups of `found` as lines."""
    lines = tuple(
        SensitivityLine(
            name=one.group,
            shares=tuple(100 * share for share in one.shares),
            damages=tuple(100 * damage for damage in one.damages),
            rises=found.rise(one.group),
        )
        for one in found.groups
    )
    return SensitivityInfo(lines, found.loss, found.images, _labelled(lines))


def _labelled(lines: tuple[SensitivityLine, ...]) -> tuple[str, ...]:
    """The most sensitive groups whose ends lie apart."""
    ends = {line.name: line.rises[-1] for line in lines if line.rises}
    room = APART * max(ends.values(), default=0.0)
    chosen: list[str] = []
    for name in sorted(ends, key=lambda name: -ends[name]):
        if all(ends[other] - ends[name] >= room for other in chosen):
            chosen.append(name)
    return tuple(chosen[:LABELLED])


@as_annotated
def sensitivity(found: Sensitivity, *, theme: Theme = "light") -> go.Figure:
    """Each group's signal lost (predicted) and rise of the loss (measured), by the share removed.

    Darker lines lie earlier in the network; the most sensitive groups are named.

    Parameters
    ----------
    found
        What `Session.sensitivity` returned.
    theme
        "light" or "dark".
    """
    info = sensitivity_info(found)
    drawn = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    for index, line in enumerate(info.lines):
        depth = index / max(1, len(info.lines) - 1)
        (colour,) = sample_colorscale(DEPTHS, [DARKEST + (LIGHTEST - DARKEST) * depth])
        for column, values in ((1, line.damages), (2, line.rises)):
            drawn.add_trace(_trace(line, values, colour, info, named=column == 2), 1, column)
    drawn.update_layout(
        **paper(theme),
        height=420,
        title={
            "text": f"Sensitivity, nothing repaired ({info.images:,} validation images)",
            "font": {"size": TITLE_PX},
        },
    )
    for column, title in ((1, "signal lost, %"), (2, f"rise of the loss of {info.loss:.3g}")):
        drawn.update_xaxes(**axis("units of the group removed, %", range=[0, 100]), col=column)
        drawn.update_yaxes(**axis(title, automargin=True), col=column)
    return drawn.update_xaxes(range=[0, 125], tickvals=[0, 20, 40, 60, 80, 100], col=2)


def _trace(
    line: SensitivityLine,
    values: tuple[float, ...],
    colour: str,
    info: SensitivityInfo,
    *,
    named: bool,
) -> go.Scatter:
    label = shorten(line.name) if named and line.name in info.labelled else ""
    return go.Scatter(
        x=[0.0, *line.shares],
        y=[0.0, *values],
        mode="lines+markers+text",
        line={"color": colour, "width": 2},
        marker={"color": colour, "size": 6},
        text=[""] * len(values) + [label],
        textposition="middle right",
        textfont={"size": TEXT_PX},
        cliponaxis=False,
        showlegend=False,
        name=line.name,
        hovertext=[f"{line.name}, nothing removed"]
        + [
            f"{line.name}, {share:.0f}% removed: {damage:.1f}% of the signal lost, "
            f"loss {info.loss + rise:.3f} ({rise:+.3f})"
            for share, damage, rise in zip(line.shares, line.damages, line.rises, strict=True)
        ],
        hoverinfo="text",
    )
